/* base/destination.h - where code may connect to: "203.0.113.0/24", "203.0.113.7:443",
 * "203.0.113.0/24:8000-8099", "pypi.org:443", "*.example.org:443".
 *
 * IPv4 only: instances have no other way out. One parser for the workload file, the runner's
 * root-owned file and what the node tells the runner, so that none means more than another.
 *
 * Thread: any; pure. */
#ifndef SKERRY_BASE_DESTINATION_H
#define SKERRY_BASE_DESTINATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define DESTINATION_NAME_MAX 253 /* RFC 1035, section 2.3.4, as text without the last dot */
#define DESTINATION_TEXT_SIZE 300

enum destination_kind { DESTINATION_NETWORK, DESTINATION_NAME };

struct destination {
    enum destination_kind kind;
    uint32_t network; /* in the byte order of the machine; bits beyond the prefix are zero */
    unsigned prefix;  /* 0..32 */
    bool any_port;
    uint16_t port_first, port_last;      /* unless any_port */
    bool subdomains;                     /* "*.": names below `name`, not itself */
    char name[DESTINATION_NAME_MAX + 1]; /* lower case */
};

/* Names need one port. The error says what is wrong with `text`, without where it stood. */
int destination_parse(struct destination *out, const char *text, struct err *e) ERR_CHECKED;
/* "10.166.0.0/16", "203.0.113.7"; nothing behind it. */
int destination_parse_network(uint32_t *network, unsigned *prefix, const char *text,
                              struct err *e) ERR_CHECKED;
/* Whether `name` (lower case, no last dot) is one that a DESTINATION_NAME means. */
bool destination_matches_name(const struct destination *d, const char *name);
/* Whether two networks share an address. */
bool destination_overlaps(const struct destination *d, uint32_t network, unsigned prefix);
/* The mask of a prefix of 0..32. */
uint32_t destination_mask(unsigned prefix);

#endif
