/* Errands at the entry: asking the chosen node, and standing in for the command's pipes. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/errands/errands_internal.h"

/* --- asking --------------------------------------------------------------------------------------------- */

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct errand *e = secure_stream_user(s);
    if (error != NULL) {
        errand_broken(e, error->msg);
        return;
    }
    e->phase = ERRAND_ASKED;
    errand_pump(e);
}

void errand_entry_begin(struct errand *e)
{
    struct cluster *cluster = e->all->node->cluster;
    struct sockaddr_storage address;
    struct err error = {0};
    errand_link(e);
    if (e->all->stopping) {
        errand_broken(e, "this node is stopping");
        return;
    }
    if (!cluster_address(cluster, e->peer, CLUSTER_PORT_STREAM, &address)) {
        errand_broken(e, "its address is not known");
        return;
    }
    const struct secure_connect_options options = {
        .context = cluster_secure(cluster),
        .address = &address,
        .protocol = SECURE_ERRAND,
        .peer = e->peer,
        .events = {.opened = opened_cb, .ready = errand_ready_cb},
        .user = e,
    };
    if (secure_stream_connect(&e->stream, &e->all->loop, &options, &error) != 0) {
        e->stream = NULL;
        errand_broken(e, error.msg);
    }
}

/* --- the pipes ------------------------------------------------------------------------------------------ */

/* One pair for both directions, as a terminal is. */
static bool open_terminal(struct errand *e)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return false;
    e->given[0] = pair[1];
    /* Two descriptors, since libuv has one handle for each. */
    int second = fcntl(pair[0], F_DUPFD_CLOEXEC, 0);
    bool opened = errand_pipe_open(e, ERRAND_OUT, pair[0]);
    return second >= 0 && errand_pipe_open(e, ERRAND_IN, second) && opened;
}

static bool open_pipes(struct errand *e)
{
    if (e->tty)
        return open_terminal(e);
    for (int k = e->input_ended ? ERRAND_OUT : ERRAND_IN; k < ERRAND_PIPES; k++) {
        int pair[2];
        bool from_here = k == ERRAND_IN;
        if (pipe2(pair, O_NONBLOCK | O_CLOEXEC) != 0)
            return false;
        e->given[k] = pair[from_here ? 1 : 0];
        if (!errand_pipe_open(e, k, pair[from_here ? 0 : 1]))
            return false;
    }
    return true;
}

/* --- what the owner says -------------------------------------------------------------------------------- */

void errand_entry_over(struct errand *e)
{
    errand_shut(e);
    assert_always(inbox_post_always(e->all->node->inbox, &e->over));
}

static bool take_answer(struct errand *e, const struct errand_frame *f)
{
    if (e->phase != ERRAND_ASKED || !errand_answer_read(&e->answer, f))
        return false;
    if (f->type == ERRAND_REFUSED || e->kind == ERRAND_START) {
        errand_entry_over(e);
        return true;
    }
    if (!open_pipes(e)) {
        e->answer = (struct errand_answer){.problem = PROBLEM_LIMIT_REACHED, .ran = RAN_MAYBE};
        (void)text_format(e->answer.detail, sizeof e->answer.detail,
                          "this node has no pipes left for it: %s", strerror(errno));
        errand_entry_over(e);
        return true;
    }
    e->phase = ERRAND_OPEN;
    assert_always(inbox_post_always(e->all->node->inbox, &e->granted));
    return true;
}

static bool take_taken(struct errand *e, uint32_t count)
{
    if (count > e->untaken)
        return false;
    e->untaken -= count;
    return true;
}

bool errand_entry_frame(struct errand *e, const struct errand_frame *f)
{
    bool open = e->phase == ERRAND_OPEN;
    switch (f->type) {
    case ERRAND_GRANTED:
    case ERRAND_REFUSED:
        return take_answer(e, f);
    case ERRAND_TAKEN:
        return open && take_taken(e, f->number);
    case ERRAND_STDOUT:
        return open && buffer_append(&e->pipes[ERRAND_OUT].pending, f->data, f->size);
    case ERRAND_STDERR:
        return open && buffer_append(&e->pipes[ERRAND_ERR].pending, f->data, f->size);
    case ERRAND_ENDED:
        if (!open || !errand_end_read(&e->end, f))
            return false;
        errand_entry_over(e);
        return true;
    default:
        return false;
    }
}
