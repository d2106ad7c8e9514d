/* What the runner and the agent say to each other. The agent is less trusted than the runner: texts
 * are cut, lists are bounded, and an answer that nobody waits for ends the instance. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/adopt.h"
#include "sandbox/runner/instance.h"
#include "sandbox/runner/runner.h"
#include "sandbox/shared/agent_check.h"
#include "sandbox/shared/wire.h"

#define MESSAGES_PER_EVENT_MAX 16
/* After main is gone the agent ends by itself; one that does not is helped. */
#define END_TIMEOUT_MS 2000

struct waiting *waiting_new(const struct asker *asker)
{
    struct waiting *w = calloc(1, sizeof *w);
    if (w != NULL && asker != NULL)
        w->asker = *asker;
    return w;
}

void waiting_free(struct waiting *w)
{
    for (size_t n = 0; n < w->descriptor_count; n++)
        memory_close(&w->descriptors[n]);
    free(w);
}

int instance_ask(struct instance *i, Skerry__Agent__ToAgent *message, const int *descriptors,
                 size_t descriptor_count, struct waiting *waiting, struct err *e)
{
    int rc = 0;
    if (i->channel < 0 || i->phase >= INSTANCE_ENDING)
        rc = err_set(e, ERR_CONFLICT, "instance %s is ending", i->id);
    else if (i->waiting_count == INSTANCE_WAITING_MAX)
        rc = err_set(e, ERR_LIMIT, "%d verbs wait for instance %s already", INSTANCE_WAITING_MAX,
                     i->id);
    if (rc == 0) {
        message->seq = ++i->agent_seq;
        waiting->agent_seq = message->seq;
        rc = wire_send(i->channel, &message->base, descriptors, descriptor_count, e);
    }
    if (rc < 0) {
        waiting_free(waiting);
        return rc;
    }
    waiting->next = i->waiting;
    i->waiting = waiting;
    i->waiting_count++;
    return 0;
}

void instance_waiting_fail(struct instance *i, const struct err *error)
{
    while (i->waiting != NULL) {
        struct waiting *w = i->waiting;
        i->waiting = w->next;
        i->waiting_count--;
        if (w->asker.connection != 0)
            server_answer(i->runner->server, &w->asker, error, NULL, NULL, 0);
        waiting_free(w);
    }
}

static struct waiting *waiting_take(struct instance *i, uint64_t agent_seq)
{
    for (struct waiting **at = &i->waiting; *at != NULL; at = &(*at)->next) {
        struct waiting *w = *at;
        if (w->agent_seq != agent_seq)
            continue;
        *at = w->next;
        i->waiting_count--;
        return w;
    }
    return NULL;
}

/* The agent broke the protocol, or cannot be reached any more. */
static void agent_lost(struct instance *i, const char *why)
{
    log_error("runner", "%s: its agent: %s", i->id, why);
    text_copy(i->message, sizeof i->message, why);
    loop_watch_stop(i->runner->loop, &i->channel_watch);
    instance_kill(i, END_AGENT_LOST);
}

static void exec_add(struct instance *i, uint32_t exec_id)
{
    if (i->exec_count < INSTANCE_EXECS_MAX)
        i->execs[i->exec_count++] = exec_id;
}

static void exec_remove(struct instance *i, uint32_t exec_id)
{
    for (size_t n = 0; n < i->exec_count; n++)
        if (i->execs[n] == exec_id) {
            i->execs[n] = i->execs[--i->exec_count];
            return;
        }
}

/* --- answers ------------------------------------------------------------------------------------ */

/* Takes the descriptors of `w` and `terminal`. */
static void started_answer(struct instance *i, struct waiting *w, const Skerry__Agent__Done *done,
                           int terminal)
{
    Skerry__Runner__Started started = SKERRY__RUNNER__STARTED__INIT;
    Skerry__Runner__Reply reply = SKERRY__RUNNER__REPLY__INIT;
    started.pid_inside = done->pid;
    if (w->kind == WAITING_EXEC) {
        reply.result_case = SKERRY__RUNNER__REPLY__RESULT_EXEC;
        reply.exec = &started;
    }
    size_t count = w->descriptor_count;
    if (terminal >= 0 && count == 0) {
        w->descriptors[count++] = terminal;
        terminal = -1;
    }
    memory_close(&terminal);
    w->descriptor_count = 0;
    server_answer(i->runner->server, &w->asker, NULL, &reply, w->descriptors, count);
}

static void done(struct instance *i, uint64_t seq, const Skerry__Agent__Done *done, int *terminal)
{
    struct waiting *w = waiting_take(i, seq);
    struct err e;
    if (w == NULL) {
        agent_lost(i, "it answered what nobody asked");
        return;
    }
    enum err_code code = done->error < ERR_CODE_COUNT ? (enum err_code)done->error : ERR_INTERNAL;
    if (code != ERR_OK) {
        err_set(&e, code, "%.200s", done->message);
        if (w->kind == WAITING_EXEC)
            exec_remove(i, w->exec_id);
        if (i->phase == INSTANCE_PREPARING)
            instance_prepare_failed(i, &e);
        else if (w->asker.connection != 0)
            server_answer(i->runner->server, &w->asker, &e, NULL, NULL, 0);
        if (w->kind == WAITING_HOLD)
            text_copy(i->message, sizeof i->message, e.msg);
        if (w->kind == WAITING_HOLD || w->kind == WAITING_START)
            instance_kill(i, END_START_FAILED);
    } else if (i->phase == INSTANCE_PREPARING) {
        instance_prepared(i);
    } else if (w->kind == WAITING_START || w->kind == WAITING_EXEC) {
        started_answer(i, w, done, steal_fd(terminal));
    } else if (w->asker.connection != 0) {
        server_answer(i->runner->server, &w->asker, NULL, NULL, NULL, 0);
    }
    waiting_free(w);
}

/* --- events ------------------------------------------------------------------------------------- */

static void ready(struct instance *i, const Skerry__Agent__Ready *r)
{
    i->ready = true;
    if (i->phase == INSTANCE_STARTING)
        i->phase = INSTANCE_READY;
    i->ready_ipv6 = r->ipv6;
    i->ready_port = r->port;
    i->ready_after_us = r->after_us;
    size_t length = r->ipv6 ? 16 : 4;
    memset(i->ready_address, 0, sizeof i->ready_address);
    if (r->address.len == length)
        memcpy(i->ready_address, r->address.data, length);
}

static void tell_ready(struct instance *i)
{
    Skerry__Runner__Address address = SKERRY__RUNNER__ADDRESS__INIT;
    address.ipv6 = i->ready_ipv6;
    address.port = i->ready_port;
    address.address.data = i->ready_address;
    address.address.len = i->ready_ipv6 ? 16 : 4;
    Skerry__Runner__BecameReady message = SKERRY__RUNNER__BECAME_READY__INIT;
    message.id = i->id;
    message.address = &address;
    message.after_us = i->ready_after_us;
    Skerry__Runner__Event event = SKERRY__RUNNER__EVENT__INIT;
    event.event_case = SKERRY__RUNNER__EVENT__EVENT_READY;
    event.ready = &message;
    server_tell(i->runner->server, &event);
}

static void ports_take(struct instance *i, const uint32_t *ports, size_t count)
{
    i->port_count = count < INSTANCE_PORTS_MAX ? count : INSTANCE_PORTS_MAX;
    if (i->port_count > 0)
        memcpy(i->ports, ports, i->port_count * sizeof *ports);
}

static void listening(struct instance *i, const Skerry__Agent__Listening *l)
{
    ports_take(i, l->ports, l->n_ports);
    Skerry__Runner__Listening message = SKERRY__RUNNER__LISTENING__INIT;
    message.id = i->id;
    message.ports = i->ports;
    message.n_ports = i->port_count;
    Skerry__Runner__Event event = SKERRY__RUNNER__EVENT__INIT;
    event.event_case = SKERRY__RUNNER__EVENT__EVENT_LISTENING;
    event.listening = &message;
    server_tell(i->runner->server, &event);
}

static void end_timeout_cb(struct loop_timer *timer)
{
    instance_kill(container_of(timer, struct instance, watchdog), END_NONE);
}

static void ending_by(struct instance *i, uint32_t reason)
{
    if (reason > END_NONE && reason < END_REASON_COUNT)
        i->agent_reason = (enum end_reason)reason;
    /* That was its last word. That the channel is closed too need not wake us. */
    loop_watch_stop(i->runner->loop, &i->channel_watch);
}

static void ending_expected(struct instance *i)
{
    struct err e;
    if (loop_timer_start(i->runner->loop, &i->watchdog, clock_boot_ms() + END_TIMEOUT_MS,
                         end_timeout_cb, &e) < 0)
        instance_kill(i, END_NONE);
}

static void main_exited(struct instance *i, const Skerry__Agent__Exited *x)
{
    i->main_exited = true;
    i->exit_code = x->exit_code;
    i->exit_signal = x->signal;
    i->wall_us = x->wall_us;
    text_copy(i->stderr_tail, sizeof i->stderr_tail, x->stderr_tail);
    if (x->message[0] != '\0')
        text_copy(i->message, sizeof i->message, x->message);
}

static void exited(struct instance *i, const Skerry__Agent__Exited *x)
{
    if (x->exec_id == 0) {
        main_exited(i, x);
        if (x->ending != END_NONE) {
            ending_by(i, x->ending);
            instance_look(i);
            /* The kernel's count, not the agent's word: none that would outlive what is told now. */
            i->leaving = i->phase >= INSTANCE_STARTING && i->phase <= INSTANCE_READY &&
                         i->stats.pids == 1 && i->process.watch.fd >= 0;
        }
        if (!i->leaving)
            ending_expected(i);
        return;
    }
    exec_remove(i, x->exec_id);
    char text[257];
    text_copy(text, sizeof text, x->message);
    Skerry__Runner__ExecEnded message = SKERRY__RUNNER__EXEC_ENDED__INIT;
    message.id = i->id;
    message.exec_id = x->exec_id;
    message.exit_code = x->exit_code;
    message.signal = x->signal;
    message.cpu_us = x->cpu_us;
    message.wall_us = x->wall_us;
    message.message = text;
    Skerry__Runner__Event event = SKERRY__RUNNER__EVENT__INIT;
    event.event_case = SKERRY__RUNNER__EVENT__EVENT_EXEC_ENDED;
    event.exec_ended = &message;
    server_tell(i->runner->server, &event);
}

static void ending(struct instance *i, const Skerry__Agent__Ending *x)
{
    if (x->message[0] != '\0')
        text_copy(i->message, sizeof i->message, x->message);
    ending_by(i, x->reason);
    ending_expected(i);
}

static void health(struct instance *i, const Skerry__Agent__Health *h)
{
    char text[257];
    text_copy(text, sizeof text, h->message);
    Skerry__Runner__Health message = SKERRY__RUNNER__HEALTH__INIT;
    message.id = i->id;
    message.healthy = h->healthy;
    message.message = text;
    Skerry__Runner__Event event = SKERRY__RUNNER__EVENT__INIT;
    event.event_case = SKERRY__RUNNER__EVENT__EVENT_HEALTH;
    event.health = &message;
    server_tell(i->runner->server, &event);
}

/* The answer to the hello of a runner that came back. */
static void state(struct instance *i, const Skerry__Agent__State *s)
{
    struct waiting *w = waiting_take(i, 1);
    if (i->phase != INSTANCE_ADOPTING || w == NULL) {
        agent_lost(i, "it told its state unasked");
        return;
    }
    waiting_free(w);
    i->started = s->started;
    i->started_boot_ms = s->started_boot_ms;
    uint64_t age_ms = clock_boot_ms() - s->started_boot_ms;
    if (s->started)
        i->started_us = clock_monotonic_us() - age_ms * 1000;
    for (size_t n = 0; n < s->n_exec_ids; n++)
        if (s->exec_ids[n] != 0)
            exec_add(i, s->exec_ids[n]);
    ports_take(i, s->listening, s->n_listening);
    for (size_t n = 0; n < s->n_exited; n++)
        if (s->exited[n]->exec_id == 0)
            main_exited(i, s->exited[n]);
    i->phase = INSTANCE_STARTING;
    if (s->ready != NULL)
        ready(i, s->ready);
    /* Without a commit there is nothing that the node could go on with. */
    if (!s->started || !s->setup)
        instance_kill(i, END_START_LOST);
    adopt_done(i->runner);
}

/* --- one message -------------------------------------------------------------------------------- */

static void take(struct instance *i, const Skerry__Agent__FromAgent *m, int *descriptor)
{
    switch (m->message_case) {
    case SKERRY__AGENT__FROM_AGENT__MESSAGE_DONE:
        done(i, m->seq, m->done, descriptor);
        break;
    case SKERRY__AGENT__FROM_AGENT__MESSAGE_READY:
        ready(i, m->ready);
        tell_ready(i);
        break;
    case SKERRY__AGENT__FROM_AGENT__MESSAGE_LISTENING:
        listening(i, m->listening);
        break;
    case SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED:
        exited(i, m->exited);
        break;
    case SKERRY__AGENT__FROM_AGENT__MESSAGE_ENDING:
        ending(i, m->ending);
        break;
    case SKERRY__AGENT__FROM_AGENT__MESSAGE_HEALTH:
        health(i, m->health);
        break;
    case SKERRY__AGENT__FROM_AGENT__MESSAGE_STATE:
        state(i, m->state);
        break;
    default:
        agent_lost(i, "it said something unknown");
    }
}

/* False when there is nothing more to take. */
static bool receive(struct instance *i)
{
    uint8_t data[AGENT_MESSAGE_BYTES_MAX];
    size_t length, count;
    CLEANUP_FD int descriptor = -1;
    struct err e = {0};
    int rc = wire_receive(i->channel, data, sizeof data, &length, &descriptor, 1, &count, &e);
    if (rc < 0) {
        /* It ended with messages of ours unread. That is told once, and before what it said last. */
        if (e.sys == ECONNRESET)
            return true;
        /* A closed channel is the end of the process, which is told apart. */
        if (rc == -ERR_UNAVAILABLE && e.sys != EAGAIN)
            loop_watch_stop(i->runner->loop, &i->channel_watch);
        else if (e.sys != EAGAIN)
            agent_lost(i, e.msg);
        return false;
    }
    if (i->phase == INSTANCE_PREPARING && blank_failure(data, length, &e)) {
        instance_prepare_failed(i, &e);
        return false;
    }
    Skerry__Agent__FromAgent *m = skerry__agent__from_agent__unpack(NULL, length, data);
    if (m == NULL) {
        agent_lost(i, "its message cannot be read");
        return false;
    }
    take(i, m, &descriptor);
    skerry__agent__from_agent__free_unpacked(m, NULL);
    return i->channel_watch.fd >= 0;
}

void instance_channel_cb(struct loop_watch *watch, uint32_t events)
{
    (void)events;
    struct instance *i = container_of(watch, struct instance, channel_watch);
    for (int n = 0; n < MESSAGES_PER_EVENT_MAX && receive(i); n++)
        ;
    if (i->leaving && i->phase != INSTANCE_ENDED)
        instance_ended_leaving(i);
}
