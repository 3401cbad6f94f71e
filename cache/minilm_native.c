/* One text's sentence vector by a BERT encoder whose products are of seven-bit numbers, for processors with AVX2.
 *
 * A row of activations is kept as 0..127 with a scale and a least value of its own, a column of weights as -63..63 with
 * a scale. Two products of unsigned by signed bytes and their sum with two more then fit into sixteen bits
 * (4 * 127 * 63 = 32,004), so every multiplication the processor has counts: without VNNI nothing exact is faster.
 * Where VNNI is, it makes the same whole numbers in less time: a text has one vector on every processor.
 * Everything else is float. No state, no threads, no libraries but malloc. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define COLUMNS 8  /* of a panel of weights */
#define TOGETHER 8 /* rows of weights that lie together */
#define ROWS 8     /* rows of activations that a panel is read for at once */
#define VNNI "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni"

typedef struct {
    const int8_t *w;    /* (columns / 8, k / 8, 2, 8, 4): panel, eight rows, half of these, column, row */
    const float *scale; /* by column */
    const float *sum;   /* by column: of its weights, scaled */
    const float *bias;
    int64_t columns, k;
} matrix;

typedef struct {
    const float *weight, *bias;
} norm;

typedef struct {
    matrix qkv, out, up, down;
    norm after_attention, after_all;
} layer;

typedef struct {
    int64_t layers, heads, width, inner;
    const float *words, *places;
    norm first;
    const layer *at;
} model;

typedef struct {
    uint8_t *bytes;
    float *scale, *least;
} quantized;

int supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#ifdef WITHOUT_VNNI
static int has_vnni(void) { return 0; }
#else
static int has_vnni(void) { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl"); }
#endif

static inline __m256 all(float x) { return _mm256_set1_ps(x); }

static inline __m256 exponential(__m256 x)
{ /* 2^n by the exponent's bits, the rest by a polynomial: within 2e-7 of the true value, relatively */
    __m256 t = _mm256_mul_ps(_mm256_max_ps(x, all(-87.0f)), all(1.44269504f));
    __m256 n = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 f = _mm256_mul_ps(_mm256_sub_ps(t, n), all(0.693147181f)), p = all(0.00138888889f);
    const float series[] = { 0.00833333333f, 0.0416666667f, 0.166666667f, 0.5f, 1.0f, 1.0f };
    for (int i = 0; i < 6; i++) p = _mm256_fmadd_ps(p, f, all(series[i]));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

static void gelu(float *x, int64_t n)
{ /* x * P(normal < x), its error function by Abramowitz and Stegun 7.1.26 (within 1.5e-7); `n` is whole eights */
    const __m256 sign = all(-0.0f), one = all(1.0f);
    const float series[] = { -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f };
    for (int64_t i = 0; i < n; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i), z = _mm256_mul_ps(_mm256_andnot_ps(sign, v), all(0.707106781f));
        __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(z, all(0.3275911f), one)), tail = all(1.061405429f);
        for (int j = 0; j < 4; j++) tail = _mm256_fmadd_ps(tail, t, all(series[j]));
        tail = _mm256_mul_ps(_mm256_mul_ps(tail, t), all(0.5f));
        tail = _mm256_mul_ps(tail, exponential(_mm256_xor_ps(_mm256_mul_ps(z, z), sign)));
        _mm256_storeu_ps(x + i, _mm256_mul_ps(v, _mm256_blendv_ps(_mm256_sub_ps(one, tail), tail, v)));
    }
}

static void normalize(float *x, const norm *by, int64_t rows, int64_t width)
{
    for (int64_t r = 0; r < rows; r++, x += width) {
        float mean = 0, spread = 0;
        for (int64_t i = 0; i < width; i++) mean += x[i];
        mean /= width;
        for (int64_t i = 0; i < width; i++) spread += (x[i] - mean) * (x[i] - mean);
        float scale = 1.0f / sqrtf(spread / width + 1e-12f);
        for (int64_t i = 0; i < width; i++) x[i] = (x[i] - mean) * scale * by->weight[i] + by->bias[i];
    }
}

static void quantize(const float *x, quantized q, int64_t rows, int64_t k)
{
    for (int64_t r = 0; r < rows; r++, x += k) {
        float least = 0, most = 0;
        for (int64_t i = 0; i < k; i++) {
            least = x[i] < least ? x[i] : least;
            most = x[i] > most ? x[i] : most;
        }
        float scale = (most - least) / 127.0f, by = scale > 0 ? 1.0f / scale : 0.0f;
        uint8_t *to = q.bytes + r * k;
        for (int64_t i = 0; i < k; i++) to[i] = (uint8_t)(int32_t)((x[i] - least) * by + 0.5f);
        q.scale[r] = scale;
        q.least[r] = least;
    }
}

static inline __m256i four(const uint8_t *x)
{
    int32_t bytes;
    memcpy(&bytes, x, 4);
    return _mm256_set1_epi32(bytes);
}

static inline __attribute__((always_inline)) void settle(
    const __m256i *sum, const float *scale, const float *least, const matrix *m, int64_t panel, float *y, const int rows)
{ /* whole numbers to what they stand for */
    const __m256 by = _mm256_loadu_ps(m->scale + panel * COLUMNS), total = _mm256_loadu_ps(m->sum + panel * COLUMNS);
    const __m256 bias = _mm256_loadu_ps(m->bias + panel * COLUMNS);
    for (int i = 0; i < rows; i++) {
        __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[i]), all(scale[i]));
        __m256 offset = _mm256_fmadd_ps(all(least[i]), total, bias);
        _mm256_storeu_ps(y + i * m->columns + panel * COLUMNS, _mm256_fmadd_ps(product, by, offset));
    }
}

static inline __attribute__((always_inline)) void tile_plain(
    const uint8_t *x, const float *scale, const float *least, const matrix *m, int64_t panel, float *y, const int rows)
{
    const int8_t *w = m->w + panel * COLUMNS * m->k;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum[ROWS];
    for (int i = 0; i < rows; i++) sum[i] = _mm256_setzero_si256();
    for (int64_t at = 0; at < m->k; at += TOGETHER, w += COLUMNS * TOGETHER) {
        __m256i a = _mm256_loadu_si256((const void *)w), b = _mm256_loadu_si256((const void *)(w + 32));
        _mm_prefetch((const char *)w + COLUMNS * m->k, _MM_HINT_T0);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            __m256i one = _mm256_maddubs_epi16(four(x + i * m->k + at), a);
            __m256i two = _mm256_maddubs_epi16(four(x + i * m->k + at + 4), b);
            sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_add_epi16(one, two), ones));
        }
    }
    settle(sum, scale, least, m, panel, y, rows);
}

static inline __attribute__((always_inline, target(VNNI))) void tile_vnni(
    const uint8_t *x, const float *scale, const float *least, const matrix *m, int64_t panel, float *y, const int rows)
{ /* the same whole numbers, four products and their sum in one instruction */
    const int8_t *w = m->w + panel * COLUMNS * m->k;
    __m256i sum[ROWS];
    for (int i = 0; i < rows; i++) sum[i] = _mm256_setzero_si256();
    for (int64_t at = 0; at < m->k; at += TOGETHER, w += COLUMNS * TOGETHER) {
        __m256i a = _mm256_loadu_si256((const void *)w), b = _mm256_loadu_si256((const void *)(w + 32));
        _mm_prefetch((const char *)w + COLUMNS * m->k, _MM_HINT_T0);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            sum[i] = _mm256_dpbusd_epi32(sum[i], four(x + i * m->k + at), a);
            sum[i] = _mm256_dpbusd_epi32(sum[i], four(x + i * m->k + at + 4), b);
        }
    }
    settle(sum, scale, least, m, panel, y, rows);
}

/* Every panel over all rows, eight rows at a time, by one kind of tile. */
#define PANELS(tile) \
    for (int64_t panel = 0; panel < m->columns / COLUMNS; panel++) \
        for (int64_t r = 0; r < rows; r += ROWS) { \
            const uint8_t *from = q.bytes + r * m->k; \
            const float *scale = q.scale + r, *least = q.least + r; \
            float *to = y + r * m->columns; \
            switch (rows - r) { \
            case 1: tile(from, scale, least, m, panel, to, 1); break; \
            case 2: tile(from, scale, least, m, panel, to, 2); break; \
            case 3: tile(from, scale, least, m, panel, to, 3); break; \
            case 4: tile(from, scale, least, m, panel, to, 4); break; \
            case 5: tile(from, scale, least, m, panel, to, 5); break; \
            case 6: tile(from, scale, least, m, panel, to, 6); break; \
            case 7: tile(from, scale, least, m, panel, to, 7); break; \
            default: tile(from, scale, least, m, panel, to, ROWS); \
            } \
        }

static void multiply_plain(const matrix *m, float *y, int64_t rows, quantized q) { PANELS(tile_plain) }

static __attribute__((target(VNNI))) void multiply_vnni(const matrix *m, float *y, int64_t rows, quantized q)
{
    PANELS(tile_vnni)
}

static void multiply(const float *x, const matrix *m, float *y, int64_t rows, quantized q)
{
    quantize(x, q, rows, m->k);
    if (has_vnni())
        multiply_vnni(m, y, rows, q);
    else
        multiply_plain(m, y, rows, q);
}

static float softened(float *near, int64_t n)
{ /* each score's exponential, up to a factor; their sum. `near` has room for whole eights */
    float most = near[0], total = 0;
    for (int64_t i = 1; i < n; i++) most = near[i] > most ? near[i] : most;
    for (int64_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(near + i, exponential(_mm256_sub_ps(_mm256_loadu_ps(near + i), all(most))));
    for (int64_t i = 0; i < n; i++) total += near[i];
    return total;
}

static void attend(const float *qkv, float *restrict y, float *restrict near, int64_t rows, int64_t heads, int64_t width)
{
    int64_t d = width / heads, stride = 3 * width;
    float by = 1.0f / sqrtf((float)d);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t r = 0; r < rows; r++) {
            const float *q = qkv + r * stride + h * d, *k = q + width - r * stride, *v = k + width;
            float *to = y + r * width + h * d;
            for (int64_t o = 0; o < rows; o++) {
                float dot = 0;
                for (int64_t i = 0; i < d; i++) dot += q[i] * k[o * stride + i];
                near[o] = dot * by;
            }
            float total = softened(near, rows);
            memset(to, 0, d * sizeof(float));
            for (int64_t o = 0; o < rows; o++) {
                float share = near[o] / total;
                for (int64_t i = 0; i < d; i++) to[i] += share * v[o * stride + i];
            }
        }
}

static void add(float *x, const float *other, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] += other[i];
}

static void embedded(const model *m, const int64_t *ids, int64_t rows, float *x)
{
    for (int64_t r = 0; r < rows; r++) {
        const float *word = m->words + ids[r] * m->width, *place = m->places + r * m->width;
        for (int64_t i = 0; i < m->width; i++) x[r * m->width + i] = word[i] + place[i];
    }
    normalize(x, &m->first, rows, m->width);
}

static void mean(const float *x, float *vector, int64_t rows, int64_t width)
{
    float length = 0;
    memset(vector, 0, width * sizeof(float));
    for (int64_t r = 0; r < rows; r++) add(vector, x + r * width, width);
    for (int64_t i = 0; i < width; i++) length += vector[i] * vector[i];
    for (int64_t i = 0; i < width; i++) vector[i] /= sqrtf(length);
}

/* The vector, of length one, of `rows` token ids; 0, or 1 where there is no memory. */
int embed(const model *m, const int64_t *ids, int64_t rows, float *vector)
{
    int64_t widest = m->inner > 3 * m->width ? m->inner : 3 * m->width;
    int64_t floats = rows * (2 * m->width + widest + 3) + 8;
    float *x = malloc(floats * sizeof(float) + rows * widest);
    if (!x) return 1;
    float *y = x + rows * m->width, *wide = y + rows * m->width, *near = wide + rows * widest;
    quantized q = { (uint8_t *)(near + 3 * rows + 8), near + rows + 8, near + 2 * rows + 8 };
    embedded(m, ids, rows, x);
    for (const layer *l = m->at; l < m->at + m->layers; l++) {
        multiply(x, &l->qkv, wide, rows, q);
        attend(wide, y, near, rows, m->heads, m->width);
        multiply(y, &l->out, wide, rows, q);
        add(x, wide, rows * m->width);
        normalize(x, &l->after_attention, rows, m->width);
        multiply(x, &l->up, wide, rows, q);
        gelu(wide, rows * m->inner);
        multiply(wide, &l->down, y, rows, q);
        add(x, y, rows * m->width);
        normalize(x, &l->after_all, rows, m->width);
    }
    mean(x, vector, rows, m->width);
    free(x);
    return 0;
}
