/* base/domain.h - host names at which workloads answer, beside WORKLOAD.DOMAIN.
 *
 *     app.example.org    a host name of its own
 *     chatroom           an alias: chatroom.DOMAIN, whatever a node's domain is
 *
 * They are kept and compared in one form: lower case, no last point, IDNA's A-labels (xn--...).
 *
 * Thread: any. */
#ifndef SKERRY_BASE_DOMAIN_H
#define SKERRY_BASE_DOMAIN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define DOMAIN_LENGTH_MAX 253 /* RFC 1035 section 2.3.4, without its last point */
#define DOMAIN_TEXT_SIZE (DOMAIN_LENGTH_MAX + 1)

/* Labels of a-z, 0-9 and -, at most 63 each, joined by points where `points` are allowed. */
bool host_name_valid(const char *text, bool points);
/* A name in that form. */
bool domain_valid(const char *name);
/* Brings what a person wrote into that form; refuses addresses, ports, wildcards and other scripts with
 * what to do. */
int domain_parse(char out[DOMAIN_TEXT_SIZE], const char *text, struct err *e) ERR_CHECKED;
bool domain_is_alias(const char *name);
/* Whether a host name is `domain`, or lies below it. */
bool domain_within(const char *name, const char *domain);

#endif
