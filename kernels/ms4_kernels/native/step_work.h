/* The rows of a step, its buffers and its lists of tasks, all inside one arena that the caller keeps from step to step. */
#ifndef MS4_STEP_WORK_H
#define MS4_STEP_WORK_H

#include <float.h>
#include <math.h>

#include "step_matrix.h"
#include "step_team.h"

#define BLOCK_T 64      /* rows that meet a tile of weights together */
#define CHUNK_S 64      /* positions between two looks at the softmax's maximum, counted from position 0 */
#define SCORE_STRIDE (CHUNK_S + LANES)
#define QUERIES_Q 64    /* (row, head) pairs that share loaded latents */
#define FEW_HEADS 4     /* of a task where there are hardly more rows than threads */
#define MOST_TILE 128

/* What is known of each row. */
typedef struct {
    int32_t count;
    int32_t *position, *sequence, *adapter;
    float *cosine, *sine; /* [t, p / 2] */
    float *scale;         /* of the query: Llama 4's and that of the scores */
} Tokens;

typedef struct {
    int32_t first, rows, head, heads; /* rows of one sequence */
} AttentionTask;

typedef struct {
    int32_t expert, first, rows; /* expert -1: the shared one */
} ExpertJob;

typedef struct {
    Tokens all, last; /* last: of the last layer behind its latents, only the wanted rows */
    int32_t threads, adapted, tile, num_tasks, num_jobs;
    float *hidden, *normed, *q_low, *kv_low, *query, *mixed, *heads;
    float *last_hidden, *last_q_low;
    float *logits, *weights, *act, *rows_out, *shared_act, *shared_out;
    int32_t *ids, *token, *place, *pair_adapter, *ends;
    AttentionTask *tasks;
    ExpertJob *jobs;
    Local *local;
    Gate gate;
} Work;

INLINE int most(int a, int b) { return a > b ? a : b; }
INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int parts_of(int count, int size) { return (count + size - 1) / size; }

/* Without a base it only counts. */
typedef struct {
    char *base;
    size_t used;
} Carver;

static void *carve(Carver *carver, int64_t count, size_t size) {
    void *out = carver->base ? carver->base + carver->used : 0;
    carver->used += ((size_t)count * size + 63) / 64 * 64 + 64; /* the gap keeps parts off one another's cache sets */
    return out;
}

#define CARVE(pointer, count) (pointer) = carve(&carver, count, sizeof(*(pointer)))

static void carve_tokens(Carver *from, const Network *net, int rows, Tokens *tokens) {
    Carver carver = *from;
    CARVE(tokens->position, rows);
    CARVE(tokens->sequence, rows);
    CARVE(tokens->adapter, rows);
    CARVE(tokens->cosine, (int64_t)rows * (net->rope / 2));
    CARVE(tokens->sine, (int64_t)rows * (net->rope / 2));
    CARVE(tokens->scale, rows);
    *from = carver;
}

static void carve_local(Carver *from, const Network *net, Local *local) {
    Carver carver = *from;
    int cached = net->latent + net->rope, deep = most(most(net->hidden, net->q_rank), most(net->heads * net->value, net->latent));
    deep = most(deep, most(most(net->width, net->shared_width), net->max_rank));
    CARVE(local->widened, most(WIDENED_ROWS * deep, net->nope * net->latent));
    CARVE(local->low, (BLOCK_T + 1) * (int64_t)most(net->max_rank, net->latent));
    CARVE(local->gate, BLOCK_T * (int64_t)most(MOST_TILE, net->nope + net->rope));
    CARVE(local->up, BLOCK_T * (int64_t)MOST_TILE);
    CARVE(local->scores, QUERIES_Q * SCORE_STRIDE);
    CARVE(local->mixed, QUERIES_Q * (int64_t)net->latent);
    CARVE(local->latents, CHUNK_S * (int64_t)cached);
    CARVE(local->score, parts_of(net->experts, LANES) * LANES);
    *from = carver;
}

/* Places everything for `rows` rows; returns the bytes it takes. */
static size_t lay_out(const Network *net, int64_t rows, int threads, void *base, Work *work) {
    Carver carver = {base, 0};
    int64_t d = net->hidden, h = net->heads, c = net->latent, m = c + net->rope, pairs = rows * net->top_k;
    CARVE(work->local, threads);
    for (int i = 0; i < threads; i++) {
        Local unused;
        carve_local(&carver, net, base ? &work->local[i] : &unused);
    }
    carve_tokens(&carver, net, (int)rows, &work->all);
    carve_tokens(&carver, net, (int)rows, &work->last);
    CARVE(work->hidden, rows * d);
    CARVE(work->normed, rows * d);
    CARVE(work->q_low, rows * net->q_rank);
    CARVE(work->kv_low, rows * m);
    CARVE(work->query, rows * h * m);
    CARVE(work->mixed, rows * h * c);
    CARVE(work->heads, rows * h * net->value);
    CARVE(work->last_hidden, rows * d);
    CARVE(work->last_q_low, rows * net->q_rank);
    CARVE(work->logits, rows * net->experts);
    CARVE(work->weights, pairs);
    CARVE(work->act, pairs * net->width);
    CARVE(work->rows_out, pairs * d);
    CARVE(work->shared_act, rows * net->shared_width);
    CARVE(work->shared_out, rows * d);
    CARVE(work->ids, pairs);
    CARVE(work->token, pairs);
    CARVE(work->place, pairs);
    CARVE(work->pair_adapter, pairs);
    CARVE(work->ends, net->experts + 1);
    CARVE(work->tasks, rows * parts_of(net->heads, FEW_HEADS));
    CARVE(work->jobs, net->experts + pairs / BLOCK_T + parts_of((int)rows, BLOCK_T) + 1);
    return carver.used;
}

/* A block of rows and a tile of outputs, from the number of a task; tiles of one block follow one another. */
typedef struct {
    int32_t row, rows, output, outputs;
} Patch;

INLINE Patch patch_of(int task, int rows, int outputs, int tile) {
    int tiles = parts_of(outputs, tile), row = task / tiles * BLOCK_T, output = task % tiles * tile;
    return (Patch){row, least(rows - row, BLOCK_T), output, least(outputs - output, tile)};
}

INLINE int num_patches(int rows, int outputs, int tile) { return parts_of(rows, BLOCK_T) * parts_of(outputs, tile); }

INLINE const int32_t *adapters_from(const Work *work, const Tokens *tokens, int row) { return work->adapted ? tokens->adapter + row : 0; }

/* y = w x / sqrt(mean(x^2) + eps); x and y may be the same. */
static void norm_row(const Matrix *weight, float eps, const float *x, float *y) {
    int d = weight->columns, half = weight->stack.kind == BF16, i = 0;
    const void *w = weight->stack.data;
    vec squares = {0};
    for (; i + LANES <= d; i += LANES) squares += load(x + i) * load(x + i);
    float total = fold_one(squares);
    for (; i < d; i++) total += x[i] * x[i];
    float factor = 1.0f / sqrtf(total / (float)d + eps);
    for (i = 0; i + LANES <= d; i += LANES) store(y + i, load_weight(w, i, half) * (load(x + i) * factor));
    for (; i < d; i++) y[i] = (half ? from_bf16(((const uint16_t *)w)[i]) : ((const float *)w)[i]) * (x[i] * factor);
}

/* Turns the pairs (2i, 2i + 1) of the rotary lanes. */
static void rotate(int lanes, const float *cosine, const float *sine, float *x) {
    for (int f = 0; f < lanes / 2; f++) {
        float even = x[2 * f], odd = x[2 * f + 1];
        x[2 * f] = even * cosine[f] - odd * sine[f];
        x[2 * f + 1] = odd * cosine[f] + even * sine[f];
    }
}

#endif
