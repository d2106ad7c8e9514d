/* sandbox/runner/net_names_internal.h - within the forwarder of names, the process that reads what
 * instances and resolvers send. Private to net_names_main.c, net_names_serve.c and net_names_ask.c. */
#ifndef SKERRY_SANDBOX_RUNNER_NET_NAMES_INTERNAL_H
#define SKERRY_SANDBOX_RUNNER_NET_NAMES_INTERNAL_H

#include <uthash.h>

#include "sandbox/runner/loop.h"
#include "sandbox/runner/net_names_wire.h"

#define NAMES_ASKED_MAX 1024u  /* questions under way, of all instances */
#define NAMES_ASKED_CROWD 512u /* from here on one instance has at most */
#define NAMES_ASKED_FEW 8u     /*  so many, so that those who wait take nobody's turn */
#define NAMES_ASKED_EACH 64u   /* and so many otherwise */
#define NAMES_PER_SECOND 20u   /* questions of one instance */
#define NAMES_BURST 100u
#define NAMES_CLIENTS_EACH 8u /* TCP connections of one instance */
#define NAMES_CLIENTS_MAX 512u
#define NAMES_TOTAL_MS 5000u   /* until a question is answered, or is not */
#define NAMES_ATTEMPT_MS 1500u /* until another resolver is asked */
#define NAMES_FOREIGN_MAX 32u  /* what did not fit a question, until another socket is used */

struct forwarder {
    struct loop *loop;
    struct loop_watch channel;
    union names_address resolvers[NAMES_RESOLVERS_MAX];
    size_t resolver_count;
    struct served *served;   /* by number */
    struct question *allows; /* by seq: those that wait for the runner */
    size_t asked_count, client_count;
    uint64_t next_seq;
};

struct client;

/* One instance. */
struct served {
    UT_hash_handle hh;
    struct forwarder *f;
    uint64_t number;
    struct loop_watch udp, tcp; /* in its network; stopped while it asks too much */
    int udp_fd, tcp_fd;
    struct loop_timer resume;
    struct names_rate rate;
    struct question *questions;
    size_t asked_count;
    struct client *clients;
    size_t client_count;
    bool restricted;
    size_t rule_count;
    struct names_rule *rules;
};

struct question {
    UT_hash_handle hh;             /* in allows */
    struct question *next, **back; /* of its instance */
    struct served *served;
    struct client *client; /* over TCP; NULL: over UDP, from */
    struct sockaddr_in from;
    struct net_dns_query query;
    struct net_dns_answer answer;
    uint64_t rules, seq; /* seq 0: not in allows */
    uint64_t end_ms;
    struct loop_timer timer;
    struct loop_watch upstream;
    int upstream_fd;
    unsigned attempt, foreign;
    uint16_t id;
    bool stream, sent; /* asks over TCP; its question went out */
    uint8_t *reply;    /* over TCP: length and message */
    size_t reply_length;
};

/* --- net_names_serve.c: the side of instances --- */
/* Takes the descriptors, also on failure. */
void names_served_add(struct forwarder *f, const struct names_message *m, int udp, int tcp);
void names_served_free(struct served *s);
/* To the one who asked; frees the question. */
void names_answer(struct question *q, enum net_dns_code code);

/* --- net_names_ask.c: the side of resolvers --- */
/* `q` has its query, its asker and its rules. True: names_answer will be called, and not within this call.
 * False: nobody can be asked, and `q` is the caller's to free. */
bool names_ask(struct question *q);
/* The runner did what an answer needs, or did not. */
void names_confirmed(struct forwarder *f, uint64_t seq, bool done);
/* Takes it out of everything; nobody is answered. */
void names_question_free(struct question *q);

#endif
