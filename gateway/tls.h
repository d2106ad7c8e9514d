/* gateway/tls.h - TLS over the socket of one client, for gateway/connection.c.
 *
 * It keeps the shape of recv() and send(), so that a connection treats both kinds alike. What is
 * decrypted goes straight into the caller's buffer; what cannot leave stays in the caller's queue
 * until its record is gone, so nothing is held here but one record in OpenSSL.
 *
 * Two things differ from a plain socket: bytes may wait here although the socket has none
 * (tls_pending), and reading may have to wait until the socket can be written (tls_wants_write).
 *
 * Thread: the gateway thread of the connection. Memory: tls_free before the socket is closed. */
#ifndef SKERRY_GATEWAY_TLS_H
#define SKERRY_GATEWAY_TLS_H

#include <openssl/bio.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "gateway/block.h"
#include "gateway/certificates.h"

struct tls;

/* How OpenSSL reaches the socket; BIO_meth_free. NULL without memory. */
BIO_METHOD *tls_bio_method(void);
/* The server's side over `fd`, which stays the caller's; NULL without memory. */
struct tls *tls_new(struct certificates *certificates, int fd);
void tls_free(struct tls *t);

enum tls_step { TLS_DONE, TLS_WANT_READ, TLS_WANT_WRITE, TLS_FAILED };
/* Goes on with the handshake. FAILED: an alert was sent where one is due, and `why` says it. */
enum tls_step tls_handshake(struct tls *t, char *why, size_t size);
/* With a ticket of ours, so without the work of a key. */
bool tls_resumed(const struct tls *t);

/* As recv(): how many bytes; 0: the client has ended its direction; -1 with errno EAGAIN, or what
 * broke it. */
ssize_t tls_receive(struct tls *t, char *to, size_t size);
/* After 0: the client's end was a closed socket, which anybody on the way could have made. */
bool tls_truncated(const struct tls *t);
/* Bytes, or an end, wait to be received. */
bool tls_pending(const struct tls *t);
/* As queue_send. */
enum queue_write tls_send(struct tls *t, struct block_pool *pool, struct queue *q, size_t *written);
/* Ends our direction (close_notify): false as long as the socket does not take that; call again. */
bool tls_end(struct tls *t);
/* The socket must be writable before what was asked last can go on. */
bool tls_wants_write(const struct tls *t);
/* It was tls_receive that waits for it. */
bool tls_receive_waits_for_write(const struct tls *t);

#endif
