/* node/layers/internal.h - between node/layers/layers.c and node/layers/serve.c. */
#ifndef SKERRY_NODE_LAYERS_INTERNAL_H
#define SKERRY_NODE_LAYERS_INTERNAL_H

#include "node/layers/transfer.h"

/* Somebody who needs one or two layers. */
struct need {
    struct need *next;
    struct layers *layers;
    char digests[2][72]; /* image, source; "" none or here */
    unsigned waits;      /* fetches that it is in */
    bool looks;          /* does not wait */
    bool listed;
    struct err error;
    bool failed;
    layers_cb cb;
    void *user;
};

enum fetch_phase {
    FETCH_WAITING, /* for a place */
    FETCH_ASKED,   /* the runner for a pipe */
    FETCH_RUNNING, /* the transfer, the import, or both */
    FETCH_OVER
};

struct fetch {
    struct fetch *next;
    struct layers *layers;
    enum fetch_phase phase;
    Skerry__Runner__ImportKind kind;
    char digest[72];
    uint64_t import_id;
    struct layer_transfer *transfer; /* NULL: it is done */
    bool transferred, imported;
    bool failed;
    struct err error;
    uint64_t begun_ms;
};

/* A stream whose question is being read, or whose export is being asked for. */
struct asker {
    struct asker *next;
    struct layers *layers;
    struct secure_stream *stream;
    uint8_t question[LAYER_ASK_BYTES];
    size_t length;
    struct layer_ask ask;
    int fd; /* the export's */
    uint8_t answer;
    bool answered, closing;
    uint64_t until_ms;
};

struct serve {
    struct serve *next;
    struct layers *layers;
    node_id to;
    struct layer_transfer *transfer;
};

struct layers {
    struct layers_options options;
    uv_loop_t *loop;
    uv_timer_t timer;
    struct need *needs;
    struct fetch *fetches;
    struct asker *askers;
    struct serve *serves;
    unsigned need_count, asker_count, serve_count;
    unsigned outside;             /* answers of the runner that hold a pointer into here */
    struct registry_root *follow; /* to be looked at; NULL: nothing new */
    uint64_t follow_ms;
    bool following; /* a background need is under way */
    bool follow_again;
    bool closing, timer_closed;
    void (*closed)(void *user);
    void *closed_user;
    struct layers_counts counts;
};

/* Looks at everything within so many milliseconds. */
void layers_wake(struct layers *l, uint64_t in_ms);
void layers_close_check(struct layers *l);
void layers_askers_look(struct layers *l, uint64_t now_ms);
void layers_serves_stop(struct layers *l);

#endif
