/* node/api/operator.c - the registry as a file, for `skerry operator raft snapshot`.
 *
 * It holds what the registry holds: hashes of tokens, gossip's keys. So it is an admin's, and goes from
 * memory to the client without a file on disk. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "node/api/internal.h"
#include "node/api/worker.h"

struct snapshot {
    struct api_job job;
    struct api *api;
    struct api_request *request; /* NULL: left */
    struct registry_root *root;
    int fd;
    struct err error;
};

static void save(struct api_job *job)
{
    struct snapshot *s = container_of(job, struct snapshot, job);
    s->fd = memfd_create("skerry-snapshot", MFD_CLOEXEC);
    if (s->fd < 0)
        (void)err_sys(&s->error, ERR_IO, errno, "make a file in memory");
    else if (registry_root_save(s->root, s->fd, &s->error) != 0)
        log_error("api", "%s", s->error.msg);
}

static void saved(struct api_job *job)
{
    struct snapshot *s = container_of(job, struct snapshot, job);
    struct api_request *r = s->request;
    struct stat st;
    s->api->options.calls.root_return(s->api->options.calls.user, s->root);
    if (r != NULL) {
        r->state = NULL;
        if (s->error.code != ERR_OK || fstat(s->fd, &st) != 0)
            api_problem(r, PROBLEM_INTERNAL, "the registry could not be saved: %s", s->error.msg);
        else
            api_answer_file(r, "application/octet-stream", steal_fd(&s->fd), (uint64_t)st.st_size);
    }
    memory_close(&s->fd);
    free(s);
}

static void leave(struct api_request *r)
{
    struct snapshot *s = r->state;
    if (s != NULL)
        s->request = NULL;
}

void api_raft_snapshot(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct snapshot *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return;
    }
    *s = (struct snapshot){.job = {.work = save, .done = saved},
                           .api = r->api,
                           .request = r,
                           .root = calls->root(calls->user),
                           .fd = -1};
    r->state = s;
    r->state_free = leave;
    api_worker_post(r->api->worker, &s->job);
}
