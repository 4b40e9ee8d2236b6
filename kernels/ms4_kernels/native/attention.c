/* Attention inside the documents of a packed row, fp32, forward and backward: one (document, head) pair at a time, QUERIES queries of it
   against the keys before them, or against all where it is not causal. Nothing is saved but queries, keys and values; what a block needs
   stays in a core's cache, causal products above the diagonal are never made, and every token, head and element is read and written where
   it lies, without copies.
   Called by ms4_kernels.attention.native; tested in tests/kernels/ms4_kernels/attention/test_native.py.

   Letters: x key width, v value width, q query, k key. */
#include <stdlib.h>

#include "vectors.h"

#define QUERIES 48 /* a multiple of TILE_ROWS; probabilities of 512 keys then take 96 KiB */

typedef struct {
    int32_t documents, heads, key_width, value_width, threads, causal;
    float scale;
    const int32_t *first, *length;               /* of each document */
    int64_t query_stride, key_stride, value_stride; /* between tokens; heads of a token follow one another */
    const float *query, *key, *value;
    float *out;                                  /* [t, h, v] */
    const float *dout;                           /* [t, h, v]; backward only, and the gradients, laid out like their tensors */
    float *dquery, *dkey, *dvalue;               /* [t, h, x], [t, h, x], [t, h, v] */
} Attention;

typedef struct {
    float *keys, *values;              /* [x][k] and [v][k] of one document and head */
    float *probability, *gradient;     /* [QUERIES][k] */
    int ld;
    void *memory;
} Workspace;

static int open_workspace(const Attention *call, Workspace *w) {
    int longest = 1;
    for (int i = 0; i < call->documents; i++)
        if (call->length[i] > longest) longest = call->length[i];
    /* Rows an odd number of vectors apart do not fall on one another in the cache. */
    w->ld = ((longest + LANES - 1) / LANES | 1) * LANES;
    size_t rows = (size_t)(call->key_width + call->value_width + 2 * QUERIES);
    w->memory = aligned_alloc(64, (rows * (size_t)w->ld * 4 + 63) / 64 * 64);
    if (!w->memory) return 0;
    w->keys = w->memory;
    w->values = w->keys + (size_t)call->key_width * (size_t)w->ld;
    w->probability = w->values + (size_t)call->value_width * (size_t)w->ld;
    w->gradient = w->probability + (size_t)QUERIES * (size_t)w->ld;
    return 1;
}

/* Softmax over the first `count` of a row; what lies behind, up to a whole vector, becomes zero. */
static void softmax_row(float *row, int count) {
    int whole = count / LANES * LANES;
    vec most = (vec){0} + row[0];
    for (int i = 0; i < whole; i += LANES) most = choose(load(row + i) > most, load(row + i), most);
    float largest = most[0]; /* a NaN is never larger, but makes its own exponential, and so the sum, NaN */
    for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
    for (int i = whole; i < count; i++) largest = row[i] > largest ? row[i] : largest;
    vec sums = {0};
    for (int i = 0; i < whole; i += LANES) {
        vec value = exponential(load(row + i) - largest);
        store(row + i, value);
        sums += value;
    }
    if (whole < count) {
        vec value = exponential(load_part(row + whole, count - whole) - largest);
        for (int i = count - whole; i < LANES; i++) value[i] = 0.0f;
        store(row + whole, value);
        sums += value;
    }
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++) sum += sums[i];
    for (int i = 0; i < count; i += LANES) store(row + i, load(row + i) / sum);
}

/* How many keys, from the first of the document, the queries up to the one before `end` see. */
static int seen(const Attention *call, int end, int length) { return call->causal ? end : length; }

/* P of the queries first .. first + count - 1 of the document against the keys that each sees. */
static void probabilities(const Attention *call, const Workspace *w, const float *query, int first, int count, int length) {
    int keys = seen(call, first + count, length);
    product(count, keys, call->key_width, (Strided){query + first * call->query_stride, call->query_stride, 1},
            (Rows){w->keys, w->ld, 0}, w->probability, w->ld, call->scale, 0);
    for (int q = 0; q < count; q++) {
        float *row = w->probability + (ptrdiff_t)q * w->ld;
        int here = seen(call, first + q + 1, length);
        softmax_row(row, here);
        for (int k = (here + LANES - 1) / LANES * LANES; k < keys; k++) row[k] = 0.0f;
    }
}

static void forward_head(const Attention *call, Workspace *w, int first_token, int length, int head) {
    int x = call->key_width, v = call->value_width;
    ptrdiff_t token = first_token, out_stride = (ptrdiff_t)call->heads * v;
    const float *query = call->query + token * call->query_stride + head * x, *value = call->value + token * call->value_stride + head * v;
    transpose(length, x, call->key + token * call->key_stride + head * x, call->key_stride, 0, w->keys, w->ld);
    for (int first = 0; first < length; first += QUERIES) {
        int count = length - first < QUERIES ? length - first : QUERIES;
        probabilities(call, w, query, first, count, length);
        product(count, v, seen(call, first + count, length), (Strided){w->probability, w->ld, 1}, (Rows){value, call->value_stride, 0},
                call->out + (token + first) * out_stride + head * v, out_stride, 1.0f, 0);
    }
}

/* dS in the place of dP: P * (dP - <P, dP>). */
static void softmax_backward_row(const float *probability, float *gradient, int count) {
    vec sums = {0};
    for (int i = 0; i < count; i += LANES) sums += load(probability + i) * load(gradient + i);
    float dot = 0.0f;
    for (int i = 0; i < LANES; i++) dot += sums[i];
    for (int i = 0; i < count; i += LANES) store(gradient + i, load(probability + i) * (load(gradient + i) - dot));
}

static void backward_head(const Attention *call, Workspace *w, int first_token, int length, int head) {
    int x = call->key_width, v = call->value_width;
    ptrdiff_t token = first_token, x_stride = (ptrdiff_t)call->heads * x, v_stride = (ptrdiff_t)call->heads * v;
    const float *query = call->query + token * call->query_stride + head * x, *key = call->key + token * call->key_stride + head * x;
    const float *dout = call->dout + token * v_stride + head * v;
    float *dquery = call->dquery + token * x_stride + head * x, *dkey = call->dkey + token * x_stride + head * x;
    float *dvalue = call->dvalue + token * v_stride + head * v;
    transpose(length, x, key, call->key_stride, 0, w->keys, w->ld);
    transpose(length, v, call->value + token * call->value_stride + head * v, call->value_stride, 0, w->values, w->ld);
    /* From the last block to the first: the last one meets every key, so it can write what the others add to. */
    int blocks = (length + QUERIES - 1) / QUERIES;
    for (int block = blocks - 1; block >= 0; block--) {
        int first = block * QUERIES, count = length - first < QUERIES ? length - first : QUERIES;
        int keys = seen(call, first + count, length), adds = block < blocks - 1, filled = (keys + LANES - 1) / LANES * LANES;
        probabilities(call, w, query, first, count, length);
        for (int q = 0; q < count; q++) /* lanes behind the keys take part in sums below */
            for (int k = keys; k < filled; k++) w->gradient[(ptrdiff_t)q * w->ld + k] = w->probability[(ptrdiff_t)q * w->ld + k] = 0.0f;
        product(keys, v, count, (Strided){w->probability, 1, w->ld}, (Rows){dout + first * v_stride, v_stride, 0}, dvalue, v_stride, 1.0f,
                adds);
        product(count, keys, v, (Strided){dout + first * v_stride, v_stride, 1}, (Rows){w->values, w->ld, 0}, w->gradient, w->ld, 1.0f, 0);
        for (int q = 0; q < count; q++)
            softmax_backward_row(w->probability + (ptrdiff_t)q * w->ld, w->gradient + (ptrdiff_t)q * w->ld, filled);
        product(count, x, keys, (Strided){w->gradient, w->ld, 1}, (Rows){key, call->key_stride, 0}, dquery + first * x_stride, x_stride,
                call->scale, 0);
        product(keys, x, count, (Strided){w->gradient, 1, w->ld}, (Rows){query + first * call->query_stride, call->query_stride, 0}, dkey,
                x_stride, call->scale, adds);
    }
}

static int every_head(const Attention *call, void (*run)(const Attention *, Workspace *, int, int, int)) {
    int failed = 0;
#pragma omp parallel num_threads(call->threads) reduction(| : failed)
    {
        Workspace w;
        int ready = open_workspace(call, &w);
        failed |= !ready;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < (int64_t)call->documents * call->heads; i++) {
            int document = (int)(i / call->heads), head = (int)(i % call->heads);
            if (ready) run(call, &w, call->first[document], call->length[document], head);
        }
        if (ready) free(w.memory);
    }
    return failed;
}

/* Both return 0, or 1 where memory ran out. */
int ms4_attention_forward(const Attention *call) { return every_head(call, forward_head); }
int ms4_attention_backward(const Attention *call) { return every_head(call, backward_head); }
