/* The three dense products of a linear layer, fp32, parallel over parts of the result: y = x W^T, dx = dy W, dW (+)= dy^T x.
   Called by ms4_kernels.native.matmul; tested in tests/kernels/ms4_kernels/native/test_matmul.py.

   Letters: t rows (tokens), o outputs, i inputs. */
#include <stdlib.h>

#include "vectors.h"

#define OUTPUTS 64  /* columns of W^T that are packed at a time */
#define TOKENS 96   /* rows of a part; a multiple of TILE_ROWS */
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

/* dw[o][i] (+)= sum_t dy[t][o] x[t][i]. A part's columns of dy are copied first: a stride of many kilobytes would evict its own lines. */
int ms4_matmul_tn(int32_t o, int32_t i, int32_t t, const float *dy, const float *x, float *dw, int32_t adds, int32_t threads) {
    int parts = (o + TOKENS - 1) / TOKENS, failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *packed = aligned_alloc(64, sizeof(float) * TOKENS * SUMMANDS);
        failed |= !packed;
#pragma omp for schedule(dynamic, 1)
        for (int part = 0; part < parts; part++) {
            int first = part * TOKENS, count = o - first < TOKENS ? o - first : TOKENS;
            for (int from = 0; packed && from < t; from += SUMMANDS) {
                int terms = t - from < SUMMANDS ? t - from : SUMMANDS;
                for (int k = 0; k < terms; k++) memcpy(packed + k * TOKENS, dy + (ptrdiff_t)(from + k) * o + first, 4 * (size_t)count);
                product(count, i, terms, (Strided){packed, 1, TOKENS}, (Rows){x + (ptrdiff_t)from * i, i, 0}, dw + (ptrdiff_t)first * i, i, 1.0f,
                        adds || from > 0);
            }
            if (t == 0 && !adds) memset(dw + (ptrdiff_t)first * i, 0, 4 * (size_t)count * (size_t)i);
        }
        free(packed);
    }
    return failed;
}
