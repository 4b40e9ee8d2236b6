/* Stacks of expert weights as they are kept, widened to fp32 one expert at a time. The arithmetic is that of ms4_kernels.quantised. */
#ifndef MS4_WEIGHTS_H
#define MS4_WEIGHTS_H

#include "vectors.h"

enum { FP32 = 0, BF16 = 1, FP8 = 2, NVFP4 = 3 };

typedef struct {
    int32_t kind, groups;          /* groups of rows with a scale of their own */
    const void *data;              /* values or codes */
    int64_t expert_stride;         /* between experts, in elements of data */
    const float *scale;            /* FP8: multiplies, NVFP4: divides; [experts, groups] */
    const uint8_t *block_scale;    /* NVFP4: E4M3, [experts, rows, columns / 16] */
} Stack;

/* E4M3 without infinities: 0x7F and 0xFF are NaN. */
static float from_e4m3(uint8_t code) {
    int exponent = (code >> 3) & 15, mantissa = code & 7;
    float magnitude;
    if (exponent == 15 && mantissa == 7) magnitude = __builtin_nanf("");
    else if (exponent == 0) magnitude = (float)mantissa * 0x1p-9f;
    else magnitude = (float)(8 + mantissa) * __builtin_ldexpf(1.0f, exponent - 10);
    return code & 0x80 ? -magnitude : magnitude;
}

static const float E2M1[16] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

INLINE float rounded(float value, int to_half) { return to_half ? from_bf16(to_bf16(value)) : value; }

static void widen_fp8(const uint8_t *codes, float scale, int64_t count, int to_half, float *out) {
    float table[256];
    for (int code = 0; code < 256; code++) table[code] = rounded(from_e4m3((uint8_t)code) * scale, to_half);
    for (int64_t i = 0; i < count; i++) out[i] = table[codes[i]];
}

static void widen_nvfp4(const uint8_t *codes, const uint8_t *block_scale, float divisor, int64_t blocks, int to_half, float *out) {
    for (int64_t block = 0; block < blocks; block++, codes += 8, out += 16) {
        float scale = from_e4m3(block_scale[block]) / divisor;
        float table[16];
        for (int code = 0; code < 16; code++) table[code] = rounded(E2M1[code] * scale, to_half);
        for (int i = 0; i < 8; i++) {
            out[2 * i] = table[codes[i] & 15];
            out[2 * i + 1] = table[codes[i] >> 4];
        }
    }
}

/* The matrix [rows, columns] of one expert in fp32: a view where it is kept so, else written to scratch.
   Dequantised values are rounded to bf16 when tokens are, as a dequantised stack would be. */
static const float *matrix(const Stack *stack, int64_t expert, int64_t rows, int64_t columns, int to_half, float *scratch) {
    int64_t first = expert * stack->expert_stride;
    if (stack->kind == FP32) return (const float *)stack->data + first;
    if (stack->kind == BF16) {
        const uint16_t *bits = (const uint16_t *)stack->data + first;
        for (int64_t i = 0; i < rows * columns; i++) scratch[i] = from_bf16(bits[i]);
        return scratch;
    }
    const uint8_t *codes = (const uint8_t *)stack->data + first;
    int64_t part = rows / stack->groups * columns;
    for (int64_t group = 0; group < stack->groups; group++) {
        float scale = stack->scale[expert * stack->groups + group];
        if (stack->kind == FP8) widen_fp8(codes + group * part, scale, part, to_half, scratch + group * part);
        else
            widen_nvfp4(codes + group * part / 2, stack->block_scale + (expert * rows * columns + group * part) / 16, scale, part / 16, to_half,
                        scratch + group * part);
    }
    return scratch;
}

#endif
