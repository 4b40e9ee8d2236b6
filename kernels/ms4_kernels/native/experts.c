/* The experts operation on a CPU: forward and backward of all experts, one chunk of rows at a time.

   Rows are (token, slot) pairs sorted by expert; a slot without one has no row. A chunk is at most CHUNK rows of one expert (and of one adapter); its activations are held
   with rows as the vector lanes, [feature][row], so that weights are read as they lie, in order, and never packed. Everything between the
   tokens and the experts' outputs happens inside a core's cache. Saved for the backward pass: H, the pre-activation, as one block
   [2n][rows] a chunk. No sum is made by two threads, so results do not depend on their number.
   Called by ms4_kernels.moe.native; tested in tests/kernels/ms4_kernels/moe/test_native.py.

   Letters: d hidden, n expert width, r rank; t tokens; e expert. */
#include <stdlib.h>

#include "weights.h"

#define CHUNK 128
#define DOT_PART 32 /* a sum of thousands of terms in one go loses digits that a sum of sums keeps */

typedef struct {
    int32_t tokens, slots, experts, adapters, hidden, width, rank_up, rank_down, threads, half, recompute;
    float scale_up, scale_down;
    const float *x;                         /* [t, d] */
    const int64_t *pair, *row;              /* [R] sorted pairs t * slots + k; [t, slots] the row of each pair, or -1 */
    const int32_t *ends;                    /* [experts * (adapters + 1)], or [experts] without adapters axis */
    const float *routing;                   /* [t, slots] */
    Stack gate_up, down;                    /* [e, 2n, d], [e, d, n] */
    const float *a_up, *b_up, *a_down, *b_down; /* [adapters, e, r, d], [.., 2n, r], [.., r, n], [.., d, r]; null where there is none */
    void *h;                                /* [R * 2n] blocks, fp32 or bf16; null: not saved */
    float *rows_out;                        /* [R, d] experts' outputs, or gradients of their inputs */
    float *out;                             /* [t, d] */
    /* backward only; a null gradient is not wanted */
    const float *dout;                      /* [t, d] */
    /* what drouting holds for slots without a row is left alone */
    float *drouting, *dgate_up, *ddown, *da_up, *db_up, *da_down, *db_down;
    uint16_t *dgate_up_half, *ddown_half;   /* in the place of dgate_up and ddown for bf16 stacks */
} Call;

typedef struct {
    int32_t expert, adapter, first, count; /* adapter -1: none */
} Chunk;

typedef struct {
    int32_t token[CHUNK];
    float weight[CHUNK], dot[CHUNK];
    float *x, *h, *act, *y, *dout, *dact, *low, *low_rows, *dlow_up, *dlow_down, *act_rows, *gate_up, *down, *grad_up, *grad_down;
    void *memory;
} Scratch;

INLINE int larger(int a, int b) { return a > b ? a : b; }
INLINE int padded(int count) { return (count + LANES - 1) / LANES * LANES; }

static int segments_per_expert(const Call *call) { return call->adapters + 1; }

/* Chunks in row order; first_of[e] is the first chunk of expert e, first_of[experts] their number. */
static Chunk *list_chunks(const Call *call, int32_t *first_of) {
    int per = segments_per_expert(call), rows = call->tokens * call->slots;
    Chunk *chunks = malloc(sizeof(Chunk) * (size_t)(rows / CHUNK + call->experts * per + 1));
    if (!chunks) return 0;
    int number = 0, first = 0;
    for (int e = 0; e < call->experts; e++) {
        first_of[e] = number;
        for (int s = 0; s < per; s++) {
            int end = call->ends[e * per + s];
            for (; first < end; first += chunks[number - 1].count)
                chunks[number++] = (Chunk){e, call->adapters ? s - 1 : 0, first, end - first < CHUNK ? end - first : CHUNK};
        }
    }
    first_of[call->experts] = number;
    return chunks;
}

static int open_scratch(const Call *call, Scratch *s) {
    size_t d = (size_t)call->hidden, n = (size_t)call->width, rank = (size_t)larger(call->rank_up, call->rank_down);
    size_t matrices = 2 * n * d, grads = call->half ? matrices + n * d : 0;
    size_t sizes[] = {d * CHUNK,    2 * n * CHUNK, n * CHUNK,    d * CHUNK, d * CHUNK, n * CHUNK, rank * CHUNK, rank * CHUNK,
                      rank * CHUNK, rank * CHUNK,  n * CHUNK,    call->gate_up.kind == FP32 ? 0 : matrices,
                      call->down.kind == FP32 ? 0 : n * d, grads ? matrices : 0, grads ? n * d : 0};
    float **parts[] = {&s->x,   &s->h,       &s->act,       &s->y,        &s->dout,    &s->dact, &s->low,    &s->low_rows,
                       &s->dlow_up, &s->dlow_down, &s->act_rows, &s->gate_up, &s->down, &s->grad_up, &s->grad_down};
    size_t total = 0, count = sizeof(sizes) / sizeof(sizes[0]);
    for (size_t i = 0; i < count; i++) total += (sizes[i] + 15) / 16 * 16 + 16; /* the gap keeps parts off one another's cache sets */
    s->memory = aligned_alloc(64, (total * 4 + 63) / 64 * 64);
    if (!s->memory) return 0;
    float *at = s->memory;
    for (size_t i = 0; i < count; i++) {
        *parts[i] = at;
        at += (sizes[i] + 15) / 16 * 16 + 16;
    }
    return 1;
}

static void take_rows(const Call *call, const Chunk *chunk, Scratch *s) {
    for (int i = 0; i < chunk->count; i++) {
        int64_t pair = call->pair[chunk->first + i];
        s->token[i] = (int32_t)(pair / call->slots);
        s->weight[i] = call->routing[pair];
    }
    for (int i = chunk->count; i < padded(chunk->count); i++) s->weight[i] = 0.0f;
}

/* Tokens' rows as [feature][row]; lanes beyond the last row hold zeros. */
static void gather(int count, int features, const float *from, const int32_t *token, float *to) {
    int ld = padded(count);
    transpose(count, features, from, features, token, to, ld);
    for (int f = 0; count < ld && f < features; f++)
        for (int i = count; i < ld; i++) to[f * ld + i] = 0.0f;
}

static const float *pair_of(const Call *call, const Chunk *chunk, const float *stack, int64_t size) {
    return stack && chunk->adapter >= 0 ? stack + ((int64_t)chunk->adapter * call->experts + chunk->expert) * size : 0;
}

static float *grad_of(const Call *call, const Chunk *chunk, float *stack, int64_t size) { return (float *)pair_of(call, chunk, stack, size); }

/* H = W1 x + scale B (A x), [2n][ld] */
static void pre_activation(const Call *call, const Chunk *chunk, const float *w, Scratch *s) {
    int d = call->hidden, wide = 2 * call->width, r = call->rank_up, ld = padded(chunk->count);
    product(wide, ld, d, (Strided){w, d, 1}, (Rows){s->x, ld, 0}, s->h, ld, 1.0f, 0);
    const float *a = pair_of(call, chunk, call->a_up, (int64_t)r * d), *b = pair_of(call, chunk, call->b_up, (int64_t)wide * r);
    if (!a) return;
    product(r, ld, d, (Strided){a, d, 1}, (Rows){s->x, ld, 0}, s->low, ld, 1.0f, 0);
    product(wide, ld, r, (Strided){b, r, 1}, (Rows){s->low, ld, 0}, s->h, ld, call->scale_up, 1);
}

/* The saved block is [2n][count], without the padding of the scratch. */
static void save_block(const Call *call, const Chunk *chunk, const float *h) {
    int64_t wide = 2 * call->width, count = chunk->count, ld = padded(chunk->count), first = wide * chunk->first;
    for (int64_t i = 0; i < wide; i++) {
        if (!call->half) memcpy((float *)call->h + first + i * count, h + i * ld, 4 * (size_t)count);
        else
            for (int64_t j = 0; j < count; j++) ((uint16_t *)call->h)[first + i * count + j] = to_bf16(h[i * ld + j]);
    }
}

static void load_block(const Call *call, const Chunk *chunk, float *h) {
    int64_t wide = 2 * call->width, count = chunk->count, ld = padded(chunk->count), first = wide * chunk->first;
    for (int64_t i = 0; i < wide; i++) {
        if (!call->half) memcpy(h + i * ld, (const float *)call->h + first + i * count, 4 * (size_t)count);
        else
            for (int64_t j = 0; j < count; j++) h[i * ld + j] = from_bf16(((const uint16_t *)call->h)[first + i * count + j]);
        for (int64_t j = count; j < ld; j++) h[i * ld + j] = 0.0f;
    }
}

/* What bf16 tokens lose: H is kept in bf16, so the activation is computed from the same rounded values forward and backward. */
static void round_block(float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) values[i] = from_bf16(to_bf16(values[i]));
}

static void forward_chunk(const Call *call, const Chunk *chunk, Scratch *s) {
    int d = call->hidden, n = call->width, r = call->rank_down, ld = padded(chunk->count);
    const float *w1 = matrix(&call->gate_up, chunk->expert, 2 * n, d, call->half, s->gate_up);
    const float *w2 = matrix(&call->down, chunk->expert, d, n, call->half, s->down);
    take_rows(call, chunk, s);
    gather(chunk->count, d, call->x, s->token, s->x);
    pre_activation(call, chunk, w1, s);
    if (call->half) round_block(s->h, 2 * n * (int64_t)ld);
    if (call->h) save_block(call, chunk, s->h);
    for (int64_t i = 0; i < (int64_t)n * ld; i += LANES) {
        vec gate = load(s->h + i), up = load(s->h + (int64_t)n * ld + i);
        store(s->act + i, gate * sigmoid(gate) * up);
    }
    product(d, ld, n, (Strided){w2, n, 1}, (Rows){s->act, ld, 0}, s->y, ld, 1.0f, 0);
    const float *a = pair_of(call, chunk, call->a_down, (int64_t)r * n), *b = pair_of(call, chunk, call->b_down, (int64_t)d * r);
    if (a) {
        product(r, ld, n, (Strided){a, n, 1}, (Rows){s->act, ld, 0}, s->low, ld, 1.0f, 0);
        product(d, ld, r, (Strided){b, r, 1}, (Rows){s->low, ld, 0}, s->y, ld, call->scale_down, 1);
    }
    transpose(d, chunk->count, s->y, ld, 0, call->rows_out + (int64_t)chunk->first * d, d);
}

/* out[t] = sum over slots with a row, in their order, of weight * row; rows without weights are added as they are. */
static void combine(const Call *call, const float *weights) {
    int d = call->hidden, slots = call->slots;
#pragma omp parallel for schedule(static) num_threads(call->threads)
    for (int t = 0; t < call->tokens; t++) {
        float *out = call->out + (int64_t)t * d;
        int added = 0;
        for (int k = 0; k < slots; k++) {
            int64_t place = call->row[(int64_t)t * slots + k];
            if (place < 0) continue;
            const float *row = call->rows_out + place * d;
            float weight = weights ? weights[(int64_t)t * slots + k] : 1.0f;
            if (added++ == 0)
                for (int c = 0; c < d; c++) out[c] = weight * row[c];
            else
                for (int c = 0; c < d; c++) out[c] += weight * row[c];
        }
        if (added == 0) memset(out, 0, 4 * (size_t)d);
    }
}

/* dH in the place of H; in s->act the activation times the routing weight; in s->dot <dA', A>, the gradient of the routing weight. */
static void activation_backward(const Call *call, const Chunk *chunk, Scratch *s) {
    int n = call->width, ld = padded(chunk->count);
    for (int i = 0; i < ld; i += LANES) {
        vec weight = load(s->weight + i), dot = {0};
        for (int first = 0; first < n; first += DOT_PART) {
            int last = first + DOT_PART < n ? first + DOT_PART : n;
            vec part = {0};
            for (int64_t j = i + (int64_t)first * ld; j < (int64_t)last * ld; j += ld) {
                vec gate = load(s->h + j), up = load(s->h + (int64_t)n * ld + j), d_act = load(s->dact + j);
                vec gated = sigmoid(gate), silu = gate * gated, act = silu * up;
                part += d_act * act;
                d_act *= weight;
                store(s->act + j, act * weight);
                store(s->h + j, d_act * up * (gated + silu * (1.0f - gated)));
                store(s->h + (int64_t)n * ld + j, d_act * silu);
            }
            dot += part;
        }
        store(s->dot + i, dot);
    }
    if (call->drouting)
        for (int i = 0; i < chunk->count; i++) call->drouting[call->pair[chunk->first + i]] = s->dot[i];
}

static void down_gradients(const Call *call, const Chunk *chunk, int adds, float *dw, int adds_pair, Scratch *s) {
    int d = call->hidden, n = call->width, r = call->rank_down, count = chunk->count, ld = padded(count);
    float *da = grad_of(call, chunk, call->da_down, (int64_t)r * n), *db = grad_of(call, chunk, call->db_down, (int64_t)d * r);
    if (dw || da) transpose(n, count, s->act, ld, 0, s->act_rows, n);
    if (dw) product(d, n, count, (Strided){s->dout, ld, 1}, (Rows){s->act_rows, n, 0}, dw, n, 1.0f, adds);
    if (da) product(r, n, count, (Strided){s->dlow_down, ld, 1}, (Rows){s->act_rows, n, 0}, da, n, 1.0f, adds_pair);
    if (db) {
        const float *a = pair_of(call, chunk, call->a_down, (int64_t)r * n);
        product(r, ld, n, (Strided){a, n, 1}, (Rows){s->act, ld, 0}, s->low, ld, 1.0f, 0);
        transpose(r, count, s->low, ld, 0, s->low_rows, r);
        product(d, r, count, (Strided){s->dout, ld, 1}, (Rows){s->low_rows, r, 0}, db, r, call->scale_down, adds_pair);
    }
}

static void up_gradients(const Call *call, const Chunk *chunk, int adds, float *dw, int adds_pair, Scratch *s) {
    int d = call->hidden, wide = 2 * call->width, r = call->rank_up, count = chunk->count, ld = padded(count);
    Rows x = {call->x, d, s->token};
    float *da = grad_of(call, chunk, call->da_up, (int64_t)r * d), *db = grad_of(call, chunk, call->db_up, (int64_t)wide * r);
    if (dw) product(wide, d, count, (Strided){s->h, ld, 1}, x, dw, d, 1.0f, adds);
    if (da) product(r, d, count, (Strided){s->dlow_up, ld, 1}, x, da, d, 1.0f, adds_pair);
    if (db) {
        const float *a = pair_of(call, chunk, call->a_up, (int64_t)r * d);
        product(r, ld, d, (Strided){a, d, 1}, (Rows){s->x, ld, 0}, s->low, ld, 1.0f, 0);
        transpose(r, count, s->low, ld, 0, s->low_rows, r);
        product(wide, r, count, (Strided){s->h, ld, 1}, (Rows){s->low_rows, r, 0}, db, r, call->scale_up, adds_pair);
    }
}

static void input_gradient(const Call *call, const Chunk *chunk, const float *w1, Scratch *s) {
    int d = call->hidden, wide = 2 * call->width, r = call->rank_up, ld = padded(chunk->count);
    float *rows = call->rows_out + (int64_t)chunk->first * d;
    product(chunk->count, d, wide, (Strided){s->h, 1, ld}, (Rows){w1, d, 0}, rows, d, 1.0f, 0);
    const float *a = pair_of(call, chunk, call->a_up, (int64_t)r * d);
    if (a) product(chunk->count, d, r, (Strided){s->dlow_up, 1, ld}, (Rows){a, d, 0}, rows, d, 1.0f, 1);
}

static void backward_chunk(const Call *call, const Chunk *chunk, int adds, int adds_pair, float *dw1, float *dw2, Scratch *s) {
    int d = call->hidden, n = call->width, wide = 2 * n, ld = padded(chunk->count);
    const float *w1 = 0, *w2 = matrix(&call->down, chunk->expert, d, n, call->half, s->down);
    if (call->recompute || call->rows_out) w1 = matrix(&call->gate_up, chunk->expert, wide, d, call->half, s->gate_up);
    take_rows(call, chunk, s);
    gather(chunk->count, d, call->dout, s->token, s->dout);
    if (call->recompute || call->db_up) gather(chunk->count, d, call->x, s->token, s->x);
    if (call->recompute) {
        pre_activation(call, chunk, w1, s);
        if (call->half) round_block(s->h, wide * (int64_t)ld);
    } else
        load_block(call, chunk, s->h);
    product(n, ld, d, (Strided){w2, 1, n}, (Rows){s->dout, ld, 0}, s->dact, ld, 1.0f, 0);
    int r = call->rank_down;
    const float *a = pair_of(call, chunk, call->a_down, (int64_t)r * n), *b = pair_of(call, chunk, call->b_down, (int64_t)d * r);
    if (a) {
        product(r, ld, d, (Strided){b, 1, r}, (Rows){s->dout, ld, 0}, s->dlow_down, ld, call->scale_down, 0);
        product(n, ld, r, (Strided){a, 1, n}, (Rows){s->dlow_down, ld, 0}, s->dact, ld, 1.0f, 1);
    }
    activation_backward(call, chunk, s);
    down_gradients(call, chunk, adds, dw2, adds_pair, s);
    r = call->rank_up;
    b = pair_of(call, chunk, call->b_up, (int64_t)wide * r);
    if (b) product(r, ld, wide, (Strided){b, 1, r}, (Rows){s->h, ld, 0}, s->dlow_up, ld, call->scale_up, 0);
    up_gradients(call, chunk, adds, dw1, adds_pair, s);
    if (call->rows_out) input_gradient(call, chunk, w1, s);
}

static void narrow(const float *from, uint16_t *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = to_bf16(from[i]);
}

/* One expert's chunks, in order, by one thread: gradients of its weights add up over them. */
static void backward_expert(const Call *call, const Chunk *chunks, int first, int last, int expert, Scratch *s) {
    int64_t size1 = 2 * (int64_t)call->width * call->hidden, size2 = (int64_t)call->width * call->hidden;
    float *dw1 = call->dgate_up ? call->dgate_up + expert * size1 : call->dgate_up_half ? s->grad_up : 0;
    float *dw2 = call->ddown ? call->ddown + expert * size2 : call->ddown_half ? s->grad_down : 0;
    if (first == last) {
        if (dw1) memset(dw1, 0, 4 * (size_t)size1);
        if (dw2) memset(dw2, 0, 4 * (size_t)size2);
    }
    for (int i = first; i < last; i++) {
        int adds_pair = i > first && chunks[i].adapter == chunks[i - 1].adapter;
        backward_chunk(call, &chunks[i], i > first, adds_pair, dw1, dw2, s);
    }
    if (call->dgate_up_half) narrow(dw1, call->dgate_up_half + expert * size1, size1);
    if (call->ddown_half) narrow(dw2, call->ddown_half + expert * size2, size2);
}

/* Both return 0, or 1 where memory ran out. */
int ms4_experts_forward(const Call *call) {
    int32_t *first_of = malloc(sizeof(int32_t) * (size_t)(call->experts + 1));
    Chunk *chunks = first_of ? list_chunks(call, first_of) : 0;
    int failed = !chunks, number = chunks ? first_of[call->experts] : 0;
#pragma omp parallel num_threads(call->threads) reduction(| : failed)
    {
        Scratch s;
        int ready = number && open_scratch(call, &s);
        failed |= number && !ready;
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < number; i++)
            if (ready) forward_chunk(call, &chunks[i], &s);
        if (ready) free(s.memory);
    }
    if (!failed) combine(call, call->routing);
    free(chunks);
    free(first_of);
    return failed;
}

int ms4_experts_backward(const Call *call) {
    int32_t *first_of = malloc(sizeof(int32_t) * (size_t)(call->experts + 1));
    Chunk *chunks = first_of ? list_chunks(call, first_of) : 0;
    int failed = !chunks, number = chunks ? first_of[call->experts] : 0;
    int adds_up = call->dgate_up || call->dgate_up_half || call->ddown || call->ddown_half || call->da_up || call->db_up || call->da_down ||
                  call->db_down;
#pragma omp parallel num_threads(call->threads) reduction(| : failed)
    {
        Scratch s;
        int ready = chunks && open_scratch(call, &s);
        failed |= !ready;
        if (adds_up) {
#pragma omp for schedule(dynamic, 1)
            for (int e = 0; e < call->experts; e++)
                if (ready) backward_expert(call, chunks, first_of[e], first_of[e + 1], e, &s);
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < number; i++)
                if (ready) backward_chunk(call, &chunks[i], 0, 0, 0, 0, &s);
        }
        if (ready) free(s.memory);
    }
    if (!failed && call->out) combine(call, 0);
    free(chunks);
    free(first_of);
    return failed;
}
