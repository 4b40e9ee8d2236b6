/* Products with a matrix of any kind, and with what adapters add to it.

   FP32 and BF16 are read in place; others are widened a few rows at a time, which gives the values of ms4_kernels.quantised. */
#ifndef MS4_STEP_MATRIX_H
#define MS4_STEP_MATRIX_H

#include "step_dot.h"

#define WIDENED_ROWS 16 /* of a matrix, at a time */

/* A thread's own scratch. */
typedef struct {
    float *widened; /* WIDENED_ROWS rows of the widest matrix, or the key part of a head of kv_b */
    float *low;     /* BLOCK_T rows between the two factors of an adapter */
    float *gate, *up;                      /* a tile of SwiGLU, or the queries of one head */
    float *scores, *mixed, *latents;       /* attention */
    float *score;                          /* of each expert, for one row */
} Local;

INLINE vec from_small_float(ivec magnitude, int bits, int bias, float least) {
    vec normal = (vec)((magnitude << (23 - bits)) + (bias << 23)), tiny = (vec)((magnitude << (23 - bits)) + ((bias + 1) << 23)) - least;
    return choose(magnitude < (1 << bits), tiny, normal); /* below: no implicit one, in steps of least / 2^bits */
}

INLINE vec from_e4m3_lanes(ivec code) {
    ivec magnitude = code & 0x7F;
    vec value = from_small_float(magnitude, 3, 120, 0x1p-6f);
    value = choose(magnitude == 0x7F, (vec){0} + __builtin_nanf(""), value);
    return (vec)((ivec)value | (code & 0x80) << 24);
}

INLINE vec from_e2m1_lanes(ivec code) { return (vec)((ivec)from_small_float(code & 7, 1, 126, 1.0f) | (code & 8) << 28); }

/* In two steps, because compilers take the one from bytes to words apart. */
INLINE ivec load_bytes(const uint8_t *from) {
    return (ivec)__builtin_convertvector(__builtin_convertvector(*(const bytes *)from, wide_bytes), uvec);
}

static void widen_fp8_row(const uint8_t *codes, float scale, int count, float *out) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, from_e4m3_lanes(load_bytes(codes + i)) * scale);
    for (; i < count; i++) out[i] = from_e4m3(codes[i]) * scale;
}

/* Sixteen codes in eight bytes, the even one in the low half. */
INLINE void widen_nvfp4_block(const uint8_t *codes, float scale, float *out) {
    int32_t words[2];
    memcpy(words, codes, 8);
#pragma GCC unroll 4
    for (int first = 0; first < 16; first += LANES) {
        ivec in_low, shift;
        for (int lane = 0; lane < LANES; lane++) {
            in_low[lane] = first + lane < 8 ? -1 : 0;
            shift[lane] = 4 * ((first + lane) & 7);
        }
        ivec word = (((ivec){0} + words[0]) & in_low) | (((ivec){0} + words[1]) & ~in_low);
        store(out + first, from_e2m1_lanes((word >> shift) & 15) * scale);
    }
}

static void widen_nvfp4_row(const uint8_t *codes, const uint8_t *block_scale, float divisor, int blocks, float *out) {
    for (int block = 0; block < blocks; block += LANES) {
        uint8_t some[LANES] = {0};
        int count = blocks - block < LANES ? blocks - block : LANES;
        memcpy(some, block_scale + block, (size_t)count);
        vec scale = from_e4m3_lanes(load_bytes(some)) / divisor;
        for (int lane = 0; lane < count; lane++) widen_nvfp4_block(codes + 8 * (block + lane), scale[lane], out + 16 * (block + lane));
    }
}

static void widen_rows(const Matrix *w, int64_t expert, int first, int count, float *out) {
    const Stack *stack = &w->stack;
    int columns = w->columns;
    for (int64_t row = first; row < first + count; row++, out += columns) {
        int64_t at = expert * stack->expert_stride + row * columns;
        if (stack->kind == FP32) memcpy(out, (const float *)stack->data + at, 4 * (size_t)columns);
        else if (stack->kind == BF16) {
            const uint16_t *bits = (const uint16_t *)stack->data + at;
            int i = 0;
            for (; i + LANES <= columns; i += LANES) store(out + i, load_half(bits + i));
            for (; i < columns; i++) out[i] = from_bf16(bits[i]);
        } else {
            float scale = stack->scale[expert * stack->groups + row / (w->rows / stack->groups)];
            const uint8_t *codes = (const uint8_t *)stack->data;
            if (stack->kind == FP8) widen_fp8_row(codes + at, scale, columns, out);
            else {
                int64_t absolute = expert * w->rows + row;
                widen_nvfp4_row(codes + absolute * (columns / 2), stack->block_scale + absolute * (columns / 16), scale, columns / 16, out);
            }
            for (int i = 0; w->rounds && i < columns; i++) out[i] = from_bf16(to_bf16(out[i]));
        }
    }
}

/* Rows in fp32: where they lie, or widened into the scratch. */
static const float *wide_rows(const Matrix *w, int64_t expert, int first, int count, float *scratch) {
    if (w->stack.kind == FP32) return (const float *)w->stack.data + expert * w->stack.expert_stride + (int64_t)first * w->columns;
    widen_rows(w, expert, first, count, scratch);
    return scratch;
}

/* y[t][o] (+)= sum_i x[t][i] W[first + o][i] for `count` rows of W. */
static void dot_matrix(const Matrix *w, int64_t expert, int first, int count, Input x, int t, float *y, ptrdiff_t y_stride, int adds,
                       float *scratch) {
    int64_t at = expert * w->stack.expert_stride + (int64_t)first * w->columns;
    if (w->stack.kind == FP32) dot_fp32(count, w->columns, (const float *)w->stack.data + at, x, t, y, y_stride, adds);
    else if (w->stack.kind == BF16 && t < WIDENS_FROM)
        dot_bf16(count, w->columns, (const uint16_t *)w->stack.data + at, x, t, y, y_stride, adds);
    else
        for (int o = 0; o < count; o += WIDENED_ROWS) {
            int rows = count - o < WIDENED_ROWS ? count - o : WIDENED_ROWS;
            widen_rows(w, expert, first + o, rows, scratch);
            dot_fp32(rows, w->columns, scratch, x, t, y + o, y_stride, adds);
        }
}

INLINE const Adapter *find_adapter(const Projection *p, int number) {
    return number >= 0 && number < p->adapters && p->adapter[number].count ? p->adapter + number : 0;
}

static void scale_values(float *values, int count, float factor) {
    for (int i = 0; i < count; i++) values[i] *= factor;
}

/* Adds scale * B (A x) to rows of y, each row by the adapter it names; rows in a row that name the same one go together. */
static void add_adapters(const Projection *p, int64_t expert, int first, int count, Input x, int t, const int32_t *adapter, float *y,
                         ptrdiff_t y_stride, Local *local) {
    for (int row = 0, end; row < t; row = end) {
        for (end = row + 1; end < t && adapter[end] == adapter[row];) end++;
        const Adapter *found = find_adapter(p, adapter[row]);
        for (int i = 0; found && i < found->count; i++) {
            const LowRank *part = found->parts + i;
            int rank = part->a.rows;
            dot_matrix(&part->a, expert, 0, rank, input_from(x, row), end - row, local->low, rank, 0, local->widened);
            scale_values(local->low, (end - row) * rank, part->scale);
            dot_matrix(&part->b, expert, first, count, (Input){local->low, rank, 0}, end - row, y + row * y_stride, y_stride, 1, local->widened);
        }
    }
}

/* Outputs first .. first + count - 1 of a linear layer; `adapter` has the number of each row's, or is null where no row has one. */
static void project(const Projection *p, int64_t expert, int first, int count, Input x, int t, const int32_t *adapter, float *y,
                    ptrdiff_t y_stride, int adds, Local *local) {
    dot_matrix(&p->weight, expert, first, count, x, t, y, y_stride, adds, local->widened);
    if (adapter && p->adapters) add_adapters(p, expert, first, count, x, t, adapter, y, y_stride, local);
}

#endif
