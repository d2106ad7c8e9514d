/* One layer on its way.
 *
 *   out:  fd --read--> raw --lz4--> packed --write--> stream ... END, then the other side's END
 *   in:   stream --read--> packed --lz4--> raw --write--> fd ... END: the fd is closed
 *         any failure of the stream: the next peer, from the byte where it broke off
 *
 * Each pump goes on until something blocks, and then waits for just that. */
#include "node/layers/transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <lz4frame.h>
#include <pthread.h>
#include <signal.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/memory.h"

#define RAW_BYTES (64u * 1024u)
#define ROUNDS_MAX 64u                           /* of a pump, before the loop is looked at */
#define END_BYTES 1024u                          /* zeros at the end of a whole archive */
#define PACKED_BYTES (RAW_BYTES + RAW_BYTES / 8) /* and more than LZ4F_compressBound of RAW_BYTES */

struct layer_transfer {
    pthread_t thread;
    uv_loop_t loop;
    uv_async_t stopper;
    uv_timer_t idle;
    uv_poll_t poll;       /* of fd */
    pthread_mutex_t lock; /* of stoppable */

    struct secure_context *secure;
    struct inbox *inbox;
    struct inbox_message message;
    layer_done_cb done;
    void *user;
    struct secure_stream *stream;
    struct secure_parcel *parcel; /* to serve */
    LZ4F_cctx *packer;
    LZ4F_dctx *unpacker;
    uint64_t bytes;
    size_t zeros; /* serving: at the end of what was read */

    struct layer_ask ask; /* to fetch */
    struct layers_peer peers[LAYERS_PEERS_MAX];
    size_t peer_count, peer_at;
    size_t question_sent;
    size_t raw_at, raw_length;
    size_t packed_at, packed_length;

    struct err error;
    int fd;
    bool stoppable; /* stopper is open */
    bool poll_open, over, joined, failed;
    bool begun, ended; /* serving: the frame's; fetching: LAYER_HERE was read */
    bool frame_open;   /* fetching: within a frame */
    uint8_t question[LAYER_ASK_BYTES];
    char raw[RAW_BYTES];
    char packed[PACKED_BYTES];
};

/* --- the question ------------------------------------------------------------------------------- */

void layer_ask_write(uint8_t out[LAYER_ASK_BYTES], const struct layer_ask *ask)
{
    out[0] = LAYER_ASK_VERSION;
    out[1] = (uint8_t)ask->kind;
    size_t length = 0;
    int rc = sodium_hex2bin(out + 2, 32, ask->digest + 7, 64, NULL, &length, NULL);
    assert_always(rc == 0 && length == 32);
    bytes_put(out + 34, 8, ask->skip);
}

bool layer_ask_read(struct layer_ask *out, const uint8_t in[LAYER_ASK_BYTES])
{
    if (in[0] != LAYER_ASK_VERSION || in[1] > SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE)
        return false;
    *out = (struct layer_ask){.kind = (Skerry__Runner__ImportKind)in[1]};
    memcpy(out->digest, "sha256:", 7);
    sodium_bin2hex(out->digest + 7, sizeof out->digest - 7, in + 2, 32);
    out->skip = bytes_get(in + 34, 8);
    return true;
}

/* --- both directions ---------------------------------------------------------------------------- */

static void finish(struct layer_transfer *t, const struct err *error)
{
    if (t->over)
        return;
    t->over = true;
    t->failed = error != NULL;
    if (error != NULL)
        t->error = *error;
    uv_stop(&t->loop);
}

static void fail_stream(struct layer_transfer *t, const char *what)
{
    struct err e;
    const struct err *why = secure_stream_error(t->stream);
    (void)err_set(&e, ERR_IO, "%s: %s", what, why != NULL ? why->msg : "it ended early");
    finish(t, &e);
}

static void fail_sys(struct layer_transfer *t, const char *what)
{
    struct err e;
    (void)err_sys(&e, ERR_IO, errno, "%s", what);
    finish(t, &e);
}

static void idle_cb(uv_timer_t *timer)
{
    struct layer_transfer *t = container_of(timer, struct layer_transfer, idle);
    struct err e;
    (void)err_set(&e, ERR_TIMEOUT, "nothing moved for %u s", LAYER_IDLE_MS / 1000);
    finish(t, &e);
}

static void moved(struct layer_transfer *t)
{
    (void)uv_timer_again(&t->idle);
}

static void stopper_cb(uv_async_t *async)
{
    struct layer_transfer *t = container_of(async, struct layer_transfer, stopper);
    struct err e;
    (void)err_set(&e, ERR_CANCELED, "the node is stopping");
    finish(t, &e);
}

static void pump(struct layer_transfer *t);

static void poll_cb(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    (void)uv_poll_stop(poll);
    pump(container_of(poll, struct layer_transfer, poll));
}

static void ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    (void)readable;
    (void)writable;
    struct layer_transfer *t = secure_stream_user(s);
    if (s == t->stream && !t->over)
        pump(t);
}

/* --- out ---------------------------------------------------------------------------------------- */

/* The end of an archive that was written whole is two blocks of zeros; any other end is that of an export
 * that failed, and must not look like a clean one. */
static void count_zeros(struct layer_transfer *t, size_t length)
{
    size_t at = length;
    while (at > 0 && t->raw[at - 1] == 0)
        at--;
    t->zeros = at == 0 ? t->zeros + length : length - at;
}

static bool pack(struct layer_transfer *t, size_t length)
{
    size_t used = 0;
    if (!t->begun) {
        t->packed[used++] = (char)LAYER_HERE;
        LZ4F_preferences_t how = {
            .frameInfo = {.blockSizeID = LZ4F_max64KB,
                          .contentChecksumFlag = LZ4F_contentChecksumEnabled}};
        size_t n = LZ4F_compressBegin(t->packer, t->packed + used, PACKED_BYTES - used, &how);
        if (LZ4F_isError(n))
            return false;
        used += n;
        t->begun = true;
    }
    size_t n = length > 0
                   ? LZ4F_compressUpdate(t->packer, t->packed + used, PACKED_BYTES - used, t->raw,
                                         length, NULL)
                   : LZ4F_compressEnd(t->packer, t->packed + used, PACKED_BYTES - used, NULL);
    if (LZ4F_isError(n))
        return false;
    t->packed_at = 0;
    t->packed_length = used + n;
    t->ended = length == 0;
    return true;
}

/* False: it waits, or is over. */
static bool serve_more(struct layer_transfer *t)
{
    ssize_t n;
    do
        n = read(t->fd, t->raw, RAW_BYTES);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) {
        secure_stream_want(t->stream, 0);
        (void)uv_poll_start(&t->poll, UV_READABLE, poll_cb);
        return false;
    }
    struct err e;
    if (n < 0)
        (void)err_sys(&e, ERR_IO, errno, "read the layer");
    else if (n == 0 && t->zeros < END_BYTES)
        (void)err_set(&e, ERR_IO, "the layer could not be read whole");
    else if (!pack(t, (size_t)n))
        (void)err_set(&e, ERR_INTERNAL, "lz4 failed");
    else {
        if (n > 0)
            count_zeros(t, (size_t)n);
        t->bytes += (uint64_t)n;
        return true;
    }
    finish(t, &e);
    return false;
}

static void await_end(struct layer_transfer *t)
{
    char byte;
    size_t count;
    switch (secure_stream_read(t->stream, &byte, 1, &count)) {
    case SECURE_END:
        finish(t, NULL);
        break;
    case SECURE_BLOCKED:
        secure_stream_want(t->stream, SECURE_WANT_READ);
        break;
    default:
        /* It closed after the last byte: that it got them all, its digest tells it. */
        finish(t, NULL);
    }
}

static void serve_pump(struct layer_transfer *t)
{
    for (unsigned round = 0; round < ROUNDS_MAX && !t->over; round++) {
        if (t->packed_at < t->packed_length) {
            struct iovec part = {t->packed + t->packed_at, t->packed_length - t->packed_at};
            size_t count = 0;
            enum secure_result result = secure_stream_write(t->stream, &part, 1, &count);
            t->packed_at += count;
            if (count > 0)
                moved(t);
            if (result == SECURE_BROKEN)
                fail_stream(t, "the node that asked went away");
            else if (result == SECURE_BLOCKED)
                secure_stream_want(t->stream, SECURE_WANT_WRITE);
            if (result != SECURE_DONE)
                return;
        } else if (t->ended) {
            if (t->fd >= 0 && secure_stream_end(t->stream) == SECURE_BROKEN) {
                fail_stream(t, "the node that asked went away");
                return;
            }
            if (t->poll_open)
                uv_close((uv_handle_t *)&t->poll, NULL);
            t->poll_open = false;
            memory_close(&t->fd);
            await_end(t);
            return;
        } else if (!serve_more(t)) {
            return;
        }
    }
    if (!t->over)
        secure_stream_want(t->stream, SECURE_WANT_WRITE); /* comes round at once */
}

/* --- in ----------------------------------------------------------------------------------------- */

static void ask_next(struct layer_transfer *t);

static void stream_gone_cb(void *user)
{
    struct layer_transfer *t = user;
    if (!t->over)
        ask_next(t);
}

/* `why` is kept: it is told if nobody else has it. */
static void next_peer(struct layer_transfer *t, const char *why)
{
    struct secure_stream *s = t->stream;
    (void)err_set(&t->error, ERR_NOT_FOUND, "node %llu: %s",
                  (unsigned long long)t->peers[t->peer_at].id, why);
    t->peer_at++;
    t->stream = NULL;
    t->begun = false;
    t->frame_open = false;
    t->question_sent = 0;
    t->raw_at = t->raw_length = t->packed_at = t->packed_length = 0;
    (void)uv_poll_stop(&t->poll);
    if (s != NULL)
        secure_stream_close(s, stream_gone_cb);
    else
        ask_next(t);
}

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct layer_transfer *t = secure_stream_user(s);
    if (s != t->stream || t->over)
        return;
    if (error != NULL)
        next_peer(t, error->msg);
    else
        pump(t);
}

static void ask_next(struct layer_transfer *t)
{
    struct err e;
    for (; t->peer_at < t->peer_count; t->peer_at++) {
        const struct secure_connect_options options = {
            .context = t->secure,
            .address = &t->peers[t->peer_at].address,
            .protocol = SECURE_IMAGE,
            .peer = t->peers[t->peer_at].id,
            .events = {.opened = opened_cb, .ready = ready_cb},
            .user = t,
        };
        t->ask.skip = t->bytes;
        layer_ask_write(t->question, &t->ask);
        LZ4F_resetDecompressionContext(t->unpacker);
        if (secure_stream_connect(&t->stream, &t->loop, &options, &t->error) == 0)
            return;
    }
    (void)err_set(&e, ERR_NOT_FOUND, "no node could give %.19s… (%.150s)", t->ask.digest,
                  t->error.msg[0] != '\0' ? t->error.msg : "there is no other node");
    finish(t, &e);
}

static bool send_question(struct layer_transfer *t)
{
    struct iovec part = {t->question + t->question_sent, LAYER_ASK_BYTES - t->question_sent};
    size_t count = 0;
    enum secure_result result = secure_stream_write(t->stream, &part, 1, &count);
    t->question_sent += count;
    if (result == SECURE_BROKEN)
        next_peer(t, "it went away");
    else if (result == SECURE_BLOCKED)
        secure_stream_want(t->stream, SECURE_WANT_WRITE);
    return result == SECURE_DONE;
}

/* False: it waits, or another peer is asked. */
static bool read_packed(struct layer_transfer *t)
{
    size_t count = 0;
    switch (secure_stream_read(t->stream, t->packed, PACKED_BYTES, &count)) {
    case SECURE_DONE:
        break;
    case SECURE_BLOCKED:
        secure_stream_want(t->stream, SECURE_WANT_READ);
        return false;
    case SECURE_END:
        if (t->begun && !t->frame_open && t->bytes > 0)
            finish(t, NULL);
        else
            next_peer(t, "its answer ended early");
        return false;
    default:
        next_peer(t, "it went away");
        return false;
    }
    moved(t);
    t->packed_at = 0;
    t->packed_length = count;
    if (!t->begun) {
        uint8_t answer = (uint8_t)t->packed[t->packed_at++];
        if (answer != LAYER_HERE) {
            next_peer(t, answer == LAYER_MISSING ? "it does not have it" : "it is busy");
            return false;
        }
        t->begun = true;
        t->frame_open = true;
    }
    return true;
}

static bool unpack(struct layer_transfer *t)
{
    size_t room = RAW_BYTES;
    size_t taken = t->packed_length - t->packed_at;
    if (!t->frame_open) {
        next_peer(t, "it sent more than one frame");
        return false;
    }
    size_t hint =
        LZ4F_decompress(t->unpacker, t->raw, &room, t->packed + t->packed_at, &taken, NULL);
    if (LZ4F_isError(hint)) {
        next_peer(t, "what it sent is no lz4 frame");
        return false;
    }
    t->packed_at += taken;
    t->raw_at = 0;
    t->raw_length = room;
    t->frame_open = hint != 0;
    return true;
}

static bool write_raw(struct layer_transfer *t)
{
    ssize_t n;
    do
        n = write(t->fd, t->raw + t->raw_at, t->raw_length - t->raw_at);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) {
        secure_stream_want(t->stream, 0);
        (void)uv_poll_start(&t->poll, UV_WRITABLE, poll_cb);
        return false;
    }
    if (n < 0) {
        fail_sys(t, "the runner takes no more of the layer");
        return false;
    }
    moved(t);
    t->raw_at += (size_t)n;
    t->bytes += (uint64_t)n;
    return true;
}

static void fetch_pump(struct layer_transfer *t)
{
    for (unsigned round = 0; round < ROUNDS_MAX && !t->over && t->stream != NULL; round++) {
        bool go_on;
        if (t->question_sent < LAYER_ASK_BYTES)
            go_on = send_question(t);
        else if (t->raw_at < t->raw_length)
            go_on = write_raw(t);
        else if (t->packed_at < t->packed_length)
            go_on = unpack(t);
        else
            go_on = read_packed(t);
        if (!go_on)
            return;
    }
    if (!t->over && t->stream != NULL)
        secure_stream_want(t->stream, SECURE_WANT_WRITE); /* comes round at once */
}

static void pump(struct layer_transfer *t)
{
    if (t->packer != NULL)
        serve_pump(t);
    else
        fetch_pump(t);
}

/* --- the thread --------------------------------------------------------------------------------- */

static void deliver_done(struct inbox_message *message, void *owner)
{
    (void)owner;
    struct layer_transfer *t = container_of(message, struct layer_transfer, message);
    (void)pthread_join(t->thread, NULL);
    t->joined = true;
    const struct layer_done done = {.error = t->failed ? &t->error : NULL, .bytes = t->bytes};
    t->done(t, t->user, &done);
}

static void begin(struct layer_transfer *t)
{
    struct err e;
    if (t->packer == NULL) {
        ask_next(t);
        return;
    }
    const struct secure_events events = {.opened = opened_cb, .ready = ready_cb};
    struct secure_parcel *parcel = t->parcel;
    t->parcel = NULL;
    if (secure_stream_attach(&t->stream, &t->loop, t->secure, parcel, &events, t, &e) < 0) {
        t->stream = NULL;
        finish(t, &e);
        return;
    }
    pump(t);
}

static void *thread_main(void *user)
{
    struct layer_transfer *t = user;
    sigset_t all;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    (void)pthread_setname_np(pthread_self(), "skerry-layer");
    begin(t);
    if (!t->over)
        (void)uv_run(&t->loop, UV_RUN_DEFAULT);
    /* The reader of an import sees its end, and the writer of an export a closed pipe. */
    if (t->poll_open)
        uv_close((uv_handle_t *)&t->poll, NULL);
    memory_close(&t->fd);
    if (t->stream != NULL)
        secure_stream_close(t->stream, NULL);
    (void)pthread_mutex_lock(&t->lock);
    t->stoppable = false;
    (void)pthread_mutex_unlock(&t->lock);
    uv_close((uv_handle_t *)&t->stopper, NULL);
    uv_close((uv_handle_t *)&t->idle, NULL);
    while (uv_run(&t->loop, UV_RUN_DEFAULT) != 0)
        ;
    int rc = uv_loop_close(&t->loop);
    assert_always(rc == 0);
    t->message.deliver = deliver_done;
    bool posted = inbox_post_always(t->inbox, &t->message);
    assert_always(posted); /* the owner waits for it before it closes its inbox */
    return NULL;
}

static int start(struct layer_transfer *t, struct err *e)
{
    int flags = fcntl(t->fd, F_GETFL);
    if (flags < 0 || fcntl(t->fd, F_SETFL, flags | O_NONBLOCK) != 0)
        return err_sys(e, ERR_IO, errno, "the pipe of a layer");
    int rc = uv_loop_init(&t->loop);
    if (rc != 0)
        return err_set(e, ERR_NO_MEMORY, "a loop for a layer: %s", uv_strerror(rc));
    rc = uv_async_init(&t->loop, &t->stopper, stopper_cb);
    if (rc == 0)
        rc = uv_timer_init(&t->loop, &t->idle);
    if (rc == 0)
        rc = uv_timer_start(&t->idle, idle_cb, LAYER_IDLE_MS, LAYER_IDLE_MS);
    if (rc == 0) {
        rc = uv_poll_init(&t->loop, &t->poll, t->fd);
        t->poll_open = rc == 0;
    }
    if (rc == 0) {
        t->stoppable = true;
        rc = -pthread_create(&t->thread, NULL, thread_main, t);
        if (rc == 0)
            return 0;
        t->stoppable = false;
    }
    if (t->stopper.type == UV_ASYNC)
        uv_close((uv_handle_t *)&t->stopper, NULL);
    if (t->idle.type == UV_TIMER)
        uv_close((uv_handle_t *)&t->idle, NULL);
    if (t->poll_open)
        uv_close((uv_handle_t *)&t->poll, NULL);
    (void)uv_run(&t->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&t->loop);
    return err_set(e, ERR_NO_MEMORY, "a thread for a layer: %s", uv_strerror(rc));
}

static struct layer_transfer *transfer_new(struct secure_context *secure, struct inbox *inbox,
                                           int fd, layer_done_cb done, void *user)
{
    struct layer_transfer *t = calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    t->secure = secure;
    t->inbox = inbox;
    t->fd = fd;
    t->done = done;
    t->user = user;
    t->joined = true;
    (void)pthread_mutex_init(&t->lock, NULL);
    return t;
}

/* What a transfer that did not begin holds. */
static int undo(struct layer_transfer *t, int fd, struct secure_parcel *parcel, int rc,
                struct err *e)
{
    if (t == NULL)
        rc = err_set(e, ERR_NO_MEMORY, "a layer: no memory");
    memory_close(&fd);
    if (parcel != NULL)
        secure_parcel_drop(parcel);
    if (t != NULL) {
        t->fd = -1;
        layer_transfer_free(t);
    }
    return rc;
}

int layer_fetch(struct layer_transfer **out, struct secure_context *secure, struct inbox *inbox,
                const struct layer_ask *ask, const struct layers_peer *peers, size_t peer_count,
                int fd, layer_done_cb done, void *user, struct err *e)
{
    struct layer_transfer *t = transfer_new(secure, inbox, fd, done, user);
    if (t == NULL)
        return undo(t, fd, NULL, 0, e);
    t->ask = *ask;
    t->peer_count = peer_count < LAYERS_PEERS_MAX ? peer_count : LAYERS_PEERS_MAX;
    memcpy(t->peers, peers, t->peer_count * sizeof t->peers[0]);
    int rc = LZ4F_isError(LZ4F_createDecompressionContext(&t->unpacker, LZ4F_VERSION))
                 ? err_set(e, ERR_NO_MEMORY, "a layer: no memory")
                 : start(t, e);
    if (rc != 0)
        return undo(t, fd, NULL, rc, e);
    t->joined = false;
    *out = t;
    return 0;
}

int layer_serve(struct layer_transfer **out, struct secure_context *secure, struct inbox *inbox,
                struct secure_parcel *parcel, int fd, layer_done_cb done, void *user, struct err *e)
{
    struct layer_transfer *t = transfer_new(secure, inbox, fd, done, user);
    if (t == NULL)
        return undo(t, fd, parcel, 0, e);
    t->parcel = parcel;
    int rc = LZ4F_isError(LZ4F_createCompressionContext(&t->packer, LZ4F_VERSION))
                 ? err_set(e, ERR_NO_MEMORY, "a layer: no memory")
                 : start(t, e);
    if (rc != 0)
        return undo(t, fd, parcel, rc, e);
    t->joined = false;
    *out = t;
    return 0;
}

void layer_transfer_stop(struct layer_transfer *t)
{
    (void)pthread_mutex_lock(&t->lock);
    if (t->stoppable)
        (void)uv_async_send(&t->stopper);
    (void)pthread_mutex_unlock(&t->lock);
}

void layer_transfer_free(struct layer_transfer *t)
{
    assert_always(t->joined);
    (void)LZ4F_freeCompressionContext(t->packer);
    (void)LZ4F_freeDecompressionContext(t->unpacker);
    (void)pthread_mutex_destroy(&t->lock);
    free(t);
}
