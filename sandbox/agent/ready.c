/* When the instance is ready, and whether it stays well.
 *
 * listen       the port has a listening socket; nothing connects to find that out
 * healthcheck  the test command succeeded once (and the port listens, when there is one)
 * none         main's exec succeeded, or there is no main
 *
 * After that the health check, when there is one, goes on at its interval: `retries` failures in a
 * row are told once, and so is the recovery. */
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/agent/agent.h"
#include "sandbox/runner.pb-c.h"

/* A look costs 10 us with sock_diag: at most 1 % of a core while starting, and late by at most a
 * sixteenth of the time that the start took anyway. */
#define POLL_MS_MIN 1
#define POLL_MS_MAX 20
#define POLL_DIVISOR 16
/* Without sock_diag a look may take 3 ms. */
#define POLL_SLOW_MS 20
#define PORTS_INTERVAL_MS 100
#define HEALTH_STARTING_MS 100
#define HEALTH_TIMEOUT_DEFAULT_MS 5000
#define HEALTH_INTERVAL_DEFAULT_MS 30000
#define LISTENERS_MAX 64

void ready_message(const struct agent *a, Skerry__Agent__Ready *out)
{
    const struct readiness *r = &a->readiness;
    skerry__agent__ready__init(out);
    out->ipv6 = r->ipv6;
    out->after_us = r->after_us;
    if (!r->has_address)
        return;
    out->port = a->setup->port;
    out->address.data = (uint8_t *)(uintptr_t)r->address;
    out->address.len = r->ipv6 ? 16 : 4;
}

static void become_ready(struct agent *a)
{
    struct readiness *r = &a->readiness;
    r->ready = true;
    r->after_us = clock_monotonic_us() - a->started_us;
    loop_deadline(a, DEADLINE_READY, 0);
    if (r->diag_fd >= 0)
        memory_close(&r->diag_fd);
    Skerry__Agent__Ready ready;
    ready_message(a, &ready);
    Skerry__Agent__FromAgent message = SKERRY__AGENT__FROM_AGENT__INIT;
    message.message_case = SKERRY__AGENT__FROM_AGENT__MESSAGE_READY;
    message.ready = &ready;
    channel_send(a, &message, NULL);
    if (a->setup->n_health_test > 0 && !a->health.running) {
        uint32_t interval = a->setup->health_interval_ms;
        loop_deadline(a, DEADLINE_HEALTH,
                      clock_boot_ms() + (interval > 0 ? interval : HEALTH_INTERVAL_DEFAULT_MS));
    }
}

static bool loopback6_works(void)
{
    CLEANUP_FD int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const struct sockaddr_in6 address = {.sin6_family = AF_INET6,
                                         .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    return fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof address) == 0;
}

/* Where a socket of the same namespace reaches `l`. Returns how good that is, 0: not at all. */
static int reach(const struct listener *l, bool *ipv6, uint8_t address[16])
{
    static const uint8_t loopback4[4] = {127, 0, 0, 1};
    static const uint8_t any[16];
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    const uint8_t *four = l->address;
    if (l->ipv6 && memcmp(l->address, mapped, sizeof mapped) != 0) {
        if (l->address[0] == 0xfe && (l->address[1] & 0xc0) == 0x80)
            return 0; /* link-local: needs an interface beside it */
        bool wildcard = memcmp(l->address, any, sizeof any) == 0;
        if (wildcard && !loopback6_works()) {
            /* A dual-stack socket on a machine without IPv6. */
            *ipv6 = false;
            memcpy(address, loopback4, sizeof loopback4);
            return 2;
        }
        *ipv6 = true;
        memcpy(address, l->address, 16);
        if (wildcard)
            address[15] = 1;
        return 2;
    }
    if (l->ipv6)
        four = l->address + sizeof mapped;
    *ipv6 = false;
    memcpy(address, memcmp(four, any, 4) == 0 ? loopback4 : four, 4);
    return address[0] == 127 ? 4 : 3;
}

static bool port_listens(struct agent *a)
{
    struct readiness *r = &a->readiness;
    struct listener found[LISTENERS_MAX];
    size_t count = listening_find(a, (uint16_t)a->setup->port, found, ARRAY_SIZE(found));
    int best = 0;
    for (size_t i = 0; i < count; i++) {
        bool ipv6;
        uint8_t address[16] = {0};
        int value = reach(&found[i], &ipv6, address);
        if (value <= best)
            continue;
        best = value;
        r->ipv6 = ipv6;
        memcpy(r->address, address, sizeof address);
    }
    r->has_address = best > 0;
    return best > 0;
}

static size_t ports_collect(struct agent *a, uint16_t ports[PORTS_MAX])
{
    struct listener found[LISTENERS_MAX];
    size_t count = listening_find(a, 0, found, ARRAY_SIZE(found));
    size_t ports_count = 0;
    for (size_t i = 0; i < count; i++) {
        size_t at = 0;
        while (at < ports_count && ports[at] < found[i].port)
            at++;
        if ((at < ports_count && ports[at] == found[i].port) || ports_count == PORTS_MAX)
            continue;
        memmove(&ports[at + 1], &ports[at], (ports_count - at) * sizeof *ports);
        ports[at] = found[i].port;
        ports_count++;
    }
    return ports_count;
}

/* So that a wrong port can be named: "it listens on 3000". */
static void tell_ports(struct agent *a)
{
    struct readiness *r = &a->readiness;
    uint64_t now = clock_boot_ms();
    if (now - r->ports_at_ms < PORTS_INTERVAL_MS)
        return;
    r->ports_at_ms = now;
    uint16_t ports[PORTS_MAX];
    size_t count = ports_collect(a, ports);
    if (count == r->port_count && memcmp(ports, r->ports, count * sizeof *ports) == 0)
        return;
    memcpy(r->ports, ports, count * sizeof *ports);
    r->port_count = count;
    uint32_t numbers[PORTS_MAX];
    for (size_t i = 0; i < count; i++)
        numbers[i] = ports[i];
    Skerry__Agent__Listening listening = SKERRY__AGENT__LISTENING__INIT;
    listening.ports = numbers;
    listening.n_ports = count;
    Skerry__Agent__FromAgent message = SKERRY__AGENT__FROM_AGENT__INIT;
    message.message_case = SKERRY__AGENT__FROM_AGENT__MESSAGE_LISTENING;
    message.listening = &listening;
    channel_send(a, &message, NULL);
}

void ready_poll(struct agent *a)
{
    struct readiness *r = &a->readiness;
    if (r->ready || a->setup->ready == SKERRY__RUNNER__READY__READY_NONE)
        return;
    if (a->setup->port > 0 && !r->listening && port_listens(a)) {
        r->listening = true;
        if (a->setup->ready == SKERRY__RUNNER__READY__READY_LISTEN) {
            become_ready(a);
            return;
        }
    }
    if (r->listening || a->setup->port == 0)
        return; /* the health check decides */
    tell_ports(a);
    uint64_t now = clock_boot_ms();
    uint64_t wait = (now - a->started_boot_ms) / POLL_DIVISOR;
    wait = wait < POLL_MS_MIN ? POLL_MS_MIN : wait > POLL_MS_MAX ? POLL_MS_MAX : wait;
    if (r->diag_fd < 0)
        wait = POLL_SLOW_MS;
    loop_deadline(a, DEADLINE_READY, now + wait);
}

void ready_started(struct agent *a)
{
    const Skerry__Agent__Setup *setup = a->setup;
    if (setup->ready == SKERRY__RUNNER__READY__READY_NONE) {
        if (command_find(a, 0) == NULL)
            become_ready(a);
        return;
    }
    a->readiness.ports_at_ms = clock_boot_ms();
    if (setup->ready == SKERRY__RUNNER__READY__READY_HEALTHCHECK)
        loop_deadline(a, DEADLINE_HEALTH, clock_boot_ms() + HEALTH_STARTING_MS / 4);
    loop_deadline(a, DEADLINE_READY, clock_boot_ms() + POLL_MS_MIN);
}

void ready_executed(struct agent *a)
{
    if (a->setup->ready == SKERRY__RUNNER__READY__READY_NONE && !a->readiness.ready)
        become_ready(a);
}

static void tell_health(struct agent *a, bool healthy, const char *text)
{
    a->health.unhealthy = !healthy;
    Skerry__Agent__Health health = SKERRY__AGENT__HEALTH__INIT;
    health.healthy = healthy;
    health.message = (char *)(uintptr_t)text;
    Skerry__Agent__FromAgent message = SKERRY__AGENT__FROM_AGENT__INIT;
    message.message_case = SKERRY__AGENT__FROM_AGENT__MESSAGE_HEALTH;
    message.health = &health;
    channel_send(a, &message, NULL);
}

static void describe(const struct agent *a, int wait_status, char *out, size_t size)
{
    if (a->health.killed)
        text_format(out, size, "health check took longer than its timeout");
    else if (WIFSIGNALED(wait_status))
        text_format(out, size, "health check was killed by signal %d", WTERMSIG(wait_status));
    else
        text_format(out, size, "health check exited with %d", WEXITSTATUS(wait_status));
}

static void count_failure(struct agent *a, int wait_status)
{
    const Skerry__Agent__Setup *setup = a->setup;
    uint64_t age_ms = clock_boot_ms() - a->started_boot_ms;
    if (!a->readiness.ready || age_ms < setup->health_start_period_ms)
        return;
    a->health.failures++;
    uint32_t retries = setup->health_retries > 0 ? setup->health_retries : 1;
    if (a->health.failures < retries || a->health.unhealthy)
        return;
    char text[96];
    describe(a, wait_status, text, sizeof text);
    tell_health(a, false, text);
}

void ready_health_ended(struct agent *a, int wait_status)
{
    struct health *health = &a->health;
    const Skerry__Agent__Setup *setup = a->setup;
    health->running = false;
    if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0 && !health->killed) {
        health->failures = 0;
        if (health->unhealthy)
            tell_health(a, true, "health check succeeded");
        if (!a->readiness.ready && setup->ready == SKERRY__RUNNER__READY__READY_HEALTHCHECK &&
            (setup->port == 0 || a->readiness.listening)) {
            become_ready(a);
            return;
        }
    } else {
        count_failure(a, wait_status);
    }
    uint32_t wait = setup->health_interval_ms;
    if (wait == 0)
        wait = HEALTH_INTERVAL_DEFAULT_MS;
    if (!a->readiness.ready && wait > HEALTH_STARTING_MS)
        wait = HEALTH_STARTING_MS;
    loop_deadline(a, DEADLINE_HEALTH, clock_boot_ms() + wait);
}

void ready_health_tick(struct agent *a)
{
    struct health *health = &a->health;
    const Skerry__Agent__Setup *setup = a->setup;
    if (health->running) {
        struct command *c = command_find(a, EXEC_ID_HEALTH);
        health->killed = true;
        if (c != NULL)
            command_signal(c, SIGKILL);
        return;
    }
    Skerry__Agent__Command what = SKERRY__AGENT__COMMAND__INIT;
    what.exec_id = EXEC_ID_HEALTH;
    what.command = setup->health_test;
    what.n_command = setup->n_health_test;
    int master;
    pid_t pid;
    uint64_t now = clock_boot_ms();
    if (command_start(a, &what, NULL, 0, &master, &pid, NULL) != 0) {
        /* No process to be had counts as a failure. */
        health->killed = false;
        ready_health_ended(a, 126 << 8);
        return;
    }
    health->running = true;
    health->killed = false;
    uint32_t timeout = setup->health_timeout_ms;
    loop_deadline(a, DEADLINE_HEALTH, now + (timeout > 0 ? timeout : HEALTH_TIMEOUT_DEFAULT_MS));
}
