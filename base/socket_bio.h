/* base/socket_bio.h - how OpenSSL reads and writes a socket of ours, without a copy between (BIO_meth_new(3)).
 *
 * The callbacks are as BIO_meth_set_write_ex and BIO_meth_set_read_ex describe; at the socket's end, `read`
 * sets BIO_FLAGS_IN_EOF. Thread: any. */
#ifndef SKERRY_BASE_SOCKET_BIO_H
#define SKERRY_BASE_SOCKET_BIO_H

#include <openssl/bio.h>
#include <stddef.h>

/* NULL: no memory. The caller's, until BIO_meth_free; outlives all of its kind. */
BIO_METHOD *socket_bio_method(const char *name,
                              int (*write)(BIO *bio, const char *data, size_t size,
                                           size_t *written),
                              int (*read)(BIO *bio, char *out, size_t size, size_t *count));

#endif
