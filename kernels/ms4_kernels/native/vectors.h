/* Elementwise helpers on vectors of LANES floats: sigmoid, bf16, transposes. */
#ifndef MS4_VECTORS_H
#define MS4_VECTORS_H

#include "product.h"

INLINE vec choose(ivec where, vec yes, vec no) { return (vec)((where & (ivec)yes) | (~where & (ivec)no)); }

/* exp within 2 units in the last place: x = k ln 2 + r, and a Taylor polynomial of degree 7 on |r| <= ln 2 / 2. NaN stays NaN. */
INLINE vec exponential(vec x) {
    const vec high = (vec){0} + 88.0f, low = (vec){0} - 87.0f;
    x = choose(x > high, high, x);
    x = choose(x < low, low, x);
    const float to_integer = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    vec k = (x * 1.44269504089f + to_integer) - to_integer;
    vec r = (x - k * 0.693359375f) + k * 2.12194440e-4f; /* ln 2 in two parts */
    vec sum = r * 1.9841270e-4f + 1.3888889e-3f;
    sum = sum * r + 8.3333333e-3f;
    sum = sum * r + 4.1666667e-2f;
    sum = sum * r + 1.6666667e-1f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    ivec power = (__builtin_convertvector(k, ivec) + 127) << 23;
    return sum * (vec)power;
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float out;
    memcpy(&out, &wide, 4);
    return out;
}

/* Round to nearest, ties to even, as torch does. */
INLINE uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

/* to[c][r] = from[r][c]; in blocks, so that both sides stay in the nearest cache. Row r of `from` starts at from + index[r] * stride. */
static void transpose(int rows, int columns, const float *from, ptrdiff_t stride, const int32_t *index, float *to, ptrdiff_t to_stride) {
    for (int r0 = 0; r0 < rows; r0 += 16)
        for (int c0 = 0; c0 < columns; c0 += 16) {
            int r1 = r0 + 16 < rows ? r0 + 16 : rows, c1 = c0 + 16 < columns ? c0 + 16 : columns;
            for (int r = r0; r < r1; r++) {
                const float *row = from + (index ? (ptrdiff_t)index[r] : (ptrdiff_t)r) * stride;
                for (int c = c0; c < c1; c++) to[c * to_stride + r] = row[c];
            }
        }
}

#endif
