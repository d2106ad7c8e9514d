#include "gateway/tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/memory.h"
#include "base/socket_bio.h"

struct tls {
    SSL *ssl;
    struct certificates *certificates;
    int fd;
    bool open;         /* the handshake is done */
    bool socket_ended; /* recv() said 0 */
    bool read_blocked; /* the last receive found nothing whole */
    bool read_waits;   /* ... since something of OpenSSL's own must be sent first */
    bool write_waits;
    bool end_waits;
    bool ended;  /* nothing more comes: */
    bool broken; /* not by an end */
    bool told;   /* the caller has heard of that */
    int error;
};

/* --- OpenSSL's way to the socket ------------------------------------------------------------------ */

static int write_cb(BIO *bio, const char *data, size_t size, size_t *written)
{
    struct tls *t = BIO_get_data(bio);
    ssize_t n;
    BIO_clear_retry_flags(bio);
    do
        n = send(t->fd, data, size, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    *written = n > 0 ? (size_t)n : 0;
    if (n < 0 && errno == EAGAIN)
        BIO_set_retry_write(bio);
    else if (n < 0)
        t->error = errno;
    return n > 0;
}

static int read_cb(BIO *bio, char *out, size_t size, size_t *count)
{
    struct tls *t = BIO_get_data(bio);
    ssize_t n;
    BIO_clear_retry_flags(bio);
    do
        n = recv(t->fd, out, size, 0);
    while (n < 0 && errno == EINTR);
    *count = n > 0 ? (size_t)n : 0;
    if (n == 0) {
        t->socket_ended = true;
        BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
    } else if (n < 0 && errno == EAGAIN) {
        BIO_set_retry_read(bio);
    } else if (n < 0) {
        t->error = errno;
    }
    return n > 0;
}

BIO_METHOD *tls_bio_method(void)
{
    return socket_bio_method("skerry client", write_cb, read_cb);
}

/* --- life ----------------------------------------------------------------------------------------- */

struct tls *tls_new(struct certificates *certificates, int fd)
{
    struct tls *t = calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    t->fd = fd;
    t->ssl = SSL_new(certificates_context(certificates));
    BIO *bio = t->ssl == NULL ? NULL : BIO_new(certificates_bio(certificates));
    if (bio == NULL) {
        SSL_free(t->ssl);
        free(t);
        return NULL;
    }
    BIO_set_data(bio, t);
    BIO_set_init(bio, 1);
    SSL_set_bio(t->ssl, bio, bio);
    SSL_set_accept_state(t->ssl);
    t->certificates = certificates_hold(certificates);
    return t;
}

void tls_free(struct tls *t)
{
    if (t == NULL)
        return;
    SSL_free(t->ssl);
    certificates_release(t->certificates);
    free(t);
}

/* --- the handshake -------------------------------------------------------------------------------- */

enum tls_step tls_handshake(struct tls *t, char *why, size_t size)
{
    ERR_clear_error();
    t->write_waits = false;
    int rc = SSL_do_handshake(t->ssl);
    if (rc == 1) {
        t->open = true;
        return TLS_DONE;
    }
    switch (SSL_get_error(t->ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        if (!t->socket_ended)
            return TLS_WANT_READ;
        break;
    case SSL_ERROR_WANT_WRITE:
        t->write_waits = true;
        return TLS_WANT_WRITE;
    default:
        break;
    }
    unsigned long code = ERR_peek_last_error();
    const char *reason = code == 0 ? NULL : ERR_reason_error_string(code);
    (void)text_copy(why, size, reason != NULL ? reason : "the client closed the connection");
    ERR_clear_error();
    t->ended = t->broken = true;
    return TLS_FAILED;
}

bool tls_resumed(const struct tls *t)
{
    return SSL_session_reused(t->ssl) == 1;
}

/* --- bytes ---------------------------------------------------------------------------------------- */

/* One record or less; false: that was all for now. */
static bool receive_some(struct tls *t, char *to, size_t size, size_t *count)
{
    size_t n = 0;
    ERR_clear_error();
    int rc = SSL_read_ex(t->ssl, to, size, &n);
    if (rc == 1) {
        *count += n;
        /* Not to ask the socket again for the sake of EAGAIN: it is level-triggered. */
        return SSL_has_pending(t->ssl) != 0;
    }
    switch (SSL_get_error(t->ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        t->read_blocked = true;
        break;
    case SSL_ERROR_WANT_WRITE:
        t->read_waits = t->read_blocked = true;
        break;
    case SSL_ERROR_ZERO_RETURN:
        t->ended = true;
        break;
    default:
        t->ended = t->broken = true;
        break;
    }
    ERR_clear_error();
    return false;
}

ssize_t tls_receive(struct tls *t, char *to, size_t size)
{
    size_t count = 0;
    t->read_blocked = t->read_waits = false;
    while (!t->ended && count < size && receive_some(t, to + count, size - count, &count))
        ;
    if (count > 0)
        return (ssize_t)count;
    if (!t->ended) {
        errno = EAGAIN;
        return -1;
    }
    t->told = true;
    if (!t->broken)
        return 0;
    errno = t->error != 0 ? t->error : EPROTO;
    return -1;
}

bool tls_truncated(const struct tls *t)
{
    return t->socket_ended;
}

bool tls_pending(const struct tls *t)
{
    if (t->ended)
        return !t->told;
    return t->open && !t->read_blocked && SSL_has_pending(t->ssl) != 0;
}

enum queue_write tls_send(struct tls *t, struct block_pool *pool, struct queue *q, size_t *written)
{
    t->write_waits = false;
    while (queue_pending(q) > 0) {
        size_t n = 0;
        ERR_clear_error();
        int rc = t->broken ? 0 : SSL_write_ex(t->ssl, queue_data(q), queue_pending(q), &n);
        if (rc == 1) {
            *written += n;
            queue_consume(pool, q, n);
            continue;
        }
        t->write_waits = !t->broken && SSL_get_error(t->ssl, rc) == SSL_ERROR_WANT_WRITE;
        ERR_clear_error();
        return t->write_waits ? QUEUE_BLOCKED : QUEUE_BROKEN;
    }
    queue_clear(pool, q);
    return QUEUE_EMPTY;
}

bool tls_end(struct tls *t)
{
    bool sent = (SSL_get_shutdown(t->ssl) & SSL_SENT_SHUTDOWN) != 0;
    if (!t->open || t->broken || (sent && !t->end_waits))
        return true;
    ERR_clear_error();
    int rc = SSL_shutdown(t->ssl);
    t->end_waits = rc < 0 && SSL_get_error(t->ssl, rc) == SSL_ERROR_WANT_WRITE;
    ERR_clear_error();
    return !t->end_waits;
}

bool tls_wants_write(const struct tls *t)
{
    return t->write_waits || t->read_waits || t->end_waits;
}

bool tls_receive_waits_for_write(const struct tls *t)
{
    return t->read_waits;
}
