/* What the SSH front needs of its node (gateway/ssh.h), and its opening. All reads are of the newest root. */
#include <sodium.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "gateway/ssh.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/control/ssh_key.h"

static bool seed(void *user, uint8_t out[32])
{
    _Static_assert(REGISTRY_SSH_SEED_BYTES == 32, "the front makes an Ed25519 key of it");
    struct node *n = user;
    struct registry_root *root = node_root(n);
    bool made = registry_root_ssh_seed(root, out);
    node_root_return(n, root);
    return made;
}

/* A key of one workload opens its instances; one of all those of every workload. */
static bool may(void *user, const struct ssh_name *name, const uint8_t *blob, size_t length)
{
    struct node *n = user;
    char id[17];
    const char *workload = name->workload;
    struct registry_root *root = node_root(n);
    if (name->instance[0] != '\0') {
        const struct registry_instance *i =
            registry_root_instance(root, name->instance, strlen(name->instance));
        workload = i == NULL ? "" : i->workload;
    }
    bool known = ssh_key_known(root, workload, blob, length, id);
    node_root_return(n, root);
    return known;
}

static uint64_t stream_idle_ms(void *user, const char *instance)
{
    struct node *n = user;
    uint64_t ms = DURATION_NONE;
    struct registry_root *root = node_root(n);
    const struct registry_instance *i = registry_root_instance(root, instance, strlen(instance));
    const struct registry_workload *w =
        i == NULL ? NULL : registry_root_workload_version(root, i->workload, i->version);
    if (w != NULL)
        ms = w->spec.timeouts.stream_idle_ms;
    node_root_return(n, root);
    return ms == DURATION_NONE ? UINT64_MAX : ms;
}

void node_ssh_open(struct node *n)
{
    const struct config *c = n->config;
    struct err e = {0};
    if (strcmp(c->gateway.ssh, "none") == 0)
        return;
    struct ssh_front_options o = {
        .listen = c->gateway.ssh,
        .api_socket = c->api_socket,
        .sessions_max = (unsigned)c->gateway.ssh_sessions_max,
        .calls = {.user = n, .seed = seed, .may = may, .stream_idle_ms = stream_idle_ms},
    };
    if (ssh_front_open(&n->ssh, &o, &e) == 0)
        log_info("ssh", "joins over SSH at %s", c->gateway.ssh);
    else
        log_warn("ssh", "no joins over SSH: %s. Set gateway: {ssh: ADDRESS:PORT}, or none", e.msg);
}

void node_ssh_counters(struct node *n, struct ssh_front_counters *out)
{
    *out = (struct ssh_front_counters){0};
    if (n->ssh != NULL)
        ssh_front_counters(n->ssh, out);
}
