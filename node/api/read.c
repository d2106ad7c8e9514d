/* node/api/read.c - reads of the registry that must not be old.
 *
 * Every node answers from its own replica, which learns of a change up to a heartbeat late. Whoever asks
 * with ?consistent=1 waits for a strong read first: all that was committed anywhere before it is in the
 * answer. Without a quorum there is none: 503 no_quorum. */
#include "node/api/internal.h"

static void settled(struct api_request *r)
{
    r->route->handle(r);
    if (r->response != NULL)
        api_resume(r);
}

static void read_cb(struct api_ask *a)
{
    struct api_request *r = a->request;
    if (api_ask_refused(r, a))
        api_resume(r);
    else
        api_settle_index(r, a->ask.result.index, settled);
}

void api_read_then_handle(struct api_request *r)
{
    bool consistent = false;
    if (api_word_among(r->route->query, "consistent") &&
        !api_query_flag(r, "consistent", &consistent))
        return;
    if (!consistent) {
        r->route->handle(r);
        return;
    }
    struct api_ask *a = api_ask_new(r, NODE_ASK_READ);
    if (a != NULL)
        (void)api_ask_send(a, read_cb);
}
