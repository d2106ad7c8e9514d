/* raft/spare_internal.h - what the files of raft/spare.h share. The loop's. */
#ifndef SKERRY_RAFT_SPARE_INTERNAL_H
#define SKERRY_RAFT_SPARE_INTERNAL_H

#include "base/buffer.h"
#include "raft/spare.h"
#include "raft/spare_choose.h"
#include "raft/spare_wire.h"

/* What one read takes: some hundred commands, which hold the loop for less than a millisecond or two. */
#define SPARE_INPUT_BYTES 16384u

enum spare_state {
    SPARE_IDLE,
    SPARE_OPENING,
    SPARE_GREETED,
    SPARE_LOADING,
    SPARE_DECODING,
    SPARE_FOLLOWING
};

enum spare_job { SPARE_JOB_NONE, SPARE_JOB_LOAD, SPARE_JOB_UNMARK };

struct spare {
    struct spare_options options;
    char *directory;
    struct spare_want want;
    uint64_t now_ms;

    /* The stream. */
    enum spare_state phase;
    struct secure_stream *stream;
    node_id neighbour;
    struct spare_decoder decoder;
    uint8_t input[SPARE_INPUT_BYTES];
    size_t input_at, input_end; /* what was read and not yet decoded */
    uint64_t heard_ms, acked_ms, leader_ms;
    uint64_t acked; /* what was last said */
    size_t streams_closing;
    /* Whom to ask next. */
    struct spare_choice choice;
    struct registry_peer *peers;
    unsigned failures; /* since the last neighbour that fed */
    uint64_t retry_ms, refused_said_ms;

    /* What was fed. */
    struct state *state;
    bool damaged; /* it cannot go on: the next begins with a snapshot */
    uint64_t generation, applied, commit, term;
    node_id leader;
    struct registry_member members[SPARE_MEMBERS_MAX];
    size_t member_count;
    uint64_t snapshots, resumed;
    /* One that was replaced is freed in slices, and kept while roots of it may be held. */
    struct state *retired;
    uint64_t retired_ms;

    /* A snapshot that comes, then is decoded. */
    struct buffer snapshot;
    uint64_t snapshot_generation, snapshot_applied, snapshot_bytes;
    enum spare_job job;
    uv_thread_t worker;
    uv_async_t worker_done;
    struct state_content content; /* of the worker */
    int loaded;
    struct err load_error;
    bool mark_failed;
    struct err mark_error;
    uint64_t marked; /* the generation in the mark; 0: there is none */

    uv_timer_t timer;
    bool closing;
    unsigned handles;
    void (*closed)(void *user);
    void *closed_user;
};

/* --- spare.c --- */
/* A snapshot was decoded, or could not be. */
void spare_loaded(struct spare *s);
void spare_closed_maybe(struct spare *s);
/* --- spare_load.c --- */
int spare_load_open(struct spare *s);
/* Decodes what has come. False: not begun. */
bool spare_load_begin(struct spare *s);
/* Takes the mark away, if there is one and nothing else is under way. */
void spare_unmark(struct spare *s);
/* The state is not needed any more. */
void spare_retire(struct spare *s);

#endif
