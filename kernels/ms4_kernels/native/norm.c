/* The sum of the squares of a tensor, fp32 in blocks and double over them, in one order whatever the number of threads.
   Called by ms4_kernels.native.norm; tested in tests/kernels/ms4_kernels/native/test_norm.py. */
#include <stdlib.h>

#include "vectors.h"

#define BLOCK 16384
#define CHAINS 8 /* sums that run side by side, to hide the latency of an addition */

static double block_of_squares(const float *x, ptrdiff_t count) {
    vec sums[CHAINS] = {{0}};
    ptrdiff_t whole = count - count % (CHAINS * LANES);
    for (ptrdiff_t first = 0; first < whole; first += CHAINS * LANES)
        for (int chain = 0; chain < CHAINS; chain++) {
            vec part = load(x + first + chain * LANES);
            sums[chain] += part * part;
        }
    double total = 0;
    for (int chain = 0; chain < CHAINS; chain++)
        for (int lane = 0; lane < LANES; lane++) total += sums[chain][lane];
    for (ptrdiff_t at = whole; at < count; at++) total += (double)x[at] * x[at];
    return total;
}

/* Returns 1 where memory ran out. */
int ms4_sum_of_squares(const float *x, int64_t count, double *total, int32_t threads) {
    ptrdiff_t blocks = (count + BLOCK - 1) / BLOCK;
    double *sums = malloc(sizeof(double) * (size_t)(blocks > 0 ? blocks : 1));
    if (!sums) return 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (ptrdiff_t block = 0; block < blocks; block++) {
        ptrdiff_t left = count - block * BLOCK;
        sums[block] = block_of_squares(x + block * BLOCK, left < BLOCK ? left : BLOCK);
    }
    *total = 0;
    for (ptrdiff_t block = 0; block < blocks; block++) *total += sums[block];
    free(sums);
    return 0;
}
