/* base/secure_bio.c - between OpenSSL and the socket.
 *
 * Reading: OpenSSL reads from the socket into its own buffer, several records at a time, and decrypts
 * from there into the caller's: no copy between. Writing: the last record of a batch goes from
 * OpenSSL's buffer to the socket directly when nothing waits; those before it, and what the socket
 * does not take, are gathered in `out`, so that a batch is one system call. `out` cannot overflow:
 * secure_stream_write makes no record when it holds its bound. */
#include <errno.h>
#include <sys/socket.h>

#include "base/secure_internal.h"
#include "base/socket_bio.h"

static ssize_t send_some(int fd, const char *data, size_t size)
{
    ssize_t n;
    do
        n = send(fd, data, size, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n;
}

bool secure_bio_flush(struct secure_stream *s)
{
    while (s->out_sent < s->out.length) {
        ssize_t n = send_some(s->fd, s->out.data + s->out_sent, s->out.length - s->out_sent);
        if (n < 0) {
            s->out_blocked = errno == EAGAIN;
            return s->out_blocked;
        }
        s->out_sent += (size_t)n;
    }
    buffer_free(&s->out);
    s->out_sent = 0;
    s->out_blocked = false;
    return true;
}

static int write_cb(BIO *bio, const char *data, size_t size, size_t *written)
{
    struct secure_stream *s = BIO_get_data(bio);
    size_t sent = 0;
    BIO_clear_retry_flags(bio);
    if (!s->gathering && s->out.length == 0) {
        ssize_t n = send_some(s->fd, data, size);
        if (n < 0 && errno != EAGAIN)
            return 0;
        sent = n < 0 ? 0 : (size_t)n;
        s->out_blocked = sent < size;
    }
    /* What was sent leaves the front when its room is needed. */
    if (size - sent > s->out.length_max - s->out.length) {
        buffer_consume(&s->out, s->out_sent);
        s->out_sent = 0;
    }
    if (!buffer_append(&s->out, data + sent, size - sent)) {
        errno = ENOMEM;
        return 0;
    }
    *written = size;
    return s->gathering || s->out_blocked || secure_bio_flush(s);
}

static int read_cb(BIO *bio, char *out, size_t size, size_t *count)
{
    struct secure_stream *s = BIO_get_data(bio);
    ssize_t n;
    BIO_clear_retry_flags(bio);
    do
        n = recv(s->fd, out, size, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        BIO_set_retry_read(bio);
    *count = n > 0 ? (size_t)n : 0;
    if (n == 0)
        BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
    return n > 0;
}

BIO_METHOD *secure_bio_method(void)
{
    return socket_bio_method("skerry stream", write_cb, read_cb);
}
