/* Products, attention and the small steps between them for processors with AVX2 and FMA; see local_models/native.py.
 *
 * One rule holds everywhere: what is computed for a row is the same chain of operations whatever the number of rows.
 * In a product each element is one chain of fused multiply-adds over k = 0, 1, 2, ...; only how many chains run side
 * by side depends on the batch. Integer sums are exact. In attention each query row walks the blocks of its sequence
 * in order, alone. So a row's bits cannot depend on its company, and nothing is padded.
 *
 * Element types: 0 is float, 1 is bfloat16. Rows are contiguous unless a stride is an argument.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef __AVX2__
#error "needs AVX2"
#endif
#ifndef __FMA__
#error "needs FMA"
#endif

#define INLINE static inline __attribute__((always_inline))
#define PANEL 16 /* columns of weights that lie together */
#define AHEAD 1024 /* bytes: panels follow each other, so what is fetched beyond one is the next */
#define FAR 131072 /* bytes of panels read side by side that are worth fetching as a whole beforehand */

typedef long long i64;

/* ---- elements ---- */

INLINE __m256 load8(const void *at, i64 i, int bf) {
    if (!bf) return _mm256_loadu_ps((const float *)at + i);
    __m128i h = _mm_loadu_si128((const __m128i *)((const uint16_t *)at + i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

INLINE void store8(void *at, i64 i, __m256 v, int bf) {
    if (!bf) { _mm256_storeu_ps((float *)at + i, v); return; }
    __m256i u = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    up = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc0), nan);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(up, up), 0xd8);
    _mm_storeu_si128((__m128i *)((uint16_t *)at + i), _mm256_castsi256_si128(packed));
}

INLINE float load1(const void *at, i64 i, int bf) {
    if (!bf) return ((const float *)at)[i];
    uint32_t u = (uint32_t)((const uint16_t *)at)[i] << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

INLINE void store1(void *at, i64 i, float v, int bf) {
    if (!bf) { ((float *)at)[i] = v; return; }
    uint32_t u;
    memcpy(&u, &v, 4);
    ((uint16_t *)at)[i] = v != v ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

INLINE float max8(__m256 v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

/* e^x to about 1e-7 relative (Cephes' polynomial); 0 below -87, not a number stays one. */
INLINE __m256 exp8(__m256 x) {
    __m256 low = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ);
    __m256 in = _mm256_min_ps(_mm256_set1_ps(88.0f), x);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(in, _mm256_set1_ps(1.44269504088896341f)), 8);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), in);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(low, _mm256_mul_ps(p, _mm256_castsi256_ps(e)));
}

/* ---- products ---- */

/* How far ahead to fetch when V vectors of weights are read side by side: their panels end together, and what follows
 * is another group of as many bytes. */
INLINE i64 ahead(int V, i64 panel_bytes) {
    i64 group = V / 2 * panel_bytes;
    return V > 2 && group <= FAR ? group : AHEAD;
}

/* R rows times V vectors of 8 columns: R * V chains side by side, at the end in out[r][8 * V]. Panels lie PANEL * k
 * elements apart. Never inlined: the chains are to stay in registers whatever surrounds the call. */
#define TILE_OF(name, R, V, bf)                                                                                      \
    static __attribute__((noinline)) void name(const float *x, i64 stride, const void *w, i64 k, float *out) {       \
        __m256 acc[R][V];                                                                                            \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                                          \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++) acc[r][v] = _mm256_setzero_ps();                     \
        i64 far = ahead(V, PANEL * k * (bf ? 2 : 4));                                                                \
        for (i64 i = 0; i < k; i++) {                                                                                \
            __m256 b[V];                                                                                             \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++) {                                                    \
                i64 at = (v / 2) * PANEL * k + i * PANEL + (v % 2) * 8;                                              \
                if (v % 2 == 0) _mm_prefetch((const char *)w + at * (bf ? 2 : 4) + far, _MM_HINT_T0);                \
                b[v] = load8(w, at, bf);                                                                             \
            }                                                                                                        \
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                                    \
                __m256 a = _mm256_broadcast_ss(x + r * stride + i);                                                  \
                _Pragma("GCC unroll 8") for (int v = 0; v < V; v++) acc[r][v] = _mm256_fmadd_ps(a, b[v], acc[r][v]); \
            }                                                                                                        \
        }                                                                                                            \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                                          \
            _Pragma("GCC unroll 8") for (int v = 0; v < V; v++) _mm256_storeu_ps(out + r * 8 * V + 8 * v, acc[r][v]); \
    }
TILE_OF(dense_1_8, 1, 8, 0) TILE_OF(dense_2_4, 2, 4, 0) TILE_OF(dense_3_4, 3, 4, 0) TILE_OF(dense_1_2, 1, 2, 0)
TILE_OF(dense_2_2, 2, 2, 0) TILE_OF(dense_3_2, 3, 2, 0) TILE_OF(dense_4_2, 4, 2, 0) TILE_OF(dense_5_2, 5, 2, 0)
TILE_OF(dense_6_2, 6, 2, 0)
TILE_OF(short_1_8, 1, 8, 1) TILE_OF(short_2_4, 2, 4, 1) TILE_OF(short_3_4, 3, 4, 1) TILE_OF(short_1_2, 1, 2, 1)
TILE_OF(short_2_2, 2, 2, 1) TILE_OF(short_3_2, 3, 2, 1) TILE_OF(short_4_2, 4, 2, 1) TILE_OF(short_5_2, 5, 2, 1)
TILE_OF(short_6_2, 6, 2, 1)

typedef void tile_fn(const float *x, i64 stride, const void *w, i64 k, float *out);
/* By type, then by rows: one panel at a time; and the wider ones for few rows. */
static tile_fn *const TILES[2][7] = {{0, dense_1_2, dense_2_2, dense_3_2, dense_4_2, dense_5_2, dense_6_2},
                                     {0, short_1_2, short_2_2, short_3_2, short_4_2, short_5_2, short_6_2}};
static tile_fn *const WIDE[2][4] = {{0, dense_1_8, dense_2_4, dense_3_4}, {0, short_1_8, short_2_4, short_3_4}};
static const int WIDE_PANELS[4] = {0, 4, 2, 2};

INLINE void put(void *y, i64 row, i64 columns, i64 column, __m256 v, const float *bias, int bf) {
    if (bias) v = _mm256_add_ps(v, _mm256_loadu_ps(bias + column));
    if (column + 8 <= columns) { store8(y, row * columns + column, v, bf); return; }
    float some[8];
    _mm256_storeu_ps(some, v);
    for (i64 c = column; c < columns; c++) store1(y, row * columns + c, some[c - column], bf);
}

static void block(tile_fn *tile, const float *x, i64 row, int rows, i64 k, const char *w, void *y, i64 columns,
                  i64 panel, int panels, const float *bias, int bf) {
    float out[6 * 2 * PANEL];
    int width = panels * PANEL;
    tile(x + row * k, k, w + panel * PANEL * k * (bf ? 2 : 4), k, out);
    for (int r = 0; r < rows; r++)
        for (i64 c = 0; c < width && panel * PANEL + c < columns; c += 8)
            put(y, row + r, columns, panel * PANEL + c, _mm256_loadu_ps(out + r * width + c), bias, bf);
}

static void few(const float *x, i64 rows, i64 k, const char *w, void *y, i64 columns, i64 from, i64 to,
                const float *bias, int bf) {
    i64 p = from;
    if (rows < 4) {
        int wide = WIDE_PANELS[rows];
        for (; p + wide <= to; p += wide) block(WIDE[bf][rows], x, 0, (int)rows, k, w, y, columns, p, wide, bias, bf);
    }
    for (; p < to; p++)
        for (i64 row = 0; row < rows; row += 6) {
            int some = rows - row < 6 ? (int)(rows - row) : 6;
            block(TILES[bf][some], x, row, some, k, w, y, columns, p, 1, bias, bf);
        }
}

static float *floats(const void *x, i64 count, float *room) {
    i64 i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(room + i, load8(x, i, 1));
    for (; i < count; i++) room[i] = load1(x, i, 1);
    return room;
}

#define SHARES 4 /* pieces of work a thread, so that a late one costs little */

/* y[rows, columns] = x[rows, k] w^T + bias; w in panels [ceil(columns / 16)][k][16] of type `bf`, as are x and y. */
void product(const void *x, const void *w, const float *bias, void *y, i64 rows, i64 columns, i64 k, int bf,
             float *room, int threads) {
    const float *xf = bf ? floats(x, rows * k, room) : (const float *)x;
    i64 panels = (columns + PANEL - 1) / PANEL, quads = (panels + 3) / 4;
    i64 shares = threads > 1 ? SHARES * threads : 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (i64 s = 0; s < shares; s++) {
        i64 from = s * quads / shares * 4, to = (s + 1) * quads / shares * 4;
        if (to > panels) to = panels;
        few(xf, rows, k, w, y, columns, from, to, bias, bf);
    }
}

/* Integers: weights in panels [ceil(columns / 16)][fours of k][16][4] of bytes, each 128 greater than what it stands
 * for. A row of activations is signed bytes, GROUP neighbours of which share a step; they reach to MOST only, so that a
 * sum of two products holds in 16 bits: 2 * 255 * 64 < 2^15. A group's sum is exact and begins at -128 times the sum of
 * its activations; the groups' sums times their steps are one chain. */
#define GROUP 128
#define MOST 64
#define FOURS (GROUP / 4)

typedef struct {
    const int8_t *x;    /* [rows][4 * fours] */
    const float *steps; /* [rows][groups] */
    const int *begins;  /* [rows][groups] */
    i64 fours, groups;
} whole_rows;

INLINE __m256i four(const void *at) {
    int bytes;
    memcpy(&bytes, at, 4);
    return _mm256_set1_epi32(bytes);
}

/* `sum` and eight times four products of unsigned by signed bytes: the same whole numbers with VNNI and without. */
static inline __m256i products8(__m256i sum, __m256i whole, __m256i by) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sum, whole, by);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(whole, by), _mm256_set1_epi16(1)));
#endif
}

#define TILE8_OF(R, V)                                                                                               \
    static __attribute__((noinline)) void whole_##R##_##V(const whole_rows *it, i64 row, const uint8_t *w,           \
                                                          float *out) {                                              \
        const int8_t *x = it->x + row * 4 * it->fours;                                                               \
        i64 fours = it->fours, groups = it->groups, far = ahead(V, 4 * PANEL * fours);                               \
        for (i64 g = 0; g < groups; g++) {                                                                           \
            __m256i acc[R][V];                                                                                       \
            i64 end = (g + 1) * FOURS < fours ? (g + 1) * FOURS : fours;                                             \
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                                      \
                _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)                                                  \
                    acc[r][v] = _mm256_set1_epi32(it->begins[(row + r) * groups + g]);                               \
            for (i64 i = g * FOURS; i < end; i++) {                                                                  \
                __m256i a[R];                                                                                        \
                _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) a[r] = four(x + r * 4 * fours + 4 * i);          \
                _Pragma("GCC unroll 8") for (int v = 0; v < V; v++) {                                                \
                    const uint8_t *at = w + (v / 2) * 4 * PANEL * fours + i * 4 * PANEL + (v % 2) * 32;              \
                    if (v % 2 == 0) _mm_prefetch((const char *)at + far, _MM_HINT_T0);                               \
                    __m256i b = _mm256_loadu_si256((const __m256i *)at);                                             \
                    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                            \
                        acc[r][v] = products8(acc[r][v], b, a[r]);                                                   \
                        __asm__("" : "+x"(acc[r][v])); /* stays in its register */                                   \
                    }                                                                                                \
                }                                                                                                    \
            }                                                                                                        \
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                                    \
                __m256 step = _mm256_broadcast_ss(it->steps + (row + r) * groups + g);                               \
                _Pragma("GCC unroll 8") for (int v = 0; v < V; v++) {                                                \
                    float *at = out + r * 8 * V + 8 * v;                                                             \
                    __m256 before = g ? _mm256_loadu_ps(at) : _mm256_setzero_ps();                                   \
                    _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r][v]), step, before));              \
                }                                                                                                    \
            }                                                                                                        \
        }                                                                                                            \
    }

TILE8_OF(1, 8) TILE8_OF(1, 2) TILE8_OF(2, 4) TILE8_OF(2, 2) TILE8_OF(3, 2) TILE8_OF(4, 2)

typedef void tile8_fn(const whole_rows *it, i64 row, const uint8_t *w, float *out);
static tile8_fn *const TILES8[5] = {0, whole_1_2, whole_2_2, whole_3_2, whole_4_2};
static tile8_fn *const WIDE8[3] = {0, whole_1_8, whole_2_4};
static const int WIDE8_PANELS[3] = {0, 4, 2};

typedef struct {
    whole_rows in;
    i64 rows, columns;
    const uint8_t *w;
    const float *scales, *bias;
    void *y;
    int bf;
} whole_product;

static void block8(const whole_product *it, tile8_fn *tile, i64 row, int rows, i64 panel, int panels) {
    float out[4 * 2 * PANEL];
    int width = panels * PANEL;
    tile(&it->in, row, it->w + panel * 4 * PANEL * it->in.fours, out);
    for (int r = 0; r < rows; r++)
        for (i64 c = 0; c < width && panel * PANEL + c < it->columns; c += 8) {
            __m256 scale = _mm256_loadu_ps(it->scales + panel * PANEL + c);
            put(it->y, row + r, it->columns, panel * PANEL + c,
                _mm256_mul_ps(_mm256_loadu_ps(out + r * width + c), scale), it->bias, it->bf);
        }
}

static void few8(const whole_product *it, i64 from, i64 to) {
    i64 p = from;
    if (it->rows < 3) {
        int wide = WIDE8_PANELS[it->rows];
        for (; p + wide <= to; p += wide) block8(it, WIDE8[it->rows], 0, (int)it->rows, p, wide);
    }
    for (; p < to; p++)
        for (i64 row = 0; row < it->rows; row += 4) {
            int some = it->rows - row < 4 ? (int)(it->rows - row) : 4;
            block8(it, TILES8[some], row, some, p, 1);
        }
}

/* The step between whole numbers -most..most that hold `k` elements; none where an element is not a number. */
INLINE float step_of(const void *x, i64 at, i64 k, float most, int bf) {
    /* Sizes compare as their bits do, and those of what is no number are the greatest. */
    __m256i greatest = _mm256_setzero_si256(), size = _mm256_set1_epi32(0x7fffffff);
    i64 i = 0;
    for (; i + 8 <= k; i += 8)
        greatest = _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(load8(x, at + i, bf)), size), greatest);
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(greatest), _mm256_extracti128_si256(greatest, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    int top = _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
    for (; i < k; i++) {
        float v = load1(x, at + i, bf);
        int bits;
        memcpy(&bits, &v, 4);
        bits &= 0x7fffffff, top = bits > top ? bits : top;
    }
    float f;
    memcpy(&f, &top, 4);
    return top >= 0x7f800000 ? NAN : fmaxf(f / most, 1e-30f);
}

/* Eight elements as whole numbers of 32 bits, `inverse` steps each. */
INLINE __m256i whole32(const void *x, i64 at, __m256 inverse, int bf) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(load8(x, at, bf), inverse));
}

/* Eight elements as whole numbers of 16 bits, `inverse` steps each. */
INLINE __m128i whole8(const void *x, i64 at, __m256 inverse, int bf) {
    __m256i n = whole32(x, at, inverse, bf);
    return _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
}

/* Whole numbers -127..127 of a row and the step between them; what is not a number gives a step that is none. */
INLINE float whole(const void *x, i64 at, i64 k, int bf, int16_t *out) {
    float step = step_of(x, at, k, 127.0f, bf);
    __m256 inverse = _mm256_set1_ps(1.0f / step);
    i64 i = 0;
    for (; i + 8 <= k; i += 8) _mm_storeu_si128((__m128i *)(out + i), whole8(x, at + i, inverse, bf));
    for (; i < k; i++) out[i] = (int16_t)lrintf(load1(x, at + i, bf) * (1.0f / step));
    return step;
}

/* A group of `k` elements as whole numbers -MOST..MOST, with zeros up to `padded`; what is not a number gives a step
 * that is none. */
INLINE float group8(const void *x, i64 at, i64 k, i64 padded, int bf, int8_t *out, int *begin) {
    float step = step_of(x, at, k, MOST, bf);
    __m256 inverse = _mm256_set1_ps(1.0f / step);
    __m256i sum = _mm256_setzero_si256();
    int rest = 0;
    i64 i = 0;
    for (; i + 32 <= k; i += 32) {
        __m256i a = _mm256_packs_epi32(whole32(x, at + i, inverse, bf), whole32(x, at + i + 8, inverse, bf));
        __m256i b = _mm256_packs_epi32(whole32(x, at + i + 16, inverse, bf), whole32(x, at + i + 24, inverse, bf));
        sum = _mm256_add_epi16(sum, _mm256_add_epi16(a, b));
        __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order));
    }
    for (; i < k; i++) out[i] = (int8_t)lrintf(load1(x, at + i, bf) * (1.0f / step)), rest += out[i];
    for (; i < padded; i++) out[i] = 0;
    __m256i pairs = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    *begin = -128 * (rest + _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1))));
    return step;
}

INLINE void groups8(const void *x, i64 rows, i64 k, int bf, i64 fours, i64 groups, float *steps, int *begins,
                    int8_t *out) {
    for (i64 r = 0; r < rows; r++)
        for (i64 g = 0; g < groups; g++) {
            i64 at = g * GROUP, some = k - at < GROUP ? k - at : GROUP, padded = 4 * fours - at;
            steps[r * groups + g] = group8(x, r * k + at, some, padded < GROUP ? padded : GROUP, bf,
                                           out + r * 4 * fours + at, begins + r * groups + g);
        }
}

/* As `product` with weights of eight bits, one scale a column, and activations rounded to signed bytes. `room` holds
 * `rows` times a byte an element, up to a whole four, and 8 bytes a group. */
void product8(const void *x, const uint8_t *w, const float *scales, const float *bias, void *y, i64 rows, i64 columns,
              i64 k, int bf, char *room, int threads) {
    i64 fours = (k + 3) / 4, groups = (k + GROUP - 1) / GROUP, panels = (columns + PANEL - 1) / PANEL;
    float *steps = (float *)room;
    int *begins = (int *)(steps + rows * groups);
    int8_t *bytes = (int8_t *)(begins + rows * groups);
    if (bf) groups8(x, rows, k, 1, fours, groups, steps, begins, bytes);
    else groups8(x, rows, k, 0, fours, groups, steps, begins, bytes);
    whole_product it = {{bytes, steps, begins, fours, groups}, rows, columns, w, scales, bias, y, bf};
    i64 quads = (panels + 3) / 4, shares = threads > 1 ? SHARES * threads : 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (i64 s = 0; s < shares; s++) {
        i64 from = s * quads / shares * 4, to = (s + 1) * quads / shares * 4;
        few8(&it, from, to > panels ? panels : to);
    }
}

/* ---- attention ---- */

#define TILE 16       /* query rows whose blocks are walked together */
#define BUNCH 3       /* queries that meet a block together: their sums fill the registers */
#define MOST_BLOCK 256
#define MOST_HEAD 256

/* What a query row carries from block to block, d + 2 floats: greatest score, sum of weights, weighted values. */
#define TOP 0
#define TOTAL 1
#define SUMS 2

/* Scores of N queries against keys `from` to `to`, four keys at a time; the last four may write beyond the end. What
 * comes next, the block's values, is fetched meanwhile where `fetch` says that nobody has yet. */
INLINE void compare(const float *q, const void *keys, const char *values, i64 from, i64 to, i64 d, float scale,
                    float s[BUNCH][MOST_BLOCK + 8], int fetch, int bf, int N) {
    i64 bytes = bf ? 2 : 4;
    for (i64 j = from; j < to; j += 4) {
        __m256 a[BUNCH][4];
        i64 at[4];
        if (fetch)
            for (i64 b = j * d * bytes; b < (j + 4) * d * bytes; b += 64) _mm_prefetch(values + b, _MM_HINT_T0);
        _Pragma("GCC unroll 4") for (int n = 0; n < 4; n++) at[n] = (j + n < to ? j + n : to - 1) * d;
        _Pragma("GCC unroll 4") for (int g = 0; g < N; g++)
            _Pragma("GCC unroll 4") for (int n = 0; n < 4; n++) a[g][n] = _mm256_setzero_ps();
        for (i64 i = 0; i < d; i += 8) {
            __m256 one[BUNCH];
            _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) one[g] = _mm256_loadu_ps(q + g * d + i);
            _Pragma("GCC unroll 4") for (int n = 0; n < 4; n++) {
                __m256 key = load8(keys, at[n] + i, bf);
                _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) a[g][n] = _mm256_fmadd_ps(one[g], key, a[g][n]);
            }
        }
        _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) {
            __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a[g][0], a[g][1]), _mm256_hadd_ps(a[g][2], a[g][3]));
            __m128 four = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
            _mm_storeu_ps(s[g] + j - from, _mm_mul_ps(four, _mm_set1_ps(scale)));
        }
    }
}

/* Scores to weights relative to the greatest score so far; returns what the sums of before are to be kept at. */
INLINE float weights(float *s, i64 count, float *state) {
    i64 padded = (count + 7) / 8 * 8;
    for (i64 j = count; j < padded; j++) s[j] = -INFINITY;
    __m256 most = _mm256_set1_ps(state[TOP]);
    for (i64 j = 0; j < padded; j += 8) most = _mm256_max_ps(_mm256_load_ps(s + j), most);
    float next = max8(most);
    __m256 sum = _mm256_setzero_ps(), shift = _mm256_set1_ps(next);
    for (i64 j = 0; j < padded; j += 8) {
        __m256 p = exp8(_mm256_sub_ps(_mm256_load_ps(s + j), shift));
        _mm256_store_ps(s + j, p);
        sum = _mm256_add_ps(sum, p);
    }
    float keep = state[TOP] == -INFINITY ? 0.0f : expf(state[TOP] - next);
    state[TOTAL] = state[TOTAL] * keep + sum8(sum);
    state[TOP] = next;
    return keep;
}

/* Adds the weighted values of `count` keys to V vectors of N queries' sums; one chain an element, key after key. */
INLINE void weigh(const void *values, i64 from, i64 count, float s[BUNCH][MOST_BLOCK + 8], i64 d, i64 i,
                  const float *keep, float *state, const char *next, int bf, int N, int V) {
    __m256 a[BUNCH][8];
    i64 bytes = bf ? 2 : 4;
    _Pragma("GCC unroll 4") for (int g = 0; g < N; g++)
        _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)
            a[g][v] = _mm256_mul_ps(_mm256_loadu_ps(state + g * (d + 2) + SUMS + i + 8 * v), _mm256_set1_ps(keep[g]));
    for (i64 j = 0; j < count; j++) {
        i64 at = (from + j) * d + i;
        if (next)
            for (i64 b = 0; b < V * 8 * bytes; b += 64) _mm_prefetch(next + at * bytes + b, _MM_HINT_T0);
        __m256 p[BUNCH];
        _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) p[g] = _mm256_broadcast_ss(s[g] + j);
        _Pragma("GCC unroll 8") for (int v = 0; v < V; v++) {
            __m256 value = load8(values, at + 8 * v, bf);
            _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) a[g][v] = _mm256_fmadd_ps(p[g], value, a[g][v]);
        }
    }
    _Pragma("GCC unroll 4") for (int g = 0; g < N; g++)
        _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)
            _mm256_storeu_ps(state + g * (d + 2) + SUMS + i + 8 * v, a[g][v]);
}

/* What is met next and fetched meanwhile, or none. */
typedef struct {
    const char *keys, *values;
} sight;

/* N queries of `d` floats meet keys `from` to `to` of one block. */
#define M2T_OF(name, N, bf)                                                                                          \
    static __attribute__((noinline)) void name(const char *rows, const char *keys, const char *values,               \
                                               sight then, i64 from, i64 to, i64 d, float scale, int fetch,          \
                                               float *state) {                                                       \
        const float *q = (const float *)rows;                                                                        \
        float s[BUNCH][MOST_BLOCK + 8] __attribute__((aligned(32))), keep[BUNCH];                                    \
        compare(q, keys, values, from, to, d, scale, s, fetch, bf, N);                                               \
        for (int g = 0; g < N; g++) keep[g] = weights(s[g], to - from, state + g * (d + 2));                         \
        i64 i = 0;                                                                                                   \
        if (N == 1)                                                                                                  \
            for (; i + 64 <= d; i += 64) weigh(values, from, to - from, s, d, i, keep, state, then.keys, bf, N, 8);  \
        for (; i + 32 <= d; i += 32) weigh(values, from, to - from, s, d, i, keep, state, then.keys, bf, N, 4);      \
        for (; i + 8 <= d; i += 8) weigh(values, from, to - from, s, d, i, keep, state, then.keys, bf, N, 1);        \
    }
M2T_OF(meet_1, 1, 0) M2T_OF(meet_2, 2, 0) M2T_OF(meet_3, 3, 0)
M2T_OF(meet_short_1, 1, 1) M2T_OF(meet_short_2, 2, 1) M2T_OF(meet_short_3, 3, 1)

/* Keys and values of eight bits. Eight slots lie together in `8 * (d + 4)` bytes, so that neither sum is ever turned:
 * of keys, the eight slots' two bytes for each pair of dimensions; of values, the dimensions' two bytes for each pair of
 * slots; then the eight slots' steps. A query is `d` whole numbers of 16 bits and its step, 32 bytes further on. */
#define SLOTS 8
#define LINE8(d) (2 * (d) + 32)

INLINE __m256i bytes16(const char *at) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at)); }

INLINE __m256i pair(const void *at) {
    int two;
    memcpy(&two, at, 4);
    return _mm256_set1_epi32(two);
}

INLINE const float *steps_of(const char *slots, i64 slot, i64 d) {
    return (const float *)(slots + slot / SLOTS * SLOTS * (d + 4) + SLOTS * d);
}

INLINE float query_step(const char *q, i64 d) {
    float step;
    memcpy(&step, q + 2 * d, 4);
    return step;
}

/* Scores, as powers of two, of N queries against E eights of keys from `o` on; the same ones at `next` are fetched. */
INLINE void compare_eights(const char *q, const char *keys, const char *next, i64 o, i64 d, float scale,
                           float s[BUNCH][MOST_BLOCK + 16], int N, int E) {
    i64 eight = SLOTS * (d + 4);
    const char *at = keys + o * eight;
    __m256i a[BUNCH][2];
    if (next)
        for (i64 b = 0; b < E * eight; b += 64) _mm_prefetch(next + o * eight + b, _MM_HINT_T0);
    _Pragma("GCC unroll 4") for (int g = 0; g < N; g++)
        _Pragma("GCC unroll 4") for (int e = 0; e < E; e++) a[g][e] = _mm256_setzero_si256();
    _Pragma("GCC unroll 2") for (i64 i = 0; i < d; i += 2) {
        __m256i p[BUNCH];
        _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) p[g] = pair(q + g * LINE8(d) + 2 * i);
        _Pragma("GCC unroll 4") for (int e = 0; e < E; e++) {
            __m256i k = bytes16(at + e * eight + SLOTS * i);
            _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) {
                a[g][e] = _mm256_add_epi32(a[g][e], _mm256_madd_epi16(p[g], k));
                __asm__("" : "+x"(a[g][e])); /* stays in its register */
            }
        }
    }
    _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) {
        __m256 step = _mm256_set1_ps(query_step(q + g * LINE8(d), d) * scale);
        _Pragma("GCC unroll 4") for (int e = 0; e < E; e++) {
            __m256 k = _mm256_loadu_ps((const float *)(at + e * eight + SLOTS * d));
            _mm256_store_ps(s[g] + SLOTS * (o + e), _mm256_mul_ps(_mm256_cvtepi32_ps(a[g][e]), _mm256_mul_ps(k, step)));
        }
    }
}

INLINE void compare8(const char *q, const char *keys, const char *next, i64 from, i64 to, i64 d, float scale,
                     float s[BUNCH][MOST_BLOCK + 16], int N) {
    i64 o = from;
    for (; o + 2 <= to; o += 2) compare_eights(q, keys, next, o, d, scale, s, N, 2);
    if (o < to) compare_eights(q, keys, next, o, d, scale, s, N, 1);
}

/* 2^x to about 5e-6 relative for x <= 0; 0 below -126.5, not a number stays one. */
INLINE __m256 power8(__m256 x) {
    const __m256 shift = _mm256_set1_ps(12582912.0f + 127); /* leaves round(x) + 127 in the lowest bits */
    x = _mm256_max_ps(_mm256_set1_ps(-127.0f), x);
    __m256 n = _mm256_add_ps(x, shift), r = _mm256_sub_ps(x, _mm256_sub_ps(n, shift));
    __m256 p = _mm256_set1_ps(9.59346366e-3f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.58826761e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(2.40236853e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(6.93126582e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}

/* The greatest step of values `from` to `to`, whatever lies beside them. */
INLINE float greatest8(const char *values, i64 from, i64 to, i64 d) {
    __m256 most = _mm256_set1_ps(1e-30f);
    i64 j = (from + SLOTS - 1) / SLOTS * SLOTS;
    for (; j + SLOTS <= to; j += SLOTS) most = _mm256_max_ps(_mm256_loadu_ps(steps_of(values, j, d)), most);
    float top = max8(most);
    for (i64 i = from; i < to; i++) {
        if (i % SLOTS == 0 && i + SLOTS <= to) { i += SLOTS - 1; continue; }
        float step = steps_of(values, i, d)[i % SLOTS];
        if (step > top) top = step;
    }
    return top;
}

/* Scores of keys `from` to `to` to weights times the values' steps, as whole numbers of 16 bits, `*step` between them;
 * `keep`: what each query's sums of before are to be kept at. N chains side by side. */
INLINE void weights8(float s[BUNCH][MOST_BLOCK + 16], i64 from, i64 to, const char *values, i64 d, float *state,
                     int16_t out[BUNCH][MOST_BLOCK + 16], float *step, float *keep, int N) {
    i64 low = from / SLOTS * SLOTS, high = (to + SLOTS - 1) / SLOTS * SLOTS;
    float top = greatest8(values, from, to, d), fall[8] __attribute__((aligned(32))) = {0};
    __m256 most[BUNCH], sum[BUNCH], inverse = _mm256_set1_ps(32767.0f / top);
    _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) {
        for (i64 j = low; j < from; j++) s[g][j] = -INFINITY;
        for (i64 j = to; j < high; j++) s[g][j] = -INFINITY;
        most[g] = _mm256_set1_ps(state[g * (d + 2) + TOP]), sum[g] = _mm256_setzero_ps();
    }
    for (i64 j = low; j < high; j += 8)
        _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) most[g] = _mm256_max_ps(_mm256_load_ps(s[g] + j), most[g]);
    _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) {
        float next = max8(most[g]);
        fall[g] = state[g * (d + 2) + TOP] - next, state[g * (d + 2) + TOP] = next, most[g] = _mm256_set1_ps(next);
    }
    for (i64 j = low; j < high; j += 8) {
        __m256 steps = _mm256_mul_ps(_mm256_loadu_ps(steps_of(values, j, d)), inverse);
        _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) {
            __m256 p = power8(_mm256_sub_ps(_mm256_load_ps(s[g] + j), most[g]));
            sum[g] = _mm256_add_ps(sum[g], p);
            /* The greater of it and 0: 0 where what lies beyond the sequence is no number. */
            __m256i n = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_mul_ps(p, steps), _mm256_setzero_ps()));
            _mm_store_si128((__m128i *)(out[g] + j), _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1)));
        }
    }
    _mm256_store_ps(fall, power8(_mm256_load_ps(fall)));
    _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) {
        float *total = state + g * (d + 2) + TOTAL;
        *total = *total * fall[g] + sum8(sum[g]), keep[g] = fall[g];
    }
    *step = top / 32767.0f;
}

/* Adds the weighted values of eights `from` to `to` to V vectors of N queries' sums; whole numbers within the block. */
INLINE void weigh8(const char *values, i64 from, i64 to, int16_t p[BUNCH][MOST_BLOCK + 16], float step, i64 d, i64 i,
                   const float *keep, float *state, const char *next, int N, int V) {
    __m256i a[BUNCH][4];
    i64 eight = SLOTS * (d + 4);
    _Pragma("GCC unroll 4") for (int g = 0; g < N; g++)
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) a[g][v] = _mm256_setzero_si256();
    for (i64 o = from; o < to; o++) {
        const char *at = values + o * eight + 2 * i;
        if (next)
            for (i64 b = 0; b < V * 64; b += 64) _mm_prefetch(next + o * eight + SLOTS * i + b, _MM_HINT_T0);
        _Pragma("GCC unroll 4") for (int r = 0; r < SLOTS / 2; r++) {
            __m256i value[4];
            _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) value[v] = bytes16(at + 2 * r * d + 16 * v);
            _Pragma("GCC unroll 4") for (int g = 0; g < N; g++) {
                __m256i two = pair(p[g] + SLOTS * o + 2 * r);
                _Pragma("GCC unroll 4") for (int v = 0; v < V; v++)
                {
                    a[g][v] = _mm256_add_epi32(a[g][v], _mm256_madd_epi16(two, value[v]));
                    __asm__("" : "+x"(a[g][v])); /* stays in its register */
                }
            }
        }
    }
    _Pragma("GCC unroll 4") for (int g = 0; g < N; g++)
        _Pragma("GCC unroll 4") for (int v = 0; v < V; v++) {
            float *sums = state + g * (d + 2) + SUMS + i + 8 * v;
            __m256 before = _mm256_mul_ps(_mm256_loadu_ps(sums), _mm256_set1_ps(keep[g]));
            _mm256_storeu_ps(sums, _mm256_fmadd_ps(_mm256_cvtepi32_ps(a[g][v]), _mm256_set1_ps(step), before));
        }
}

#define M2T8_OF(name, N)                                                                                             \
    static __attribute__((noinline)) void name(const char *q, const char *keys, const char *values,                  \
                                               sight then, i64 from, i64 to, i64 d, float scale, int fetch,          \
                                               float *state) {                                                       \
        float s[BUNCH][MOST_BLOCK + 16] __attribute__((aligned(32))), keep[BUNCH], step;                             \
        int16_t p[BUNCH][MOST_BLOCK + 16] __attribute__((aligned(32)));                                              \
        i64 low = from / SLOTS, high = (to + SLOTS - 1) / SLOTS, i = 0;                                              \
        compare8(q, keys, then.keys, low, high, d, scale * 1.44269504088896341f, s, N);                              \
        weights8(s, from, to, values, d, state, p, &step, keep, N);                                                  \
        if (N == 1)                                                                                                  \
            for (; i + 32 <= d; i += 32) weigh8(values, low, high, p, step, d, i, keep, state, then.values, N, 4);   \
        for (; i < d; i += 16) weigh8(values, low, high, p, step, d, i, keep, state, then.values, N, 2);             \
    }
M2T8_OF(meet_whole_1, 1) M2T8_OF(meet_whole_2, 2) M2T8_OF(meet_whole_3, 3)

typedef void meet_fn(const char *q, const char *keys, const char *values, sight then, i64 from, i64 to, i64 d,
                     float scale, int fetch, float *state);
static meet_fn *const M2T[3][BUNCH + 1] = {{0, meet_1, meet_2, meet_3},
                                            {0, meet_short_1, meet_short_2, meet_short_3},
                                            {0, meet_whole_1, meet_whole_2, meet_whole_3}};

typedef struct {
    const void *q;
    const char *keys, *values;
    void *out;
    i64 q_stride, size, window, heads, kv_heads, slots, d;
    float scale;
    int bf, whole; /* `whole`: keys and values of eight bits */
} attention;

/* Bytes of a slot's keys or values of one head. */
INLINE i64 slot_bytes(i64 d, int bf, int whole) { return whole ? d + 4 : d * (bf ? 2 : 4); }

/* One head's query as those who meet keys with it read it. */
INLINE void query(const attention *it, i64 at, char *out) {
    if (!it->whole) {
        for (i64 i = 0; i < it->d; i += 8) _mm256_storeu_ps((float *)out + i, load8(it->q, at + i, it->bf));
        return;
    }
    float step = step_of(it->q, at, it->d, 32767.0f, it->bf);
    __m256 inverse = _mm256_set1_ps(1.0f / step);
    for (i64 i = 0; i < it->d; i += 8) _mm_storeu_si128((__m128i *)(out + 2 * i), whole8(it->q, at + i, inverse, it->bf));
    memcpy(out + 2 * it->d, &step, 4);
}

/* Rows `row` .. of one sequence and the heads that share `head`'s keys: all of them walk its blocks together. Somebody
 * else's walk begins at byte `following` of keys and values, or none's. */
static void attend_tile(const attention *it, i64 row, int rows, i64 position, const int *blocks, i64 head,
                        i64 following) {
    i64 d = it->d, size = it->size, group = it->heads / it->kv_heads, slot = slot_bytes(d, it->bf, it->whole);
    i64 many = rows * group, block = size * slot, line = it->whole ? LINE8(d) : 4 * d;
    float *state = malloc(sizeof(float) * many * (d + 2) + line * many);
    char *q = (char *)(state + many * (d + 2));
    meet_fn *const *meet = M2T[it->whole ? 2 : it->bf];
    for (i64 n = 0; n < many; n++) {
        state[n * (d + 2)] = -INFINITY;
        memset(state + n * (d + 2) + 1, 0, sizeof(float) * (d + 1));
        query(it, (row + n / group) * it->q_stride + (head * group + n % group) * d, q + n * line);
    }
    i64 window = it->window, last = position + rows - 1;
    for (i64 b = window && position - window + 1 > 0 ? (position - window + 1) / size : 0; b * size <= last; b++) {
        i64 at = head * it->slots * slot;
        const char *keys = it->keys + at + blocks[b] * block, *values = it->values + at + blocks[b] * block;
        i64 next = (b + 1) * size <= last ? at + blocks[b + 1] * block : it->whole ? following : -1;
        sight then = {next < 0 ? 0 : it->keys + next, next < 0 ? 0 : it->values + next}, none = {0, 0};
        int fetch = 1;
        for (i64 n = 0; n < many;) {
            i64 p = position + n / group, from = 0, to = p - b * size + 1, some = 1;
            if (to > size) to = size;
            if (window && p - window + 1 > b * size) from = p - window + 1 - b * size;
            /* Whoever meets all of the block meets it with the next; else only one row's heads do. */
            i64 alike = from == 0 && to == size && !window ? many - n : group - n % group;
            if (from >= to) { n += alike; continue; }
            some = alike == 4 ? 2 : alike < BUNCH ? alike : BUNCH;
            float *mine = state + n * (d + 2);
            meet[some](q + n * line, keys, values, fetch ? then : none, from, to, d, it->scale, fetch, mine);
            n += some, fetch = 0;
        }
    }
    for (i64 n = 0; n < many; n++) {
        const float *mine = state + n * (d + 2);
        __m256 over = _mm256_set1_ps(1.0f / mine[TOTAL]);
        i64 at = ((row + n / group) * it->heads + head * group + n % group) * d;
        for (i64 i = 0; i < d; i += 8)
            store8(it->out, at + i, _mm256_mul_ps(_mm256_loadu_ps(mine + SUMS + i), over), it->bf);
    }
    free(state);
}

/* Each segment: rows `first[s] .. + count[s]` at positions `start[s] ..`; its blocks begin at `table[s]` in `blocks`.
 * Keys and values of one layer: [kv head, slot, d]; of eight bits where `whole`. */
void attend(const void *q, i64 q_stride, const void *keys, const void *values, void *out, int segments,
            const int *first, const int *count, const int *start, const int *table, const int *blocks, i64 size,
            i64 window, i64 heads, i64 kv_heads, i64 slots, i64 d, float scale, int bf, int whole, int threads) {
    attention it = {q, keys, values, out, q_stride, size, window, heads, kv_heads, slots, d, scale, bf, whole};
    i64 work = (i64)segments * kv_heads;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (i64 w = 0; w < work; w++) {
        i64 s = w / kv_heads;
        for (int r = 0; r < count[s]; r += TILE) {
            int rows = count[s] - r < TILE ? count[s] - r : TILE;
            i64 then = (w + 1) / kv_heads, at = (w + 1) % kv_heads * slots, following = -1;
            if (r + TILE >= count[s] && then < segments && !window)
                following = (at + blocks[table[then]] * size) * slot_bytes(d, bf, whole);
            attend_tile(&it, first[s] + r, rows, start[s] + r, blocks + table[s], w % kv_heads, following);
        }
    }
}

/* ---- between them ---- */

/* Root mean square norm of `rows` rows of `d`, which lie `stride` apart. */
INLINE void norm_rows(const void *x, const void *weight, void *y, i64 rows, i64 d, i64 stride, i64 y_stride, float eps,
                      int bf) {
    for (i64 r = 0; r < rows; r++) {
        __m256 a = _mm256_setzero_ps();
        i64 i = 0;
        for (; i + 8 <= d; i += 8) {
            __m256 v = load8(x, r * stride + i, bf);
            a = _mm256_fmadd_ps(v, v, a);
        }
        float sum = sum8(a);
        for (i64 j = i; j < d; j++) sum += load1(x, r * stride + j, bf) * load1(x, r * stride + j, bf);
        float scale = 1.0f / sqrtf(sum / (float)d + eps);
        __m256 all = _mm256_set1_ps(scale);
        for (i = 0; i + 8 <= d; i += 8)
            store8(y, r * y_stride + i,
                   _mm256_mul_ps(_mm256_mul_ps(load8(x, r * stride + i, bf), all), load8(weight, i, bf)), bf);
        for (; i < d; i++) store1(y, r * y_stride + i, load1(x, r * stride + i, bf) * scale * load1(weight, i, bf), bf);
    }
}

void norm(const void *x, const void *weight, void *y, i64 rows, i64 d, float eps, int bf) {
    if (bf) norm_rows(x, weight, y, rows, d, d, d, eps, 1);
    else norm_rows(x, weight, y, rows, d, d, d, eps, 0);
}

/* Rotary positions of one head in place; the two halves of d are rotated against each other. */
INLINE void turn(void *x, i64 at, const void *cosine, const void *sine, i64 row, i64 d, int bf) {
    i64 half = d / 2, i = 0;
    for (; i + 8 <= half; i += 8) {
        __m256 a = load8(x, at + i, bf), b = load8(x, at + half + i, bf);
        __m256 c = load8(cosine, row * d + i, bf), s = load8(sine, row * d + half + i, bf);
        store8(x, at + i, _mm256_fnmadd_ps(b, s, _mm256_mul_ps(a, c)), bf);
        store8(x, at + half + i, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)), bf);
    }
    for (; i < half; i++) {
        float a = load1(x, at + i, bf), b = load1(x, at + half + i, bf);
        float c = load1(cosine, row * d + i, bf), s = load1(sine, row * d + half + i, bf);
        store1(x, at + i, fmaf(-b, s, a * c), bf);
        store1(x, at + half + i, fmaf(a, s, b * c), bf);
    }
}

/* A key into its slot of eight bits; with no step where its value is no number: weights look at keys' steps alone. */
INLINE void keep_key(const void *x, i64 at, char *to, i64 slot, i64 d, int no_number, int bf) {
    char *eight = to + slot / SLOTS * SLOTS * (d + 4);
    i64 j = slot % SLOTS;
    int16_t n[MOST_HEAD], two[MOST_HEAD / 2];
    float step = whole(x, at, d, bf, n);
    if (no_number) step = NAN;
    for (i64 i = 0; i < d; i += 8) {
        __m128i v = _mm_loadu_si128((const __m128i *)(n + i));
        _mm_storel_epi64((__m128i *)(two + i / 2), _mm_packs_epi16(v, v));
    }
    for (i64 i = 0; i < d / 2; i++) memcpy(eight + i * 2 * SLOTS + 2 * j, two + i, 2);
    memcpy(eight + SLOTS * d + 4 * j, &step, 4);
}

/* A value into its slot of eight bits; its step. */
INLINE float keep_value(const void *x, i64 at, char *to, i64 slot, i64 d, int bf) {
    char *eight = to + slot / SLOTS * SLOTS * (d + 4);
    i64 j = slot % SLOTS;
    int16_t n[MOST_HEAD];
    float step = whole(x, at, d, bf, n);
    for (i64 i = 0; i < d; i += 8) {
        char *both = eight + j / 2 * 2 * d + 2 * i;
        __m128i v = _mm_loadu_si128((const __m128i *)(n + i)), old = _mm_loadu_si128((const __m128i *)both);
        v = j % 2 ? _mm_or_si128(_mm_slli_epi16(v, 8), _mm_and_si128(old, _mm_set1_epi16(0xff)))
                  : _mm_or_si128(_mm_and_si128(v, _mm_set1_epi16(0xff)), _mm_andnot_si128(_mm_set1_epi16(0xff), old));
        _mm_storeu_si128((__m128i *)both, v);
    }
    memcpy(eight + SLOTS * d + 4 * j, &step, 4);
    return step;
}

INLINE void place_rows(void *qkv, const void *q_norm, const void *k_norm, float eps, const void *cosine,
                       const void *sine, const i64 *positions, const i64 *to, char *keys, char *values, i64 rows,
                       i64 heads, i64 kv_heads, i64 slots, i64 d, int bf, int whole) {
    i64 stride = (heads + 2 * kv_heads) * d, bytes = bf ? 2 : 4;
    for (i64 r = 0; r < rows; r++)
        for (i64 h = 0; h < heads + kv_heads; h++) {
            i64 at = r * stride + h * d;
            const void *weight = h < heads ? q_norm : k_norm;
            if (weight) norm_rows((char *)qkv + at * bytes, weight, (char *)qkv + at * bytes, 1, d, d, d, eps, bf);
            turn(qkv, at, cosine, sine, positions[r], d, bf);
            if (h < heads) continue;
            if (whole) {
                i64 base = (h - heads) * slots * (d + 4);
                float step = keep_value(qkv, at + kv_heads * d, values + base, to[r], d, bf);
                keep_key(qkv, at, keys + base, to[r], d, isnan(step), bf);
                continue;
            }
            i64 slot = ((h - heads) * slots + to[r]) * d * bytes;
            memcpy(keys + slot, (char *)qkv + at * bytes, d * bytes);
            memcpy(values + slot, (char *)qkv + (at + kv_heads * d) * bytes, d * bytes);
        }
}

/* Queries and keys normed (where weights are given) and rotated in place; keys and values copied to their slots. */
void place(void *qkv, const void *q_norm, const void *k_norm, float eps, const void *cosine, const void *sine,
           const i64 *positions, const i64 *to, void *keys, void *values, i64 rows, i64 heads, i64 kv_heads, i64 slots,
           i64 d, int bf, int whole) {
    if (bf)
        place_rows(qkv, q_norm, k_norm, eps, cosine, sine, positions, to, keys, values, rows, heads, kv_heads, slots,
                   d, 1, whole);
    else
        place_rows(qkv, q_norm, k_norm, eps, cosine, sine, positions, to, keys, values, rows, heads, kv_heads, slots,
                   d, 0, whole);
}

INLINE void gate_rows(const void *x, void *y, i64 rows, i64 d, int bf) {
    for (i64 r = 0; r < rows; r++) {
        i64 i = 0, at = 2 * r * d;
        for (; i + 8 <= d; i += 8) {
            __m256 g = load8(x, at + i, bf);
            __m256 e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));
            __m256 s = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
            store8(y, r * d + i, _mm256_mul_ps(s, load8(x, at + d + i, bf)), bf);
        }
        for (; i < d; i++) {
            float g = load1(x, at + i, bf);
            store1(y, r * d + i, g / (1.0f + expf(-g)) * load1(x, at + d + i, bf), bf);
        }
    }
}

/* silu(gate) * up of rows [gate | up]. */
void gate(const void *x, void *y, i64 rows, i64 d, int bf) {
    if (bf) gate_rows(x, y, rows, d, 1);
    else gate_rows(x, y, rows, d, 0);
}

/* ---- a whole pass ---- */

typedef struct {
    const void *w; /* in panels, of the model's type; of eight bits where there are scales */
    const float *scales, *bias;
    i64 columns, k;
} matrix;

typedef struct {
    matrix qkv, out, gate_up, down;
    const void *norm_in, *norm_mlp, *q_norm, *k_norm;
    i64 window;
} layer;

typedef struct {
    const layer *layers;
    const void *embedding, *final_norm, *cosine, *sine;
    i64 count, hidden, heads, kv_heads, d, size, widest;
    float eps;
    int bf, whole; /* `whole`: keys and values of eight bits */
} model;

static void times(const matrix *m, const void *x, void *y, i64 rows, int bf, char *room, int threads) {
    if (!m->scales) product(x, m->w, m->bias, y, rows, m->columns, m->k, bf, (float *)room, threads);
    else
        product8(x, m->w, m->scales, m->bias, y, rows, m->columns, m->k, bf, room, threads);
}

INLINE void add_rows(void *x, const void *y, i64 count, int bf) {
    i64 i = 0;
    for (; i + 8 <= count; i += 8) store8(x, i, _mm256_add_ps(load8(x, i, bf), load8(y, i, bf)), bf);
    for (; i < count; i++) store1(x, i, load1(x, i, bf) + load1(y, i, bf), bf);
}

static void add(void *x, const void *y, i64 count, int bf) {
    if (bf) add_rows(x, y, count, 1);
    else add_rows(x, y, count, 0);
}

/* Hidden states after the last norm of rows `wanted`, from token ids; keys and values go to slots `to` of the pool
 * `[layer, key or value, kv head, slot, d]`. `room` holds `rows * (hidden + 2 * widest)` elements and behind them
 * `rows * (widest + 2)` floats. */
void forward(const model *m, char *pool, i64 slots, const i64 *ids, const i64 *positions, const i64 *to, i64 rows,
             int segments, const int *first, const int *count, const int *start, const int *table, const int *blocks,
             const i64 *wanted, i64 answers, char *out, char *room, int threads) {
    i64 bytes = m->bf ? 2 : 4, line = m->hidden * bytes, half = m->kv_heads * slots * slot_bytes(m->d, m->bf, m->whole);
    char *x = room, *a = x + rows * line, *b = a + rows * m->widest * bytes, *rest = b + rows * m->widest * bytes;
    for (i64 r = 0; r < rows; r++) memcpy(x + r * line, (const char *)m->embedding + ids[r] * line, line);
    for (i64 n = 0; n < m->count; n++) {
        const layer *it = m->layers + n;
        char *keys = pool + 2 * n * half, *values = keys + half;
        norm(x, it->norm_in, a, rows, m->hidden, m->eps, m->bf);
        times(&it->qkv, a, b, rows, m->bf, rest, threads);
        place(b, it->q_norm, it->k_norm, m->eps, m->cosine, m->sine, positions, to, keys, values, rows, m->heads,
              m->kv_heads, slots, m->d, m->bf, m->whole);
        attend(b, it->qkv.columns, keys, values, a, segments, first, count, start, table, blocks, m->size, it->window,
               m->heads, m->kv_heads, slots, m->d, 1.0f / sqrtf((float)m->d), m->bf, m->whole, threads);
        times(&it->out, a, b, rows, m->bf, rest, threads);
        add(x, b, rows * m->hidden, m->bf);
        norm(x, it->norm_mlp, a, rows, m->hidden, m->eps, m->bf);
        times(&it->gate_up, a, b, rows, m->bf, rest, threads);
        gate(b, a, rows, it->down.k, m->bf);
        times(&it->down, a, b, rows, m->bf, rest, threads);
        add(x, b, rows * m->hidden, m->bf);
    }
    for (i64 r = 0; r < answers; r++)
        norm(x + wanted[r] * line, m->final_norm, out + r * line, 1, m->hidden, m->eps, m->bf);
}

/* The first of the greatest of `count` scores; -1 unless all are numbers and the greatest is finite. */
INLINE i64 greatest(const void *scores, i64 at, i64 count, int bf) {
    __m256 most = _mm256_set1_ps(-INFINITY), none = _mm256_setzero_ps();
    i64 i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 v = load8(scores, at + i, bf);
        most = _mm256_max_ps(v, most), none = _mm256_or_ps(none, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    float top = max8(most);
    int bad = _mm256_movemask_ps(none);
    for (i64 j = i; j < count; j++) {
        float v = load1(scores, at + j, bf);
        bad |= v != v, top = fmaxf(top, v);
    }
    if (bad || isinf(top)) return -1;
    __m256 all = _mm256_set1_ps(top);
    for (i = 0; i + 8 <= count; i += 8) {
        int same = _mm256_movemask_ps(_mm256_cmp_ps(load8(scores, at + i, bf), all, _CMP_EQ_OQ));
        if (same) return i + __builtin_ctz(same);
    }
    for (; i < count; i++)
        if (load1(scores, at + i, bf) == top) return i;
    return -1;
}

/* Up to `left[r]` tokens more, each the likeliest, for `rows` sequences of which token `ids[r]` at `start[r]` is to be
 * computed next and whose blocks reach far enough; `left` never grows from row to row. They go to `said[step][row]`, -1
 * where scores are no numbers; returns the steps made: the last is one in which somebody said one of `ends` or none, or
 * in which `hurry` was no longer 0.
 * `start` and `ids` are moved on. `room` as for `forward`, and before it `rows * hidden` and `rows * vocabulary` elements
 * and `4 * rows` of 8 bytes. */
i64 decode(const model *m, const matrix *head, char *pool, i64 slots, i64 *ids, i64 rows, int *first, const int *count,
           int *start, const int *table, const int *blocks, const i64 *left, const i64 *ends, i64 end_count, i64 *said,
           const volatile int *hurry, char *room, int threads) {
    i64 bytes = m->bf ? 2 : 4, all = rows, *positions = (i64 *)room, *to = positions + rows, *wanted = to + rows;
    char *hidden = (char *)(wanted + 2 * rows), *scores = hidden + rows * m->hidden * bytes;
    char *rest = scores + rows * head->columns * bytes;
    for (i64 step = 0;; step++) {
        while (rows && left[rows - 1] <= step) rows--;
        if (!rows) return step;
        for (i64 r = 0; r < rows; r++) {
            positions[r] = start[r], wanted[r] = r;
            to[r] = blocks[table[r] + start[r] / m->size] * m->size + start[r] % m->size;
        }
        forward(m, pool, slots, ids, positions, to, rows, (int)rows, first, count, start, table, blocks, wanted, rows,
                hidden, rest, threads);
        times(head, hidden, scores, rows, m->bf, rest, threads);
        int last = 0;
        for (i64 r = 0; r < rows; r++) {
            i64 at = r * head->columns;
            i64 id = m->bf ? greatest(scores, at, head->columns, 1) : greatest(scores, at, head->columns, 0);
            said[step * all + r] = id, last |= id < 0;
            for (i64 e = 0; e < end_count; e++) last |= id == ends[e];
            ids[r] = id, start[r]++;
        }
        if (last || *hurry) return step + 1;
    }
}
