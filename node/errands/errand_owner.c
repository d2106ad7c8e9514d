/* Errands at the node that does them: the question becomes an ask to its control thread like those of its
 * own API, and the command's pipes flow into the stream. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/errands/errands_internal.h"

#define QUESTION_WAIT_MS 5000u
#define TOLD_WAIT_MS 10000u

/* --- answers -------------------------------------------------------------------------------------------- */

static void told(struct errand *e)
{
    e->phase = ERRAND_TOLD;
    e->deadline_ms = clock_monotonic_ms() + TOLD_WAIT_MS;
    errand_pump(e);
}

static void open_command(struct errand *e, struct node_ask *ask)
{
    int in = steal_fd(&ask->descriptors[0]);
    int out = steal_fd(&ask->descriptors[1]);
    int errors = steal_fd(&ask->descriptors[2]);
    if (e->question.tty) {
        out = in;
        in = fcntl(out, F_DUPFD_CLOEXEC, 0);
    }
    bool opened = errand_pipe_open(e, ERRAND_OUT, out);
    opened = errand_pipe_open(e, ERRAND_ERR, errors) && opened;
    opened = errand_pipe_open(e, ERRAND_IN, in) && opened;
    if (!opened)
        errand_broken(e, "no descriptors are left");
}

static void answered_cb(struct node_ask *ask, void *owner)
{
    struct errand *e = container_of(ask, struct errand, ask);
    bool command = e->question.kind != ERRAND_START;
    (void)owner;
    e->asked = ask->problem == PROBLEM_NONE && command;
    struct errand_answer answer = {.problem = ask->problem,
                                   .ran = ask->ran,
                                   .retry_after_s = ask->retry_after_s,
                                   .instance = ask->id};
    (void)text_copy(answer.detail, sizeof answer.detail, ask->detail);
    if (e->phase == ERRAND_CLOSING) {
        for (size_t k = 0; k < ARRAY_SIZE(ask->descriptors); k++)
            memory_close(&ask->descriptors[k]);
        errand_owner_cancel(e, END_CLIENT_GONE);
    } else if (!errand_answer_write(&e->sending, &answer)) {
        errand_broken(e, "out of memory");
    } else if (!e->asked) {
        told(e);
    } else {
        e->phase = ERRAND_OPEN;
        open_command(e, ask);
        errand_pump(e);
    }
    if (!e->asked)
        errand_hold_drop(e);
}

static void ended_cb(struct node_ask *ask, void *owner)
{
    struct errand *e = container_of(ask, struct errand, ask);
    (void)owner;
    e->ended = true;
    e->asked = false;
    e->end = ask->end;
    errand_pump(e);
    errand_hold_drop(e);
}

void errand_owner_check(struct errand *e)
{
    if (!e->ended || e->pipes[ERRAND_OUT].fd >= 0 || e->pipes[ERRAND_ERR].fd >= 0)
        return;
    if (errand_end_write(&e->sending, &e->end)) {
        e->phase = ERRAND_TOLD;
        e->deadline_ms = clock_monotonic_ms() + TOLD_WAIT_MS;
    } else {
        errand_broken(e, "out of memory");
    }
}

/* --- what the entry says -------------------------------------------------------------------------------- */

/* A signal, resize or cancel of the command; lives until it was answered. */
struct about {
    struct node_ask ask;
    struct errand *errand;
};

static void about_answered_cb(struct node_ask *ask, void *owner)
{
    struct about *a = container_of(ask, struct about, ask);
    (void)owner;
    errand_hold_drop(a->errand);
    free(a);
}

static void tell(struct errand *e, enum node_ask_kind kind, const struct errand_frame *f,
                 enum end_reason reason)
{
    struct about *a = e->asked ? calloc(1, sizeof *a) : NULL;
    if (a == NULL)
        return;
    a->errand = e;
    a->ask = (struct node_ask){.kind = kind,
                               .reply_to = e->all->inbox,
                               .answered = about_answered_cb,
                               .target = &e->ask,
                               .reason = reason};
    if (f != NULL) {
        a->ask.signal = f->number;
        a->ask.rows = f->rows;
        a->ask.columns = f->columns;
    }
    e->holds++;
    if (node_ask(e->all->node, &a->ask))
        return;
    log_warn("errand", "too many questions wait: a signal, resize or cancel was lost");
    free(a);
    errand_hold_drop(e);
}

void errand_owner_cancel(struct errand *e, enum end_reason reason)
{
    tell(e, NODE_ASK_CANCEL, NULL, reason);
}

static const char *text_or_null(const char *text)
{
    return text[0] != '\0' ? text : NULL;
}

static bool ask_control(struct errand *e, const struct errand_frame *f)
{
    struct err error = {0};
    struct errand_question *q = &e->question;
    if (e->asked || errand_question_read(q, f, &error) != 0) {
        if (!e->asked)
            log_warn("errand", "of node %llu: %s", (unsigned long long)e->peer, error.msg);
        return false;
    }
    e->ask = (struct node_ask){
        .kind = q->kind == ERRAND_RUN       ? NODE_ASK_RUN
                : q->kind == ERRAND_COMMAND ? NODE_ASK_COMMAND
                                            : NODE_ASK_START,
        .reply_to = e->all->inbox,
        .answered = answered_cb,
        .ended = ended_cb,
        .stays = true,
        .workload = q->workload,
        .key = text_or_null(q->key),
        .spec = q->spec,
        .tty = q->tty,
        .no_stdin = q->no_stdin,
        .rows = q->rows,
        .columns = q->columns,
        .timeout_ms = q->timeout_ms,
        .asked_by = q->asked_by,
        .request_id = text_or_null(q->request_id),
    };
    e->tty = q->tty;
    e->deadline_ms = 0;
    e->asked = true;
    e->holds++;
    if (node_ask(e->all->node, &e->ask))
        return true;
    e->asked = false;
    errand_hold_drop(e);
    return false;
}

static bool take_input(struct errand *e, const struct errand_frame *f)
{
    struct buffer *pending = &e->pipes[ERRAND_IN].pending;
    return e->phase == ERRAND_OPEN && !e->input_ended &&
           pending->length + f->size <= ERRAND_WINDOW_BYTES &&
           buffer_append(pending, f->data, f->size);
}

bool errand_owner_frame(struct errand *e, const struct errand_frame *f)
{
    switch (f->type) {
    case ERRAND_QUESTION:
        return ask_control(e, f);
    case ERRAND_STDIN:
        return take_input(e, f);
    case ERRAND_STDIN_END:
        e->input_ended = true;
        return true;
    case ERRAND_RESIZE:
        tell(e, NODE_ASK_RESIZE, f, END_NONE);
        return true;
    case ERRAND_SIGNAL:
        tell(e, NODE_ASK_SIGNAL, f, END_NONE);
        return true;
    case ERRAND_CANCEL:
        errand_owner_cancel(e, (enum end_reason)f->number);
        return true;
    default:
        return false;
    }
}

/* --- arriving ------------------------------------------------------------------------------------------- */

struct arrival {
    struct inbox_message message;
    struct secure_parcel *parcel;
};

static void arrive_cb(struct inbox_message *message, void *owner)
{
    struct arrival *a = container_of(message, struct arrival, message);
    struct errands *all = owner;
    struct secure_parcel *parcel = a->parcel;
    struct err error = {0};
    free(a);
    node_id peer = secure_parcel_peer(parcel);
    struct errand *e = all->stopping || atomic_load(&all->count) >= ERRANDS_MAX
                           ? NULL
                           : errand_new(all, false, peer);
    if (e == NULL) {
        log_warn("errand", "an errand of node %llu was dropped: %u are under way",
                 (unsigned long long)peer, atomic_load(&all->count));
        secure_parcel_drop(parcel);
        return;
    }
    errand_link(e);
    e->phase = ERRAND_ASKED;
    e->deadline_ms = clock_monotonic_ms() + QUESTION_WAIT_MS;
    const struct secure_events events = {.ready = errand_ready_cb};
    if (secure_stream_attach(&e->stream, &all->loop, cluster_secure(all->node->cluster), parcel,
                             &events, e, &error) == 0) {
        errand_pump(e);
        return;
    }
    e->stream = NULL;
    errand_broken(e, error.msg);
}

void errands_accept(struct node *n, struct secure_parcel *parcel)
{
    struct arrival *a = calloc(1, sizeof *a);
    if (a != NULL && n->errands != NULL) {
        a->message.deliver = arrive_cb;
        a->parcel = parcel;
        if (inbox_post(n->errands->inbox, &a->message))
            return;
    }
    free(a);
    secure_parcel_drop(parcel);
}
