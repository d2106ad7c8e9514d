/* Ports of this node that workloads have opened with listen: {tcp: PORT}: as the registry names them, of those
 * that gateway.tcp.ports allows. A port that somebody else has is tried again each second, and told of by
 * `skerry status`. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/control/status_facts.h"

enum {
    AGAIN_MS = 1000,
    CLOSING_MS = 50, /* until the gateway's threads have closed what was another workload's */
};

struct tcp_port {
    char wanted[WORKLOAD_NAME_LENGTH_MAX + 1]; /* "": nobody wants it */
    char open[WORKLOAD_NAME_LENGTH_MAX + 1];   /* "": it is not open */
    char why[200];                             /* it could not be opened */
};

struct tcp_ports {
    struct node *node;
    uv_timer_t timer;
    unsigned first, last;
    unsigned outside; /* workloads that want ports which are not allowed here */
    char outsider[WORKLOAD_NAME_LENGTH_MAX + 1];
    unsigned outsider_port;
    struct tcp_port ports[]; /* by number, from `first` on */
};

static size_t count_of(const struct tcp_ports *t)
{
    return t->first == 0 ? 0 : t->last - t->first + 1;
}

static bool want(void *user, const struct registry_workload *w)
{
    struct tcp_ports *t = user;
    uint64_t port = w->spec.listen.tcp;
    if (port != 0 && port >= t->first && port <= t->last) {
        text_copy(t->ports[port - t->first].wanted, sizeof t->ports[0].wanted, w->name);
    } else if (port != 0 && t->outside++ == 0) {
        text_copy(t->outsider, sizeof t->outsider, w->name);
        t->outsider_port = (unsigned)port;
    }
    return true;
}

static void port_open(struct tcp_ports *t, size_t i)
{
    struct tcp_port *p = &t->ports[i];
    struct node *n = t->node;
    char address[80];
    struct err e = {0};
    unsigned port = t->first + (unsigned)i;
    text_format(address, sizeof address, "%s:%u", n->config->gateway.tcp.address, port);
    if (gateway_listen_tcp(n->gateway, address, p->wanted, &e) == 0) {
        text_copy(p->open, sizeof p->open, p->wanted);
        p->why[0] = '\0';
        log_info("gateway", "%s takes connections to %s", address, p->open);
    } else if (strcmp(p->why, e.msg) != 0) {
        text_copy(p->why, sizeof p->why, e.msg);
        log_warn("gateway", "port %u of %s: %s", port, p->wanted, e.msg);
    }
}

static void timer_cb(uv_timer_t *timer)
{
    tcp_ports_sync(container_of(timer, struct tcp_ports, timer)->node);
}

/* True: some were closed. */
static bool close_unwanted(struct tcp_ports *t)
{
    bool closed = false;
    for (size_t i = 0; i < count_of(t); i++) {
        struct tcp_port *p = &t->ports[i];
        if (p->open[0] == '\0' || strcmp(p->open, p->wanted) == 0)
            continue;
        gateway_unlisten_tcp(t->node->gateway, t->first + (unsigned)i);
        p->open[0] = '\0';
        closed = true;
    }
    return closed;
}

static bool any_missing(const struct tcp_ports *t)
{
    for (size_t i = 0; i < count_of(t); i++)
        if (t->ports[i].wanted[0] != '\0' && t->ports[i].open[0] == '\0')
            return true;
    return false;
}

void tcp_ports_sync(struct node *n)
{
    struct tcp_ports *t = n->tcp_ports;
    if (t == NULL || n->gateway == NULL || n->stopping)
        return;
    struct registry_root *root = registry_root(n->registry);
    t->outside = 0;
    for (size_t i = 0; i < count_of(t); i++)
        t->ports[i].wanted[0] = '\0';
    registry_root_workloads(root, NULL, want, t);
    registry_root_release(root);
    bool closed = close_unwanted(t);
    /* Who connects finds the workload in the routes. */
    if (!closed && any_missing(t))
        routes_publish(n);
    for (size_t i = 0; !closed && i < count_of(t); i++)
        if (t->ports[i].wanted[0] != '\0' && t->ports[i].open[0] == '\0')
            port_open(t, i);
    if (any_missing(t))
        uv_timer_start(&t->timer, timer_cb, closed ? CLOSING_MS : AGAIN_MS, 0);
    else
        uv_timer_stop(&t->timer);
}

void tcp_ports_warn(const struct node *n, json_t *warnings)
{
    const struct tcp_ports *t = n->tcp_ports;
    const struct tcp_port *first = NULL;
    unsigned missing = 0;
    if (t == NULL)
        return;
    for (size_t i = 0; i < count_of(t); i++)
        if (t->ports[i].why[0] != '\0' && t->ports[i].open[0] == '\0' && missing++ == 0)
            first = &t->ports[i];
    if (missing > 0)
        status_warn(warnings, "%s  %u port%s of workloads not opened: %s: %s", n->config->name,
                    missing, missing == 1 ? "" : "s", first->wanted, first->why);
    if (t->outside > 0)
        status_warn(warnings,
                    "%s  %u workload%s by listen.tcp what gateway.tcp.ports does not allow here: "
                    "%s %u",
                    n->config->name, t->outside, t->outside == 1 ? " wants" : "s want", t->outsider,
                    t->outsider_port);
}

int tcp_ports_open(struct node *n, struct err *e)
{
    unsigned first = 0, last = 0;
    if (!config_tcp_ports(n->config, &first, &last))
        first = last = 0;
    struct tcp_ports *t =
        calloc(1, sizeof *t + (first == 0 ? 0 : last - first + 1) * sizeof t->ports[0]);
    if (t == NULL)
        return err_set(e, ERR_NO_MEMORY, "ports of workloads: no memory");
    t->node = n;
    t->first = first;
    t->last = last;
    uv_timer_init(&n->loop, &t->timer);
    n->tcp_ports = t;
    return 0;
}

static void closed_cb(uv_handle_t *handle)
{
    free(container_of((uv_timer_t *)handle, struct tcp_ports, timer));
}

void tcp_ports_close(struct node *n)
{
    if (n->tcp_ports != NULL)
        uv_close((uv_handle_t *)&n->tcp_ports->timer, closed_cb);
    n->tcp_ports = NULL;
}
