/* SPDX-License-Identifier: MIT
 * Parses faults and makes them happen. Owns the list of one stage and the counters of its moments. fault_start runs on the main
 * thread before the data thread exists, fault_chunk on the data thread; what fires there and is felt elsewhere (a message that is
 * dropped, a read that fails) is handed over in atomics. A fault that fires says so in the log, and then is what it says: nothing
 * here is tidied up afterwards. */
#include "proto/fault.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "proto/err.h"
#include "proto/io.h"
#include "proto/log.h"
#include "proto/util.h"

#define FAULTS_MAX 16
#define SLOW_MS 100
#define EXIT_STATUS 3
#define PIECE ((size_t)4 << 20) /* of memory taken without end, every 5 ms, so that the coordinator's watch can follow */

enum event {
    EVENT_ABORT,
    EVENT_SEGV,
    EVENT_EXIT,
    EVENT_HANG,
    EVENT_SLOW,
    EVENT_CORRUPT_SLOT,
    EVENT_CORRUPT_MESSAGE,
    EVENT_DROP_MESSAGE,
    EVENT_DROP_CHUNK,
    EVENT_OOM,
    EVENT_DEVICE_LOST,
    EVENT_SHORT_READ,
    EVENT_EIO,
    EVENTS
};

static const char *const event_names[EVENTS] = {
    "abort",        "segv",       "exit", "hang",        "slow",       "corrupt-slot", "corrupt-message",
    "drop-message", "drop-chunk", "oom",  "device-lost", "short-read", "eio"};
static const char *const stage_names[] = {"loader", "npu_worker", "gpu_worker"};

const char *const fault_help =
    "Faults (--fault STAGE:EVENT@WHEN, to rehearse failures):\n"
    "  STAGE                loader, npu_worker or gpu_worker\n"
    "  EVENT                abort, segv, exit, hang, slow (100 ms more), corrupt-slot, corrupt-message, drop-message,\n"
    "                       drop-chunk, oom, device-lost (of the workers); short-read (the model ends there), eio (one read fails) "
    "(of the loader)\n"
    "  WHEN                 start; N: with the Nth chunk; layer=L: with the first chunk of layer L; p=0.01,seed=7: with each\n"
    "                       chunk by chance. A stage that was restarted has no faults, unless :always follows\n";

struct fault {
    enum event event;
    enum { WHEN_START, WHEN_CHUNK, WHEN_LAYER, WHEN_CHANCE } when;
    uint64_t chunk, random; /* random: state of the generator */
    uint32_t layer;
    double chance;
    bool always, fired;
    char text[64];
};

struct faults {
    struct fault list[FAULTS_MAX];
    int n, control_fd;
    uint64_t chunks;
    bool spoil_slot, drop_chunk;
    _Atomic int messages; /* to be dropped */
};

/* Reads in this process: whether the next one fails; and the offset at which files end, or one of the words below. */
#define WHOLE INT64_MAX
#define CUT_NEXT INT64_MIN /* in the middle of what is read next */
static _Atomic bool next_read_fails;
static _Atomic int64_t files_end = WHOLE;

/* ---- words ---- */

static bool word_is(const char *text, size_t n, const char *word)
{
    return strlen(word) == n && memcmp(text, word, n) == 0;
}

static int find(const char *const *words, size_t n_words, const char *text, size_t n)
{
    for (size_t i = 0; i < n_words; i++) {
        if (word_is(text, n, words[i]))
            return (int)i;
    }
    return -1;
}

static bool number(const char *text, const char *end, uint64_t least, uint64_t most, uint64_t *ret)
{
    char *stop;
    errno = 0;
    if (text >= end || *text < '0' || *text > '9')
        return false;
    unsigned long long v = strtoull(text, &stop, 10);
    if (errno || stop != end || v < least || v > most)
        return false;
    *ret = v;
    return true;
}

/* "p=0.01" or "p=0.01,seed=7" up to end. */
static bool chance(const char *text, const char *end, struct fault *f)
{
    char *stop;
    uint64_t seed = 1;
    if (text >= end || !strchr("01.", *text))
        return false;
    f->chance = strtod(text, &stop);
    if (!(f->chance > 0 && f->chance <= 1) || stop > end)
        return false;
    if (stop != end && (end - stop < 7 || memcmp(stop, ",seed=", 6) != 0 || !number(stop + 6, end, 0, UINT64_MAX, &seed)))
        return false;
    f->random = seed;
    return true;
}

static bool moment(const char *text, const char *end, struct fault *f)
{
    size_t n = (size_t)(end - text);
    uint64_t layer;
    if (word_is(text, n, "start")) {
        f->when = WHEN_START;
        return true;
    }
    if (n > 6 && memcmp(text, "layer=", 6) == 0) {
        f->when = WHEN_LAYER;
        bool ok = number(text + 6, end, 0, 511, &layer);
        f->layer = ok ? (uint32_t)layer : 0;
        return ok;
    }
    if (n > 2 && memcmp(text, "p=", 2) == 0) {
        f->when = WHEN_CHANCE;
        return chance(text + 2, end, f);
    }
    f->when = WHEN_CHUNK;
    return number(text, end, 1, UINT64_MAX, &f->chunk);
}

static int parse(const char *text, struct fault *f, int *ret_stage, struct err *err)
{
    const char *colon = strchr(text, ':'), *at = strchr(text, '@'), *end = text + strlen(text), *always = ":always";
    size_t tail = strlen(always);
    *f = (struct fault){0};
    if (strlen(text) >= sizeof(f->text))
        return err_set(err, -EINVAL, "fault '%.20s...': %zu bytes; expected fewer than %zu", text, strlen(text), sizeof(f->text));
    memcpy(f->text, text, strlen(text) + 1);
    if (!colon || !at || at < colon || strpbrk(text, " \t\n"))
        return err_set(err, -EINVAL, "fault '%s': expected STAGE:EVENT@WHEN, such as npu_worker:abort@100", text);
    if ((size_t)(end - at) > tail && memcmp(end - tail, always, tail) == 0) {
        f->always = true;
        end -= tail;
    }
    *ret_stage = find(stage_names, ARRAY_LEN(stage_names), text, (size_t)(colon - text));
    if (*ret_stage < 0)
        return err_set(err, -EINVAL, "fault '%s': stage '%.*s'; expected loader, npu_worker or gpu_worker", text,
                       (int)(colon - text), text);
    int event = find(event_names, EVENTS, colon + 1, (size_t)(at - colon - 1));
    if (event < 0)
        return err_set(err, -EINVAL,
                       "fault '%s': event '%.*s'; expected abort, segv, exit, hang, slow, corrupt-slot, corrupt-message, "
                       "drop-message, drop-chunk, oom, device-lost, short-read or eio",
                       text, (int)(at - colon - 1), colon + 1);
    f->event = (enum event)event;
    bool loader = *ret_stage == 0, reads = event == EVENT_SHORT_READ || event == EVENT_EIO;
    if (reads != loader && (reads || event == EVENT_DEVICE_LOST))
        return err_set(err, -EINVAL, "fault '%s': %s; expected it of %s", text,
                       reads ? "only the loader reads files while it runs" : "the loader has no device",
                       reads ? "loader" : "npu_worker or gpu_worker");
    if (!moment(at + 1, end, f))
        return err_set(err, -EINVAL,
                       "fault '%s': moment '%.*s'; expected start, the number of a chunk from 1, layer=L, or p=CHANCE with or "
                       "without ,seed=S, and perhaps :always",
                       text, (int)(end - at - 1), at + 1);
    return 0;
}

int fault_check(const char *text, struct err *err)
{
    struct fault f;
    int stage;
    return parse(text, &f, &stage, err);
}

int fault_check_layer(const char *text, uint32_t n_layers, struct err *err)
{
    struct fault f;
    int stage, r = parse(text, &f, &stage, err);
    if (r < 0 || f.when != WHEN_LAYER)
        return r;
    if (stage == 0 && f.layer > 0)
        return err_set(err, -EINVAL, "fault '%s': layer %u; expected layer=0, which all chunks of the loader are", text, f.layer);
    if (f.layer >= n_layers)
        return err_set(err, -EINVAL, "fault '%s': layer %u; expected at most %u, the model's last", text, f.layer, n_layers - 1);
    return 0;
}

int fault_list(const char *const *texts, int n, const char *stage, bool first, bool device, char ret[FAULT_LIST], struct err *err)
{
    size_t used = 0;
    ret[0] = '\0';
    for (int i = 0; i < n; i++) {
        struct fault f;
        int of;
        int r = parse(texts[i], &f, &of, err);
        if (r < 0)
            return r;
        bool again = f.always && (device || f.event != EVENT_DEVICE_LOST);
        if (strcmp(stage_names[of], stage) != 0 || !(first || again))
            continue;
        if (used + strlen(texts[i]) + 2 > FAULT_LIST)
            return err_set(err, -E2BIG, "faults of %s: more than %d bytes", stage, FAULT_LIST);
        used += (size_t)snprintf(ret + used, FAULT_LIST - used, "%s%s", used ? " " : "", texts[i]);
    }
    return 0;
}

/* ---- reads ---- */

static ssize_t failing_pread(int fd, void *buf, size_t n, off_t at)
{
    int64_t armed = CUT_NEXT;
    if (atomic_exchange(&next_read_fails, false)) {
        errno = EIO;
        return -1;
    }
    atomic_compare_exchange_strong(&files_end, &armed, (int64_t)at + (int64_t)(n / 2));
    int64_t end = atomic_load(&files_end);
    return at >= end ? 0 : pread(fd, buf, (size_t)MIN((int64_t)n, end - at), at);
}

int fault_open(const char *list, int control_fd, struct faults **ret, struct err *err)
{
    static const struct io_system failing = {failing_pread, pwrite, fsync};
    *ret = NULL;
    if (!*list)
        return 0;
    struct faults *f = calloc(1, sizeof(*f));
    auto_free char *copy = strdup(list);
    char *rest = copy, *word;
    bool reads = false;
    int r = f && copy ? 0 : err_set(err, -ENOMEM, "faults: out of memory"), stage;
    while (r == 0 && (word = strsep(&rest, " "))) {
        if (f->n == FAULTS_MAX)
            r = err_set(err, -E2BIG, "more than %d faults for one stage", FAULTS_MAX);
        else
            r = parse(word, &f->list[f->n], &stage, err);
        if (r == 0)
            reads |= f->list[f->n].event == EVENT_SHORT_READ || f->list[f->n].event == EVENT_EIO;
        if (r == 0)
            f->n++;
    }
    if (r < 0) {
        free(f);
        return r;
    }
    f->control_fd = control_fd;
    if (reads)
        io_set_system(&failing);
    *ret = f;
    return 0;
}

void fault_close(struct faults *f)
{
    free(f);
}

/* ---- events ---- */

static void wait_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) < 0 && errno == EINTR)
        ;
}

static void take_memory(void)
{
    for (;;) {
        void *p = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p != MAP_FAILED)
            memset(p, 1, PIECE);
        wait_ms(5);
    }
}

/* The data thread blocks all signals; and a sanitizer's handler would make a report of it. */
static void die_by(int number)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    signal(number, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    raise(number);
}

static int fire(struct faults *f, struct fault *q, const char *place, struct err *err)
{
    static const uint8_t garbage[20] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    q->fired = q->when != WHEN_CHANCE;
    log_warn("fault", "'%s' happens now, %s", q->text, place);
    switch (q->event) {
    case EVENT_ABORT:
        abort();
    case EVENT_SEGV:
        die_by(SIGSEGV);
        return 0;
    case EVENT_EXIT:
        _exit(EXIT_STATUS);
    case EVENT_HANG:
        for (;;)
            wait_ms(3600000);
    case EVENT_SLOW:
        wait_ms(SLOW_MS);
        return 0;
    case EVENT_CORRUPT_SLOT:
        f->spoil_slot = true;
        return 0;
    case EVENT_CORRUPT_MESSAGE:
        util_write_all(f->control_fd, garbage, sizeof(garbage));
        return 0;
    case EVENT_DROP_MESSAGE:
        atomic_fetch_add(&f->messages, 1);
        return 0;
    case EVENT_DROP_CHUNK:
        f->drop_chunk = true;
        return 0;
    case EVENT_OOM:
        take_memory();
        return 0;
    case EVENT_DEVICE_LOST:
        return err_set(err, -ENODEV, "the device is lost (fault '%s')", q->text);
    case EVENT_SHORT_READ:
        atomic_store(&files_end, CUT_NEXT);
        return 0;
    case EVENT_EIO:
        atomic_store(&next_read_fails, true);
        return 0;
    case EVENTS:
    default:
        return 0;
    }
}

/* xorshift64*: the same chunks for the same seed, whatever the machine. */
static bool drawn(struct fault *q)
{
    uint64_t x = q->random ^ 0x9e3779b97f4a7c15u;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    q->random = x ^ 0x9e3779b97f4a7c15u;
    return (double)((x * 0x2545f4914f6cdd1du) >> 11) < q->chance * 9007199254740992.0;
}

int fault_start(struct faults *f, struct err *err)
{
    int r = 0;
    for (int i = 0; r == 0 && f && i < f->n; i++) {
        if (f->list[i].when == WHEN_START)
            r = fire(f, &f->list[i], "at the start", err);
    }
    return r;
}

static bool due(const struct faults *f, struct fault *q, uint32_t layer)
{
    return q->when == WHEN_CHUNK    ? f->chunks == q->chunk
           : q->when == WHEN_LAYER  ? !q->fired && layer == q->layer
           : q->when == WHEN_CHANCE ? drawn(q)
                                    : false;
}

int fault_chunk(struct faults *f, uint32_t layer, struct err *err)
{
    int r = 0;
    f->chunks++;
    for (int i = 0; r == 0 && i < f->n; i++) {
        char place[64];
        if (!due(f, &f->list[i], layer))
            continue;
        snprintf(place, sizeof(place), "with chunk %" PRIu64 ", layer %u", f->chunks, layer);
        r = fire(f, &f->list[i], place, err);
    }
    return r;
}

bool fault_slot(struct faults *f)
{
    bool spoil = f->spoil_slot;
    f->spoil_slot = false;
    return spoil;
}

bool fault_drops(struct faults *f)
{
    bool drops = f->drop_chunk;
    f->drop_chunk = false;
    return drops;
}

bool fault_message(void *ctx)
{
    struct faults *f = ctx;
    if (atomic_load(&f->messages) == 0)
        return false;
    atomic_fetch_sub(&f->messages, 1);
    return true;
}
