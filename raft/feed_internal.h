/* raft/feed_internal.h - what the files of raft/feed.h share. The loop's. */
#ifndef SKERRY_RAFT_FEED_INTERNAL_H
#define SKERRY_RAFT_FEED_INTERNAL_H

#include "base/buffer.h"
#include "raft/feed.h"

/* A snapshot as bytes; several links send it. */
struct feed_image {
    unsigned references;
    uint64_t applied, generation;
    struct buffer bytes;
};

enum feed_state {
    FEED_HELLO,
    FEED_ASKED,
    FEED_WAITING,
    FEED_SENDING,
    FEED_FOLLOWING,
    FEED_REFUSED,
    FEED_CLOSING
};

struct feed_link {
    struct feed *feed;
    struct feed_link *next, *previous;
    enum feed_state state;
    node_id peer;
    struct secure_stream *stream;
    struct spare_decoder decoder;
    struct spare_record hello;
    uint64_t heard_ms, said_ms, moved_ms;
    struct feed_image *image; /* SENDING */
    size_t image_sent;
    bool begun;      /* the first record behind the greeting is written */
    bool caught_up;  /* it had all of the ring once */
    uint64_t cursor; /* all up to it is written */
    uint64_t members_told;
    struct buffer rest; /* begins a stream's write, and was not taken yet */
};

struct feed {
    struct feed_options options;
    struct feed_link *links;
    size_t count;
    uint64_t now_ms;
    struct feed_view view;
    struct registry_member members[SPARE_MEMBERS_MAX];
    uint64_t members_version; /* from 1 */
    bool ring_large;
    struct feed_counts counts;

    uv_timer_t timer;
    /* An encoding under way: the root from its begin to its end. */
    uv_thread_t worker;
    uv_async_t worker_done;
    bool encoding;
    struct registry_root *root;
    struct feed_image *making;
    int made; /* status */
    struct err made_error;
    struct feed_image *image; /* the newest; referenced */
    size_t images;

    bool closing;
    unsigned handles;
    void (*closed)(void *user);
    void *closed_user;
};

/* --- feed_image.c --- */
int feed_image_open(struct feed *f);
/* Begins to encode the state as it is, unless one is under way or as many are held as may. */
void feed_image_make(struct feed *f);
/* The newest, if the ring goes on from it; referenced. */
struct feed_image *feed_image_take(struct feed *f);
void feed_image_drop(struct feed *f, struct feed_image *image);
/* Nobody waits: the newest need not be kept. */
void feed_image_forget(struct feed *f);
/* --- feed.c --- */
/* An encoding has ended. */
void feed_image_made(struct feed *f, bool done);

#endif
