/* sandbox/runner/net_dns.h - the little of DNS (RFC 1035) that instances are served: a question for
 * the addresses of one name, and what a resolver answers to it.
 *
 * Nothing that a resolver sent is passed on as it came: an answer is read into a struct, and what the
 * instance gets is written anew from it. So neither side's bytes reach the other.
 *
 * Thread: any; pure. */
#ifndef SKERRY_SANDBOX_RUNNER_NET_DNS_H
#define SKERRY_SANDBOX_RUNNER_NET_DNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NET_DNS_QUERY_MAX 512u   /* bytes; a longer question is nobody's */
#define NET_DNS_REPLY_MAX 16384u /* of a resolver, over TCP */
#define NET_DNS_UDP_MAX 1232u    /* what passes every path unbroken */
#define NET_DNS_UDP_MIN 512u
#define NET_DNS_NAME_SIZE 254u /* text, lower case, without the last dot */
#define NET_DNS_WIRE_SIZE 255u
#define NET_DNS_CHAIN_MAX 8u
#define NET_DNS_ADDRESSES_MAX 64u
#define NET_DNS_RECORDS_MAX 256u
/* Room for all that net_dns_answer_write can come to. */
#define NET_DNS_ANSWER_MAX 4096u

enum {
    NET_DNS_TYPE_A = 1,
    NET_DNS_TYPE_CNAME = 5,
    NET_DNS_TYPE_AAAA = 28,
    NET_DNS_TYPE_OPT = 41,
};
enum net_dns_code {
    NET_DNS_OK = 0,
    NET_DNS_FORMAT = 1,
    NET_DNS_FAILED = 2,
    NET_DNS_NO_NAME = 3,
    NET_DNS_NOT_IMPLEMENTED = 4,
};

struct net_dns_query {
    uint16_t id;
    uint16_t type; /* A or AAAA */
    bool recursion;
    bool asked;                      /* the question could be read: an answer repeats it */
    uint16_t udp_max;                /* what the asker takes over UDP */
    uint8_t wire[NET_DNS_WIRE_SIZE]; /* the name as it was asked, upper case and all */
    size_t wire_length;
    char name[NET_DNS_NAME_SIZE];
};

struct net_dns_answer {
    enum net_dns_code code; /* OK or NO_NAME */
    uint32_t ttl;           /* the smallest of all records */
    char chain[NET_DNS_CHAIN_MAX]
              [NET_DNS_NAME_SIZE]; /* of aliases; the last one has the addresses */
    size_t chain_count;
    uint32_t addresses[NET_DNS_ADDRESSES_MAX]; /* in the byte order of the machine */
    size_t address_count;
};

/* False: it is no question at all, and gets no answer. Else *code is OK, or what to answer. Names are of
 * letters, digits, - and _ only. */
bool net_dns_query_read(struct net_dns_query *out, enum net_dns_code *code, const uint8_t *data,
                        size_t size);
/* The question for a resolver, always for type A; its length. `out` has NET_DNS_QUERY_MAX bytes. */
size_t net_dns_ask_write(uint8_t *out, uint16_t id, const struct net_dns_query *query);

enum net_dns_reply {
    NET_DNS_REPLY_FOREIGN,   /* malformed, or an answer to something else: as if it had not come */
    NET_DNS_REPLY_TRUNCATED, /* to be asked again over TCP */
    NET_DNS_REPLY_FAILED,    /* the resolver cannot answer; another may */
    NET_DNS_REPLY_WHOLE
};
/* An answer to net_dns_ask_write(.., id, query). Of more than NET_DNS_ADDRESSES_MAX addresses the
 * first count; a chain longer than NET_DNS_CHAIN_MAX is malformed. */
enum net_dns_reply net_dns_reply_read(struct net_dns_answer *out, const uint8_t *data, size_t size,
                                      uint16_t id, const struct net_dns_query *query);

/* What the instance gets, of at most `size` (NET_DNS_UDP_MIN..NET_DNS_ANSWER_MAX) bytes; its length. What
 * does not fit is left out and marked as truncated. Who asked for AAAA gets no address, but whether there is
 * such a name. `answer` NULL: `code` alone. */
size_t net_dns_answer_write(uint8_t *out, size_t size, const struct net_dns_query *query,
                            enum net_dns_code code, const struct net_dns_answer *answer);

#endif
