/* One step of the whole network on a CPU: all layers for new tokens of any mix of sequences, over the paged latent cache, in one parallel
   region. A row's result does not depend on the other rows, on where its prompt was cut, or on the number of threads.
   Called by ms4_kernels.step.interface; tested in tests/kernels/ms4_kernels/step. */
#include "step_attention.h"
#include "step_experts.h"

/* Positions, sequences and adapters of all rows. Returns 0, or which argument is impossible. */
static int spread_rows(const Network *net, const Step *step, Work *work) {
    Tokens *all = &work->all;
    int row = 0;
    for (int b = 0; b < step->sequences; b++) {
        int start = step->starts[b], length = step->lengths[b], blocks = step->table_first[b + 1] - step->table_first[b];
        if (start < 0 || length < 1 || length > step->rows - row) return 1;
        if ((int64_t)blocks * net->block_size < (int64_t)start + length) return 2;
        for (int i = 0; i < parts_of(start + length, net->block_size); i++) {
            int block = step->tables[step->table_first[b] + i];
            if (block < 0 || block >= net->num_blocks) return 3;
        }
        if (step->adapters[b] >= 0) work->adapted = 1;
        for (int i = 0; i < length; i++, row++) {
            all->position[row] = start + i;
            all->sequence[row] = b;
            all->adapter[row] = step->adapters[b];
        }
    }
    if (row != step->rows) return 1;
    for (int i = 0; i < step->wanted; i++)
        if (step->wanted_rows[i] < 0 || step->wanted_rows[i] >= row) return 4;
    all->count = row;
    return 0;
}

/* Rows of one sequence and groups of heads, so many that every thread finds work and loaded latents serve many queries. */
static void list_attention(const Network *net, const Tokens *tokens, Work *work) {
    int few = (int64_t)tokens->count * parts_of(net->heads, QUERIES_Q) < 4 * work->threads;
    int heads = least(few ? FEW_HEADS : QUERIES_Q, net->heads), rows = most(1, QUERIES_Q / heads);
    work->num_tasks = 0;
    for (int first = 0, end; first < tokens->count; first = end) {
        for (end = first + 1; end < tokens->count && end - first < rows && tokens->sequence[end] == tokens->sequence[first];) end++;
        for (int head = 0; head < net->heads; head += heads)
            work->tasks[work->num_tasks++] = (AttentionTask){first, end - first, head, least(heads, net->heads - head)};
    }
}

static void set_tile(Work *work, int rows) { work->tile = work->adapted ? MOST_TILE : rows <= 8 ? LANES : rows < 128 ? 32 : 64; }

static void begin_rows(const Network *net, const Step *step, Work *work) {
    int d = net->hidden, f = net->rope / 2;
    Tokens *all = &work->all;
#pragma omp for schedule(static) nowait
    for (int t = 0; t < step->rows; t++) {
        float position = (float)all->position[t], *cosine = all->cosine + (ptrdiff_t)t * f, *sine = all->sine + (ptrdiff_t)t * f;
        for (int i = 0; i < f; i++) {
            float angle = position * net->frequencies[i];
            cosine[i] = cosf(angle) * net->cos_sin_factor;
            sine[i] = sinf(angle) * net->cos_sin_factor;
        }
        int window = all->position[t] / net->llama4_original;
        all->scale[t] = (window ? 1.0f + net->llama4_beta * logf(1.0f + (float)window) : 1.0f) * net->attention_scale;
        memcpy(work->hidden + (ptrdiff_t)t * d, step->embedding + (ptrdiff_t)t * d, 4 * (size_t)d);
        norm_row(&net->layers[0].input_norm, net->norm_eps, work->hidden + (ptrdiff_t)t * d, work->normed + (ptrdiff_t)t * d);
    }
    meet(&work->gate);
}

/* q_a and kv_a, then norms, rotation and the cache. */
static void down_projections(const Network *net, const Step *step, const Layer *layer, Work *work, Local *local) {
    int d = net->hidden, m = net->latent + net->rope, rows = step->rows;
    int first = num_patches(rows, net->q_rank, work->tile), all = first + num_patches(rows, m, work->tile);
#pragma omp for schedule(dynamic, 1) nowait
    for (int task = 0; task < all; task++) {
        int is_query = task < first, width = is_query ? net->q_rank : m;
        Patch p = patch_of(is_query ? task : task - first, rows, width, work->tile);
        Input x = {work->normed + (ptrdiff_t)p.row * d, d, 0};
        project(is_query ? &layer->q_a : &layer->kv_a, 0, p.output, p.outputs, x, p.rows, adapters_from(work, &work->all, p.row),
                (is_query ? work->q_low : work->kv_low) + (ptrdiff_t)p.row * width + p.output, width, 0, local);
    }
    meet(&work->gate);
#pragma omp for schedule(static) nowait
    for (int t = 0; t < rows; t++) {
        float *low = work->q_low + (ptrdiff_t)t * net->q_rank;
        norm_row(&layer->q_a_norm, net->latent_norm_eps, low, low);
        store_latent(net, step, layer, &work->all, t, work->kv_low + (ptrdiff_t)t * m);
    }
    meet(&work->gate);
}

/* Behind the last layer's latents only wanted rows matter. */
static void keep_wanted(const Network *net, const Step *step, Work *work) {
    int f = net->rope / 2, d = net->hidden, q = net->q_rank;
    Tokens *all = &work->all, *last = &work->last;
#pragma omp single nowait
    {
        last->count = step->wanted;
        for (int r = 0; r < step->wanted; r++) {
            int t = step->wanted_rows[r];
            last->position[r] = all->position[t];
            last->sequence[r] = all->sequence[t];
            last->adapter[r] = all->adapter[t];
            last->scale[r] = all->scale[t];
        }
        list_attention(net, last, work);
        set_tile(work, step->wanted);
    }
    meet(&work->gate);
#pragma omp for schedule(static) nowait
    for (int r = 0; r < step->wanted; r++) {
        ptrdiff_t t = step->wanted_rows[r], to = r;
        memcpy(last->cosine + to * f, all->cosine + t * f, 4 * (size_t)f);
        memcpy(last->sine + to * f, all->sine + t * f, 4 * (size_t)f);
        memcpy(work->last_hidden + to * d, work->hidden + t * d, 4 * (size_t)d);
        memcpy(work->last_q_low + to * q, work->q_low + t * q, 4 * (size_t)q);
    }
    meet(&work->gate);
}

/* From normed low-rank queries to the residual stream behind attention. */
static void attention(const Network *net, const Step *step, const Layer *layer, const Tokens *tokens, const float *q_low, float *hidden,
                      Work *work, Local *local) {
    int rows = tokens->count, d = net->hidden, wide = net->heads * net->value, blocks = parts_of(rows, BLOCK_T);
#pragma omp for schedule(dynamic, 1) nowait
    for (int task = 0; task < blocks * net->heads; task++) {
        int row = task / net->heads * BLOCK_T;
        absorb_queries(net, layer, tokens, task % net->heads, row, least(rows - row, BLOCK_T), q_low, adapters_from(work, tokens, row),
                       work->query, local);
    }
    meet(&work->gate);
#pragma omp for schedule(dynamic, 1) nowait
    for (int task = 0; task < work->num_tasks; task++) attend(net, step, layer, tokens, &work->tasks[task], work->query, work->mixed, local);
    meet(&work->gate);
#pragma omp for schedule(dynamic, 1) nowait
    for (int task = 0; task < blocks * net->heads; task++) {
        int row = task / net->heads * BLOCK_T;
        raise_values(net, layer, task % net->heads, row, least(rows - row, BLOCK_T), work->mixed, adapters_from(work, tokens, row), work->heads,
                     local);
    }
    meet(&work->gate);
#pragma omp for schedule(dynamic, 1) nowait
    for (int task = 0; task < num_patches(rows, d, work->tile); task++) {
        Patch p = patch_of(task, rows, d, work->tile);
        Input x = {work->heads + (ptrdiff_t)p.row * wide, wide, 0};
        project(&layer->o, 0, p.output, p.outputs, x, p.rows, adapters_from(work, tokens, p.row), hidden + (ptrdiff_t)p.row * d + p.output, d, 1,
                local);
    }
    meet(&work->gate);
}

/* The experts, and the norm behind them: that of the next layer, or the last one, into the step's output. */
static void experts_of_layer(const Network *net, const Step *step, const Layer *layer, const Tokens *tokens, float *hidden, int is_last,
                             Work *work, Local *local) {
    int rows = tokens->count, d = net->hidden;
#pragma omp for schedule(static) nowait
    for (int t = 0; t < rows; t++) norm_row(&layer->post_norm, net->norm_eps, hidden + (ptrdiff_t)t * d, work->normed + (ptrdiff_t)t * d);
    meet(&work->gate);
    router_and_shared(net, layer, tokens, work, local);
    route_rows(net, tokens, work, local);
    expert_activations(net, layer, work, local);
    expert_outputs(net, layer, tokens, work, local);
#pragma omp for schedule(static) nowait
    for (int t = 0; t < rows; t++) {
        combine_row(net, work, t, hidden + (ptrdiff_t)t * d);
        if (is_last) norm_row(&net->final_norm, net->norm_eps, hidden + (ptrdiff_t)t * d, step->out + (ptrdiff_t)t * d);
        else norm_row(&layer[1].input_norm, net->norm_eps, hidden + (ptrdiff_t)t * d, work->normed + (ptrdiff_t)t * d);
    }
    meet(&work->gate);
}

/* Bytes of the arena for a step of so many rows. */
int64_t ms4_step_bytes(const Network *net, int32_t rows, int32_t threads) {
    Work work;
    return (int64_t)lay_out(net, rows, threads, 0, &work) + 64;
}

/* Returns 0, or which of the arguments is impossible: 1 lengths or starts, 2 too few blocks, 3 a block, 4 a wanted row. */
int ms4_step_run(const Network *net, const Step *step) {
    Work shared = {0}, *work = &shared;
    work->threads = step->threads;
    lay_out(net, step->rows, step->threads, (char *)(((uintptr_t)step->arena + 63) / 64 * 64), work);
    int fault = spread_rows(net, step, work);
    if (fault) return fault;
    list_attention(net, &work->all, work);
    set_tile(work, step->rows);
#pragma omp parallel num_threads(step->threads)
    {
        Local *local = &work->local[omp_get_thread_num()];
        begin_rows(net, step, work);
        for (int i = 0; i < net->num_layers; i++) {
            const Layer *layer = &net->layers[i];
            int is_last = i == net->num_layers - 1;
            down_projections(net, step, layer, work, local);
            if (is_last) keep_wanted(net, step, work);
            const Tokens *tokens = is_last ? &work->last : &work->all;
            float *hidden = is_last ? work->last_hidden : work->hidden;
            if (tokens->count) {
                attention(net, step, layer, tokens, is_last ? work->last_q_low : work->q_low, hidden, work, local);
                experts_of_layer(net, step, layer, tokens, hidden, is_last, work, local);
            }
        }
    }
    return 0;
}

/* Logits of rows that ms4_step_run gave: out [rows, V]. `adapters` has one number a row. */
int ms4_step_logits(const Network *net, int32_t rows, const float *hidden, const int32_t *adapters, float *out, void *arena, int32_t threads) {
    Work shared = {0}, *work = &shared;
    int d = net->hidden, v = net->vocabulary;
    lay_out(net, 1, threads, (char *)(((uintptr_t)arena + 63) / 64 * 64), work);
    for (int i = 0; i < rows; i++) work->adapted |= adapters[i] >= 0;
    set_tile(work, 128);
#pragma omp parallel num_threads(threads)
    {
        Local *local = &work->local[omp_get_thread_num()];
#pragma omp for schedule(dynamic, 1) nowait
        for (int task = 0; task < num_patches(rows, v, work->tile); task++) {
            Patch p = patch_of(task, rows, v, work->tile);
            Input x = {hidden + (ptrdiff_t)p.row * d, d, 0};
            project(&net->head, 0, p.output, p.outputs, x, p.rows, work->adapted ? adapters + p.row : 0,
                    out + (ptrdiff_t)p.row * v + p.output, v, 0, local);
        }
        meet(&work->gate);
    }
    return 0;
}

void ms4_step_sizes(int64_t *sizes) {
    sizes[0] = sizeof(Matrix);
    sizes[1] = sizeof(LowRank);
    sizes[2] = sizeof(Adapter);
    sizes[3] = sizeof(Projection);
    sizes[4] = sizeof(Layer);
    sizes[5] = sizeof(Network);
    sizes[6] = sizeof(Step);
}
