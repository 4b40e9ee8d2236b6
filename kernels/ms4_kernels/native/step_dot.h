/* Products in dot form: y[t][o] = sum_i x[t][i] W[o][i], W as it lies in memory.

   The lanes of a vector run along i. A dot product is LANES sums, each in the order of i, and one tree over them; which dot products are made
   side by side differs from call to call, the order inside one never does. A tile is LANES dot products, because as many vectors fold into
   one vector of results with the fewest shuffles. */
#ifndef MS4_STEP_DOT_H
#define MS4_STEP_DOT_H

#include "step_types.h"

#if LANES >= 16
#define TILE_T 4 /* rows of x that meet LANES / TILE_T rows of W */
#else
#define TILE_T 2
#endif
#define NEAR_FLOATS 4096 /* of weights that many rows meet: a third of the nearest cache */
#define WIDENS_FROM 16   /* rows of x from which bf16 weights are widened once, not for each tile */

typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t wide_bytes __attribute__((vector_size(2 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));

/* Row j of x starts at data + (index ? index[j] : j) * stride. */
typedef struct {
    const float *data;
    ptrdiff_t stride;
    const int32_t *index;
} Input;

INLINE const float *input_row(Input x, int j) { return x.data + (x.index ? (ptrdiff_t)x.index[j] : (ptrdiff_t)j) * x.stride; }
INLINE Input input_from(Input x, int first) {
    return (Input){x.index ? x.data : x.data + first * x.stride, x.stride, x.index ? x.index + first : 0};
}

INLINE vec load_half(const uint16_t *from) { return (vec)(__builtin_convertvector(*(const halves *)from, uvec) << 16); }

INLINE vec load_weight(const void *w, ptrdiff_t at, int half) { return half ? load_half((const uint16_t *)w + at) : load((const float *)w + at); }

/* `count` numbers, in fp32, and zeros up to a whole vector. */
static void copy_part(const void *w, ptrdiff_t at, int half, int count, float *to) {
    memset(to, 0, 4 * LANES);
    for (int i = 0; i < count; i++) to[i] = half ? from_bf16(((const uint16_t *)w)[at + i]) : ((const float *)w)[at + i];
}

#if HAS_SQUARES
/* Lanes l and l + span of the first vector are added into lane l, those of the second into lane l + span. */
INLINE vec fold_pair(vec first, vec second, int span) {
    ivec low, high;
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; lane++) {
        low[lane] = lane & span ? LANES + lane - span : lane;
        high[lane] = lane & span ? LANES + lane : lane + span;
    }
    return __builtin_shuffle(first, second, low) + __builtin_shuffle(first, second, high);
}
#else
INLINE vec fold_pair(vec first, vec second, int span) {
    vec out;
    for (int lane = 0; lane < LANES; lane++)
        out[lane] = lane & span ? second[lane - span] + second[lane] : first[lane] + first[lane + span];
    return out;
}
#endif

/* Lane r of the result is the sum over the lanes of vector r. */
INLINE vec fold(vec *sum) {
#if LANES > 8
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++) sum[r] = fold_pair(sum[r], sum[r + 8], 8);
#endif
#if LANES > 4
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) sum[r] = fold_pair(sum[r], sum[r + 4], 4);
#endif
#pragma GCC unroll 2
    for (int r = 0; r < 2; r++) sum[r] = fold_pair(sum[r], sum[r + 2], 2);
    return fold_pair(sum[0], sum[1], 1);
}

/* The same tree for one vector. */
INLINE float fold_one(vec sum) {
    for (int span = LANES / 2; span; span /= 2)
        for (int lane = 0; lane < span; lane++) sum[lane] += sum[lane + span];
    return sum[0];
}

/* One vector of each row more. Everything is unrolled: a sum that is indexed by a variable would live in memory. */
INLINE void add_products(int outputs, int rows, int half, const void *w, ptrdiff_t first, ptrdiff_t stride, const float *const *x, ptrdiff_t at,
                         vec *sum) {
    vec right[TILE_T];
#pragma GCC unroll 4
    for (int t = 0; t < rows; t++) right[t] = load(x[t] + at);
#pragma GCC unroll 16
    for (int o = 0; o < outputs; o++) {
        vec left = load_weight(w, first + o * stride + at, half);
#pragma GCC unroll 4
        for (int t = 0; t < rows; t++) sum[t * outputs + o] += left * right[t];
    }
}

/* LANES dot products: result lane t * outputs + o. */
INLINE vec dot_tile(int outputs, int rows, int half, int depth, const void *w, ptrdiff_t first, const float *const *x) {
    vec sum[LANES];
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++) sum[r] = (vec){0};
    ptrdiff_t i = 0;
    for (; i + LANES <= depth; i += LANES) add_products(outputs, rows, half, w, first, depth, x, i, sum);
    if (i < depth) {
        float w_part[LANES * LANES], x_part[TILE_T * LANES];
        const float *x_parts[TILE_T];
        for (int o = 0; o < outputs; o++) copy_part(w, first + o * (ptrdiff_t)depth + i, half, depth - (int)i, w_part + o * LANES);
        for (int t = 0; t < rows; t++) {
            copy_part(x[t], i, 0, depth - (int)i, x_part + t * LANES);
            x_parts[t] = x_part + t * LANES;
        }
        add_products(outputs, rows, 0, w_part, 0, LANES, x_parts, 0, sum);
    }
    return fold(sum);
}

static float dot_one(int half, int depth, const void *w, ptrdiff_t first, const float *x) {
    vec sum = {0};
    int i = 0;
    for (; i + LANES <= depth; i += LANES) sum += load_weight(w, first + i, half) * load(x + i);
    if (i < depth) {
        float w_part[LANES], x_part[LANES];
        copy_part(w, first + i, half, depth - i, w_part);
        copy_part(x, i, 0, depth - i, x_part);
        sum += load(w_part) * load(x_part);
    }
    return fold_one(sum);
}

/* All outputs of `rows` rows of x, `real` of which count: the others repeat one. */
INLINE void dot_strip(int outputs, int rows, int real, int half, int count, int depth, const void *w, Input x, float *y, ptrdiff_t y_stride,
                      int adds) {
    const float *row[TILE_T];
    for (int t = 0; t < rows; t++) row[t] = input_row(x, t < real ? t : real - 1);
    int o = 0;
    for (; o + outputs <= count; o += outputs) {
        float lanes[LANES];
        store(lanes, dot_tile(outputs, rows, half, depth, w, (ptrdiff_t)o * depth, row));
        for (int t = 0; t < real; t++) {
            float *to = y + t * y_stride + o;
            if (adds)
                for (int lane = 0; lane < outputs; lane++) to[lane] += lanes[t * outputs + lane];
            else memcpy(to, lanes + t * outputs, 4 * (size_t)outputs);
        }
    }
    for (; o < count; o++)
        for (int t = 0; t < real; t++) {
            float *to = y + t * y_stride + o, value = dot_one(half, depth, w, (ptrdiff_t)o * depth, row[t]);
            *to = adds ? *to + value : value;
        }
}

INLINE void dot_rows(int half, int count, int depth, const void *w, Input x, int t, float *y, ptrdiff_t y_stride, int adds) {
    for (; t >= TILE_T; t -= TILE_T, x = input_from(x, TILE_T), y += TILE_T * y_stride)
        dot_strip(LANES / TILE_T, TILE_T, TILE_T, half, count, depth, w, x, y, y_stride, adds);
    if (t == 3) dot_strip(LANES / TILE_T, TILE_T, 3, half, count, depth, w, x, y, y_stride, adds);
    else if (t == 2) dot_strip(LANES / 2, 2, 2, half, count, depth, w, x, y, y_stride, adds);
    else if (t == 1) dot_strip(LANES, 1, 1, half, count, depth, w, x, y, y_stride, adds);
}

/* Many rows meet so few outputs at a time that these stay in the nearest cache. */
INLINE void dot_strips(int half, int count, int depth, const void *w, Input x, int t, float *y, ptrdiff_t y_stride, int adds) {
    int most = NEAR_FLOATS / depth / LANES * LANES, piece = t <= TILE_T ? count : most < LANES ? LANES : most;
    for (int o = 0; o < count; o += piece) {
        const void *from = (const char *)w + (ptrdiff_t)o * depth * (half ? 2 : 4);
        dot_rows(half, count - o < piece ? count - o : piece, depth, from, x, t, y + o, y_stride, adds);
    }
}

static void dot_fp32(int count, int depth, const float *w, Input x, int t, float *y, ptrdiff_t y_stride, int adds) {
    if (adds) dot_strips(0, count, depth, w, x, t, y, y_stride, 1);
    else dot_strips(0, count, depth, w, x, t, y, y_stride, 0);
}

static void dot_bf16(int count, int depth, const uint16_t *w, Input x, int t, float *y, ptrdiff_t y_stride, int adds) {
    if (adds) dot_strips(1, count, depth, w, x, t, y, y_stride, 1);
    else dot_strips(1, count, depth, w, x, t, y, y_stride, 0);
}

#endif
