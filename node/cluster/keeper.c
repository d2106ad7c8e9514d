#include "node/cluster/keeper.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/private_file.h"

struct keeper {
    char *directory, *name;
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t wake;
    char *text; /* the next to store; NULL: nothing */
    bool stop;
};

static void text_drop(char *text)
{
    if (text == NULL)
        return;
    explicit_bzero(text, strlen(text));
    free(text);
}

static void store(struct keeper *k, const char *text)
{
    struct err e = {0};
    CLEANUP_FD int folder = private_folder_open(k->directory, &e);
    if (folder < 0 || private_file_store(folder, k->name, text, strlen(text), true, &e) != 0)
        log_error("cluster", "%s/%s is as it was before, which a restart may miss: %s",
                  k->directory, k->name, e.msg);
}

static void *keeper_main(void *user)
{
    struct keeper *k = user;
    sigset_t all;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    (void)pthread_setname_np(pthread_self(), "skerry-keeper");
    (void)pthread_mutex_lock(&k->lock);
    for (;;) {
        while (k->text == NULL && !k->stop)
            (void)pthread_cond_wait(&k->wake, &k->lock);
        char *text = k->text;
        if (text == NULL)
            break;
        k->text = NULL;
        (void)pthread_mutex_unlock(&k->lock);
        store(k, text);
        text_drop(text);
        (void)pthread_mutex_lock(&k->lock);
    }
    (void)pthread_mutex_unlock(&k->lock);
    return NULL;
}

static void dispose(struct keeper *k)
{
    (void)pthread_cond_destroy(&k->wake);
    (void)pthread_mutex_destroy(&k->lock);
    free(k->directory);
    free(k->name);
    free(k);
}

int keeper_open(struct keeper **out, const char *directory, const char *name, struct err *e)
{
    struct keeper *k = calloc(1, sizeof *k);
    if (k == NULL)
        return err_set(e, ERR_NO_MEMORY, "keep %s: no memory", name);
    (void)pthread_mutex_init(&k->lock, NULL);
    (void)pthread_cond_init(&k->wake, NULL);
    k->directory = strdup(directory);
    k->name = strdup(name);
    if (k->directory == NULL || k->name == NULL ||
        pthread_create(&k->thread, NULL, keeper_main, k) != 0) {
        dispose(k);
        return err_set(e, ERR_NO_MEMORY, "keep %s: no memory for a thread", name);
    }
    *out = k;
    return 0;
}

void keeper_put(struct keeper *k, char *text)
{
    (void)pthread_mutex_lock(&k->lock);
    char *before = k->text;
    k->text = text;
    (void)pthread_cond_signal(&k->wake);
    (void)pthread_mutex_unlock(&k->lock);
    text_drop(before);
}

void keeper_close(struct keeper *k)
{
    if (k == NULL)
        return;
    (void)pthread_mutex_lock(&k->lock);
    k->stop = true;
    (void)pthread_cond_signal(&k->wake);
    (void)pthread_mutex_unlock(&k->lock);
    (void)pthread_join(k->thread, NULL);
    dispose(k);
}
