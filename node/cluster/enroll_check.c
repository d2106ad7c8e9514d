/* May it join? Said without side effects, and in words for the people at the other machine. */
#include <inttypes.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "node/cluster/enroll_internal.h"
#include "node/node.h"

static void refuse(struct enroll_verdict_of *out, enum enroll_refusal refusal, const char *format,
                   ...) __attribute__((format(printf, 3, 4)));
static void refuse(struct enroll_verdict_of *out, enum enroll_refusal refusal, const char *format,
                   ...)
{
    va_list args;
    va_start(args, format);
    (void)vsnprintf(out->words, sizeof out->words, format, args);
    va_end(args);
    /* A text of the wire is shorter by its NUL than the room for it. */
    out->words[sizeof out->words - 1] = '\0';
    out->refusal = refusal;
}

void enroll_check_unread(const struct enroll_request *request, int rc,
                         struct enroll_verdict_of *out)
{
    *out = (struct enroll_verdict_of){.refusal = ENROLL_REFUSAL_COUNT};
    if (rc == -ERR_UNSUPPORTED)
        refuse(out, ENROLL_REFUSED_PROTOCOL,
               "it speaks protocol %u of joining, the cluster %u: install the version of the "
               "cluster, " SKERRY_VERSION,
               (unsigned)request->major, ENROLL_PROTOCOL_MAJOR);
    else
        refuse(out, ENROLL_REFUSED_FORMAT, "what came is no request to join");
}

/* --- one question each; false: refused -------------------------------------------------------------- */

static bool check_cluster(const struct enroll_asking *a, struct enroll_verdict_of *out)
{
    const char *ours = registry_root_cluster_id(a->root);
    if (strcmp(ours, a->request->cluster_id) == 0)
        return true;
    refuse(out, ENROLL_REFUSED_CLUSTER,
           "the token is for cluster %s, %s belongs to %s: make one here, skerry token create "
           "--node",
           a->request->cluster_id, a->name, ours[0] == '\0' ? "none yet" : ours);
    return false;
}

static bool check_clock(const struct enroll_asking *a, struct enroll_verdict_of *out)
{
    uint64_t theirs = a->request->wall_ms, ours = a->wall_ms;
    bool ahead = theirs > ours;
    uint64_t apart = ahead ? theirs - ours : ours - theirs;
    if (apart <= ENROLL_CLOCK_APART_MS)
        return true;
    refuse(out, ENROLL_REFUSED_CLOCK,
           "the clock of %s is %" PRIu64 ".%" PRIu64 " s %s that of %s, and at most %u s are "
           "allowed: set the one that is wrong (timedatectl set-ntp true)",
           a->request->name, apart / 1000, apart % 1000 / 100, ahead ? "ahead of" : "behind",
           a->name, ENROLL_CLOCK_APART_MS / 1000);
    return false;
}

static bool check_self(const struct enroll_asking *a, struct enroll_verdict_of *out)
{
    struct sockaddr_storage address;
    struct err e = {0};
    if (!known_name_valid(a->request->name)) {
        refuse(out, ENROLL_REFUSED_NAME,
               "its name is none: a-z, 0-9 and -, at most 63, no - first or last");
        return false;
    }
    if (known_address_check(a->request->address, &address, &e) != 0) {
        refuse(out, ENROLL_REFUSED_ADDRESS, "its address for other nodes: %s", e.msg);
        return false;
    }
    return true;
}

struct search {
    const struct enroll_asking *asking;
    node_id by_key, by_address;
    uint64_t others; /* that are not replaced by this one */
};

static bool compare_node(void *user, const struct registry_node *n)
{
    struct search *s = user;
    s->others += strcmp(n->name, s->asking->request->name) != 0;
    if (memcmp(n->public_key, s->asking->key->bytes, sizeof n->public_key) == 0)
        s->by_key = n->id;
    else if (strcmp(n->address, s->asking->request->address) == 0 &&
             strcmp(n->name, s->asking->request->name) != 0)
        s->by_address = n->id;
    return true;
}

static bool check_token(const struct enroll_asking *a, struct enroll_verdict_of *out)
{
    const struct registry_token *t =
        registry_root_token(a->root, a->request->token_id, strlen(a->request->token_id));
    /* The same words for a wrong secret: they tell nobody which ids there are. */
    if (!node_token_matches(t, a->request->secret) || t->role != TOKEN_ROLE_NODE) {
        refuse(out, ENROLL_REFUSED_TOKEN,
               "the token is not known: it was used, revoked, or has expired; make a new one, "
               "skerry token create --node");
        return false;
    }
    if (t->expires_wall_ms != 0 && a->wall_ms >= t->expires_wall_ms) {
        refuse(out, ENROLL_REFUSED_TOKEN,
               "the token expired %" PRIu64 " s ago; make a new one, skerry token create --node",
               (a->wall_ms - t->expires_wall_ms) / 1000);
        return false;
    }
    return true;
}

void enroll_check(const struct enroll_asking *a, struct enroll_verdict_of *out)
{
    struct search s = {.asking = a};
    *out = (struct enroll_verdict_of){.refusal = ENROLL_REFUSAL_COUNT};
    if (!check_cluster(a, out) || !check_self(a, out) || !check_clock(a, out))
        return;
    registry_root_nodes(a->root, compare_node, &s);
    out->member = s.by_key;
    if (out->member != 0 || !check_token(a, out))
        return;
    const struct registry_node *other =
        s.by_address == 0 ? NULL : registry_root_node(a->root, s.by_address);
    if (other != NULL)
        refuse(out, ENROLL_REFUSED_ADDRESS,
               "%s is the address of %s: give --bind and --advertise this machine's own, or "
               "remove that node first (skerry node rm %s)",
               a->request->address, other->name, other->name);
    else if (a->nodes_max != 0 && s.others >= a->nodes_max)
        refuse(out, ENROLL_REFUSED_FULL,
               "the cluster has its %" PRIu64 " nodes: remove one first (skerry node rm)",
               a->nodes_max);
}

void enroll_confirm(const struct enroll_asking *a, struct enroll_answer *out)
{
    node_id id = a->request->member;
    const struct registry_node *node = registry_root_node(a->root, id);
    *out = (struct enroll_answer){.major = ENROLL_PROTOCOL_MAJOR, .verdict = ENROLL_LATER};
    if (strcmp(registry_root_cluster_id(a->root), a->request->cluster_id) != 0)
        (void)text_format(out->words, sizeof out->words, "%s belongs to another cluster", a->name);
    else if (node != NULL && memcmp(node->public_key, a->key->bytes, sizeof a->key->bytes) == 0)
        out->verdict = ENROLL_MEMBER;
    else if (node != NULL)
        (void)text_format(out->words, sizeof out->words, "node %" PRIu64 " has another key", id);
    else if (id >= registry_root_node_id_next(a->root))
        (void)text_format(out->words, sizeof out->words, "%s has not heard of node %" PRIu64 " yet",
                          a->name, id);
    else
        out->verdict = ENROLL_REMOVED;
}

int enroll_tell(struct enroll_answer *out, const struct registry_root *root, node_id id,
                struct err *e)
{
    struct registry_gossip_key ring[REGISTRY_KEYRING_MAX];
    struct membership *m = &out->membership;
    *out = (struct enroll_answer){
        .major = ENROLL_PROTOCOL_MAJOR, .verdict = ENROLL_JOINED, .membership.id = id};
    (void)text_copy(m->cluster_id, sizeof m->cluster_id, registry_root_cluster_id(root));
    size_t count = registry_root_keyring(root, ring);
    /* The used one first. */
    for (int unused = 0; unused < 2; unused++) {
        for (size_t i = 0; i < count; i++) {
            if (ring[i].used == (unused == 0))
                memcpy(m->gossip_keys[m->gossip_key_count++], ring[i].bytes, 32);
        }
    }
    sodium_memzero(ring, sizeof ring);
    return known_of_root(&out->known, root, e);
}
