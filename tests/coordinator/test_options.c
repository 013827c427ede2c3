/* SPDX-License-Identifier: MIT
 * The command line: what it sets, what it refuses and with which sentence, and that --help names every option. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/options.h"
#include "proto/err.h"
#include "proto/util.h"

static int parse(const char *line, struct options *o, struct err *err)
{
    static char buf[512]; /* options borrow from it */
    static char *argv[64];
    int argc = 0;
    snprintf(buf, sizeof(buf), "%s", line);
    argv[argc++] = (char *)(uintptr_t) "coordinator";
    for (char *p = strtok(buf, " "); p; p = strtok(NULL, " "))
        argv[argc++] = p;
    argv[argc] = NULL;
    return options_parse(o, argc, argv, err);
}

static void good(const char *line, struct options *o)
{
    struct err err = {0};
    if (parse(line, o, &err) < 0)
        fail_msg("'%s': %s", line, err.text);
}

static void test_generate(void **state)
{
    (void)state;
    struct options o;
    good("--config f --set a=b generate --prompt hi --chat --max-tokens 7 --temperature 0.5 --top-k=3 --top-p .5 --min-p 0 "
         "--repeat-penalty 1.1 "
         "--seed 18446744073709551615 --parallel 3 --json --set c=d",
         &o);
    assert_int_equal(o.command, OPTIONS_GENERATE);
    assert_string_equal(o.config, "f");
    assert_int_equal(o.n_sets, 2);
    assert_string_equal(o.sets[1], "c=d");
    assert_string_equal(o.prompt, "hi");
    assert_true(o.chat && o.json);
    assert_int_equal(o.max_tokens, 7);
    assert_float_equal(o.sample.temperature, 0.5f, 0.0f);
    assert_int_equal(o.sample.top_k, 3);
    assert_float_equal(o.sample.top_p, 0.5f, 0.0f);
    assert_float_equal(o.sample.repeat_penalty, 1.1f, 1e-6f);
    assert_true(o.sample.seed == UINT64_MAX);
    assert_int_equal(o.parallel, 3);
    options_free(&o);
    good("generate --config f --ids 2,17,5", &o);
    assert_int_equal(o.n_ids, 3);
    assert_int_equal(o.ids[1], 17);
    assert_int_equal(o.parallel, 1);
    options_free(&o);
}

static void test_others(void **state)
{
    (void)state;
    struct options o;
    good("--config f --temperature 0 --max-tokens 9", &o);
    assert_int_equal(o.command, OPTIONS_CHAT);
    assert_int_equal(o.max_tokens, 9);
    options_free(&o);
    good("--config f perplexity --file t --method llama.cpp --window 64", &o);
    assert_int_equal(o.method, OPTIONS_METHOD_LLAMA_CPP);
    assert_int_equal(o.window, 64);
    options_free(&o);
    good("--config f bench --prompt-tokens 0 --gen-tokens 4 --repetitions 2", &o);
    assert_int_equal(o.prompt_tokens, 0);
    assert_int_equal(o.gen_tokens, 4);
    options_free(&o);
    good("--config f eval --ids 2 --logits o.npy", &o);
    assert_string_equal(o.logits, "o.npy");
    options_free(&o);
    good("client --url http://a --api-key-file k --ca-file c --prompt hi --temperature 0 --max-tokens 3", &o);
    assert_int_equal(o.command, OPTIONS_CLIENT);
    assert_string_equal(o.url, "http://a");
    assert_string_equal(o.api_key_file, "k");
    assert_string_equal(o.ca_file, "c");
    assert_null(o.config);
    options_free(&o);
    good("--config f client", &o);
    assert_string_equal(o.config, "f");
    options_free(&o);
    good("sample-config --model m.gguf", &o);
    assert_int_equal(o.command, OPTIONS_SAMPLE_CONFIG);
    options_free(&o);
    good("--config f stats --pid 77 --json", &o);
    assert_int_equal(o.command, OPTIONS_STATS);
    assert_int_equal(o.pid, 77);
    assert_true(o.json);
    options_free(&o);
    good("--config f top --pid 78 --count 5", &o);
    assert_int_equal(o.command, OPTIONS_TOP);
    assert_int_equal(o.pid, 78);
    assert_int_equal(o.count, 5);
    options_free(&o);
    good("plan --help", &o);
    assert_int_equal(o.action, OPTIONS_HELP);
    assert_int_equal(o.command, OPTIONS_PLAN);
    options_free(&o);
    good("--version", &o);
    assert_int_equal(o.action, OPTIONS_VERSION);
    options_free(&o);
}

static const struct {
    const char *line, *expected;
} bad[] = {
    {"", "option '--config' is missing"},
    {"generate --prompt x", "option '--config' is missing"},
    {"--config", "option '--config' needs a value"},
    {"--config f genrate", "unknown command 'genrate', did you mean 'generate'?"},
    {"--config f chat", "command 'chat': leave the word out"},
    {"--config f see", "unknown command 'see'; expected one of generate"},
    {"--config f zzzzzzzzzzzz", "unknown command 'zzzzzzzzzzzz'; expected one of generate"},
    {"--config f --propmt x", "unknown option '--propmt'"},
    {"--config f --prompt x", "option '--prompt' needs its command before it"},
    {"--config f generate --promt x", "unknown option '--promt', did you mean '--prompt'?"},
    {"--config f generate -x", "unknown option '-x'"},
    {"--config f generate", "exactly one of --prompt TEXT and --ids LIST"},
    {"--config f generate --prompt a --ids 2", "exactly one of --prompt TEXT and --ids LIST"},
    {"--config f generate --prompt a b", "found 'b' after command 'generate'"},
    {"--config f generate --prompt a --chat=1", "option '--chat=1' takes no value"},
    {"--config f generate --ids 2 --chat", "option '--chat' needs --prompt"},
    {"--config f generate --prompt a --system s", "option '--system' needs --chat"},
    {"--config f generate --prompt a --max-tokens 0",
     "option '--max-tokens': found '0'; expected a whole number from 1 to 1048576"},
    {"--config f generate --prompt a --max-tokens 1.5", "found '1.5'"},
    {"--config f generate --prompt a --max-tokens -1", "found '-1'"},
    {"--config f generate --prompt a --temperature x", "option '--temperature': found 'x'; expected a number from 0 to 100"},
    {"--config f generate --prompt a --temperature nan", "found 'nan'"},
    {"--config f generate --prompt a --top-p 0", "'top_p' is 0"},
    {"--config f generate --prompt a --top-p 1.1", "option '--top-p': found '1.1'; expected a number from 0 to 1"},
    {"--config f generate --prompt a --seed -5", "option '--seed': found '-5'; expected a whole number"},
    {"--config f generate --prompt a --parallel 65", "option '--parallel': found '65'"},
    {"--config f generate --ids 2,,5", "option '--ids': found ',5' as element 1"},
    {"--config f generate --ids 2,x", "option '--ids': found 'x' as element 1"},
    {"--config f generate --ids 2;3", "option '--ids': found ';3' after element 0; expected a comma"},
    {"--config f generate --ids 4294967296", "found '4294967296' as element 0"},
    {"--config f generate --logits x --ids 2", "option '--logits' does not belong to 'generate'"},
    {"--config f --temperature 1 eval --ids 2 --logits x", "option '--temperature' does not belong to 'eval'"},
    {"--config f eval --logits x", "command 'eval' needs --ids LIST"},
    {"--config f eval --ids 2", "command 'eval' needs --logits OUT.npy"},
    {"--config f perplexity", "command 'perplexity' needs --file TEXT"},
    {"--config f perplexity --file x --method foo", "option '--method': found 'foo'; expected window or llama.cpp"},
    {"--config f perplexity --file x --window 7", "option '--window': found '7'"},
    {"--config f bench --prompt-tokens 0 --gen-tokens 0", "command 'bench' needs"},
    {"--config f tokenize", "exactly one of --text TEXT and --file FILE"},
    {"--config f detokenize", "command 'detokenize' needs --ids LIST"},
    {"--config f --resume --temperature 0", "option '--temperature' does not go with '--resume'"},
    {"--config f --max-tokens 3 --resume", "option '--max-tokens' does not go with '--resume'"},
    {"--config f --resume --system s", "option '--system' does not go with '--resume'"},
    {"--config f --resume generate --prompt x", "option '--resume' does not belong to 'generate'"},
    {"stats", "option '--config' is missing"},
    {"--config f stats --count 2", "option '--count' does not belong to 'stats'"},
    {"--config f stats --pid 0", "option '--pid': found '0'; expected a whole number from 1 to 2147483647"},
    {"--config f top --count 0", "option '--count': found '0'"},
    {"--config f plan --pid 3", "option '--pid' does not belong to 'plan'"},
    {"--config f plan --ids 2", "option '--ids' does not belong to 'plan'"},
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct options o;
        struct err err = {0};
        int r = parse(bad[i].line, &o, &err);
        options_free(&o);
        if (r != -EINVAL || !strstr(err.text, bad[i].expected))
            fail_msg("'%s': %d '%s'; expected '%s'", bad[i].line, r, err.text, bad[i].expected);
    }
}

static void test_many_sets(void **state)
{
    (void)state;
    struct options o;
    struct err err = {0};
    char *argv[2 * OPTIONS_MAX_SETS + 8];
    static char set[] = "--set", value[] = "a=b", program[] = "coordinator";
    for (int n = OPTIONS_MAX_SETS; n <= OPTIONS_MAX_SETS + 1; n++) {
        int argc = 0;
        argv[argc++] = program;
        for (int i = 0; i < n; i++) {
            argv[argc++] = set;
            argv[argc++] = value;
        }
        argv[argc] = NULL;
        assert_int_equal(options_parse(&o, argc, argv, &err), -EINVAL);
        assert_non_null(strstr(err.text, n == OPTIONS_MAX_SETS ? "'--config' is missing" : "more than 64 times"));
        options_free(&o);
    }
}

static void test_help(void **state)
{
    (void)state;
    static const char *const words[] = {"--config FILE", "--set KEY=VALUE", "--temperature T", "generate",
                                        "perplexity",    "TANDEM_LOG",      "Exit status"};
    char *text = NULL;
    size_t n;
    for (int c = 0; c < OPTIONS_COMMANDS; c++) {
        FILE *f = open_memstream(&text, &n);
        options_help((enum options_command)c, f);
        fclose(f);
        assert_true((c == OPTIONS_SAMPLE_CONFIG) == !strstr(text, "--config FILE")); /* which reads none */
        for (size_t i = 0; c == OPTIONS_CHAT && i < ARRAY_LEN(words); i++)
            assert_non_null(strstr(text, words[i]));
        if (c == OPTIONS_BENCH)
            assert_true(strstr(text, "--gen-tokens M") && strstr(text, "--json") && !strstr(text, "--logits"));
        free(text);
        text = NULL;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate),  cmocka_unit_test(test_others), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_many_sets), cmocka_unit_test(test_help),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
