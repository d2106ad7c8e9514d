/* node/api/relay_internal.h - what the files of node/api/relay.h share.
 *
 * The entry's side of one request (node/api/relay.c, node/api/relay_entry.c):
 *
 *     CONNECTING --open--> HEAD --the answer's head--> BODY --> END       freed with its request
 *         |                  |
 *         |                  '-- 101 --> OPEN                             freed with the connection
 *         '--not reached--> answered here, or a problem
 *
 * The owner's side (node/api/relay_owner.c): RECORD -> OPEN. While OPEN, node/api/relay_pump.c moves bytes as they
 * are, between a descriptor and the stream. */
#ifndef SKERRY_NODE_API_RELAY_INTERNAL_H
#define SKERRY_NODE_API_RELAY_INTERNAL_H

#include "node/api/relay.h"

enum relay_phase {
    RELAY_CONNECTING, /* entry: the stream is not open */
    RELAY_HEAD,       /* entry: the answer's head has not come */
    RELAY_BODY,       /* entry: its body is read */
    RELAY_END,        /* entry: nothing more is read: the answer was whole, or broke off */
    RELAY_RECORD,     /* owner: the record has not come */
    RELAY_OPEN,
    RELAY_CLOSING
};

/* One direction: source -> bytes -> sink. */
struct relay_way {
    char *bytes; /* API_RELAY_BYTES, or what came behind an upgrade */
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
    struct secure_stream *stream;
    unsigned handles;
    uint64_t deadline_ms;      /* monotonic; 0: none */
    struct relay_way up, down; /* from fd to the stream; from the stream to fd, or to the request */

    /* OPEN */
    int fd;            /* owner: our end of the socketpair; entry: the upgraded client's */
    uv_poll_t poll;    /* owner: of fd */
    uv_poll_t *poller; /* of fd, or NULL */
    struct api_connection *connection; /* entry: that was upgraded */
    struct MHD_UpgradeResponseHandle *upgraded;

    /* entry */
    struct api_request *request; /* NULL: it has ended, or was upgraded */
    struct buffer out;           /* the record, the head, and what waits of the body */
    bool expects;                /* the client waits for 100 before its body */
    bool full;                   /* the request was suspended in its body, for want of room */
    struct http_scan scan;
    enum http_body body; /* of the answer */
    uint64_t remaining;  /* HTTP_BODY_LENGTH */
    struct http_chunked chunked;
    struct buffer trailers;
    bool broken;    /* the answer ended before its end */
    bool local_can; /* answered here if the owner is away */
    char name[64];  /* of the owner */
    char instance[INSTANCE_ID_LENGTH_MAX + 1];
};

#define API_RELAY_OUT_BYTES_MAX                                                                    \
    (API_RELAY_RECORD_BYTES_MAX + API_HEADER_BYTES_MAX + API_TARGET_LENGTH_MAX + API_RELAY_BYTES)

/* --- node/api/relay_pump.c --- */
struct api_relay *api_relay_new(struct api *api, bool entry);
/* Moves what can be moved and says what is waited for; r may be closing afterwards. */
void api_relay_pump(struct api_relay *r);
void api_relay_ready_cb(struct secure_stream *s, bool readable, bool writable);

/* --- node/api/relay_entry.c --- */
/* The stream is open: the record and the request's head leave. */
void api_relay_ask(struct api_relay *relay);
/* Nothing more comes of the answer: a problem, or the answer breaks. */
void api_relay_broke_off(struct api_relay *relay, const char *why);
void api_relay_answer_ready_cb(struct secure_stream *s, bool readable, bool writable);

#endif
