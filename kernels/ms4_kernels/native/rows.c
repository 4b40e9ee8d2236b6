/* What is done to every token's row between the products: RMSNorm and its backward, and the rotation of the last lanes of each head. fp32.
   Called by ms4_kernels.native.rms and ms4_kernels.native.rotary; tested in tests/kernels/ms4_kernels/native/test_{rms,rotary}.py.

   Letters: t rows, d columns, h heads, x lanes of a head, p lanes that turn. A result depends on its own row only. */
#include <math.h>
#include <stdlib.h>

#include "vectors.h"

#define ROWS 64 /* whose parts of the weight's gradient are added first */

INLINE float sum_lanes(vec value) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += value[lane];
    return total;
}

/* y = w x / sqrt(mean(x^2) + eps); the factor of each row is kept for the backward pass. */
void ms4_rms_forward(int32_t t, int32_t d, const float *x, int64_t stride, const float *w, float eps, float *y, float *factor, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (t >= ROWS)
    for (int row = 0; row < t; row++) {
        const float *from = x + row * stride;
        float *to = y + (ptrdiff_t)row * d;
        vec squares = {0};
        int c = 0;
        for (; c + LANES <= d; c += LANES) {
            vec part = load(from + c);
            squares += part * part;
        }
        float total = sum_lanes(squares);
        for (; c < d; c++) total += from[c] * from[c];
        float scale = factor[row] = 1.0f / sqrtf(total / (float)d + eps);
        for (c = 0; c + LANES <= d; c += LANES) store(to + c, load(w + c) * (load(from + c) * scale));
        for (; c < d; c++) to[c] = w[c] * (from[c] * scale);
    }
}

static void rms_backward_row(int d, const float *dy, const float *x, const float *w, float scale, float *dx, float *dw) {
    vec dots = {0};
    int c = 0;
    for (; c + LANES <= d; c += LANES) dots += load(dy + c) * load(w + c) * load(x + c);
    float total = sum_lanes(dots);
    for (; c < d; c++) total += dy[c] * w[c] * x[c];
    float inward = total * scale * scale * scale / (float)d;
    for (c = 0; c + LANES <= d; c += LANES) {
        vec part = load(x + c), grad = load(dy + c);
        if (dx) store(dx + c, grad * load(w + c) * scale - part * inward);
        if (dw) store(dw + c, load(dw + c) + grad * part * scale);
    }
    for (; c < d; c++) {
        if (dx) dx[c] = dy[c] * w[c] * scale - x[c] * inward;
        if (dw) dw[c] += dy[c] * x[c] * scale;
    }
}

/* dx and dw may be null. Returns 1 where memory ran out. */
int ms4_rms_backward(int32_t t, int32_t d, const float *dy, const float *x, int64_t stride, const float *w, const float *factor, float *dx, float *dw,
                     int32_t threads) {
    int blocks = (t + ROWS - 1) / ROWS;
    float *parts = dw ? calloc((size_t)(blocks > 0 ? blocks : 1) * (size_t)d, sizeof(float)) : 0;
    if (dw && !parts) return 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (blocks > 1)
    for (int block = 0; block < blocks; block++)
        for (int row = block * ROWS; row < t && row < (block + 1) * ROWS; row++)
            rms_backward_row(d, dy + (ptrdiff_t)row * d, x + row * stride, w, factor[row], dx ? dx + (ptrdiff_t)row * d : 0,
                             parts ? parts + (ptrdiff_t)block * d : 0);
    if (dw) {
        memset(dw, 0, sizeof(float) * (size_t)d);
        for (int block = 0; block < blocks; block++)
            for (int c = 0; c < d; c++) dw[c] += parts[(ptrdiff_t)block * d + c];
    }
    free(parts);
    return 0;
}

/* Rotate the pairs of the last p of x lanes of every head by its token's angle, or back (sign -1); the other lanes are copied. */
void ms4_rotate_tail(int32_t t, int32_t h, int32_t x, int32_t p, const float *from, const float *cosine, const float *signed_sine, float sign,
                     float *to, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (t >= ROWS)
    for (int row = 0; row < t; row++) {
        const float *c = cosine + (ptrdiff_t)row * p, *s = signed_sine + (ptrdiff_t)row * p;
        for (int head = 0; head < h; head++) {
            const float *in = from + ((ptrdiff_t)row * h + head) * x;
            float *out = to + ((ptrdiff_t)row * h + head) * x;
            memcpy(out, in, sizeof(float) * (size_t)(x - p));
            in += x - p;
            out += x - p;
            for (int lane = 0; lane < p; lane += 2) {
                out[lane] = in[lane] * c[lane] + in[lane + 1] * (sign * s[lane]);
                out[lane + 1] = in[lane + 1] * c[lane + 1] + in[lane] * (sign * s[lane + 1]);
            }
        }
    }
}
