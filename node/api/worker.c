#include "node/api/worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "base/memory.h"
#include "node/api/internal.h"

struct api_worker {
    struct api *api;
    pthread_t thread;
    pthread_mutex_t lock; /* of the queue and `stop` */
    pthread_cond_t wake;
    struct api_job *first, *last;
    bool stop;
    unsigned jobs; /* the API's thread counts */
};

static void deliver_done(struct inbox_message *message, void *owner)
{
    (void)owner;
    struct api_job *job = container_of(message, struct api_job, message);
    struct api *api = job->worker->api;
    job->worker->jobs--;
    job->done(job);
    api_dirty(api);
}

static void *worker_main(void *user)
{
    struct api_worker *w = user;
    sigset_t all;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    (void)pthread_setname_np(pthread_self(), "skerry-files");
    (void)pthread_mutex_lock(&w->lock);
    for (;;) {
        while (w->first == NULL && !w->stop)
            (void)pthread_cond_wait(&w->wake, &w->lock);
        struct api_job *job = w->first;
        if (job == NULL)
            break;
        w->first = job->next;
        (void)pthread_mutex_unlock(&w->lock);
        job->work(job);
        job->message.deliver = deliver_done;
        /* The inbox outlives every job: the API closes it when none is on its way. */
        assert_always(inbox_post_always(w->api->inbox, &job->message));
        (void)pthread_mutex_lock(&w->lock);
    }
    (void)pthread_mutex_unlock(&w->lock);
    return NULL;
}

int api_worker_open(struct api_worker **out, struct api *api, struct err *e)
{
    struct api_worker *w = calloc(1, sizeof(*w));
    if (w == NULL)
        return err_set(e, ERR_NO_MEMORY, "start a worker");
    w->api = api;
    (void)pthread_mutex_init(&w->lock, NULL);
    (void)pthread_cond_init(&w->wake, NULL);
    if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
        (void)pthread_cond_destroy(&w->wake);
        (void)pthread_mutex_destroy(&w->lock);
        free(w);
        return err_set(e, ERR_NO_MEMORY, "start a worker");
    }
    *out = w;
    return 0;
}

void api_worker_post(struct api_worker *w, struct api_job *job)
{
    job->worker = w;
    job->next = NULL;
    w->jobs++;
    (void)pthread_mutex_lock(&w->lock);
    if (w->first == NULL)
        w->first = job;
    else
        w->last->next = job;
    w->last = job;
    (void)pthread_cond_signal(&w->wake);
    (void)pthread_mutex_unlock(&w->lock);
}

bool api_worker_busy(const struct api_worker *w)
{
    return w != NULL && w->jobs != 0;
}

void api_worker_free(struct api_worker *w)
{
    if (w == NULL)
        return;
    (void)pthread_mutex_lock(&w->lock);
    w->stop = true;
    (void)pthread_cond_signal(&w->wake);
    (void)pthread_mutex_unlock(&w->lock);
    (void)pthread_join(w->thread, NULL);
    (void)pthread_cond_destroy(&w->wake);
    (void)pthread_mutex_destroy(&w->lock);
    free(w);
}
