/* node/errands/errands_internal.h - what the files of errands share.
 *
 * An errand belongs to the thread of errands but for what stands under "control". At the entry control
 * makes it, is told GRANTED and OVER by messages that are part of it, and gives it back with RELEASE, behind
 * which it names it no more. At the owner its `ask` is control's while it is asked. */
#ifndef SKERRY_NODE_ERRANDS_ERRANDS_INTERNAL_H
#define SKERRY_NODE_ERRANDS_ERRANDS_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <uthash.h>
#include <uv.h>

#include "base/buffer.h"
#include "base/inbox.h"
#include "node/control/control.h"
#include "node/errands/errand_wire.h"
#include "node/errands/errands.h"

struct errand;

enum errand_phase {
    ERRAND_CONNECTING, /* entry */
    ERRAND_ASKED,      /* entry: waits for the answer; owner: for the question, then for control */
    ERRAND_OPEN,       /* the command runs: bytes move */
    ERRAND_TOLD,       /* owner: all was written; waits for the entry to close */
    ERRAND_CLOSING,
};

enum { ERRAND_IN, ERRAND_OUT, ERRAND_ERR, ERRAND_PIPES };

struct errand_pipe {
    struct errand *errand;
    uv_poll_t poll;
    int fd; /* -1: closed, or not open yet */
    int events;
    struct buffer pending; /* to be written to fd */
};

struct errand {
    struct errands *all;
    struct errand *previous, *next;
    bool entry, linked;
    node_id peer;
    enum errand_phase phase;
    unsigned holds; /* handles, asks of control, and at the entry control itself */
    struct secure_stream *stream;
    struct buffer received, sending;
    struct errand_pipe pipes[ERRAND_PIPES];
    uint32_t untaken; /* entry: bytes of STDIN that TAKEN has not told of */
    bool tty, input_ended, ended, stream_ended;
    bool stream_over;     /* the other side says no more */
    char why_over[128];   /* at the entry */
    uint64_t deadline_ms; /* monotonic; broken off then; 0: none */
    struct errand_answer answer;
    struct command_end end;

    /* entry */
    enum errand_kind kind;
    bool sent; /* a byte of the question may have gone */
    int given[ERRAND_PIPES];
    struct inbox_message begin, granted, over, release;
    /* control */
    UT_hash_handle hh;
    const void *ask_key; /* one of the next two */
    struct gateway_ask *gateway_ask;
    struct node_ask *node_ask;
    bool was_granted, canceled;

    /* owner */
    struct errand_question question;
    struct node_ask ask;
    bool asked; /* `ask` is control's, or its command runs */
};

struct errands {
    struct node *node;
    pthread_t thread;
    uv_loop_t loop;
    struct inbox *inbox;
    uv_async_t stop;
    uv_timer_t sweep;
    struct errand *list;
    bool stopping, handles_closing;
    atomic_uint count;
    atomic_bool finished;
    struct errand *by_ask; /* control's */
};

/* --- node/errands/errand_carry.c: lives, and bytes both ways --- */
struct errand *errand_new(struct errands *all, bool entry, node_id peer);
void errand_link(struct errand *e);
void errand_hold_drop(struct errand *e);
/* Takes the descriptor; false: it was closed. */
bool errand_pipe_open(struct errand *e, int which, int fd);
void errand_ready_cb(struct secure_stream *s, bool readable, bool writable);
void errand_pump(struct errand *e);
/* The stream is of no use any more. */
void errand_broken(struct errand *e, const char *why);
/* Lets go of pipes and stream. */
void errand_shut(struct errand *e);

/* --- node/errands/errand_entry.c, node/errands/errand_owner.c: what a frame means. False: it has no place here. --- */
bool errand_entry_frame(struct errand *e, const struct errand_frame *f);
bool errand_owner_frame(struct errand *e, const struct errand_frame *f);
void errand_entry_over(struct errand *e);
void errand_entry_begin(struct errand *e);
/* Its entry left, or canceled. */
void errand_owner_cancel(struct errand *e, enum end_reason reason);
/* Whether the end was told: all that came out was sent on before. */
void errand_owner_check(struct errand *e);

#endif
