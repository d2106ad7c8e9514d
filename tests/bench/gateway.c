/* tests/bench/gateway.c - a gateway alone, before a backend that is given, for wrk beside nginx:
 *
 *     gateway LISTEN_PORT BACKEND_PORT [THREADS]
 *     gateway LISTEN_PORT BACKEND_PORT THREADS forward     two processes: an entry and an owner
 *     gateway LISTEN_PORT BACKEND_PORT THREADS CERTIFICATE KEY    two files: HTTPS beside it
 *     wrk -t1 -c64 -d5s http://127.0.0.1:LISTEN_PORT/w/web/
 *
 * Prints the process ids that work ("pids A B"; of HTTPS "port P" behind them), runs until its standard input ends, then prints its
 * counters. */
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/address.h"
#include "base/identity.h"
#include "base/memory.h"
#include "tests/lib/gateway_fixture.h"

/* Of both processes, made before the fork: each has the keys of both and uses its own. */
static struct identity *identities[3];
static struct sockaddr_storage owner_address;

static bool key_of(void *user, node_id id, struct identity_public *out)
{
    (void)user;
    if (id < 1 || id > 2)
        return false;
    *out = *identity_public(identities[id]);
    return true;
}

static struct secure_context *context_of(node_id id)
{
    struct secure_context *context = NULL;
    struct secure_context_options options = {
        .identity = identities[id], .id = id, .key_of = key_of};
    struct err e;
    assert_always(secure_context_open(&context, &options, &e) == 0);
    return context;
}

static bool peer(void *user, node_id id, struct gateway_peer *out)
{
    (void)user;
    out->address = owner_address;
    text_copy(out->name, sizeof out->name, "node2");
    out->alive = true;
    return id == 2;
}

static void on_workload(struct gateway_fixture *f, struct gateway_workload *out)
{
    (void)f;
    out->candidate_count = 0;
    out->owner_count = 1;
    out->owners[0] = (struct gateway_owner){.node = 2};
}

static void print_counters(struct gateway_fixture *f)
{
    struct gateway_counters c;
    gateway_counters(f->gateway, &c);
    printf("requests %llu, upstream connects %llu, reuses %llu, forwarded %llu, streams %llu, "
           "arrivals %llu, handshakes %llu, resumed %llu\n",
           (unsigned long long)c.requests[2], (unsigned long long)c.upstream_connects,
           (unsigned long long)c.upstream_reuses, (unsigned long long)c.forwarded,
           (unsigned long long)c.streams_connects, (unsigned long long)c.arrivals,
           (unsigned long long)c.tls_handshakes, (unsigned long long)c.tls_resumed);
    fflush(stdout);
}

/* --- the owner ------------------------------------------------------------------------------------ */

static void detached_cb(void *user, struct secure_parcel *parcel)
{
    struct gateway_fixture *f = user;
    gateway_accept(f->gateway, parcel);
}

static void accepted_cb(void *user, struct secure_stream *s)
{
    static const struct secure_events none = {NULL, NULL};
    secure_stream_set_events(s, &none, user);
    secure_stream_detach(s, detached_cb);
}

static void parent_gone_cb(uv_poll_t *poll, int status, int events)
{
    (void)status, (void)events;
    print_counters(poll->data);
    _exit(0);
}

/* Never returns: it ends with the pipe to the entry. */
static void run_owner(struct gateway_fixture_options options, int ready, int alive)
{
    static struct gateway_fixture f;
    uv_loop_t loop;
    uv_poll_t poll;
    struct err e;
    struct sockaddr_storage any;
    struct secure_listener *listener = NULL;
    options.listen = "127.0.0.1:0";
    options.id = 2;
    options.node_name = "node2";
    options.secure = context_of(2);
    gateway_fixture_start(&f, &options);
    assert_always(uv_loop_init(&loop) == 0);
    assert_always(address_parse(&any, "127.0.0.1:0", 0, &e) == 0);
    struct secure_listen_options listen = {.context = options.secure,
                                           .address = &any,
                                           .protocols = 1u << SECURE_JOIN,
                                           .accepted = accepted_cb,
                                           .user = &f};
    assert_always(secure_listener_open(&listener, &loop, &listen, &e) == 0);
    assert_always(write(ready, secure_listener_address(listener), sizeof any) == sizeof any);
    poll.data = &f;
    uv_poll_init(&loop, &poll, alive);
    uv_poll_start(&poll, UV_READABLE | UV_DISCONNECT, parent_gone_cb);
    uv_run(&loop, UV_RUN_DEFAULT);
    _exit(1);
}

static pid_t fork_owner(const struct gateway_fixture_options *options, int *alive)
{
    int ready[2], life[2];
    struct err e;
    for (node_id id = 1; id <= 2; id++)
        assert_always(identity_new(&identities[id], &e) == 0);
    assert_always(pipe(ready) == 0 && pipe(life) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(life[1]);
        run_owner(*options, ready[1], life[0]);
    }
    assert_always(read(ready[0], &owner_address, sizeof owner_address) == sizeof owner_address);
    close(life[0]);
    *alive = life[1];
    return pid;
}

int main(int argc, char **argv)
{
    static struct gateway_fixture f;
    char listen[32];
    if (argc < 3) {
        fprintf(stderr,
                "usage: %s LISTEN_PORT BACKEND_PORT [THREADS [forward | CERTIFICATE KEY]]\n",
                argv[0]);
        return 2;
    }
    snprintf(listen, sizeof listen, "127.0.0.1:%s", argv[1]);
    struct gateway_fixture_options options = {
        .threads = argc > 3 ? (unsigned)atoi(argv[3]) : 1,
        .listen = listen,
        .backend_port = (unsigned)atoi(argv[2]),
        .first_byte_ms = 30000,
        .request_ms = 60000,
        .stream_idle_ms = 300000,
    };
    pid_t owner = 0;
    int alive = -1;
    if (argc > 4 && strcmp(argv[4], "forward") == 0) {
        owner = fork_owner(&options, &alive);
        options.id = 1;
        options.secure = context_of(1);
        options.peer = peer;
        options.on_workload = on_workload;
    }
    if (argc > 5) {
        options.tls.certificates = (const char *const *)&argv[4];
        options.tls.keys = (const char *const *)&argv[5];
        options.tls.certificate_count = 1;
    }
    gateway_fixture_start(&f, &options);
    printf("pids %d %d", (int)getpid(), (int)owner);
    if (argc > 5)
        printf(" port %u", f.https_port);
    printf("\n");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    print_counters(&f);
    gateway_fixture_stop(&f);
    if (owner != 0) {
        close(alive);
        waitpid(owner, NULL, 0);
    }
    secure_context_free(options.secure);
    return 0;
}
