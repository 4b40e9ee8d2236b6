/* All compiled kernels in one library, and what tests and the check at load time ask of it. */
#include "attention.c"
#include "experts.c"
#include "matmul.c"
#include "norm.c"
#include "rows.c"
#include "step_layers.c"

int32_t ms4_lanes(void) { return LANES; }

void ms4_product(int32_t rows, int32_t columns, int32_t depth, const float *a, const float *b, float *c, int64_t a_m, int64_t a_k, int64_t b_k,
                 int64_t c_m, float alpha, int32_t adds) {
    product(rows, columns, depth, (Strided){a, a_m, a_k}, (Rows){b, b_k, 0}, c, c_m, alpha, adds);
}

/* Of the argument structures, to be compared with ctypes'. */
void ms4_sizes(int64_t *sizes) {
    sizes[0] = sizeof(Call);
    sizes[1] = sizeof(Stack);
    sizes[2] = sizeof(Attention);
}
