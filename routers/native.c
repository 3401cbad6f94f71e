/* A text's features as routers/features.py finds them, to rounding; see routers/native.py.
 *
 * A text of ASCII is cut into WordPieces here; of another the pieces are given. Nothing is allocated but the table of
 * tokens, and nothing is kept of a text, so any number of threads may ask at once.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef long long i64;

#define LONGEST 100 /* BERT reads a longer word as unknown */
#define STRUCTURE 19
#define WAITING 32 /* tokens whose rows are on their way */
#define LINE 64

enum { BLANK = 1, LETTER = 2, MARK = 4 };
enum { NONE, ASKS, LINES, COLONS, QUOTES, SCORES, CODE, MATHS, DIGITS, CAPITALS, SPACES, FOREIGN, KINDS };

typedef struct { const uint8_t *text; int32_t length, id; } token;

typedef struct {
    token *slots;
    i64 mask;
    const int8_t *rows;
    const float *scales;
    i64 dims;
    int32_t longest;
    uint8_t class_of[256], kind_of[256];
} table;

/* ---- the vocabulary: FNV-1a, open addressing ---- */

#define SEED 14695981039346656037u
#define CONTINUED 0x9e3779b97f4a7c15u
#define STEP(hash, byte) (((hash) ^ (byte)) * 1099511628211u)

static i64 slot_of(const table *t, uint64_t hash, const uint8_t *text, int32_t length, int continued) {
    i64 at = (i64)(hash ^ hash >> 29) & t->mask;
    for (;; at = (at + 1) & t->mask) {
        const token *one = t->slots + at;
        if (!one->text || (one->length == length && (one->id < 0) == continued && !memcmp(one->text, text, length)))
            return at;
    }
}

static void classify(table *t) {
    for (int byte = 0; byte < 256; byte++) {
        int letter = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '0' && byte <= '9');
        int blank = byte == ' ' || (byte >= 9 && byte <= 13) || (byte >= 28 && byte <= 31);
        t->class_of[byte] = letter ? LETTER : blank ? BLANK : byte > 32 && byte < 127 ? MARK : 0;
        int digit = byte >= '0' && byte <= '9', capital = byte >= 'A' && byte <= 'Z';
        t->kind_of[byte] = byte >= 128 ? FOREIGN : digit ? DIGITS : capital ? CAPITALS : NONE;
    }
    t->kind_of['?'] = ASKS, t->kind_of['\n'] = LINES, t->kind_of[':'] = COLONS, t->kind_of['"'] = QUOTES;
    t->kind_of['_'] = SCORES, t->kind_of['{'] = t->kind_of[';'] = CODE, t->kind_of[' '] = SPACES;
    t->kind_of['$'] = t->kind_of['\\'] = t->kind_of['^'] = t->kind_of['='] = t->kind_of['+'] = MATHS;
}

/* `vocabulary`: `count` tokens in `bytes` bytes, a line feed behind each; it, rows and scales must outlive the table.
 * NULL: no memory.
 */
table *opened(const uint8_t *vocabulary, i64 bytes, i64 count, const int8_t *rows, const float *scales, i64 dims) {
    i64 size = 64;
    while (size < 2 * count) size *= 2;
    table *t = malloc(sizeof *t);
    token *slots = calloc(size, sizeof *slots);
    if (!t || !slots) {
        free(t), free(slots);
        return NULL;
    }
    *t = (table){slots, size - 1, rows, scales, dims, 0, {0}, {0}};
    classify(t);
    const uint8_t *behind = vocabulary + bytes, *end;
    for (i64 id = 0; id < count && (end = memchr(vocabulary, '\n', behind - vocabulary)); id++) {
        int continued = end - vocabulary > 2 && vocabulary[0] == '#' && vocabulary[1] == '#';
        const uint8_t *text = vocabulary + 2 * continued;
        int32_t length = (int32_t)(end - text);
        uint64_t hash = continued ? CONTINUED : SEED;
        for (int32_t i = 0; i < length; i++) hash = STEP(hash, text[i]);
        token *one = slots + slot_of(t, hash, text, length, continued);
        *one = (token){text, length, continued ? (int32_t)~id : (int32_t)id};
        if (length > t->longest) t->longest = length;
        vocabulary = end + 1;
    }
    return t;
}

void closed(table *t) { free(t->slots), free(t); }

/* ---- sums ---- */

/* By the widest registers that the machine has; element by element, so the sums are the same. */
#if defined(__x86_64__) && defined(__GLIBC__)
__attribute__((target_clones("avx2", "default")))
#endif
static void add(const table *t, float *restrict total, i64 id) {
    const int8_t *restrict row = t->rows + id * t->dims;
    float scale = t->scales[id];
    for (i64 d = 0; d < t->dims; d++) total[d] += scale * row[d];
}

/* Greedy longest match of a lower-case word; how many pieces, 0 where some part is no token. */
static int cut(const table *t, const uint8_t *word, int32_t length, int32_t *pieces) {
    uint64_t hashes[LONGEST + 1];
    int found = 0;
    if (length > LONGEST) return 0;
    for (int32_t start = 0; start < length;) {
        int32_t most = length - start < t->longest ? length - start : t->longest, size;
        hashes[0] = start ? CONTINUED : SEED;
        for (int32_t i = 0; i < most; i++) hashes[i + 1] = STEP(hashes[i], word[start + i]);
        for (size = most; size; size--) {
            const token *one = t->slots + slot_of(t, hashes[size], word + start, size, start > 0);
            if (one->text) { pieces[found++] = one->id < 0 ? ~one->id : one->id; break; }
        }
        if (!size) return 0;
        start += size;
    }
    return found;
}

/* Tokens found and not yet added. Their rows lie all over the table: those of a few words ahead are asked for early. */
typedef struct { i64 count; int32_t ids[WAITING + LONGEST]; } waiting;

static void add_all(const table *t, float *total, waiting *w) {
    for (i64 i = 0; i < w->count; i++) add(t, total, w->ids[i]);
    w->count = 0;
}

static void find(const table *t, float *total, waiting *w, const uint8_t *word, int32_t length) {
    if (w->count >= WAITING) add_all(t, total, w);
    int found = cut(t, word, length, w->ids + w->count);
    for (int i = 0; i < found; i++) {
        const int8_t *row = t->rows + w->ids[w->count + i] * t->dims;
        for (i64 d = 0; d < t->dims; d += LINE) __builtin_prefetch(row + d);
        __builtin_prefetch(t->scales + w->ids[w->count + i]);
    }
    w->count += found;
}

static void find_stretch(const table *t, float *total, waiting *w, const uint8_t *at, const uint8_t *end) {
    uint8_t word[LONGEST + 1];
    while (at < end) {
        int32_t length = 0;
        if (t->class_of[*at] == LETTER)
            for (; at < end && t->class_of[*at] == LETTER; at++) {
                if (length <= LONGEST) word[length++] = *at >= 'A' && *at <= 'Z' ? *at | 32 : *at;
            }
        else if (t->class_of[*at] == MARK) word[length++] = *at++;
        else { at++; continue; }
        find(t, total, w, word, length);
    }
}

/* Sums of the last `tail_words` stretches of an ASCII text and of those before; how many stretches there are. */
static i64 sum_text(const table *t, const uint8_t *text, i64 n, i64 tail_words, float *tail, float *head) {
    const uint8_t *end = text + n, *at = end;
    float *total = tail;
    waiting w = {0};
    i64 stretches = 0;
    for (;; stretches++) { /* from behind: the tail is known first */
        while (at > text && t->class_of[at[-1]] == BLANK) at--;
        if (at == text) break;
        const uint8_t *last = at;
        while (at > text && t->class_of[at[-1]] != BLANK) at--;
        if (stretches == tail_words) add_all(t, total, &w), total = head;
        find_stretch(t, total, &w, at, last);
    }
    add_all(t, total, &w);
    return stretches;
}

static void scale(float *to, const float *total, i64 dims) {
    float square = 0;
    for (i64 d = 0; d < dims; d++) square += total[d] * total[d];
    float by = square > 0 ? 1 / sqrtf(square) : 0;
    for (i64 d = 0; d < dims; d++) to[d] = total[d] * by;
}

/* ---- structure ---- */

static i64 times(const uint8_t *text, i64 n, const char *sign) {
    i64 found = 0, length = (i64)strlen(sign);
    for (const uint8_t *at = text; (at = memmem(at, text + n - at, sign, length)); at += length) found++;
    return found;
}

static float most(double value) { return value < 4 ? (float)value : 4; }

static void structure(const table *t, const uint8_t *text, i64 n, i64 stretches, float *to) {
    static const char *code[] = {"```", "def ", "return", "import ", "()"};
    static const char *options[] = {"\nB", "\nC", "\nD", "\n(B", "\n(C"};
    i64 kinds[4][KINDS] = {{0}}, at = 0, choices = 0;
    for (; at + 4 <= n; at += 4)
        for (int way = 0; way < 4; way++) kinds[way][t->kind_of[text[at + way]]]++;
    for (; at < n; at++) kinds[0][t->kind_of[text[at]]]++;
    for (int kind = 0; kind < KINDS; kind++) kinds[0][kind] += kinds[1][kind] + kinds[2][kind] + kinds[3][kind];
    i64 *k = kinds[0];
    for (int i = 0; i < 5; i++) k[CODE] += times(text, n, code[i]);
    for (int i = 0; i < 5 && k[LINES]; i++) choices += times(text, n, options[i]);
    for (int kind = ASKS; kind <= CODE; kind++) *to++ = most(k[kind] / 5.0);
    *to++ = most(k[MATHS] / 10.0);
    *to++ = most(choices / 5.0);
    double length = n ? n : 1, share = 5.0 / length;
    for (int kind = DIGITS; kind <= FOREIGN; kind++) *to++ = (float)(k[kind] * share);
    *to = (float)(length / (stretches ? stretches : 1) / 10);
}

/* ---- a vector ---- */

/* The whole vector of a text of `n` bytes into `vector`: 2 * dims + STRUCTURE numbers. `pieces`: of a text that is not
 * ASCII, the tokens of its `stretches` stretches, the first `head` of them before the tail; NULL: cut here. `sizes`:
 * characters, tokens, turns, tools, images, whether JSON is wanted.
 */
void describe(const table *t, const uint8_t *text, i64 n, i64 tail_words, const i64 *pieces, i64 count, i64 head,
              i64 stretches, i64 chars, i64 tokens, i64 turns, i64 tools, i64 images, i64 json, float *vector) {
    i64 dims = t->dims;
    float sums[2][dims];
    memset(sums, 0, sizeof sums);
    if (pieces) for (i64 i = 0; i < count; i++) add(t, sums[i < head], pieces[i]);
    else stretches = sum_text(t, text, n, tail_words, sums[0], sums[1]);
    scale(vector + dims, sums[0], dims);
    for (i64 d = 0; d < dims; d++) sums[0][d] += sums[1][d];
    if (stretches > tail_words) scale(vector, sums[0], dims);
    else memcpy(vector, vector + dims, dims * sizeof *vector);
    float *more = vector + 2 * dims;
    structure(t, text, n, stretches, more);
    more += STRUCTURE - 6;
    *more++ = (float)(log1p((double)chars) / 4), *more++ = (float)(log1p((double)tokens) / 4);
    *more++ = (float)(log1p((double)turns) / 4);
    *more++ = tools < 4 ? tools : 4, *more++ = images < 4 ? images : 4, *more = json;
}
