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

#if defined(__GNUC__) && !defined(__clang__)
/* Pairs of rows a distance of `span` apart exchange half of their lanes. Everything here is known when compiled, and has to be: with
   loops left over, the rows would live in memory. */
INLINE void exchange(vec *row, int span) {
    ivec low, high;
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; lane++) {
        low[lane] = lane & span ? LANES + lane - span : lane;
        high[lane] = lane & span ? LANES + lane : lane + span;
    }
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++)
        if (!(r & span)) {
            vec first = row[r], second = row[r + span];
            row[r] = __builtin_shuffle(first, second, low);
            row[r + span] = __builtin_shuffle(first, second, high);
        }
}

/* A square of LANES x LANES. */
INLINE void transpose_square(const float *from, ptrdiff_t stride, const int32_t *index, float *to, ptrdiff_t to_stride) {
    vec row[LANES];
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++) row[r] = load(from + (index ? (ptrdiff_t)index[r] : (ptrdiff_t)r) * stride);
    exchange(row, 1);
    exchange(row, 2);
#if LANES > 4
    exchange(row, 4);
#endif
#if LANES > 8
    exchange(row, 8);
#endif
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++) store(to + r * to_stride, row[r]);
}
#define HAS_SQUARES 1
#else
#define HAS_SQUARES 0
#define transpose_square(from, stride, index, to, to_stride)
#endif

/* to[c][r] = from[r][c]; in blocks, so that both sides stay in the nearest cache. Row r of `from` starts at from + index[r] * stride. */
static void transpose(int rows, int columns, const float *from, ptrdiff_t stride, const int32_t *index, float *to, ptrdiff_t to_stride) {
    for (int r0 = 0; r0 < rows; r0 += LANES)
        for (int c0 = 0; c0 < columns; c0 += LANES) {
            const float *corner = index ? from + c0 : from + r0 * stride + c0;
            float *result = to + c0 * to_stride + r0;
            /* Rows gathered from all over memory are nothing that a processor foresees, nor are result rows far apart. */
            for (int r = r0 + LANES; r < r0 + 2 * LANES && r < rows; r++)
                __builtin_prefetch(from + (index ? (ptrdiff_t)index[r] : (ptrdiff_t)r) * stride + c0);
            for (int c = c0 + LANES; c < c0 + 2 * LANES && c < columns; c++) __builtin_prefetch(to + c * to_stride + r0, 1);
            if (HAS_SQUARES && r0 + LANES <= rows && c0 + LANES <= columns) {
                transpose_square(corner, stride, index ? index + r0 : 0, result, to_stride);
                continue;
            }
            int height = rows - r0 < LANES ? rows - r0 : LANES, width = columns - c0 < LANES ? columns - c0 : LANES;
            for (int r = 0; r < height; r++) {
                const float *row = corner + (index ? (ptrdiff_t)index[r0 + r] : (ptrdiff_t)r) * stride;
                for (int c = 0; c < width; c++) result[c * to_stride + r] = row[c];
            }
        }
}

#endif
