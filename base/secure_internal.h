/* base/secure_internal.h - what the files of secure streams share. */
#ifndef SKERRY_BASE_SECURE_INTERNAL_H
#define SKERRY_BASE_SECURE_INTERNAL_H

#include <openssl/bio.h>
#include <openssl/ssl.h>

#include "base/buffer.h"
#include "base/secure_stream.h"

struct secure_context {
    SSL_CTX *ssl;
    BIO_METHOD *bio;
    struct secure_context_options options;
};

enum secure_phase {
    SECURE_CONNECTING,
    SECURE_HANDSHAKE,
    SECURE_GREETING,
    SECURE_OPEN,
    SECURE_FAILED, /* s->error says why */
    SECURE_CLOSING
};

struct secure_stream {
    struct secure_context *context;
    uv_poll_t poll;
    uv_timer_t timer; /* the deadline until it is open; then: look again, without the socket */
    unsigned handles; /* that are not closed yet */
    int fd;
    int poll_mask;
    SSL *ssl;
    enum secure_phase phase;
    enum secure_protocol protocol;
    bool server;
    bool strangers;      /* any key may come */
    unsigned protocols;  /* server: that are spoken */
    node_id expected;    /* client: who must answer, or 0 and */
    bool by_fingerprint; /* by this */
    struct identity_fingerprint fingerprint;
    struct {
        node_id id;
        struct identity_public key;
        bool known; /* verified */
        struct sockaddr_storage address;
    } peer;

    struct buffer out; /* encrypted, from out_sent on not sent */
    size_t out_sent;
    size_t write_bytes_max;
    bool gathering;    /* more will follow: the socket waits */
    bool out_blocked;  /* the socket took no more */
    bool read_blocked; /* the last read found nothing whole */
    bool end_sent, end_seen;
    bool in_timer;    /* a callback of `timer` runs */
    bool told;        /* the owner has heard of END, or of the failure */
    uint64_t records; /* written under the present key */
    unsigned want;
    struct err error;

    struct secure_events events;
    void *user;
    secure_closed_cb closed;
    void (*detached)(void *user, struct secure_parcel *parcel);
    struct secure_listener *listener; /* of a handshake that is under way */
    struct secure_stream *previous, *next;
};

/* secure_context.c */
/* A TLS object for `s`, with its BIO. */
int secure_context_start(struct secure_stream *s, struct err *e) ERR_CHECKED;
/* Takes what OpenSSL last complained of, for an error; empties its queue. */
void secure_openssl_reason(char *out, size_t size);

/* secure_bio.c: OpenSSL's way to the socket. */
BIO_METHOD *secure_bio_method(void);
/* Sends what waits: false when the socket is broken. */
bool secure_bio_flush(struct secure_stream *s);

/* secure_stream.c */
/* A stream around a socket; takes `fd`, also when it fails. */
int secure_stream_new(struct secure_stream **out, uv_loop_t *loop, struct secure_context *context,
                      int fd, size_t write_bytes_max, struct err *e) ERR_CHECKED;
void secure_stream_arm(struct secure_stream *s, unsigned timeout_ms);
void secure_stream_update(struct secure_stream *s);
/* Only the first failure is kept. */
void secure_stream_fail(struct secure_stream *s, enum err_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void secure_socket_tune(int fd);

/* secure_handshake.c: moves on until it waits, is open or failed. */
void secure_handshake_step(struct secure_stream *s);
void secure_handshake_timeout(struct secure_stream *s);

/* secure_listener.c */
/* The handshake of one of its streams has ended, well or not. */
void secure_listener_settled(struct secure_stream *s, enum secure_refusal refusal);

#endif
