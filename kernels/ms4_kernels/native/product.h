/* The one matrix product that every native operation is made of: C[m][n] (+)= alpha * sum_k A(m, k) * B[k][n], fp32.

   A is read one number at a time and broadcast, through any strides, so it needs no packing and may be a transposed matrix; the lanes of a
   vector run along n. For each element of C the terms are added in the order of k, in blocks of K_BLOCK, whatever tile it falls into:
   a result does not depend on how many rows are computed beside it, nor on the number of threads.
   Tested through ms4_kernels.native.library.product: tests/kernels/ms4_kernels/native/test_library.py. */
#ifndef MS4_PRODUCT_H
#define MS4_PRODUCT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define STRIP 4 /* vectors of C in a row of a tile: 6 * 4 of 32 registers accumulate */
#elif defined(__AVX2__)
#define LANES 8
#define STRIP 2 /* 6 * 2 of 16 registers */
#else
#define LANES 4
#define STRIP 4
#endif
#define TILE_ROWS 6
#define K_BLOCK 256

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *from) { return *(const unaligned *)from; }
INLINE void store(float *to, vec value) { *(unaligned *)to = value; }
INLINE vec load_part(const float *from, int count) {
    vec out = {0};
    memcpy(&out, from, 4 * (size_t)count);
    return out;
}

/* B: row k starts at data + (rows ? rows[k] : k) * stride. */
typedef struct {
    const float *data;
    ptrdiff_t stride;
    const int32_t *rows;
} Rows;

/* A: element (m, k) at data[m * m_stride + k * k_stride]. */
typedef struct {
    const float *data;
    ptrdiff_t m_stride, k_stride;
} Strided;

/* One tile of m x (vectors * LANES) elements; the last vector holds `last` of LANES. Everything but the pointers is known when inlined. */
INLINE void tile(int m, int vectors, int last, int gathered, int adds, int k_count, Strided a, Rows b, int k_first, float *c, ptrdiff_t c_stride,
                 float alpha) {
    vec sum[TILE_ROWS][STRIP];
    for (int i = 0; i < m; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = (vec){0};
    const float *a_row = a.data + k_first * a.k_stride;
    for (int k = 0; k < k_count; k++, a_row += a.k_stride) {
        const float *b_row = b.data + (gathered ? (ptrdiff_t)b.rows[k_first + k] : (ptrdiff_t)(k_first + k)) * b.stride;
        vec right[STRIP];
        for (int v = 0; v < vectors; v++)
            right[v] = v + 1 < vectors || last == LANES ? load(b_row + v * LANES) : load_part(b_row + v * LANES, last);
        for (int i = 0; i < m; i++) {
            float left = a_row[i * a.m_stride];
            for (int v = 0; v < vectors; v++) sum[i][v] += left * right[v];
        }
    }
    for (int i = 0; i < m; i++)
        for (int v = 0; v < vectors; v++) {
            float *to = c + i * c_stride + v * LANES;
            vec out = alpha * sum[i][v];
            if (v + 1 < vectors || last == LANES)
                store(to, adds ? load(to) + out : out);
            else {
                if (adds) out += load_part(to, last);
                memcpy(to, &out, 4 * (size_t)last);
            }
        }
}

#define TILE(M, V, G, ADDS) tile(M, V, LANES, G, ADDS, k_count, a, b, k_first, c, c_stride, alpha)
#define TILE_BY_ROWS(V, G, ADDS)          \
    switch (m) {                          \
        case 6: TILE(6, V, G, ADDS); break; \
        case 5: TILE(5, V, G, ADDS); break; \
        case 4: TILE(4, V, G, ADDS); break; \
        case 3: TILE(3, V, G, ADDS); break; \
        case 2: TILE(2, V, G, ADDS); break; \
        default: TILE(1, V, G, ADDS);     \
    }

/* All tiles of one strip of at most STRIP * LANES columns: m rows at a time. */
INLINE void strip(int rows, int columns, int gathered, int adds, int k_first, int k_count, Strided a, Rows b, float *c, ptrdiff_t c_stride,
                  float alpha) {
    int vectors = columns / LANES, tail = columns % LANES;
    for (int first = 0; first < rows; first += TILE_ROWS, a.data += TILE_ROWS * a.m_stride, c += TILE_ROWS * c_stride) {
        int m = rows - first < TILE_ROWS ? rows - first : TILE_ROWS;
        if (vectors == STRIP) {
            TILE_BY_ROWS(STRIP, gathered, adds)
        } else if (vectors == 3) {
            TILE_BY_ROWS((STRIP > 2 ? 3 : 1), gathered, adds)
        } else if (vectors == 2) {
            TILE_BY_ROWS((STRIP > 2 ? 2 : 1), gathered, adds)
        } else if (vectors == 1) {
            TILE_BY_ROWS(1, gathered, adds)
        }
        if (tail) {
            Rows b_tail = {b.data + vectors * LANES, b.stride, b.rows};
            for (int i = 0; i < m; i++) {
                Strided a_row = {a.data + i * a.m_stride, a.m_stride, a.k_stride};
                tile(1, 1, tail, gathered, adds, k_count, a_row, b_tail, k_first, c + i * c_stride + vectors * LANES, c_stride, alpha);
            }
        }
    }
}

static void product(int rows, int columns, int depth, Strided a, Rows b, float *c, ptrdiff_t c_stride, float alpha, int adds) {
    if (depth == 0 && !adds)
        for (int i = 0; i < rows; i++) memset(c + i * c_stride, 0, 4 * (size_t)columns);
    for (int k_first = 0; k_first < depth; k_first += K_BLOCK) {
        int k_count = depth - k_first < K_BLOCK ? depth - k_first : K_BLOCK;
        int add_now = adds || k_first > 0;
        for (int n = 0; n < columns; n += STRIP * LANES) {
            int width = columns - n < STRIP * LANES ? columns - n : STRIP * LANES;
            Rows part = {b.data + n, b.stride, b.rows};
            if (b.rows) {
                if (add_now) strip(rows, width, 1, 1, k_first, k_count, a, part, c + n, c_stride, alpha);
                else strip(rows, width, 1, 0, k_first, k_count, a, part, c + n, c_stride, alpha);
            } else {
                if (add_now) strip(rows, width, 0, 1, k_first, k_count, a, part, c + n, c_stride, alpha);
                else strip(rows, width, 0, 0, k_first, k_count, a, part, c + n, c_stride, alpha);
            }
        }
    }
}

#endif
