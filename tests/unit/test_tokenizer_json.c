/* SPDX-License-Identifier: MIT
 * quantizer/json_stream, bpe and tokenizer_json: what is read from a small tokenizer.json that is changed in one thing at a time,
 * and what is refused. One thread. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <stdio.h>

#include "quantizer/bpe.h"
#include "quantizer/json_stream.h"
#include "quantizer/tokenizer_json.h"

#define MARK "\xe2\x96\x81"
#define REPLACE "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" MARK "\"}"
#define SPLIT "{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"MergedWithPrevious\",\"invert\":false}"
#define DECODER                                                                                  \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"" MARK \
    "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]}"
#define BOS_TEMPLATE                                                                                    \
    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<bos>\",\"type_id\":0}}," \
    "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],"                                         \
    "\"special_tokens\":{\"<bos>\":{\"id\":\"<bos>\",\"ids\":[2],\"tokens\":[\"<bos>\"]}}}"
#define TOKEN(id, text, special)                                                                        \
    "{\"id\":" #id ",\"content\":\"" text "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false," \
    "\"normalized\":false,\"special\":" special "}"
#define ADDED TOKEN(0, "<pad>", "true") "," TOKEN(1, "<eos>", "true") "," TOKEN(2, "<bos>", "true") "," TOKEN(3, "<unk>", "true")

enum { A = 260, B, C, SPACE, AB, BC, ABC, SA, FREE };
/* After 4 special and 256 byte pieces. */
#define VOCAB ",\"a\":260,\"b\":261,\"c\":262,\"" MARK "\":263,\"ab\":264,\"bc\":265,\"abc\":266,\"" MARK "a\":267"
#define MERGES "[\"b\",\"c\"],[\"a\",\"b\"],[\"a\",\"bc\"],[\"ab\",\"c\"],[\"" MARK "\",\"a\"]"

/* The document, with NULL for what it usually has. */
struct doc {
    const char *vocab, *merges, *added, *settings, *normalizer, *split, *decoder, *post, *model;
    bool merges_first, odd_bytes;
};

static const char *given(const char *s, const char *otherwise)
{
    return s ? s : otherwise;
}

static void add(struct bytes *b, const char *s)
{
    unit_put(b, s, strlen(s));
}

static void add_vocab(struct bytes *b, const struct doc *d)
{
    char piece[32];
    add(b, ",\"vocab\":{\"<pad>\":0,\"<eos>\":1,\"<bos>\":2,\"<unk>\":3");
    for (unsigned i = 0; i < 256; i++) {
        snprintf(piece, sizeof(piece), ",\"<0%c%02X>\":%u", d->odd_bytes ? 'y' : 'x', i, i + 4);
        add(b, piece);
    }
    add(b, given(d->vocab, VOCAB));
    add(b, "}");
}

static void add_merges(struct bytes *b, const struct doc *d)
{
    add(b, ",\"merges\":[");
    add(b, given(d->merges, MERGES));
    add(b, "]");
}

static const char *write_doc(const struct doc *d)
{
    struct bytes b = {0};
    const char *path = unit_path("tokenizer.json");
    const char *const settings[] = {
        "],\"normalizer\":",    given(d->normalizer, REPLACE), ",\"pre_tokenizer\":", given(d->split, SPLIT),
        ",\"post_processor\":", given(d->post, BOS_TEMPLATE),  ",\"decoder\":",       given(d->decoder, DECODER)};
    add(&b, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
    add(&b, given(d->added, ADDED));
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        add(&b, settings[i]);
    add(&b, given(d->settings, ""));
    add(&b, ",\"model\":{");
    add(&b, given(d->model, "\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<unk>\",\"continuing_subword_prefix\":null,"
                            "\"end_of_word_suffix\":null,\"fuse_unk\":true,\"byte_fallback\":true,\"ignore_merges\":false"));
    if (d->merges_first)
        add_merges(&b, d);
    add_vocab(&b, d);
    if (!d->merges_first)
        add_merges(&b, d);
    add(&b, "}}");
    unit_write(path, b.data, b.n);
    unit_free(&b);
    return path;
}

static int load(const struct doc *d, struct tokenizer_json *t, struct err *e)
{
    return tokenizer_json_load(write_doc(d), 512, t, e);
}

static void check_piece(const struct tokenizer_json *t, unsigned id, const char *text, float score, unsigned type)
{
    const struct spm_piece *p = &t->spm.pieces[id];
    if (p->n != strlen(text) || memcmp(p->text, text, p->n) != 0 || p->score != score || p->type != type)
        fail_msg("id %u: '%.*s' %g %u instead of '%s' %g %u", id, (int)p->n, p->text, (double)p->score, p->type, text,
                 (double)score, type);
}

static void check_usual(const struct tokenizer_json *t)
{
    assert_int_equal(t->spm.n, FREE);
    check_piece(t, 0, "<pad>", -1000, SPM_CONTROL);
    check_piece(t, 2, "<bos>", -1000, SPM_CONTROL);
    check_piece(t, 3, "<unk>", -1000, SPM_UNKNOWN);
    check_piece(t, 4, "<0x00>", 0, SPM_BYTE);
    check_piece(t, 259, "<0xFF>", 0, SPM_BYTE);
    check_piece(t, BC, "bc", 0, SPM_NORMAL);
    check_piece(t, AB, "ab", -1, SPM_NORMAL);
    check_piece(t, ABC, "abc", -2, SPM_NORMAL);
    check_piece(t, SA, MARK "a", -3, SPM_NORMAL);
    check_piece(t, A, "a", -4, SPM_NORMAL); /* what no merge gives comes last, in order of id */
    check_piece(t, SPACE, MARK, -7, SPM_NORMAL);
    assert_int_equal(t->spm.bos, 2);
    assert_int_equal(t->spm.eos, 1);
    assert_int_equal(t->spm.unk, 3);
    assert_int_equal(t->spm.pad, 0);
}

static void usual(void **state)
{
    (void)state;
    static const struct doc docs[] = {
        {0},
        {.merges_first = true},
        {.merges = "\"b c\",\"a b\",\"a bc\",\"ab c\",\"" MARK " a\""},
        {.split = "null", .normalizer = "{\"type\":\"Sequence\",\"normalizers\":[" REPLACE "]}"},
        {.added = ADDED "," TOKEN(512, "<image_soft_token>", "true")}, /* beyond the rows */
        {.vocab = ",\"\\u0061\":260,\"b\":261,\"c\":262,\"\\u2581\":263,\"ab\":264,\"bc\":265,\"abc\":266,\"\\u2581a\":267"},
    };
    for (size_t i = 0; i < sizeof(docs) / sizeof(docs[0]); i++) {
        struct tokenizer_json t;
        assert_ok(load(&docs[i], &t, err));
        check_usual(&t);
        assert_true(t.add_bos && !t.add_eos);
        tokenizer_json_fini(&t);
    }
}

static void surroundings(void **state)
{
    (void)state;
    struct tokenizer_json t;
    assert_ok(load(&(struct doc){.post = "null"}, &t, err));
    assert_true(!t.add_bos && !t.add_eos);
    tokenizer_json_fini(&t);
    assert_ok(
        load(&(struct doc){.post = "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":"
                                   "{\"id\":\"<eos>\"}}],\"special_tokens\":{\"<eos>\":{\"ids\":[1]}}}"},
             &t, err));
    assert_true(!t.add_bos && t.add_eos);
    tokenizer_json_fini(&t);
}

static void added_tokens(void **state)
{
    (void)state;
    struct tokenizer_json t;
    struct doc d = {.added = ADDED "," TOKEN(268, "<turn>", "true") "," TOKEN(269, "\\n", "false") "," TOKEN(266, "abc", "false")};
    assert_ok(load(&d, &t, err));
    assert_int_equal(t.spm.n, 270);
    check_piece(&t, 268, "<turn>", -1000, SPM_CONTROL);
    check_piece(&t, 269, "\n", -1000, SPM_USER_DEFINED);
    check_piece(&t, ABC, "abc", -1000, SPM_USER_DEFINED); /* its merges never happen */
    check_piece(&t, SA, MARK "a", -2, SPM_NORMAL);
    tokenizer_json_fini(&t);
}

#define RUNS VOCAB ",\"" MARK MARK "\":268,\"" MARK MARK MARK "\":269"
#define JOIN_21 "[\"" MARK MARK "\",\"" MARK "\"]"
#define JOIN_12 "[\"" MARK "\",\"" MARK MARK "\"]"
#define JOIN_11 "[\"" MARK "\",\"" MARK "\"]"

static void space_runs(void **state)
{
    (void)state;
    struct tokenizer_json t;
    /* Longest from the left and before everything: user-defined, added or not. Between them, a merge without spaces. */
    assert_ok(load(&(struct doc){.vocab = RUNS,
                                 .merges = JOIN_21 ",[\"b\",\"c\"]," JOIN_12 "," JOIN_11
                                                   ",[\"a\",\"b\"],[\"a\",\"bc\"],[\"ab\",\"c\"],[\"" MARK "\",\"a\"]"},
                   &t, err));
    check_piece(&t, 268, MARK MARK, -1000, SPM_USER_DEFINED);
    check_piece(&t, 269, MARK MARK MARK, -1000, SPM_USER_DEFINED);
    check_piece(&t, BC, "bc", 0, SPM_NORMAL);
    check_piece(&t, SA, MARK "a", -3, SPM_NORMAL);
    tokenizer_json_fini(&t);
    /* Behind other merges: pieces like any other, unless they were added. */
    struct doc late = {.vocab = RUNS, .merges = MERGES "," JOIN_21 "," JOIN_12 "," JOIN_11};
    assert_ok(load(&late, &t, err));
    check_piece(&t, 269, MARK MARK MARK, -4, SPM_NORMAL);
    check_piece(&t, 268, MARK MARK, -5, SPM_NORMAL);
    tokenizer_json_fini(&t);
    late.added = ADDED "," TOKEN(268, MARK MARK, "false");
    assert_err(load(&late, &t, err), -ENOTSUP, "do not join spaces into the longest runs");
    /* Four spaces: 2 + 2, where the longest would be 3 + 1. */
    assert_err(load(&(struct doc){.vocab = RUNS,
                                  .added = ADDED "," TOKEN(269, MARK MARK MARK, "false"),
                                  .merges = JOIN_11 "," JOIN_21 "," JOIN_12 "," MERGES},
                    &t, err),
               -ENOTSUP, "do not join spaces into the longest runs");
    /* A run that goes on merging is no symbol. */
    struct doc on = {.vocab = RUNS ",\"" MARK MARK "a\":270",
                     .merges =
                         JOIN_21 "," JOIN_12 "," JOIN_11 "," MERGES ",[\"" MARK MARK "\",\"a\"],[\"" MARK "\",\"" MARK "a\"]"};
    assert_ok(load(&on, &t, err));
    check_piece(&t, 269, MARK MARK MARK, 0, SPM_NORMAL);
    check_piece(&t, 270, MARK MARK "a", -6, SPM_NORMAL);
    tokenizer_json_fini(&t);
    on.added = ADDED "," TOKEN(268, MARK MARK, "false");
    assert_err(load(&on, &t, err), -ENOTSUP, "do not join spaces into the longest runs");
}

#define REFUSED(code, part, ...)  \
    {                             \
        {__VA_ARGS__}, code, part \
    }

static void refusals(void **state)
{
    (void)state;
    static const struct {
        struct doc doc;
        int code;
        const char *part;
    } cases[] = {
        REFUSED(-ENOTSUP, "key 'normalizer' is null; expected", .normalizer = "null"),
        REFUSED(-ENOTSUP, "key 'normalizer' is {\"type\":\"Sequence\"",
                .normalizer =
                    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"" MARK "\"}," REPLACE "]}"),
        REFUSED(-ENOTSUP, "key 'pre_tokenizer' is", .split = "{\"type\":\"Whitespace\"}"),
        REFUSED(-ENOTSUP, "key 'decoder' is null", .decoder = "null"),
        REFUSED(-ENOTSUP, "key 'post_processor' is of type 'ByteLevel'", .post = "{\"type\":\"ByteLevel\"}"),
        REFUSED(-EINVAL, "key 'post_processor' names the special token '<bos>'",
                .post = "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<bos>\"}},{\"Sequence\":{}}],"
                        "\"special_tokens\":{\"<bos>\":{\"ids\":[7]}}}"),
        REFUSED(-ENOTSUP, "puts 2 tokens before",
                .post =
                    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<bos>\"}},{\"SpecialToken\":{\"id\":"
                    "\"<bos>\"}},{\"Sequence\":{}}],\"special_tokens\":{\"<bos>\":{\"ids\":[2]}}}"),
        REFUSED(-ENOTSUP, "key 'new_thing' is not known here", .settings = ",\"new_thing\":1"),
        REFUSED(-EINVAL, "key 'version' is there twice", .settings = ",\"version\":\"1.0\""),
        REFUSED(-EINVAL, "key 'model' is there twice", .settings = ",\"model\":{}"),
        REFUSED(-EINVAL, "key 'added_tokens' is there twice", .settings = ",\"added_tokens\":[]"),
        REFUSED(-ENOTSUP, "key 'model.type' is \"WordPiece\"", .model = "\"type\":\"WordPiece\",\"byte_fallback\":true"),
        REFUSED(-ENOTSUP, "key 'model.byte_fallback' is absent; expected true", .model = "\"type\":\"BPE\""),
        REFUSED(-ENOTSUP, "key 'model.dropout' is 0.1", .model = "\"type\":\"BPE\",\"byte_fallback\":true,\"dropout\":0.1"),
        REFUSED(-ENOTSUP, "key 'model.ignore_merges' is true",
                .model = "\"type\":\"BPE\",\"byte_fallback\":true,\"ignore_merges\":true"),
        REFUSED(-ENOTSUP, "key 'model.end_of_word_suffix' is \"</w>\"",
                .model = "\"type\":\"BPE\",\"byte_fallback\":true,\"end_of_word_suffix\":\"</w>\""),
        REFUSED(-ENOTSUP, "key 'model.magic' is not known", .model = "\"type\":\"BPE\",\"byte_fallback\":true,\"magic\":0"),
        REFUSED(-EINVAL, "key 'model.unk_token' is '<none>'",
                .model = "\"type\":\"BPE\",\"byte_fallback\":true,\"unk_token\":\"<none>\""),
        /* pieces */
        REFUSED(-EINVAL, "'c' and 'x' both have id 262", .vocab = VOCAB ",\"x\":262"),
        REFUSED(-EINVAL, "'a' has ids 260 and 268", .vocab = VOCAB ",\"a\":268"),
        REFUSED(-EINVAL, "no piece has id 268", .vocab = VOCAB ",\"x\":269"),
        REFUSED(-EINVAL, "'x' has id 512; expected less than the 512 rows", .vocab = VOCAB ",\"x\":512"),
        REFUSED(-EINVAL, "'x' has no id", .vocab = VOCAB ",\"x\":-1"),
        REFUSED(-EINVAL, "'x' has no id", .vocab = VOCAB ",\"x\":268.0"),
        REFUSED(-EINVAL, "'x' has no id", .vocab = VOCAB ",\"x\":99999999999999999999999999999"),
        REFUSED(-EINVAL, "'x' has no id", .vocab = VOCAB ",\"x\":null"),
        REFUSED(-EINVAL, "'x' has no id", .vocab = VOCAB ",\"x\":[268]"),
        REFUSED(-EINVAL, "(id 268) has 0 bytes", .vocab = VOCAB ",\"\":268"),
        REFUSED(-EINVAL, "UTF-8 without NUL", .vocab = VOCAB ",\"x\\u0000\":268"),
        REFUSED(-ENOTSUP, "0 of the pieces <0x00> to <0xFF>", .odd_bytes = true),
        /* merges */
        REFUSED(-EINVAL, "merge 5 joins 'b' and 'a'; expected both", .merges = MERGES ",[\"b\",\"a\"]"),
        REFUSED(-EINVAL, "merge 5 joins 'x' and 'a'", .merges = MERGES ",[\"x\",\"a\"]"),
        REFUSED(-EINVAL, "merge 5 joins '' and 'ab'", .merges = MERGES ",[\"\",\"ab\"]"),
        REFUSED(-EINVAL, "merges 1 and 5 are the same", .merges = MERGES ",[\"a\",\"b\"]"),
        REFUSED(-EINVAL, "key 'model.merges' has 'ab'; expected two pieces", .merges = "\"ab\""),
        REFUSED(-EINVAL, "key 'model.merges' has 'a  b'", .merges = "\"a  b\""),
        REFUSED(-EINVAL, "key 'model.merges' is not an array", .merges = "[\"a\"]"),
        REFUSED(-EINVAL, "key 'model.merges' is not an array", .merges = "[\"a\",\"b\",\"c\"]"),
        REFUSED(-EINVAL, "key 'model.merges' is not an array", .merges = "[[\"a\",\"b\"]]"),
        REFUSED(-EINVAL, "key 'model.merges' is not an array", .merges = "{\"a\":\"b\"}"),
        REFUSED(-EINVAL, "key 'model.merges' is not an array", .merges = "7"),
        REFUSED(-ENOTSUP, "no merge joins 'ab' and 'c'",
                .merges = "[\"b\",\"c\"],[\"a\",\"b\"],[\"a\",\"bc\"],[\"" MARK "\",\"a\"]"),
        REFUSED(-ENOTSUP, "merge 3 ('ab' and 'c') gives a piece that earlier merges gave",
                .merges = "[\"b\",\"c\"],[\"a\",\"bc\"],[\"a\",\"b\"],[\"ab\",\"c\"],[\"" MARK "\",\"a\"]"),
        REFUSED(-ENOTSUP, "concerns a byte piece", .vocab = VOCAB ",\"<0x41>a\":268", .merges = MERGES ",[\"<0x41>\",\"a\"]"),
        /* added tokens */
        REFUSED(-EINVAL, "'a' has id 261, but it is there already, as 260", .added = ADDED "," TOKEN(261, "a", "false")),
        REFUSED(-EINVAL, "'a' has id 260, but it is there already",
                .added = ADDED "," TOKEN(260, "a", "false") "," TOKEN(260, "a", "false")),
        REFUSED(-EINVAL, "both have id 260", .added = ADDED "," TOKEN(260, "new", "false")),
        REFUSED(-EINVAL, "no piece has id 268", .added = ADDED "," TOKEN(300, "far", "false")),
        REFUSED(-EINVAL, "added token '(no content)'", .added = "{}"),
        REFUSED(-EINVAL, "added token 'x'", .added = "{\"id\":\"5\",\"content\":\"x\"}"),
        REFUSED(-EINVAL, "added token 'x'", .added = "{\"id\":-5,\"content\":\"x\"}"),
        REFUSED(-EINVAL, "added token 'x'", .added = "{\"id\":5,\"content\":\"x\",\"special\":1}"),
        REFUSED(-EINVAL, "key 'added_tokens' is not an array of objects", .added = "7"),
        REFUSED(-ENOTSUP, "added token 'x' has one of lstrip", .added = "{\"id\":5,\"content\":\"x\",\"lstrip\":true}"),
        REFUSED(-ENOTSUP, "added token 'x' has one of lstrip", .added = "{\"id\":5,\"content\":\"x\",\"normalized\":true}"),
        REFUSED(-ENOTSUP, "added token 'x y' has spaces", .added = "{\"id\":5,\"content\":\"x y\"}"),
        REFUSED(-ENOTSUP, "has spaces among other", .added = "{\"id\":5,\"content\":\"" MARK "y\"}"),
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tokenizer_json t = {.texts = (char *)"untouched"};
        assert_err(load(&cases[i].doc, &t, err), cases[i].code, cases[i].part);
        assert_string_equal(t.texts, "untouched");
    }
}

static int load_text(const char *text, size_t n, struct err *e)
{
    struct tokenizer_json t;
    const char *path = unit_path("text.json");
    unit_write(path, text, n);
    int r = tokenizer_json_load(path, 512, &t, e);
    if (r == 0)
        tokenizer_json_fini(&t);
    return r;
}

static void bad_json(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "premature EOF"},
        {"{", "premature EOF"},
        {"[1]", "key 'model' is not an object"},
        {"{}", "key 'model' is not an object"},
        {"{\"model\":[]}", "key 'model' is not an object"},
        {"{}{}", "JSON: "},
        {"{\"a\":tru}", "JSON: "},
        {"{\"a\":\"\xff\"}", "JSON: "},
        {"{\"a\":\"\xed\xa0\x80\"}", "cannot be kept"},
        {"{\"a\":\"\\ud800\"}", "half of a surrogate pair"},
        {"{\"a\":\"\\ud800\\u0041\"}", "half of a surrogate pair"},
        {"{\"a\":\"\\ud800\\n\"}", "half of a surrogate pair"},
        {"{\"a\":\"\\udc00\"}", "half of a surrogate pair"},
        {"{\"a\":\"\\u12g4\"}", "four hexadecimal digits"},
        {"{\"a\":1e999}", "value '1e999' cannot be kept"},
        {"{\"a\":{\"b\":1,\"b\":1}}", "key 'b' is there twice"},
        {"{\"model\":{\"vocab\":[[\"a\",0]]}}", "key 'model.vocab' is not an object of piece and id"},
        {"{\"model\":{\"vocab\":null}}", "key 'model.vocab' is not an object"},
        {"{\"model\":{\"merges\":{}}}", "key 'model.merges' is not an array"},
        {"{\"model\":{\"vocab\":{\"a\":1,\"b\":1", "premature EOF"}, /* not an id twice */
        {"7", "key 'model' is not an object"},
        {"{\"version\":\"1.0\",\"normalizer\":" REPLACE ",\"decoder\":" DECODER
         ",\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"merges\":[[\"a\",\"b\"]]}}",
         "key 'model.vocab' is missing"},
        {"{\"added_tokens\":{}}", "key 'added_tokens' is not an array"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_err(load_text(cases[i].text, strlen(cases[i].text), err), -EINVAL, cases[i].part);
    struct bytes b = {0};
    for (unsigned i = 0; i < 100000; i++)
        unit_put(&b, "[", 1);
    assert_err(load_text((const char *)b.data, b.n, err), -EINVAL, "more than 32 levels at offset 32");
    memset(b.data, '7', b.n);
    assert_err(load_text((const char *)b.data, b.n, err), -EINVAL, "a number of more than 64 characters");
    b.data = realloc(b.data, b.n = 1100000);
    assert_non_null(b.data);
    memset(b.data, '7', b.n);
    b.data[0] = '"';
    assert_err(load_text((const char *)b.data, b.n, err), -EINVAL, "a string of more than 1 MiB");
    unit_free(&b);
    struct tokenizer_json t;
    assert_err(tokenizer_json_load(unit_path("none.json"), 512, &t, err), -ENOENT, "none.json");
}

static void fill(char *piece, unsigned n)
{
    for (unsigned i = 0; i < BPE_PIECE_MAX; i++, n /= 26)
        piece[i] = (char)('a' + n % 26);
}

/* However many of each a file has, they end in a sentence before they fill the memory. */
static void limits(void **state)
{
    (void)state;
    enum { FULL = BPE_TEXTS_MAX / BPE_PIECE_MAX };
    struct bpe *b;
    char piece[BPE_PIECE_MAX];
    assert_ok(bpe_open(FULL + 1, &b, err));
    for (unsigned i = 0; i <= FULL; i++) {
        struct err e = {0};
        fill(piece, i);
        int r = bpe_add_piece(b, piece, sizeof(piece), i, &e);
        assert_int_equal(r, i < FULL ? 0 : -EINVAL);
    }
    assert_int_equal(bpe_count(b), FULL);
    bpe_close(b);

    assert_ok(bpe_open(2, &b, err));
    assert_ok(bpe_add_piece(b, "a", 1, 0, err));
    assert_ok(bpe_add_piece(b, "aa", 2, 1, err));
    struct err e = {0};
    for (unsigned i = 0; i < BPE_MERGES_MAX; i++) {
        if (bpe_add_merge(b, "a", 1, "a", 1, &e) < 0)
            fail_msg("merge %u: %s", i, e.text);
    }
    assert_err(bpe_add_merge(b, "a", 1, "a", 1, err), -EINVAL, "more than 4194304 merges");
    bpe_close(b);
}

static void many_added(void **state)
{
    (void)state;
    enum { ROOM = 4 << 20 };
    char *text = malloc(ROOM);
    assert_non_null(text);
    size_t n = 0;
    for (unsigned i = 0; i <= 65536; i++)
        n += (size_t)snprintf(text + n, ROOM - n, "%s{\"id\":%u,\"content\":\"+%u\"}", i ? "," : "", i + 1000, i);
    struct tokenizer_json t;
    assert_true(n < ROOM);
    assert_err(load(&(struct doc){.added = text}, &t, err), -EINVAL, "key 'added_tokens' has more than 65536");

    n = (size_t)snprintf(text, ROOM, ",\"settings\":[");
    for (unsigned i = 0; i < 60000; i++)
        n += (size_t)snprintf(text + n, ROOM - n, "\"a setting of more than 18 bytes\",");
    n += (size_t)snprintf(text + n, ROOM - n, "0]");
    assert_true(n < ROOM);
    assert_err(load(&(struct doc){.settings = text}, &t, err), -EINVAL, "more than 1 MiB of text");
    free(text);
}

/* Cut anywhere it is refused; with any one byte changed it is either taken or refused with a sentence. */
static void broken(void **state)
{
    (void)state;
    struct bytes b = unit_read(write_doc(&(struct doc){0}));
    for (size_t n = 0; n < b.n; n += n + 64 < b.n ? 17 : 1) {
        struct err e = {0};
        if (load_text((const char *)b.data, n, &e) >= 0 || !e.text[0])
            fail_msg("cut to %zu was taken", n);
    }
    for (size_t i = 0; i < b.n; i += i < 1600 ? 1 : 11) {
        struct err e = {0};
        b.data[i] ^= 0x15;
        int r = load_text((const char *)b.data, b.n, &e);
        b.data[i] ^= 0x15;
        assert_true((r == 0) == (e.text[0] == '\0'));
    }
    unit_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {UNIT_TEST(usual),      UNIT_TEST(surroundings), UNIT_TEST(added_tokens),
                                       UNIT_TEST(space_runs), UNIT_TEST(refusals),     UNIT_TEST(bad_json),
                                       UNIT_TEST(limits),     UNIT_TEST(many_added),   UNIT_TEST(broken)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
