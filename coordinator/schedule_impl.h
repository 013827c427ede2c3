/* SPDX-License-Identifier: MIT
 * What the files of the schedule share: schedule.c (queue, what is sent), schedule_admit.c (slots), schedule_output.c (what comes
 * back), schedule_restart.c (the pipeline stopped and runs again). Nobody else includes it. Thread: the loop's. */
#ifndef TANDEM_COORDINATOR_SCHEDULE_IMPL_H
#define TANDEM_COORDINATOR_SCHEDULE_IMPL_H

#include "coordinator/meter.h"
#include "coordinator/schedule.h"
#include "proto/trace.h"

struct journal;
struct journal_file;

#define SCHEDULE_NOBODY UINT32_MAX

struct request {
    struct request *next; /* in the queue */
    struct request_params p;
    uint32_t *ids; /* prompt and output, room for n_ids + max_tokens */
    uint32_t n_ids, n_output;
    uint64_t pages;               /* of the KV cache, at most */
    struct journal_file *journal; /* may be NULL */
    uint64_t submitted_ns, started_ns, first_ns;
    struct request_result result;
    uint32_t n_rows;   /* prompt positions whose logits were given out */
    uint32_t furthest; /* positions committed at most, also before a restart */
    uint32_t n_deaths; /* of stages while it was in flight, since it last advanced */
};

struct slot {
    struct request *req; /* NULL: free once in_flight is 0 */
    uint32_t n_sent;     /* positions issued */
    uint32_t committed;  /* positions whose chunk has come back */
    uint32_t in_flight;  /* chunks */
    uint64_t pages;      /* of the KV cache that its request may come to hold */
    bool stale;          /* the KV cache holds what an earlier request left: the next chunk of all frees it, unless it is kept */
    uint32_t *kept;      /* ids of an ended request, all n_sent of them in the KV cache when in_flight is 0; owned, may be NULL */
    uint64_t kept_at;    /* rises with every slot that keeps something */
    uint32_t extent;     /* positions issued at most since the slot was freed, */
    uint32_t told;       /* and committed ones that npu_worker was told of */
};

struct span { /* tokens of one slot in a chunk */
    uint32_t slot, pos, n;
};

struct flight {
    uint64_t id; /* 0: unused */
    bool decode;
    bool traced;        /* it was sent in this epoch, and a trace says so */
    struct chunk chunk; /* as it was sent */
    uint32_t *ids;      /* [chunk_tokens], likewise */
    uint32_t n_spans, n_logits;
    uint32_t next_row; /* that is expected, */
    uint32_t n_taken;  /* and rows that were taken, in this epoch or before */
    struct span spans[CHUNK_MAX_SEQS];
    struct {
        uint32_t slot, pos;
    } rows[CHUNK_MAX_TOKENS]; /* tokens that want logits */
};

struct schedule {
    const struct plan *plan;
    struct journal *journal; /* may be NULL */
    struct trace *trace;     /* likewise */
    struct ring *tokens, *output;
    uint32_t epoch;
    uint64_t next_id;
    uint32_t n_slots, n_flights, n_in_flight, n_done; /* n_done: since the rings were attached */
    bool decode_in_flight;
    struct slot *slots;
    struct flight *flights;
    uint32_t *flight_ids; /* memory of the flights' ids */
    struct request *queue, **queue_end;
    uint32_t n_active;
    uint64_t n_finished, n_failed;
    uint64_t n_kept;                         /* slots, so far */
    uint64_t n_asked, n_cached;              /* prompt tokens of requests that may reuse, and those that did */
    struct meter prompt_meter, output_meter; /* tokens */
    uint32_t suspect;  /* slot whose request runs alone, to see whether stages die of it; or SCHEDULE_NOBODY */
    bool gave_up;      /* a request, since the last restart: chunks of it that were in flight are not to be sent again */
    uint64_t progress; /* how often a request got further than ever before */
    struct sampler *sampler;
    struct chunk chunk; /* scratch, of what comes back */
};

/* schedule.c */
void schedule_slot_finish(struct schedule *s, struct slot *slot, enum engine_finish why, const struct err *err);
void schedule_issue(struct schedule *s, struct flight *f); /* writes its chunk into the ring to the loader */

/* schedule_output.c: a chunk's event, since start_ns; NULL: nothing is recorded. fill: of the ring that it came from. */
void schedule_note(struct schedule *s, enum trace_kind kind, const struct flight *f, uint64_t start_ns, uint32_t fill);

/* schedule_admit.c */
uint64_t schedule_kv_pages(const struct schedule *s, uint32_t positions); /* that a sequence may come to hold */
void schedule_admit(struct schedule *s); /* requests in order, as long as there is a slot, and pages for all that each may store */
void schedule_keep(struct schedule *s, struct slot *slot, struct request *r); /* it ended there; its ids may be taken */
void schedule_forget(struct slot *slot);                                      /* what it keeps is to be freed */

/* schedule_restart.c: a request got further than ever before; the suspect is gone. */
void schedule_advanced(struct schedule *s, struct slot *slot);
void schedule_next_suspect(struct schedule *s);
void schedule_note_dropped(struct schedule *s); /* chunks that no stage works on any more end in the trace, too */

#endif
