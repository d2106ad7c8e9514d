/* New certificates while connections live on.
 *
 * Files are read on a thread of its own, since a loop must not wait for a disk, and one at a time: who
 * asks while it is at work has it look once more. Each gateway thread then gets the new set as a
 * message, and connections hold the set they began with. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "gateway/certificates.h"
#include "gateway/thread.h"

enum { DESCRIBED_SIZE = 512 };

struct renewal {
    struct inbox_message message;
    struct certificates *certificates;
};

static void renewal_deliver(struct inbox_message *message, void *owner)
{
    struct gateway_thread *t = owner;
    struct renewal *renewal = container_of(message, struct renewal, message);
    certificates_release(t->certificates);
    t->certificates = renewal->certificates;
    free(renewal);
}

bool thread_certificates(struct gateway_thread *t, struct certificates *certificates)
{
    struct renewal *renewal = malloc(sizeof *renewal);
    if (renewal == NULL)
        return false;
    renewal->message.deliver = renewal_deliver;
    renewal->certificates = certificates;
    if (inbox_post_always(t->inbox, &renewal->message))
        return true;
    free(renewal);
    return false;
}

static void reload(struct gateway *g)
{
    struct certificates *fresh;
    struct err e = {0};
    char described[DESCRIBED_SIZE];
    if (certificates_load(&fresh, &g->options.tls, &e) != 0) {
        log_error("gateway", "the certificates stay as they were: %s", e.msg);
        return;
    }
    for (unsigned i = 0; i < g->thread_count; i++)
        if (!thread_certificates(g->threads[i], certificates_hold(fresh)))
            certificates_release(fresh);
    atomic_store(&g->certificate_expires_s, certificates_expire_s(fresh));
    certificates_describe(fresh, described, sizeof described);
    log_info("gateway", "certificates were read again: %s", described);
    certificates_release(fresh);
}

static void reload_main(void *argument)
{
    struct gateway *g = argument;
    unsigned wanted;
    do {
        wanted = atomic_load(&g->reloads_wanted);
        reload(g);
    } while (!atomic_compare_exchange_strong(&g->reloads_wanted, &wanted, 0));
}

void gateway_reload_certificates(struct gateway *g)
{
    if (g->options.tls.listen_count == 0 || g->closing) {
        log_info("gateway", "nothing to read again: gateway.tls is not set");
        return;
    }
    if (atomic_fetch_add(&g->reloads_wanted, 1) > 0)
        return;
    gateway_end_reload(g);
    int rc = uv_thread_create(&g->reload_thread, reload_main, g);
    g->reload_started = rc == 0;
    if (rc == 0)
        return;
    atomic_store(&g->reloads_wanted, 0);
    log_error("gateway", "the certificates stay as they were: cannot start a thread: %s",
              uv_strerror(rc));
}

void gateway_end_reload(struct gateway *g)
{
    if (g->reload_started)
        uv_thread_join(&g->reload_thread);
    g->reload_started = false;
}

int gateway_check_certificates(const struct gateway_tls_options *options, struct err *e)
{
    struct certificates *c;
    int rc = options->listen_count == 0 ? 0 : certificates_load(&c, options, e);
    if (rc == 0 && options->listen_count > 0)
        certificates_release(c);
    return rc;
}
