/* node/api_relay_internal.h - what the files of api_relay.h share. */
#ifndef SKERRY_NODE_API_RELAY_INTERNAL_H
#define SKERRY_NODE_API_RELAY_INTERNAL_H

#include "node/api_relay.h"

enum relay_phase {
    RELAY_CONNECTING, /* entry: the stream is not open */
    RELAY_RECORD,     /* owner: the record has not come */
    RELAY_OPEN,
    RELAY_CLOSING
};

/* One direction: source -> bytes -> sink. */
struct relay_way {
    char *bytes; /* API_RELAY_BYTES */
    size_t from, to;
    bool ended, passed; /* the source has ended; the sink was told */
    bool thrown_away;   /* the sink takes no more */
};

struct api_relay {
    struct api *api;
    struct api_relay *previous, *next; /* api->relays */
    enum relay_phase phase;
    bool entry;
    node_id peer;
    struct api_connection
        *connection;   /* entry: whose descriptor and poll are used; never freed here */
    int fd;            /* owner: our end of the socketpair; entry: the client's */
    uv_poll_t poll;    /* owner: of fd */
    uv_poll_t *poller; /* of fd, or NULL */
    struct secure_stream *stream;
    unsigned handles;
    struct relay_way up, down; /* from fd to the stream; from the stream to fd */
    bool answered;             /* entry: a byte of the answer came */
    bool local_can;            /* entry: answered here if the owner is away */
    char name[64];             /* of the owner */
    char instance[INSTANCE_ID_LENGTH_MAX + 1];
    uint64_t deadline_ms; /* monotonic; 0: none */
};

/* --- api_relay_pump.c --- */
struct api_relay *api_relay_new(struct api *api, bool entry);
/* Its answer is over (`why` NULL), or cannot come any more: what is left of the connection is done here. */
void api_relay_finish(struct api_relay *r, const char *why);
/* Moves what can be moved and says what is waited for; r may be closing afterwards. */
void api_relay_pump(struct api_relay *r);
void api_relay_ready_cb(struct secure_stream *s, bool readable, bool writable);

#endif
