/* tests/lib/gateway_fixture.h - a real gateway in this process, with a provider made up for tests,
 * and code behind it that does what the path of a request says.
 *
 * The provider knows these workloads:
 *   web      public, server, answered by the code below; one instance that is open
 *   keyed    as web, with join.key header:X-Room
 *   private  needs the token "skt_good"
 *   job      public, command
 * and asks go to `on_ask`, on the control thread. */
#ifndef SKERRY_TESTS_LIB_GATEWAY_FIXTURE_H
#define SKERRY_TESTS_LIB_GATEWAY_FIXTURE_H

#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "gateway/gateway.h"

struct gateway_fixture;
struct gateway_fixture_options {
    unsigned threads;
    unsigned max_joiners;
    uint64_t first_byte_ms, request_ms, stream_idle_ms; /* 0: none */
    unsigned header_timeout_ms, body_timeout_ms, keepalive_timeout_ms;
    uint64_t body_bytes_max;
    unsigned connections_max;
    unsigned owner_wait_ms;
    bool trust_forwarded;
    bool one_at_a_time;    /* the code serves one connection until it is closed, then the next */
    const char *listen;    /* NULL: 127.0.0.1:0 */
    unsigned backend_port; /* 0: the code of the fixture */
    /* With certificates it also listens for HTTPS and redirects, on ports that are picked. */
    struct gateway_tls_options tls;
    const char *acme_webroot;
    void (*on_ask)(struct gateway_fixture *f, struct gateway_ask *ask);
    void (*on_cancel)(struct gateway_fixture *f, uint64_t number, enum end_reason reason);
    /* One node among others (tests/lib/gateway_nodes.h); 0 and NULL: alone, as node 1. */
    node_id id;
    const char *node_name;
    struct secure_context *secure;
    bool (*peer)(void *user, node_id id, struct gateway_peer *out); /* user: the fixture */
    void (*on_workload)(struct gateway_fixture *f, struct gateway_workload *out);
    /* Of instances that are not the fixture's. */
    bool (*on_instance)(struct gateway_fixture *f, const struct instance_id *id,
                        struct gateway_instance *out, struct gateway_workload *out_workload);
    void *user;
};

struct gateway_fixture {
    struct gateway_fixture_options options;
    struct gateway *gateway;
    unsigned port, https_port, redirect_port;
    struct slot_table *slots;
    struct slot_ref slot;
    struct instance_id id; /* of the open instance */
    unsigned backend_port;

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* under the mutex */
    enum instance_state state;
    enum end_reason reason;
    bool refuse_connections; /* sockets are given for a port where nobody listens */
    bool refuse_sockets;
    _Atomic bool runner_away; /* sockets are refused for as long as it is */
    _Atomic bool one_socket;  /* is given, however many are wanted */
    bool no_candidates;
    bool not_ready;
    bool unknown_once; /* the first look-up of a workload finds nothing */
    unsigned released;
    unsigned left_reports;
    unsigned canceled;
    enum end_reason canceled_reason;
    struct inbox_message *queue_first, **queue_last; /* to the control thread */
    bool stopping;

    pthread_t control, backend;
    int backend_fd;
    _Atomic unsigned backend_connections; /* accepted in all */
    _Atomic unsigned backend_open;
    _Atomic unsigned backend_inside, backend_inside_most; /* requests at the same time */
    _Atomic uint64_t backend_body_bytes;
    _Atomic bool backend_hold; /* "/hold" answers only when this is false */
};

void gateway_fixture_start(struct gateway_fixture *f,
                           const struct gateway_fixture_options *options);
void gateway_fixture_stop(struct gateway_fixture *f);
void gateway_fixture_publish(struct gateway_fixture *f);
/* Ends the instance: state and reason, and publishes. */
void gateway_fixture_end_instance(struct gateway_fixture *f, enum end_reason reason);

/* --- a client --- */
struct test_client {
    int fd;
    SSL *ssl;   /* over it; NULL: plain HTTP */
    char *data; /* read and not taken */
    size_t length, capacity;
};
struct test_answer {
    unsigned status;
    char *head; /* with the empty line */
    char *body;
    size_t body_length;
    char *trailers;
    bool broken; /* the connection ended within it */
};
void test_client_open(struct test_client *c, const struct gateway_fixture *f);
void test_client_connect(struct test_client *c, unsigned port);
/* To f->https_port, and TLS begun; `name` (SNI) may be NULL. */
void test_client_open_tls(struct test_client *c, const struct gateway_fixture *f, SSL_CTX *context,
                          const char *name);
void test_client_close(struct test_client *c);
void test_client_send(struct test_client *c, const char *text);
void test_client_send_bytes(struct test_client *c, const void *data, size_t length);
/* Reads one answer, 1xx too; fails the test after 40 s. `head_only`: it answers HEAD. */
void test_client_read(struct test_client *c, struct test_answer *a, bool head_only);
/* True once the other side has closed; fails the test after 40 s. */
bool test_client_at_end(struct test_client *c, bool *reset);
void test_answer_free(struct test_answer *a);
/* The value of a header, or NULL; valid until the next call. */
const char *test_answer_field(const struct test_answer *a, const char *name);
/* One request on a connection of its own. */
void gateway_fixture_get(const struct gateway_fixture *f, struct test_answer *a,
                         const char *request);

/* Waits until the condition holds; fails the test after 40 s. */
#define wait_until(condition)                                                                      \
    do {                                                                                           \
        uint64_t wait_end_ = clock_monotonic_ms() + 40000;                                         \
        while (!(condition)) {                                                                     \
            if (clock_monotonic_ms() > wait_end_)                                                  \
                fail_msg("never became true: %s", #condition);                                     \
            gateway_fixture_pause();                                                               \
        }                                                                                          \
    } while (0)
void gateway_fixture_pause(void);

#endif
