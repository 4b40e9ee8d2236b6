/* Mixture of experts of a step: routing, the sorted list of (expert, rows), and the two products of each; the shared expert is one more. */
#ifndef MS4_STEP_EXPERTS_H
#define MS4_STEP_EXPERTS_H

#include "step_work.h"

#define SHARED -1

/* The first of the largest scores, of which there are whole vectors. */
static int first_largest(const float *score, int count) {
    vec best = load(score);
    for (int i = LANES; i < count; i += LANES) best = choose(load(score + i) > best, load(score + i), best);
    float largest = best[0];
    for (int lane = 1; lane < LANES; lane++) largest = best[lane] > largest ? best[lane] : largest;
    int at = 0;
    while (score[at] != largest) at++;
    return at;
}

/* The k largest logits, the lower id on a tie; a NaN counts as largest. Weights as ms4_kernels.routing defines them. */
static void choose_experts(const Network *net, const float *logits, float *score, float *weights, int32_t *ids) {
    int e = net->experts, k = net->top_k, padded_e = parts_of(e, LANES) * LANES;
    float total = 0.0f, largest = logits[0];
    for (int i = 0; i < e; i++) score[i] = logits[i] != logits[i] ? INFINITY : logits[i] > -FLT_MAX ? logits[i] : -FLT_MAX;
    for (int i = e; i < padded_e; i++) score[i] = -INFINITY; /* as are those that were chosen */
    if (!net->renormalise) {
        for (int i = 1; i < e; i++) largest = logits[i] > largest ? logits[i] : largest;
        for (int i = 0; i < e; i++) total += exponential((vec){0} + (logits[i] - largest))[0];
    }
    for (int slot = 0; slot < k; slot++) {
        int best = ids[slot] = first_largest(score, padded_e);
        score[best] = -INFINITY;
        if (net->renormalise && slot == 0) largest = logits[best];
        weights[slot] = exponential((vec){0} + (logits[best] - largest))[0];
        if (net->renormalise) total += weights[slot];
    }
    for (int slot = 0; slot < k; slot++) weights[slot] = weights[slot] / total * net->routed_scale;
}

static void add_jobs(Work *work, int expert, int first, int count) {
    int blocks = parts_of(count, BLOCK_T);
    for (int done = 0; blocks; blocks--) { /* about equal, in whole tiles: a last block of one row would read all weights for it */
        int rows = least(count - done, parts_of(parts_of(count - done, blocks), TILE_T) * TILE_T);
        if (rows > 0) work->jobs[work->num_jobs++] = (ExpertJob){expert, first + done, rows};
        done += rows;
    }
}

/* Pairs (row, slot) in the order of their experts, rows in order within one. */
static void sort_pairs(const Network *net, const Tokens *tokens, Work *work) {
    int e = net->experts, k = net->top_k, pairs = tokens->count * k;
    memset(work->ends, 0, sizeof(int32_t) * (size_t)(e + 1));
    for (int i = 0; i < pairs; i++) work->ends[work->ids[i] + 1]++;
    work->num_jobs = 0;
    for (int i = 0; i < e; i++) {
        add_jobs(work, i, work->ends[i], work->ends[i + 1]);
        work->ends[i + 1] += work->ends[i];
    }
    for (int i = 0; i < pairs; i++) {
        int row = work->ends[work->ids[i]]++;
        work->token[row] = i / k;
        work->place[i] = row;
        work->pair_adapter[row] = tokens->adapter[i / k];
    }
}

static void add_shared_jobs(Work *work, int rows) { add_jobs(work, SHARED, 0, rows); }

/* One tile of silu(gate) * up. */
static void swiglu_tile(const Projection *gate, int gate_first, const Projection *up, int up_first, int expert, int outputs, Input x, int rows,
                        const int32_t *adapter, float *act, ptrdiff_t act_stride, Local *local) {
    project(gate, expert, gate_first, outputs, x, rows, adapter, local->gate, outputs, 0, local);
    project(up, expert, up_first, outputs, x, rows, adapter, local->up, outputs, 0, local);
    for (int t = 0; t < rows; t++) {
        float *g = local->gate + t * outputs, *u = local->up + t * outputs, *to = act + t * act_stride;
        int i = 0;
        for (; i + LANES <= outputs; i += LANES) {
            vec value = load(g + i);
            store(to + i, value * sigmoid(value) * load(u + i));
        }
        if (i < outputs) {
            vec value = load_part(g + i, outputs - i);
            value = value * sigmoid(value) * load_part(u + i, outputs - i);
            memcpy(to + i, &value, 4 * (size_t)(outputs - i));
        }
    }
}

/* Router logits and the shared expert's activation: both need the normed rows only. */
static void router_and_shared(const Network *net, const Layer *layer, const Tokens *tokens, Work *work, Local *local) {
    int rows = tokens->count, d = net->hidden, n = net->shared_width;
    int first = num_patches(rows, net->experts, work->tile), all = first + num_patches(rows, n, work->tile);
#pragma omp for schedule(dynamic, 1) nowait
    for (int task = 0; task < all; task++) {
        if (task < first) {
            Patch p = patch_of(task, rows, net->experts, work->tile);
            Input x = {work->normed + (ptrdiff_t)p.row * d, d, 0};
            dot_matrix(&layer->router, 0, p.output, p.outputs, x, p.rows, work->logits + (ptrdiff_t)p.row * net->experts + p.output,
                       net->experts, 0, local->widened);
            continue;
        }
        Patch p = patch_of(task - first, rows, n, work->tile);
        Input x = {work->normed + (ptrdiff_t)p.row * d, d, 0};
        swiglu_tile(&layer->shared_gate, p.output, &layer->shared_up, p.output, 0, p.outputs, x, p.rows, adapters_from(work, tokens, p.row),
                    work->shared_act + (ptrdiff_t)p.row * n + p.output, n, local);
    }
    meet(&work->gate);
}

static void route_rows(const Network *net, const Tokens *tokens, Work *work, Local *local) {
#pragma omp for schedule(static) nowait
    for (int t = 0; t < tokens->count; t++)
        choose_experts(net, work->logits + (ptrdiff_t)t * net->experts, local->score, work->weights + (ptrdiff_t)t * net->top_k,
                       work->ids + (ptrdiff_t)t * net->top_k);
    meet(&work->gate);
#pragma omp single nowait
    {
        sort_pairs(net, tokens, work);
        add_shared_jobs(work, tokens->count);
    }
    meet(&work->gate);
}

static void expert_activations(const Network *net, const Layer *layer, Work *work, Local *local) {
    int n = net->width, tiles = parts_of(n, work->tile), d = net->hidden;
#pragma omp for schedule(dynamic, 1) nowait
    for (int task = 0; task < work->num_jobs * tiles; task++) {
        ExpertJob job = work->jobs[task / tiles];
        if (job.expert == SHARED) continue;
        int output = task % tiles * work->tile, outputs = least(n - output, work->tile);
        Input x = {work->normed, d, work->token + job.first};
        swiglu_tile(&layer->gate_up, output, &layer->gate_up, n + output, job.expert, outputs, x, job.rows,
                    work->adapted ? work->pair_adapter + job.first : 0, work->act + (ptrdiff_t)job.first * n + output, n, local);
    }
    meet(&work->gate);
}

static void expert_outputs(const Network *net, const Layer *layer, const Tokens *tokens, Work *work, Local *local) {
    int d = net->hidden, tiles = parts_of(d, work->tile);
#pragma omp for schedule(dynamic, 1) nowait
    for (int task = 0; task < work->num_jobs * tiles; task++) {
        ExpertJob job = work->jobs[task / tiles];
        int output = task % tiles * work->tile, outputs = least(d - output, work->tile), shared = job.expert == SHARED;
        int n = shared ? net->shared_width : net->width;
        const float *act = (shared ? work->shared_act : work->act) + (ptrdiff_t)job.first * n;
        const int32_t *adapter = shared ? tokens->adapter + job.first : work->pair_adapter + job.first;
        project(shared ? &layer->shared_down : &layer->down, shared ? 0 : job.expert, output, outputs, (Input){act, n, 0}, job.rows,
                work->adapted ? adapter : 0, (shared ? work->shared_out : work->rows_out) + (ptrdiff_t)job.first * d + output, d, 0, local);
    }
    meet(&work->gate);
}

/* hidden += sum over slots, in their order, of weight * expert's row, and the shared expert's. */
static void combine_row(const Network *net, const Work *work, int t, float *hidden) {
    int d = net->hidden, k = net->top_k;
    const float *shared = work->shared_out + (ptrdiff_t)t * d, *weight = work->weights + (ptrdiff_t)t * k;
    const int32_t *place = work->place + (ptrdiff_t)t * k;
    int i = 0;
    for (; i + LANES <= d; i += LANES) {
        vec sum = {0};
        for (int slot = 0; slot < k; slot++) sum += weight[slot] * load(work->rows_out + (ptrdiff_t)place[slot] * d + i);
        store(hidden + i, load(hidden + i) + (sum + load(shared + i)));
    }
    for (; i < d; i++) {
        float sum = 0.0f;
        for (int slot = 0; slot < k; slot++) sum += weight[slot] * work->rows_out[(ptrdiff_t)place[slot] * d + i];
        hidden[i] += sum + shared[i];
    }
}

#endif
