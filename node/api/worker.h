/* node/api/worker.h - one thread for what may wait for a disk: libuv's own pool belongs to raft.
 *
 * Jobs run in order. Threads: all calls from the API's thread (api_worker_free: after it);
 * `work` runs on the worker's thread and touches its job only, `done` on the API's thread. */
#ifndef SKERRY_NODE_API_WORKER_H
#define SKERRY_NODE_API_WORKER_H

#include <stdbool.h>

#include "base/err.h"
#include "base/inbox.h"

struct api;
struct api_worker;

struct api_job {
    struct inbox_message message; /* the worker's, from post to `done` */
    struct api_job *next;
    struct api_worker *worker;
    void (*work)(struct api_job *job);
    void (*done)(struct api_job *job);
};

int api_worker_open(struct api_worker **out, struct api *api, struct err *e) ERR_CHECKED;
void api_worker_post(struct api_worker *w, struct api_job *job);
/* Jobs are on their way. */
bool api_worker_busy(const struct api_worker *w);
/* Joins the thread; no job may be on its way. NULL is fine. */
void api_worker_free(struct api_worker *w);

#endif
