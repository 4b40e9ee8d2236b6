/* The dense products of linear layers, fp32, parallel over parts of the result: y = x W^T, dx = dy W, dW (+)= dy^T x; and the first two with
   a low-rank update.
   Called by ms4_kernels.native.matmul; tested in tests/kernels/ms4_kernels/native/test_matmul.py.

   Letters: t rows (tokens), o outputs, i inputs. */
#include <stdlib.h>

#include "vectors.h"

#define OUTPUTS 64  /* columns of W^T that are packed at a time */
#define TOKENS 48   /* rows of a part of dx; a multiple of TILE_ROWS */
#define FEATURES 24 /* rows of a part of dw; small, so that a narrow layer has parts for every thread */
#define SUMMANDS 256

/* y[t][o] = sum_i x[t][i] W[o][i]. Each strip of W is transposed once and meets all rows. Returns 1 where memory ran out. */
int ms4_matmul_nt(int32_t t, int32_t o, int32_t i, const float *x, const float *w, float *y, int32_t threads) {
    int strips = (o + OUTPUTS - 1) / OUTPUTS, failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *packed = aligned_alloc(64, sizeof(float) * OUTPUTS * (size_t)(i > 0 ? i : 1));
        failed |= !packed;
#pragma omp for schedule(dynamic, 1)
        for (int strip = 0; strip < strips; strip++) {
            int first = strip * OUTPUTS, width = o - first < OUTPUTS ? o - first : OUTPUTS;
            if (!packed) continue;
            transpose(width, i, w + (ptrdiff_t)first * i, i, 0, packed, OUTPUTS);
            product(t, width, i, (Strided){x, i, 1}, (Rows){packed, OUTPUTS, 0}, y + first, o, 1.0f, 0);
        }
        free(packed);
    }
    return failed;
}

/* dx[t][i] = sum_o dy[t][o] W[o][i] */
int ms4_matmul_nn(int32_t t, int32_t i, int32_t o, const float *dy, const float *w, float *dx, int32_t threads) {
    int parts = (t + TOKENS - 1) / TOKENS;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int part = 0; part < parts; part++) {
        ptrdiff_t first = (ptrdiff_t)part * TOKENS;
        int count = t - first < TOKENS ? (int)(t - first) : TOKENS;
        product(count, i, o, (Strided){dy + first * o, o, 1}, (Rows){w, i, 0}, dx + first * i, i, 1.0f, 0);
    }
    return 0;
}

/* dw[o][i] (+)= sum_t dy[t][o] x[t][i]. A part's columns of dy are copied first: a stride of many kilobytes would evict its own lines.
   Where there are fewer parts of o than threads, as for the rank of an adapter, i is divided as well. */
int ms4_matmul_tn(int32_t o, int32_t i, int32_t t, const float *dy, const float *x, float *dw, float alpha, int32_t adds, int32_t threads) {
    int parts = (o + FEATURES - 1) / FEATURES, failed = 0;
    int across = parts >= 2 * threads ? i : OUTPUTS, strips = (i + across - 1) / (across > 0 ? across : 1);
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *packed = aligned_alloc(64, sizeof(float) * FEATURES * SUMMANDS);
        failed |= !packed;
#pragma omp for schedule(dynamic, 1)
        for (int part = 0; part < parts * strips; part++) {
            int first = part / strips * FEATURES, count = o - first < FEATURES ? o - first : FEATURES;
            int column = part % strips * across, width = i - column < across ? i - column : across;
            float *out = dw + (ptrdiff_t)first * i + column;
            for (int from = 0; packed && from < t; from += SUMMANDS) {
                int terms = t - from < SUMMANDS ? t - from : SUMMANDS;
                for (int k = 0; k < terms; k++) memcpy(packed + k * FEATURES, dy + (ptrdiff_t)(from + k) * o + first, 4 * (size_t)count);
                product(count, width, terms, (Strided){packed, 1, FEATURES}, (Rows){x + (ptrdiff_t)from * i + column, i, 0}, out, i, alpha,
                        adds || from > 0);
            }
            if (t == 0 && !adds)
                for (int row = 0; row < count; row++) memset(out + (ptrdiff_t)row * i, 0, 4 * (size_t)width);
        }
        free(packed);
    }
    return failed;
}

/* A linear layer with a low-rank update: low = x A^T, y = x W^T + scale low B^T; A [r][i], B [o][r]. Each block of rows goes through all
   products while it is in the cache. */
int ms4_lora_forward(int32_t t, int32_t o, int32_t i, int32_t r, const float *x, const float *w, const float *a, const float *b, float scale,
                     float *y, float *low, int32_t threads) {
    int strips = (o + OUTPUTS - 1) / OUTPUTS, parts = (t + TOKENS - 1) / TOKENS;
    ptrdiff_t w_strip = (ptrdiff_t)OUTPUTS * i, b_strip = (ptrdiff_t)OUTPUTS * r;
    float *w_packed = aligned_alloc(64, sizeof(float) * (size_t)(strips * (w_strip + b_strip) + (ptrdiff_t)i * r + 64) / 64 * 64 + 64);
    if (!w_packed) return 1;
    float *b_packed = w_packed + strips * w_strip, *a_packed = b_packed + strips * b_strip;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int strip = 0; strip <= strips; strip++) {
            int first = strip * OUTPUTS, width = o - first < OUTPUTS ? o - first : OUTPUTS;
            if (strip == strips) transpose(r, i, a, i, 0, a_packed, r);
            else {
                transpose(width, i, w + (ptrdiff_t)first * i, i, 0, w_packed + strip * w_strip, OUTPUTS);
                transpose(width, r, b + (ptrdiff_t)first * r, r, 0, b_packed + strip * b_strip, OUTPUTS);
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (int part = 0; part < parts; part++) {
            ptrdiff_t row = (ptrdiff_t)part * TOKENS;
            int count = t - row < TOKENS ? (int)(t - row) : TOKENS;
            Strided x_part = {x + row * i, i, 1}, low_part = {low + row * r, r, 1};
            product(count, r, i, x_part, (Rows){a_packed, r, 0}, low + row * r, r, 1.0f, 0);
            for (int strip = 0; strip < strips; strip++) {
                int first = strip * OUTPUTS, width = o - first < OUTPUTS ? o - first : OUTPUTS;
                float *out = y + row * o + first;
                product(count, width, i, x_part, (Rows){w_packed + strip * w_strip, OUTPUTS, 0}, out, o, 1.0f, 0);
                product(count, width, r, low_part, (Rows){b_packed + strip * b_strip, OUTPUTS, 0}, out, o, scale, 1);
            }
        }
    }
    free(w_packed);
    return 0;
}

/* dlow = scale dy B and, if wanted, dx = dy W + dlow A. */
int ms4_lora_backward(int32_t t, int32_t o, int32_t i, int32_t r, const float *dy, const float *w, const float *a, const float *b, float scale,
                      float *dx, float *dlow, int32_t threads) {
    int parts = (t + TOKENS - 1) / TOKENS;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int part = 0; part < parts; part++) {
        ptrdiff_t row = (ptrdiff_t)part * TOKENS;
        int count = t - row < TOKENS ? (int)(t - row) : TOKENS;
        Strided dy_part = {dy + row * o, o, 1};
        product(count, r, o, dy_part, (Rows){b, r, 0}, dlow + row * r, r, scale, 0);
        if (!dx) continue;
        product(count, i, o, dy_part, (Rows){w, i, 0}, dx + row * i, i, 1.0f, 0);
        product(count, i, r, (Strided){dlow + row * r, r, 1}, (Rows){a, i, 0}, dx + row * i, i, 1.0f, 1);
    }
    return 0;
}
