/* gateway/certificates.h - the certificates that the gateway shows over HTTPS, read from files.
 *
 * A set is made whole or not at all and never changes: a reload makes another one, and connections
 * keep the one that they began with. Which certificate a client sees is decided by the name that it
 * asks for (SNI; RFC 6066): the first of the list that is good for it, else the first.
 *
 * Refused are: a key that others than owner and group may read, one with a pass phrase, one that does
 * not belong to its certificate, a certificate that is not valid now. What is wrong is said with the
 * file and the remedy; nothing of a key is.
 *
 * Thread: any; loading blocks. The count of holders is atomic. */
#ifndef SKERRY_GATEWAY_CERTIFICATES_H
#define SKERRY_GATEWAY_CERTIFICATES_H

#include <openssl/bio.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "gateway/gateway.h"

#define CERTIFICATES_MAX 16

struct certificates;

int certificates_load(struct certificates **out, const struct gateway_tls_options *options,
                      struct err *e) ERR_CHECKED;
struct certificates *certificates_hold(struct certificates *c);
void certificates_release(struct certificates *c); /* NULL: nothing */
/* When the first of them ends; seconds since 1970. */
int64_t certificates_expire_s(const struct certificates *c);
/* "shop.example.org (until 2027-01-31), ..." for the log. */
void certificates_describe(const struct certificates *c, char *out, size_t size);
/* What a connection begins with. */
SSL_CTX *certificates_context(struct certificates *c);
BIO_METHOD *certificates_bio(struct certificates *c);

#endif
