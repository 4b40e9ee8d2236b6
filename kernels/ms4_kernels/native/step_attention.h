/* Attention of a step in its absorbed form: queries meet the latents as they lie in the cache's blocks.

   Positions are taken in chunks counted from position 0, whatever the row's own position and whatever rows share the work, so every sum of a
   row depends on its sequence alone. */
#ifndef MS4_STEP_ATTENTION_H
#define MS4_STEP_ATTENTION_H

#include "step_work.h"

/* Nearest, ties to even; beyond 448 the largest code of the sign. */
static uint8_t to_e4m3(float value) {
    uint32_t bits, sign;
    memcpy(&bits, &value, 4);
    sign = bits >> 24 & 0x80u;
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) return (uint8_t)(sign | 0x7Fu);
    if (bits >= 0x43E00000u) return (uint8_t)(sign | 0x7Eu); /* 448 */
    if (bits < 0x3C800000u) {                                /* 2^-6: steps of 2^-9, rounded by the addition */
        float shifted = __builtin_fabsf(value) + 0x1p14f;
        memcpy(&bits, &shifted, 4);
        return (uint8_t)(sign | (bits & 0xFu));
    }
    bits += 0x7FFFFu + (bits >> 20 & 1u);
    return (uint8_t)(sign | ((bits >> 20) - (120u << 3)));
}

INLINE int64_t slot_of(const Network *net, const Step *step, int sequence, int position) {
    return (int64_t)step->tables[step->table_first[sequence] + position / net->block_size] * net->block_size + position % net->block_size;
}

/* Norm and rotation of a row's latent, and its place in the cache. */
static void store_latent(const Network *net, const Step *step, const Layer *layer, const Tokens *tokens, int row, float *latent) {
    int c = net->latent, m = c + net->rope;
    norm_row(&layer->kv_a_norm, net->latent_norm_eps, latent, latent);
    rotate(net->rope, tokens->cosine + (ptrdiff_t)row * (net->rope / 2), tokens->sine + (ptrdiff_t)row * (net->rope / 2), latent + c);
    int64_t at = slot_of(net, step, tokens->sequence[row], tokens->position[row]) * m;
    if (net->pool_kind == FP32) memcpy((float *)layer->pool + at, latent, 4 * (size_t)m);
    else if (net->pool_kind == BF16)
        for (int i = 0; i < m; i++) ((uint16_t *)layer->pool)[at + i] = to_bf16(latent[i]);
    else
        for (int i = 0; i < m; i++) ((uint8_t *)layer->pool)[at + i] = to_e4m3(latent[i]);
}

/* scale B A of an adapter on kv_b, between the queries of one head and its key rows: q'[c] += scale (q B_k) A, rows one by one. */
static void absorb_adapters(const Network *net, const Layer *layer, int head, const float *query, int rows, const int32_t *adapter, float *to,
                            ptrdiff_t to_stride, Local *local) {
    int n = net->nope, x = n + net->rope, c = net->latent, first = head * (n + net->value);
    for (int row = 0; row < rows; row++) {
        const Adapter *found = find_adapter(&layer->kv_b, adapter[row]);
        for (int i = 0; found && i < found->count; i++) {
            const LowRank *part = found->parts + i;
            int rank = part->a.rows;
            float *low = local->low;
            memset(low, 0, 4 * (size_t)rank);
            for (int j = 0; j < n; j++) {
                const float *b = wide_rows(&part->b, 0, first + j, 1, local->widened);
                for (int r = 0; r < rank; r++) low[r] += query[row * x + j] * b[r];
            }
            scale_values(low, rank, part->scale);
            for (int r = 0; r < rank; r++) {
                const float *a = wide_rows(&part->a, 0, r, 1, local->widened);
                for (int j = 0; j < c; j++) to[row * to_stride + j] += low[r] * a[j];
            }
        }
    }
}

/* The queries of one head for a block of rows: up-projected, rotated, scaled, and brought to the latents' side. */
static void absorb_queries(const Network *net, const Layer *layer, const Tokens *tokens, int head, int row, int rows, const float *q_low,
                           const int32_t *adapter, float *query, Local *local) {
    int n = net->nope, p = net->rope, x = n + p, c = net->latent, m = c + p;
    float *own = local->gate, *to = query + ((ptrdiff_t)row * net->heads + head) * m;
    ptrdiff_t to_stride = (ptrdiff_t)net->heads * m;
    Input low = {q_low + (ptrdiff_t)row * net->q_rank, net->q_rank, 0};
    project(&layer->q_b, 0, head * x, x, low, rows, adapter, own, x, 0, local);
    for (int t = 0; t < rows; t++) {
        ptrdiff_t angle = (ptrdiff_t)(row + t) * (p / 2);
        rotate(p, tokens->cosine + angle, tokens->sine + angle, own + t * x + n);
        scale_values(own + t * x, x, tokens->scale[row + t]);
        memcpy(to + t * to_stride + c, own + t * x + n, 4 * (size_t)p);
    }
    const float *keys = wide_rows(&layer->kv_b.weight, 0, head * (n + net->value), n, local->widened);
    product(rows, c, n, (Strided){own, x, 1}, (Rows){keys, c, 0}, to, to_stride, 1.0f, 0);
    if (adapter && layer->kv_b.adapters) absorb_adapters(net, layer, head, own, rows, adapter, to, to_stride, local);
}

/* The chunk's latents in fp32: those of an fp32 cache where they lie, others widened. Returns what Rows takes. */
static Rows chunk_latents(const Network *net, const Step *step, const Layer *layer, int sequence, int first, int count, int32_t *slot,
                          Local *local) {
    int m = net->latent + net->rope;
    const int32_t *block = step->tables + step->table_first[sequence] + first / net->block_size;
    for (int i = 0, within = first % net->block_size; i < count; i++, within++) {
        if (within == net->block_size) within = 0, block++;
        slot[i] = *block * net->block_size + within;
    }
    if (net->pool_kind == FP32) return (Rows){layer->pool, m, slot};
    for (int i = 0; i < count; i++) {
        float *to = local->latents + (ptrdiff_t)i * m;
        int64_t at = (int64_t)slot[i] * m;
        int j = 0;
        if (net->pool_kind == BF16) {
            const uint16_t *bits = (const uint16_t *)layer->pool + at;
            for (; j + LANES <= m; j += LANES) store(to + j, load_half(bits + j));
            for (; j < m; j++) to[j] = from_bf16(bits[j]);
        } else
            widen_fp8_row((const uint8_t *)layer->pool + at, 1.0f, m, to);
    }
    return (Rows){local->latents, m, 0};
}

/* Scores of all queries against the chunk: runs of positions that lie side by side go together. */
static void chunk_scores(int m, Rows latents, int count, Input query, int queries, float *scores) {
    for (int first = 0, end; first < count; first = end) {
        end = latents.rows ? first + 1 : count;
        while (end < count && latents.rows[end] == latents.rows[end - 1] + 1) end++;
        const float *from = latents.data + (ptrdiff_t)(latents.rows ? latents.rows[first] : first) * m;
        dot_fp32(end - first, m, from, query, queries, scores + first, SCORE_STRIDE, 0);
    }
}

typedef struct {
    float maximum;
    vec sums;
} Softmax;

/* Scores to probabilities under the running maximum; returns the factor on what was summed before. */
static float soften(float *score, int count, Softmax *state) {
    int whole = count / LANES * LANES;
    vec most_of = (vec){0} + state->maximum;
    for (int i = 0; i < whole; i += LANES) most_of = choose(load(score + i) > most_of, load(score + i), most_of);
    float largest = most_of[0]; /* a NaN is never larger, but makes its own exponential, and so the sum, NaN */
    for (int i = 1; i < LANES; i++) largest = most_of[i] > largest ? most_of[i] : largest;
    for (int i = whole; i < count; i++) largest = score[i] > largest ? score[i] : largest;
    float factor = state->maximum == largest ? 1.0f : exponential((vec){0} + (state->maximum - largest))[0];
    state->maximum = largest;
    state->sums *= factor;
    for (int i = 0; i < whole; i += LANES) {
        vec value = exponential(load(score + i) - largest);
        store(score + i, value);
        state->sums += value;
    }
    if (whole < count) {
        vec value = exponential(load_part(score + whole, count - whole) - largest);
        for (int i = count - whole; i < LANES; i++) value[i] = 0.0f;
        store(score + whole, value);
        state->sums += value;
    }
    return factor;
}

/* One task: rows of one sequence and some heads. */
static void attend(const Network *net, const Step *step, const Layer *layer, const Tokens *tokens, const AttentionTask *task,
                   const float *query, float *mixed, Local *local) {
    int c = net->latent, m = c + net->rope, heads = task->heads, queries = task->rows * heads, seen = 0;
    int32_t index[QUERIES_Q], slot[CHUNK_S], *position = tokens->position + task->first;
    Softmax state[QUERIES_Q];
    for (int q = 0; q < queries; q++) {
        index[q] = (task->first + q / heads) * net->heads + task->head + q % heads;
        state[q] = (Softmax){-INFINITY, {0}};
        seen = most(seen, position[q / heads] + 1);
    }
    memset(local->mixed, 0, 4 * (size_t)queries * (size_t)c);
    for (int first = 0; first < seen; first += CHUNK_S) {
        int count = least(seen - first, CHUNK_S), same = 1;
        Rows latents = chunk_latents(net, step, layer, tokens->sequence[task->first], first, count, slot, local);
        chunk_scores(m, latents, count, (Input){query, m, index}, queries, local->scores);
        for (int q = 0; q < queries; q++) {
            int own = least(position[q / heads] + 1 - first, count);
            same &= own == count;
            if (own <= 0) continue;
            float factor = soften(local->scores + q * SCORE_STRIDE, own, &state[q]);
            if (factor != 1.0f) scale_values(local->mixed + (ptrdiff_t)q * c, c, factor);
        }
        /* Later positions take no part at all: not even a NaN of theirs may reach an earlier row. */
        for (int row = 0; row < (same ? 1 : task->rows); row++) {
            int own = same ? count : least(position[row] + 1 - first, count);
            if (own > 0)
                product(same ? queries : heads, c, own, (Strided){local->scores + row * heads * SCORE_STRIDE, SCORE_STRIDE, 1}, latents,
                        local->mixed + (ptrdiff_t)row * heads * c, c, 1.0f, 1);
        }
    }
    for (int q = 0; q < queries; q++) {
        float total = fold_one(state[q].sums);
        for (int i = 0; i < c; i++) mixed[(ptrdiff_t)index[q] * c + i] = local->mixed[(ptrdiff_t)q * c + i] / total;
    }
}

/* out_head = W_v (P c) for a block of rows. */
static void raise_values(const Network *net, const Layer *layer, int head, int row, int rows, const float *mixed, const int32_t *adapter,
                         float *heads, Local *local) {
    int v = net->value, first = head * (net->nope + v) + net->nope, c = net->latent;
    Input input = {mixed + ((ptrdiff_t)row * net->heads + head) * c, (ptrdiff_t)net->heads * c, 0};
    project(&layer->kv_b, 0, first, v, input, rows, adapter, heads + ((ptrdiff_t)row * net->heads + head) * v, (ptrdiff_t)net->heads * v, 0,
            local);
}

#endif
