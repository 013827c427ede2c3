/* SPDX-License-Identifier: MIT
 * Schemas as grammars: which texts fit, which do not, what is refused by name; and that a list of words is judged as each word is
 * by itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/grammar.h"
#include "coordinator/schema.h"
#include "proto/err.h"
#include "proto/util.h"

static int compile(const char *text, struct grammar **g, uint32_t *rule, struct err *err)
{
    json_t *schema = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
    if (text && !schema)
        fail_msg("no JSON: %s", text);
    int r = schema_compile(schema, g, rule, err);
    json_decref(schema);
    return r;
}

/* 2: fits; 1: the beginning of one that fits; 0: neither. */
static int judge(const struct grammar *g, uint32_t rule, const char *text, size_t n)
{
    struct grammar_state *s;
    assert_int_equal(grammar_state_open(g, rule, &s), 0);
    int r = grammar_state_feed(s, text, n) ? 1 + grammar_state_complete(s) : 0;
    grammar_state_close(s);
    return r;
}

static const struct {
    const char *schema;
    const char *fits[8], *begins[6], *not [12];
} cases[] = {
    {NULL,
     {"{}", "{\"a\":1}", "{\"a\": {\"b\":[1, 2.5,-3e+10,\"x\",true,false,null,[]]},\"c\":\"\"}",
      "{\"\\u00e9\\n\\\"\":\"\xc3\xa9\xf0\x9f\x98\x80\"}"},
     {"", "{", "{\"", "{\"a\"", "{\"a\":1,", "{\"a\":[{\"b\":\"\\u12"},
     {"[]", "1", "{}}", "{ }", "{\"a\":  1}", "{\"a\":01}", "{\"a\":1,}", "{a", "{\"\n", "{\"\\ud800", "{\"\xc3\"",
      "{\"\xed\xa0\x80"}},
    {"{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"integer\"}, \"b\": {\"type\": \"boolean\"}, \"c\": {\"type\": "
     "\"null\"}}, "
     "\"required\": [\"b\"], \"additionalProperties\": false}",
     {"{\"b\":true}", "{\"a\":-12, \"b\":false}", "{\"a\":0,\"b\":true, \"c\":null}", "{\"b\":true,\"c\":null}"},
     {"{\"a\":1", "{\"a\":1,\"b\""},
     {"{}", "{\"a\":1}", "{\"c\":null", "{\"b\":true,\"a\":1", "{\"b\":1", "{\"b\":true,\"c\":null,", "{\"a\":1.5", "{\"d\"",
      "{\"b\":true,}"}},
    {"{\"type\": \"object\", \"properties\": {\"a\": {}, \"b\": {}}}",
     {"{}", "{\"a\":[]}", "{\"b\":{\"x\":1}}", "{\"a\":1,\"b\":2}"},
     {"{\""},
     {"{,", "{\"b\":1,\"a\""}},
    {"{\"type\": \"object\"}", {"{}", "{\"q\":1}"}, {"{"}, {"[", "{\"q\"}"}},
    {"{\"type\": \"object\", \"additionalProperties\": false}", {"{}"}, {"{"}, {"{\"q\""}},
    {"{\"type\": \"array\", \"items\": {\"type\": \"integer\"}}", {"[]", "[1]", "[1, 2,3]"}, {"[1,"}, {"[,", "[1,]", "[true", "1"}},
    {"{\"type\": \"array\", \"items\": {\"const\": 7}, \"minItems\": 2, \"maxItems\": 3}",
     {"[7,7]", "[7,7,7]"},
     {"[7"},
     {"[]", "[7]", "[7,7,7,"}},
    {"{\"type\": \"array\", \"minItems\": 2}", {"[1,\"a\"]", "[1,2,3,4]"}, {"[1"}, {"[]", "[1]"}},
    {"{\"type\": \"array\", \"maxItems\": 0}", {"[]"}, {"["}, {"[1"}},
    {"{\"type\": \"array\", \"maxItems\": 1}", {"[]", "[[]]"}, {"["}, {"[1,"}},
    {"{\"type\": \"string\", \"minLength\": 1, \"maxLength\": 3}",
     {"\"a\"", "\"\xc3\xa9\xf0\x9f\x98\x80z\"", "\"\\n\\u0041\""},
     {"\"", "\"abc"},
     {"\"\"", "\"abcd", "a"}},
    {"{\"type\": \"string\", \"minLength\": 2}", {"\"ab\"", "\"abcdefgh\""}, {"\"a"}, {"\"a\""}},
    {"{\"type\": \"number\"}",
     {"0", "-0", "12.50", "1e5", "1E-12", "-9.1e+3"},
     {"-", "1.", "1e", "1e-"},
     {"01", "+1", ".5", "1e100000", "1.e", "Infinity", "0x1"}},
    {"{\"enum\": [\"a\", \"ab\", 1, 12, null, {\"x\": [1]}]}",
     {"\"a\"", "\"ab\"", "1", "12", "null", "{\"x\":[1]}"},
     {"\"", "{\"x\""},
     {"\"b", "2", "123", "{\"x\": "}},
    {"{\"type\": \"integer\", \"enum\": [\"a\", 1.5, 2, 3.0, null, true, [2], {\"a\": 2}]}",
     {"2", "3.0"},
     {"3"},
     {"\"a\"", "1.5", "null", "true", "[2]", "{\"a\":2}"}},
    {"{\"type\": [\"string\", \"null\", \"boolean\"], \"enum\": [\"a\", 1, null, false, [], {}]}",
     {"\"a\"", "null", "false"},
     {"n"},
     {"1", "[]", "{}", "true"}},
    {"{\"type\": [\"number\", \"array\", \"object\"], \"enum\": [\"a\", 1, 2.5, null, [], {}]}",
     {"1", "2.5", "[]", "{}"},
     {"2"},
     {"\"a\"", "null"}},
    {"{\"const\": \"x\", \"type\": \"string\"}", {"\"x\""}, {"\""}, {"null"}},
    {"{\"items\": {\"type\": \"integer\"}, \"maxItems\": 2, \"minLength\": 1}",
     {"[]", "[1,2]", "\"a\"", "{\"a\":[\"b\"]}", "-2.5", "null", "true"},
     {"[", "\""},
     {"[\"a\"]", "[1,2,3]", "\"\""}},
    {"{\"additionalProperties\": false}", {"{}", "[{\"a\":1}]", "false"}, {"{"}, {"{\"a\":1}"}},
    {"{\"anyOf\": [{\"type\": \"integer\"}, {\"type\": \"string\", \"maxLength\": 2}]}", {"5", "\"xy\""}, {"-"}, {"null", "\"xyz"}},
    {"{\"type\": [\"string\", \"null\"]}", {"null", "\"\""}, {"n", "\""}, {"1"}},
    {"{\"$defs\": {\"node\": {\"type\": \"object\", \"properties\": {\"v\": {\"type\": \"integer\"}, \"next\": {\"anyOf\": "
     "[{\"$ref\": "
     "\"#/$defs/node\"}, {\"type\": \"null\"}]}}, \"required\": [\"v\", \"next\"]}}, \"$ref\": \"#/$defs/node\"}",
     {"{\"v\":1,\"next\":null}", "{\"v\":1,\"next\":{\"v\":2,\"next\":null}}"},
     {"{\"v\":1,\"next\":{"},
     {"{\"v\":1}", "{\"v\":1,\"next\":1"}},
    {"{}", {"1", "\"x\"", "{}"}, {""}, {"x", "1 "}},
};

static void test_texts(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct grammar *g;
        struct err err = {0};
        uint32_t rule;
        if (compile(cases[i].schema, &g, &rule, &err) < 0)
            fail_msg("%s: %s", cases[i].schema, err.text);
        for (size_t k = 0; k < 8 && cases[i].fits[k]; k++) {
            const char *text = cases[i].fits[k];
            if (judge(g, rule, text, strlen(text)) != 2)
                fail_msg("%s: does not take %s", cases[i].schema, text);
            for (size_t n = 0; n < strlen(text); n++)
                assert_true(judge(g, rule, text, n) > 0);
            json_t *j = json_loads(text, JSON_DECODE_ANY, NULL);
            assert_non_null(j);
            json_decref(j);
        }
        for (size_t k = 0; k < 6 && cases[i].begins[k]; k++) {
            if (judge(g, rule, cases[i].begins[k], strlen(cases[i].begins[k])) != 1)
                fail_msg("%s: is not begun by %s", cases[i].schema, cases[i].begins[k]);
        }
        for (size_t k = 0; k < 12 && cases[i].not [k]; k++) {
            if (judge(g, rule, cases[i].not [k], strlen(cases[i].not [k])) == 2)
                fail_msg("%s: takes %s", cases[i].schema, cases[i].not [k]);
        }
        grammar_close(g);
    }
}

static const struct {
    const char *schema, *expected;
} refused[] = {
    {"[]", "is not an object"},
    {"{\"type\": \"strin\"}", "'strin' is no type of JSON"},
    {"{\"type\": []}", "'type' is neither"},
    {"{\"type\": 3}", "'type' is neither"},
    {"{\"type\": \"string\", \"pattern\": \"a+\"}", "'pattern' is not supported"},
    {"{\"type\": \"integer\", \"minimum\": 1}", "'minimum' is not supported"},
    {"{\"oneOf\": []}", "'oneOf' is not supported"},
    {"{\"properties\": {\"a\": {\"properties\": {\"b\": {\"format\": \"date\"}}}}}", "at '#/a/b': 'format' is not supported"},
    {"{\"type\": \"object\", \"properties\": []}", "'properties' is not an object"},
    {"{\"type\": \"object\", \"properties\": {}, \"required\": [\"x\"]}", "'required' names what 'properties' does not have"},
    {"{\"type\": \"object\", \"required\": \"x\"}", "'required' is not a list"},
    {"{\"type\": \"object\", \"additionalProperties\": {}}", "'additionalProperties' is neither true nor false"},
    {"{\"type\": \"array\", \"minItems\": 3, \"maxItems\": 2}", "'minItems' is above"},
    {"{\"type\": \"array\", \"maxItems\": 257}", "'maxItems' is not a whole number within the limit"},
    {"{\"type\": \"string\", \"maxLength\": 1025}", "'maxLength' is not a whole number within the limit"},
    {"{\"type\": \"string\", \"minLength\": -1}", "'minLength' is not a whole number"},
    {"{\"enum\": []}", "'enum' is not a list"},
    {"{\"enum\": [\"a\"], \"type\": \"integer\"}", "'enum' has no value of the 'type' beside it"},
    {"{\"enum\": [1.5], \"type\": [\"integer\", \"null\"]}", "'enum' has no value of the 'type' beside it"},
    {"{\"enum\": [\"a\"], \"type\": \"strin\"}", "'strin' is no type of JSON"},
    {"{\"const\": \"x\", \"type\": \"null\"}", "'const' is not of the 'type' beside it"},
    {"{\"const\": 1, \"type\": 3}", "'type' is neither"},
    {"{\"type\": [\"string\", 3]}", "'type' is neither"},
    {"{\"required\": [\"x\"]}", "'required' names what 'properties' does not have"},
    {"{\"anyOf\": {}}", "'anyOf' is not a list"},
    {"{\"anyOf\": [{}], \"type\": \"string\"}", "'type' beside"},
    {"{\"enum\": [1], \"const\": 1}", "beside another"},
    {"{\"$ref\": \"#/$defs/x\"}", "'$ref' to '#/$defs/x' does not name a schema"},
    {"{\"$ref\": \"http://x\"}", "'$ref' to 'http://x' does not name a schema"},
    {"{\"$ref\": \"#\"}", "comes back to itself"},
    {"{\"$defs\": {\"a\": {\"anyOf\": [{\"type\": \"null\"}, {\"$ref\": \"#/$defs/a\"}]}}, \"$ref\": \"#/$defs/a\"}",
     "comes back to itself"},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        struct grammar *g = NULL;
        struct err err = {0};
        uint32_t rule;
        assert_int_equal(compile(refused[i].schema, &g, &rule, &err), -EINVAL);
        if (!strstr(err.text, refused[i].expected))
            fail_msg("%s: '%s' is not in: %s", refused[i].schema, refused[i].expected, err.text);
        assert_null(g);
    }
}

/* Large ones: refused, or taken whole; never more. */
static void test_large(void **state)
{
    (void)state;
    char *text = malloc(1 << 20), *p = text;
    struct grammar *g;
    struct err err = {0};
    uint32_t rule;
    p += sprintf(p, "{\"type\": \"object\", \"properties\": {");
    for (int i = 0; i < 256; i++)
        p += sprintf(p, "%s\"p%03d\": {\"type\": \"integer\"}", i ? ", " : "", i);
    sprintf(p, "}}");
    assert_int_equal(compile(text, &g, &rule, &err), 0);
    assert_int_equal(judge(g, rule, "{\"p255\":1}", 10), 2);
    assert_int_equal(judge(g, rule, "{\"p000\":1,\"p255\":1}", 19), 2);
    grammar_close(g);
    for (int n = 257; n < 10000; n *= 6) {
        p = text + sprintf(text, "{\"type\": \"object\", \"properties\": {");
        for (int i = 0; i < n; i++)
            p += sprintf(p, "%s\"p%03d\": {\"type\": \"integer\"}", i ? ", " : "", i);
        sprintf(p, "}}");
        assert_int_equal(compile(text, &g, &rule, &err), -EINVAL);
        assert_non_null(strstr(err.text, "'properties' is not an object of at most 256 schemas"));
    }
    for (int depth = 60; depth <= 70; depth += 10) {
        p = text;
        for (int i = 0; i < depth; i++)
            p += sprintf(p, "{\"type\": \"array\", \"items\": ");
        p += sprintf(p, "{}");
        memset(p, '}', (size_t)depth);
        p[depth] = '\0';
        assert_int_equal(compile(text, &g, &rule, &err), depth < 64 ? 0 : -EINVAL);
        if (depth < 64)
            grammar_close(g);
    }
    p = text;
    p += sprintf(p, "{\"anyOf\": [");
    for (int i = 0; i < 2000; i++)
        p += sprintf(p, "%s{\"type\": \"string\", \"maxLength\": 1000}", i ? ", " : "");
    sprintf(p, "]}");
    assert_int_equal(compile(text, &g, &rule, &err), -E2BIG);
    free(text);
    assert_int_equal(compile(NULL, &g, &rule, &err), 0);
    char deep[600] = "";
    for (int i = 0; i < 100; i++)
        strcat(deep, "{\"a\":");
    assert_int_equal(judge(g, rule, deep, strlen(deep)), 0); /* a limit of nesting, not of memory */
    assert_int_equal(judge(g, rule, deep, 5 * 20), 1);
    grammar_close(g);
}

struct seen {
    bool refused[512];
};

static void refuse(void *ctx, uint32_t i)
{
    struct seen *s = ctx;
    assert_false(s->refused[i]);
    s->refused[i] = true;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void test_match(void **state)
{
    (void)state;
    static const char *const prefixes[] = {
        "", "{", "{\"", "{\"a", "{\"a\":", "{\"a\":[1,", "{\"a\":12", "{\"a\":\"\xf0\x9f", "{\"a\":\"\\", "{\"a\":{}}"};
    char store[512][8], *list[512];
    uint32_t x = 9, n_words = 512;
    for (uint32_t i = 0; i < n_words; i++) {
        size_t length = i % 6;
        for (size_t k = 0; k < length; k++) {
            x = x * 1664525u + 1013904223u;
            store[i][k] = "\"\"{}[]:,a1 \\\x9f\x98\x80n"[(x >> 16) % 17];
        }
        store[i][length] = '\0';
        list[i] = store[i];
    }
    qsort(list, n_words, sizeof(*list), by_bytes);
    char bytes[512 * 8];
    uint32_t offset[513], used = 0;
    uint8_t same[512];
    for (uint32_t i = 0; i < n_words; i++) {
        offset[i] = used;
        memcpy(bytes + used, list[i], strlen(list[i]));
        used += (uint32_t)strlen(list[i]);
        same[i] = 0;
        while (i && list[i][same[i]] && list[i][same[i]] == list[i - 1][same[i]])
            same[i]++;
    }
    offset[n_words] = used;
    const struct grammar_words words = {n_words, bytes, offset, same};
    struct grammar *g;
    uint32_t rule;
    assert_int_equal(compile(NULL, &g, &rule, NULL), 0);
    for (size_t p = 0; p < ARRAY_LEN(prefixes); p++) {
        struct grammar_state *s;
        struct grammar_matcher *m;
        unsigned taken = 0;
        assert_int_equal(grammar_matcher_open(&m), 0);
        assert_int_equal(grammar_state_open(g, rule, &s), 0);
        assert_true(grammar_state_feed(s, prefixes[p], strlen(prefixes[p])));
        for (int again = 0; again < 2; again++) { /* the state stays */
            struct seen seen = {0};
            taken = 0;
            grammar_state_match(s, m, &words, refuse, &seen);
            for (uint32_t i = 0; i < n_words; i++) {
                char text[32];
                snprintf(text, sizeof(text), "%s%s", prefixes[p], list[i]);
                bool may = list[i][0] && judge(g, rule, text, strlen(text)) > 0;
                if (may == seen.refused[i])
                    fail_msg("after '%s', '%s': %s", prefixes[p], list[i], may ? "refused" : "taken");
                taken += may;
            }
        }
        assert_true(taken || p == ARRAY_LEN(prefixes) - 1);
        grammar_state_close(s);
        grammar_matcher_close(m);
    }
    grammar_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_match),
    };
    return cmocka_run_group_tests_name("schema", tests, NULL, NULL);
}
