/* What a step is told: the network's weights where they lie, the rows of the step, and the scratch it may use.
   Filled in by ms4_kernels.step.structures; tests compare the sizes with the compiler's.

   Letters: t rows (new tokens), d hidden, h heads, x lanes of a query head, n of them without position, p rotary, v value, c latent,
   m = c + p as cached, e experts, k experts per token, w expert width, b sequences, s tokens of a cache block. */
#ifndef MS4_STEP_TYPES_H
#define MS4_STEP_TYPES_H

#include "weights.h"

typedef struct {
    int32_t rows, columns; /* of one expert's matrix, where it is a stack */
    int32_t rounds;        /* dequantised values are rounded to bf16 */
    Stack stack;
} Matrix;

/* Adds scale * B A. */
typedef struct {
    Matrix a, b;
    float scale;
} LowRank;

typedef struct {
    int32_t count, rank; /* rank: of all parts together */
    const LowRank *parts;
} Adapter;

typedef struct {
    Matrix weight;
    int32_t adapters;
    const Adapter *adapter; /* by number */
} Projection;

typedef struct {
    Matrix input_norm, q_a_norm, kv_a_norm, post_norm, router;
    Projection q_a, q_b, kv_a, kv_b, o, gate_up, down, shared_gate, shared_up, shared_down;
    void *pool; /* [blocks, s, m] */
} Layer;

typedef struct {
    int32_t num_layers, hidden, heads, nope, rope, value, latent, q_rank, experts, top_k, width, shared_width, vocabulary;
    int32_t renormalise, llama4_original, pool_kind, block_size, num_blocks, max_rank;
    float norm_eps, latent_norm_eps, routed_scale, attention_scale, cos_sin_factor, llama4_beta;
    const float *frequencies;
    const Layer *layers;
    Matrix final_norm;
    Projection head;
} Network;

typedef struct {
    int32_t rows, sequences, wanted, threads;
    const float *embedding;                 /* [t, d] */
    const int32_t *lengths, *starts;        /* [b] */
    const int32_t *table_first, *tables;    /* [b + 1] where each sequence's blocks begin; all blocks in a row */
    const int32_t *adapters;                /* [b], -1: none */
    const int32_t *wanted_rows;             /* [wanted] */
    float *out;                             /* [wanted, d] */
    void *arena;                            /* of ms4_step_bytes */
} Step;

#endif
