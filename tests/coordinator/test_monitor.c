/* SPDX-License-Identifier: MIT
 * Rates of late, and a snapshot as JSON and back: every member arrives, and what is no snapshot is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "coordinator/meter.h"
#include "coordinator/monitor.h"
#include "coordinator/monitor_json.h"
#include "coordinator/screen.h"
#include "proto/err.h"

#define SECOND UINT64_C(1000000000)

static void test_meter(void **state)
{
    (void)state;
    struct meter m = {0};
    uint64_t now = 1000 * SECOND;
    assert_float_equal(meter_rate(&m, now, true), 0, 0);
    meter_begin(&m, now);
    for (int i = 0; i < 100; i++) /* 50 a second for two seconds */
        meter_add(&m, now + (uint64_t)(i + 1) * SECOND / 50, 1);
    assert_float_equal(meter_rate(&m, now + 2 * SECOND, true), 50, 0.5);
    assert_float_equal(meter_rate(&m, now + 3 * SECOND, true), 25, 4);
    assert_float_equal(meter_rate(&m, now + 4 * SECOND, true), 0, 0);
    assert_int_equal(m.total, 100);
    now += 100 * SECOND; /* the pause counts for nothing */
    meter_begin(&m, now);
    assert_float_equal(meter_rate(&m, now, true), 0, 0);
    meter_add(&m, now + SECOND / 2, 10);
    assert_float_equal(meter_rate(&m, now + SECOND / 2, true), 20, 0.01);
    assert_int_equal(m.total, 110);
}

/* An answer that is over: what it came at, for two seconds, and nothing that is said to be late. */
static void test_meter_at_rest(void **state)
{
    (void)state;
    static const uint64_t distances[] = {1, 20, 400, 3000};
    for (size_t i = 0; i < sizeof(distances) / sizeof(*distances); i++) {
        struct meter m = {0};
        uint64_t distance = distances[i] * (SECOND / 1000), now = 1000 * SECOND;
        double true_rate = 1000.0 / (double)distances[i];
        meter_begin(&m, now);
        for (int k = 0; k < 60; k++)
            meter_add(&m, now += distance, 1);
        for (uint64_t look = 0; look < 10; look++)
            assert_float_equal(meter_rate(&m, now + look * SECOND / 5, false), true_rate, true_rate / 10);
        assert_float_equal(meter_rate(&m, now + 2 * SECOND, false), 0, 0);
    }
}

/* A token every so many milliseconds, looked at all the time: what is shown is what there was, from the second one on. */
static void test_slow_meter(void **state)
{
    (void)state;
    static const unsigned distances[] = {10, 100, 240, 260, 400, 600, 900, 1100, 1900, 2100, 3000, 10000, 150000};
    for (size_t i = 0; i < sizeof(distances) / sizeof(*distances); i++) {
        struct meter m = {0};
        uint64_t distance = distances[i] * (SECOND / 1000), begin = 1000 * SECOND, now = begin;
        double true_rate = 1000.0 / distances[i];
        meter_begin(&m, begin);
        for (int k = 1; k <= 30 || now < begin + 4 * SECOND; k++) {
            for (uint64_t look = 0; look < 5; look++) {
                double rate = meter_rate(&m, now + look * distance / 5, true);
                if (k > 2 && (rate < 0.8 * true_rate || rate > 1.2 * true_rate))
                    fail_msg("every %u ms, token %d, look %d: %f", distances[i], k, (int)look, rate);
            }
            now += distance;
            meter_add(&m, now, 1);
        }
        assert_float_equal(meter_rate(&m, now, true), true_rate, true_rate / 5);
        if (distance > SECOND) /* the next one is late */
            assert_float_equal(meter_rate(&m, now + 2 * distance, true), true_rate / 2, true_rate / 10);
        assert_float_equal(meter_rate(&m, now + 4 * distance + 2 * SECOND, true), 0, 0);
    }
    struct meter m = {0}; /* four sequences in a batch, every four seconds, each a moment later */
    meter_begin(&m, 1000 * SECOND);
    for (uint64_t k = 1; k <= 20; k++)
        meter_add(&m, 1000 * SECOND + (k + 3) / 4 * 4 * SECOND + (k - 1) % 4 * 1000, 1);
    assert_float_equal(meter_rate(&m, 1021 * SECOND, true), 1, 0.01);
}

static void test_rate_text(void **state)
{
    (void)state;
    char buf[METER_TEXT];
    assert_string_equal(meter_text(buf, 0), "0.0");
    assert_string_equal(meter_text(buf, 0.0123), "0.012");
    assert_string_equal(meter_text(buf, 0.5), "0.500");
    assert_string_equal(meter_text(buf, 2.345), "2.35");
    assert_string_equal(meter_text(buf, 123.44), "123.4");
    assert_true(strlen(meter_text(buf, 1e300)) < METER_TEXT - 1);
}

static uint64_t next(void)
{
    static uint64_t n;
    return ++n;
}

/* Another value in every member. */
static void fill(struct monitor_snapshot *s)
{
    *s = (struct monitor_snapshot){.state = MONITOR_FAILED, .uptime_ms = next(), .context = (uint32_t)next()};
    s->counts = (struct schedule_counts){.in_flight = 11,
                                         .in_flight_most = 12,
                                         .queued = 13,
                                         .running = 14,
                                         .sequences = 15,
                                         .finished = 16,
                                         .failed = 17,
                                         .prompt_tokens = UINT64_C(1) << 40,
                                         .output_tokens = 19,
                                         .prompt_per_second = 20.5,
                                         .output_per_second = 21.25};
    s->kv_pages = 22;
    s->kv_pages_used = 23;
    for (int i = 0; i < SUPERVISE_RINGS; i++)
        s->rings[i] = (struct monitor_ring){.name = {(char)('a' + i)}, .fill = (uint32_t)i, .slots = (uint32_t)i + 4};
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        struct engine_process_stats *p = &s->process[i];
        *p = (struct engine_process_stats){.name = plan_process_name((enum config_process)i),
                                           .pid = (int)next(),
                                           .backend = "cpu \"avx2\"",
                                           .answered = i % 2,
                                           .total_peak = next(),
                                           .limit = next(),
                                           .fixed = next(),
                                           .rss = next(),
                                           .pss = next(),
                                           .anon = next(),
                                           .usage = next(),
                                           .peak_bytes = next(),
                                           .cap = next(),
                                           .kills = next(),
                                           .cap_enforced = i % 3 == 0,
                                           .spawned = i % 2 == 0,
                                           .restarts = next(),
                                           .busy_ns = next() * 1000000,
                                           .idle_ns = next() * 1000000,
                                           .blocked_ns = next() * 1000000,
                                           .chunks = next(),
                                           .bytes_read = next(),
                                           .products = next(),
                                           .offloaded = next()};
        for (int k = 0; k < BUDGET_CATEGORIES; k++) {
            p->budget[k] = next();
            p->peak[k] = next();
            p->planned[k] = next();
        }
    }
}

static void test_there_and_back(void **state)
{
    (void)state;
    struct monitor_snapshot there, back;
    struct err err = {0};
    fill(&there);
    json_t *j = monitor_json_make(&there);
    assert_non_null(j);
    if (monitor_json_read(j, &back, &err) < 0)
        fail_msg("%s", err.text);
    json_t *again = monitor_json_make(&back);
    assert_true(json_equal(j, again));
    /* What the JSON holds is not all zero, so that equality says something. */
    json_t *first = json_array_get(json_object_get(j, "processes"), 1);
    assert_int_equal(json_integer_value(json_object_get(first, "restarts")), there.process[1].restarts);
    assert_int_equal(back.process[3].planned[BUDGET_DEVICE], there.process[3].planned[BUDGET_DEVICE]);
    assert_int_equal(back.process[2].blocked_ns, there.process[2].blocked_ns);
    json_decref(again);
    json_decref(j);
}

static void spoil(json_t *root, json_t *at);

/* One key is taken away, then holds null, then a negative number: each is refused, and the snapshot as it was is not. */
static void spoil_key(json_t *root, json_t *at, const char *key)
{
    struct monitor_snapshot s;
    struct err err = {0};
    json_t *held = json_incref(json_object_get(at, key));
    spoil(root, held);
    for (int i = 0; i < 3 && strcmp(key, "total") != 0; i++) { /* the sum is not read */
        if (i == 0)
            json_object_del(at, key);
        else
            json_object_set_new(at, key, i == 1 ? json_null() : json_integer(-1));
        if (monitor_json_read(root, &s, &err) != -EPROTO || !strstr(err.text, "statistics: "))
            fail_msg("'%s', %d: '%s'", key, i, err.text);
    }
    json_object_set_new(at, key, held);
    assert_int_equal(monitor_json_read(root, &s, &err), 0);
}

static void spoil(json_t *root, json_t *at)
{
    char keys[48][40];
    size_t n = 0;
    const char *key;
    json_t *v;
    for (size_t i = 0; i < json_array_size(at); i++)
        spoil(root, json_array_get(at, i));
    json_object_foreach(at, key, v)
    {
        assert_true(n < 48);
        snprintf(keys[n++], sizeof(keys[0]), "%s", key);
    }
    for (size_t i = 0; i < n; i++)
        spoil_key(root, at, keys[i]);
}

static void test_refused(void **state)
{
    (void)state;
    struct monitor_snapshot s;
    struct err err = {0};
    fill(&s);
    json_t *j = monitor_json_make(&s);
    spoil(j, j);
    json_decref(j);
    j = json_object();
    assert_int_equal(monitor_json_read(j, &s, &err), -EPROTO);
    assert_non_null(strstr(err.text, "'state'"));
    json_decref(j);
}

/* Whatever the size of the terminal: rows no longer than it is wide, not more than it is high, and nothing but text. */
static void test_screen(void **state)
{
    (void)state;
    struct monitor_snapshot s, before;
    fill(&s);
    fill(&before);
    strcpy(s.process[2].backend, "\033[31m\a\xc3\xa9");
    before.process[1].busy_ns = 0;
    before.uptime_ms = 0;
    s.uptime_ms = 3723000;
    s.process[3].cap = 1 << 20;
    s.process[3].usage = 2 << 20; /* above its cap: the bar is full, not longer */
    for (unsigned columns = 0; columns < 400; columns += 1 + columns / 8) {
        for (unsigned rows = 0; rows < 30; rows += 7) {
            char text[SCREEN_BYTES];
            size_t n = screen_draw(&s, rows % 2 ? &before : NULL, "a title", columns, rows, text, sizeof(text));
            unsigned seen = 0;
            assert_int_equal(strlen(text), n);
            for (char *row = text, *end; (end = strchr(row, '\n')); row = end + 1, seen++) {
                assert_true((unsigned)(end - row) <= columns);
                for (; row < end; row++)
                    assert_in_range((unsigned char)*row, 0x20, 0x7e);
            }
            assert_true(seen <= rows);
            assert_true(rows < 20 || columns < 80 || (strstr(text, "1:02:03") && strstr(text, "?[31m?") && strstr(text, " !\n")));
        }
    }
    char small[100], line[1024];
    assert_true(screen_draw(&s, NULL, "", 200, 50, small, sizeof(small)) < sizeof(small));
    assert_true(screen_line(&s, line, sizeof(line)) < sizeof(line) && strstr(line, "chunks 11/12; KV pages 23/22; rings a 0/4"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_meter),          cmocka_unit_test(test_meter_at_rest),
                                       cmocka_unit_test(test_slow_meter),     cmocka_unit_test(test_rate_text),
                                       cmocka_unit_test(test_there_and_back), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_screen)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
