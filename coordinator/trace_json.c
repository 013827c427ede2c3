/* SPDX-License-Identifier: MIT
 * Writes numbers and words without the C library's formats, which cost more than all the rest of tracing. Holds no state but what
 * the caller keeps of a process. */
#include "coordinator/trace_json.h"

#include <string.h>

#define MOST ((UINT64_C(1) << 53) - 1) /* what readers take for an integer; honest epochs and sizes are far below */

/* What an event is called. chunk: the name follows from the process, and the layer is part of it. */
static const struct {
    const char *name, *category;
    enum { PLAIN, CHUNK, OF_CHUNK, BYTES, MOMENT } form;
    char flow; /* the step of the chunk's flow that begins here, or 0 */
} kinds[TRACE_KINDS] = {
    [TRACE_WAIT_INPUT] = {"wait for input", "wait", PLAIN, 0},
    [TRACE_WAIT_SPACE] = {"wait for space", "wait", OF_CHUNK, 0},
    [TRACE_WAIT_WEIGHTS] = {"wait for weights", "wait", OF_CHUNK, 0},
    [TRACE_PARKED] = {"paused", "wait", PLAIN, 0},
    [TRACE_CHUNK] = {NULL, "compute", CHUNK, 't'},
    [TRACE_HEAD] = {"head", "compute", OF_CHUNK, 0},
    [TRACE_DEVICE_RUN] = {"run", "device", OF_CHUNK, 0},
    [TRACE_CONFIGURE] = {"configure", "start", PLAIN, 0},
    [TRACE_LOAD] = {"load weights", "weights", BYTES, 0},
    [TRACE_READ] = {"read", "weights", BYTES, 0},
    [TRACE_VERIFY] = {"verify", "weights", BYTES, 0},
    [TRACE_PLACE] = {"repack", "weights", BYTES, 0},
    [TRACE_SEND] = {"send", "schedule", OF_CHUNK, 's'},
    [TRACE_LOGITS] = {"logits", "schedule", OF_CHUNK, 0},
    [TRACE_SAMPLE] = {"sample", "schedule", PLAIN, 0},
    [TRACE_DONE] = {"done", "schedule", OF_CHUNK, 'f'},
    [TRACE_DROPPED] = {"dropped", "schedule", OF_CHUNK, 'f'},
    [TRACE_START] = {"start", "pipeline", PLAIN, 0},
    [TRACE_RECOVERY] = {"recovery", "pipeline", PLAIN, 0},
    [TRACE_ENDED] = {"ended", "pipeline", MOMENT, 0},
    [TRACE_RUNNING] = {"started", "pipeline", MOMENT, 0},
};

static const char *const chunk_names[] = {
    [MSG_ROLE_LOADER] = "embed", [MSG_ROLE_NPU] = "attention", [MSG_ROLE_GPU] = "ffn", [TRACE_JSON_COORDINATOR] = "chunk"};
/* By who takes from the ring, and the number of the input there. */
static const char *const ring_names[][2] = {[MSG_ROLE_LOADER] = {"ring tokens", "ring"},
                                            [MSG_ROLE_NPU] = {"ring x", "ring x0"},
                                            [MSG_ROLE_GPU] = {"ring h", "ring"},
                                            [TRACE_JSON_COORDINATOR] = {"ring output", "ring"}};
static const char *const segment_names[] = {"attention", "ffn", "head"};

static char *text(char *to, const char *s)
{
    size_t n = strlen(s);
    memcpy(to, s, n);
    return to + n;
}

static char *number(char *to, uint64_t v)
{
    char digits[20];
    size_t n = 0;
    do
        digits[n++] = (char)('0' + v % 10);
    while (v /= 10);
    while (n)
        *to++ = digits[--n];
    return to;
}

static char *field(char *to, const char *key, uint64_t v)
{
    return number(text(to, key), v);
}

/* Microseconds, to the nanosecond. */
static char *time_field(char *to, const char *key, uint64_t ns)
{
    to = text(number(text(to, key), ns / 1000), ".");
    *to++ = (char)('0' + ns % 1000 / 100);
    *to++ = (char)('0' + ns % 100 / 10);
    *to++ = (char)('0' + ns % 10);
    return to;
}

static char *begin(char *to, const struct trace_json_process *p, char phase, enum trace_lane lane)
{
    to = text(to, ",\n{\"ph\":\"");
    *to++ = phase;
    to = field(to, "\",\"pid\":", (uint64_t)p->pid);
    return field(to, ",\"tid\":", (uint64_t)lane + 1);
}

static const char *process_name(uint32_t process)
{
    return process == TRACE_JSON_COORDINATOR ? "coordinator" : msg_role_name((enum msg_role)process);
}

static char *metadata(char *to, const struct trace_json_process *p, enum trace_lane lane, const char *what)
{
    return text(text(text(begin(to, p, 'M', lane), ",\"name\":\""), what), "\",\"args\":{");
}

size_t trace_json_process(char *buf, const struct trace_json_process *p)
{
    char *to = text(text(metadata(buf, p, TRACE_DATA, "process_name"), "\"name\":\""), process_name(p->process));
    if (p->restarts)
        to = field(to, ", restart ", p->restarts);
    to = metadata(text(to, "\"}}"), p, TRACE_DATA, "process_sort_index");
    to = field(to, "\"sort_index\":", p->process == TRACE_JSON_COORDINATOR ? 0 : p->process + 1);
    return (size_t)(text(to, "}}") - buf);
}

static char *thread_name(char *to, const struct trace_json_process *p, enum trace_lane lane)
{
    bool coordinator = p->process == TRACE_JSON_COORDINATOR;
    switch (lane) {
    case TRACE_DATA:
        return text(to, coordinator ? "loop" : "data");
    case TRACE_DEVICE:
        return text(to, p->process == MSG_ROLE_NPU ? "NPU" : "GPU");
    case TRACE_CONTROL:
        return text(to, coordinator ? "pipeline" : "main");
    case TRACE_FILL:
    case TRACE_LANES:
    default:
        return field(to, "fill ", (uint64_t)(lane - TRACE_FILL) + 1);
    }
}

size_t trace_json_thread(char *buf, const struct trace_json_process *p, enum trace_lane lane)
{
    char *to = thread_name(text(metadata(buf, p, lane, "thread_name"), "\"name\":\""), p, lane);
    to = metadata(text(to, "\"}}"), p, lane, "thread_sort_index");
    return (size_t)(text(field(to, "\"sort_index\":", lane), "}}") - buf);
}

static char *sequence(char *to, const struct trace_event *e)
{
    return field(to, e->flags & TRACE_MANY ? ",\"sequences\":" : ",\"sequence\":", e->seq);
}

static char *arguments(char *to, const struct trace_event *e)
{
    switch (kinds[e->kind].form) {
    case CHUNK:
    case OF_CHUNK:
        to = field(to, ",\"args\":{\"chunk\":", (uint32_t)e->id);
        to = field(to, ",\"epoch\":", e->id >> 32);
        if (e->kind < TRACE_SEND)
            to = field(to, ",\"layer\":", e->layer);
        to = sequence(field(to, ",\"tokens\":", e->tokens), e);
        to = text(to, e->flags & TRACE_DECODE ? ",\"kind\":\"decode\"" : ",\"kind\":\"prefill\"");
        return text(to, e->flags & TRACE_FAILED ? ",\"failed\":true}" : "}");
    case BYTES:
        to = text(text(to, ",\"args\":{\"segment\":\""), e->seq < ARRAY_LEN(segment_names) ? segment_names[e->seq] : "?");
        return text(field(field(to, "\",\"layer\":", e->layer), ",\"bytes\":", e->id & MOST), "}");
    case MOMENT:
        return text(field(to, ",\"args\":{\"restarts\":", e->tokens), "}");
    case PLAIN:
    default:
        return e->kind == TRACE_SAMPLE ? text(field(to, ",\"args\":{\"sequence\":", e->seq), "}") : to;
    }
}

static char *name(char *to, const struct trace_json_process *p, const struct trace_event *e)
{
    to = text(to, ",\"name\":\"");
    if (kinds[e->kind].form == MOMENT)
        to = text(text(to, e->seq < MSG_ROLES ? process_name(e->seq) : "?"), " ");
    to = text(to, kinds[e->kind].form == CHUNK ? chunk_names[p->process] : kinds[e->kind].name);
    if (kinds[e->kind].form == CHUNK && p->process != MSG_ROLE_LOADER)
        to = field(to, " ", e->layer);
    return text(text(text(to, "\",\"cat\":\""), kinds[e->kind].category), "\"");
}

static char *flow(char *to, const struct trace_json_process *p, enum trace_lane lane, const struct trace_event *e)
{
    to = begin(to, p, kinds[e->kind].flow, lane);
    to = field(text(to, ",\"name\":\"chunk\",\"cat\":\"chunk\""), ",\"id\":", e->id & MOST);
    to = time_field(to, ",\"ts\":", e->start_ns);
    return text(to, kinds[e->kind].flow == 'f' ? ",\"bp\":\"e\"}" : "}");
}

/* When it differs from what was told last. */
static char *fill(char *to, struct trace_json_process *p, const struct trace_event *e)
{
    int input = e->flags & TRACE_SECOND ? 1 : 0;
    if (p->fill[input] == e->fill || e->kind == TRACE_SEND)
        return to;
    p->fill[input] = e->fill;
    const char *ring = ring_names[p->process][input];
    to = text(text(text(begin(to, p, 'C', TRACE_DATA), ",\"name\":\""), ring), "\"");
    return text(field(time_field(to, ",\"ts\":", e->start_ns), ",\"args\":{\"chunks\":", e->fill), "}}");
}

size_t trace_json_event(char *buf, struct trace_json_process *p, enum trace_lane lane, const struct trace_event *e)
{
    bool moment = kinds[e->kind].form == MOMENT;
    char *to = name(begin(buf, p, moment ? 'i' : 'X', lane), p, e);
    to = time_field(to, ",\"ts\":", e->start_ns);
    to = moment ? text(to, ",\"s\":\"g\"") : time_field(to, ",\"dur\":", e->end_ns - e->start_ns);
    to = text(arguments(to, e), "}");
    if (kinds[e->kind].flow) {
        to = flow(to, p, lane, e);
        to = fill(to, p, e);
    }
    return (size_t)(to - buf);
}

size_t trace_json_lost(char *buf, const struct trace_json_process *p, enum trace_lane lane, uint32_t n, uint64_t now_ns)
{
    char *to = text(begin(buf, p, 'i', lane), ",\"name\":\"events lost\",\"cat\":\"trace\",\"s\":\"t\"");
    return (size_t)(text(field(time_field(to, ",\"ts\":", now_ns), ",\"args\":{\"events\":", n), "}}") - buf);
}

size_t trace_json_counter(char *buf, const struct trace_json_process *p, const char *counter, uint64_t value, uint64_t now_ns)
{
    char *to = text(text(text(begin(buf, p, 'C', TRACE_DATA), ",\"name\":\""), counter), "\"");
    to = time_field(to, ",\"ts\":", now_ns);
    return (size_t)(text(field(to, ",\"args\":{\"value\":", value), "}}") - buf);
}
