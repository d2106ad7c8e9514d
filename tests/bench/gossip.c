/* A node is killed: how long until every other one says dead, and whether a living one is called dead
 * meanwhile. Real processes, real sockets on 127.0.0.x, seals and all.
 *
 *     build/bench/gossip [ROUNDS [NODES [HOGS [SECONDS]]]]      20 5 0 0
 *
 * HOGS processes burn CPU beside them; before the kills all are watched for so many seconds. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "gossip/udp.h"

enum { NODES_MAX = 32, ROUNDS_MAX = 1000, HOGS_MAX = 64, WAIT_MS = 30000 };

/* What a process tells: one write(2), so it stays whole in the pipe. */
struct report {
    uint32_t by, about, state;
    uint64_t at_us;
};

struct child {
    uint32_t index, count;
    int out;
    struct gossip *gossip;
};

static uint64_t boots[NODES_MAX]; /* the parent's; a child inherits them as they are */
static const uint8_t key[SEAL_KEY_BYTES] = {42};

static void address_of(uint32_t i, struct sockaddr_storage *out)
{
    char text[ADDRESS_TEXT_SIZE];
    struct err e;
    (void)text_format(text, sizeof text, "127.0.0.%u:17602", i + 1);
    assert_always(address_parse(out, text, 0, &e) == 0);
}

static struct gossip *make(uint32_t i)
{
    struct gossip_meta meta = {.name = "n"};
    struct gossip_options options;
    struct sockaddr_storage address;
    struct gossip *g = NULL;
    gossip_options_defaults(&options);
    options.self.id = i + 1ull;
    options.self.boot = boots[i];
    options.self.meta = &meta;
    options.seed = boots[i] * 1000 + i;
    address_of(i, &address);
    assert_always(address_pack(&options.self.address, &address));
    assert_always(gossip_new(&g, &options, NULL) == 0);
    return g;
}

static void changed_cb(void *user, const struct gossip_change *changes, size_t count)
{
    const struct child *c = user;
    for (size_t i = 0; i < count; i++) {
        struct report r = {c->index, (uint32_t)changes[i].id - 1, changes[i].state,
                           clock_monotonic_us()};
        if ((changes[i].changed & GOSSIP_CHANGED_STATE) != 0)
            assert_always(write(c->out, &r, sizeof r) == sizeof r);
    }
}

static void run_child(uint32_t index, uint32_t count, int out) __attribute__((noreturn));
static void run_child(uint32_t index, uint32_t count, int out)
{
    struct child c = {index, count, out, make(index)};
    struct seal_options seal_options = {
        .self = index + 1ull, .boot = boots[index], .senders_max = NODES_MAX};
    struct gossip_udp_options options = {.gossip = c.gossip, .user = &c, .changed = changed_cb};
    struct gossip_udp *udp = NULL;
    uv_loop_t loop;
    struct err e;
    assert_always(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && uv_loop_init(&loop) == 0);
    address_of(index, &options.bind);
    assert_always(seal_new(&options.seal, &seal_options, &e) == 0 &&
                  seal_key_add(options.seal, key, &e) == 0);
    if (gossip_udp_open(&udp, &loop, &options, &e) != 0) {
        fprintf(stderr, "%s\n", e.msg);
        exit(1);
    }
    /* What a sync with each of the others would have brought. */
    for (uint32_t i = 0; i < count; i++) {
        struct buffer state;
        struct gossip *other = make(i);
        buffer_init(&state, 1u << 16);
        assert_always(gossip_sync_write(other, &state, &e) == 0);
        struct gossip_event event = {.kind = GOSSIP_SYNC,
                                     .from = i + 1ull,
                                     .data = (const uint8_t *)state.data,
                                     .size = state.length};
        if (i != index)
            assert_always(gossip_udp_step(udp, &event, &e) == 0);
        buffer_free(&state);
        gossip_free(other);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    exit(0);
}

static pid_t start(uint32_t index, uint32_t count, int out)
{
    boots[index]++;
    pid_t pid = fork();
    assert_always(pid >= 0);
    if (pid == 0)
        run_child(index, count, out);
    return pid;
}

static pid_t start_hog(void)
{
    pid_t pid = fork();
    assert_always(pid >= 0);
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (volatile uint64_t n = 0;; n++)
            ;
    }
    return pid;
}

static void stop(pid_t pid)
{
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
}

/* False when none came in time. */
static bool next_report(int in, uint64_t until_us, struct report *out)
{
    uint64_t now_us = clock_monotonic_us();
    struct pollfd p = {.fd = in, .events = POLLIN};
    if (now_us >= until_us || poll(&p, 1, (int)((until_us - now_us) / 1000) + 1) != 1)
        return false;
    return read(in, out, sizeof *out) == (ssize_t)sizeof *out;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Waits until all others have said `state` of `about`; the time of the last, or 0. */
static uint64_t all_say(int in, uint32_t about, uint32_t count, enum gossip_state state,
                        unsigned *false_deaths)
{
    uint64_t until_us = clock_monotonic_us() + WAIT_MS * 1000ull;
    bool said[NODES_MAX] = {false};
    uint32_t saying = 0;
    struct report r;
    while (saying < count - 1 && next_report(in, until_us, &r)) {
        *false_deaths += r.state == GOSSIP_DEAD && r.about != about;
        if (r.about != about || r.by == about)
            continue;
        bool says = r.state == (uint32_t)state;
        saying += says && !said[r.by];
        saying -= !says && said[r.by];
        said[r.by] = says;
        if (saying == count - 1)
            return r.at_us;
    }
    return 0;
}

/* Nobody may be called dead meanwhile; how often somebody was. */
static unsigned watch(int in, uint64_t us)
{
    uint64_t until_us = clock_monotonic_us() + us;
    unsigned false_deaths = 0;
    struct report r;
    while (next_report(in, until_us, &r))
        false_deaths += r.state == GOSSIP_DEAD;
    return false_deaths;
}

int main(int argc, char **argv)
{
    uint32_t rounds = argc > 1 ? (uint32_t)atoi(argv[1]) : 20;
    uint32_t count = argc > 2 ? (uint32_t)atoi(argv[2]) : 5;
    uint32_t hogs = argc > 3 ? (uint32_t)atoi(argv[3]) : 0;
    uint32_t seconds = argc > 4 ? (uint32_t)atoi(argv[4]) : 0;
    if (rounds > ROUNDS_MAX || count < 2 || count > NODES_MAX || hogs > HOGS_MAX) {
        fprintf(stderr, "usage: gossip [ROUNDS [NODES [HOGS [SECONDS]]]]\n");
        return 2;
    }
    int fds[2];
    pid_t nodes[NODES_MAX], burning[HOGS_MAX];
    static uint64_t took_ms[ROUNDS_MAX];
    unsigned false_deaths = 0, missed = 0;
    assert_always(pipe(fds) == 0);
    /* A child expects the others at their first boot, whether they were started before it or not. */
    for (uint32_t i = 0; i < count; i++)
        boots[i] = 1;
    for (uint32_t i = 0; i < count; i++) {
        boots[i] = 0;
        nodes[i] = start(i, count, fds[1]);
    }
    for (uint32_t i = 0; i < hogs; i++)
        burning[i] = start_hog();
    false_deaths += watch(fds[0], seconds * 1000000ull);
    for (uint32_t round = 0; round < rounds; round++) {
        uint32_t victim = round % count;
        /* A quiet while, not in step with the probes; nobody may be called dead in it. */
        false_deaths += watch(fds[0], 2000000 + (round * 37 % 200) * 1000);
        uint64_t begin_us = clock_monotonic_us();
        stop(nodes[victim]);
        uint64_t end_us = all_say(fds[0], victim, count, GOSSIP_DEAD, &false_deaths);
        missed += end_us == 0;
        took_ms[round] = end_us == 0 ? WAIT_MS : (end_us - begin_us) / 1000;
        nodes[victim] = start(victim, count, fds[1]);
        missed += all_say(fds[0], victim, count, GOSSIP_ALIVE, &false_deaths) == 0;
    }
    for (uint32_t i = 0; i < count; i++)
        stop(nodes[i]);
    for (uint32_t i = 0; i < hogs; i++)
        stop(burning[i]);
    printf("gossip: %u nodes, %u CPU hogs, %u kills", count, hogs, rounds);
    qsort(took_ms, rounds, sizeof *took_ms, compare);
    if (rounds > 0)
        printf(": dead to all after %u ms (median), %u (p90), %u (max)",
               (unsigned)took_ms[rounds / 2], (unsigned)took_ms[rounds * 9 / 10],
               (unsigned)took_ms[rounds - 1]);
    printf("; %u false deaths, %u missed\n", false_deaths, missed);
    return 0;
}
