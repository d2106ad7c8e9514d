/* What gateway and API threads read: an immutable root of the registry and an immutable map of the
 * instances that this node can let somebody into. A changed pair is published at most every
 * CONTROL_PUBLISH_INTERVAL_MS, and given back to the control thread for release.
 *
 * `local` has two kinds of keys: "i" ID -> local_instance, "w" NAME -> local_list of the joinable
 * ones: of the workload's current version, and of those before it until one of that is ready. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/cluster/elsewhere.h"
#include "node/config.h"
#include "node/control/control.h"

struct local_instance {
    struct map_value value;
    struct slot_ref slot;
    enum instance_state state;
};

struct local_list {
    struct map_value value;
    uint32_t count;
    struct slot_ref refs[];
};

struct release_message {
    struct inbox_message message;
};

static void instance_release(struct map_value *value)
{
    free(container_of(value, struct local_instance, value));
}

static void list_release(struct map_value *value)
{
    free(container_of(value, struct local_list, value));
}

static size_t key_of(char out[1 + INSTANCE_ID_LENGTH_MAX + WORKLOAD_NAME_LENGTH_MAX], char kind,
                     const char *text, size_t length)
{
    out[0] = kind;
    memcpy(out + 1, text, length);
    return length + 1;
}

#define KEY_SIZE (1 + INSTANCE_ID_LENGTH_MAX + WORKLOAD_NAME_LENGTH_MAX)

/* --- changes, on the control thread -------------------------------------------------------------- */

static bool joinable(const struct instance *i, const char *name)
{
    return i->phase == PHASE_READY && !i->closed && i->slot.slot != NULL && i->key[0] == '\0' &&
           strcmp(i->name, name) == 0;
}

static uint64_t current_version_of(struct node *n, const char *name)
{
    struct registry_root *root = registry_root(n->registry);
    const struct registry_workload *w = registry_root_workload(root, name, strlen(name));
    uint64_t version = w != NULL ? w->version : 0;
    registry_root_release(root);
    return version;
}

static void rebuild_list(struct node *n, const char *name)
{
    uint64_t version = current_version_of(n, name);
    uint32_t count = 0, current = 0;
    struct instance *i, *next;
    HASH_ITER(by_handle, n->instances_by_handle, i, next)
    {
        bool open = joinable(i, name);
        count += open;
        current += open && i->version == version;
    }
    bool older = current == 0;
    count = older ? count : current;
    char key[KEY_SIZE];
    size_t key_length = key_of(key, 'w', name, strlen(name));
    struct err e = {0};
    int rc;
    if (count == 0) {
        rc = map_remove(&n->local, &n->local, key, key_length, &e);
    } else {
        struct local_list *list = calloc(1, sizeof *list + count * sizeof list->refs[0]);
        if (list == NULL)
            return;
        map_value_init(&list->value, list_release);
        HASH_ITER(by_handle, n->instances_by_handle, i, next)
        if (joinable(i, name) && (older || i->version == version))
            list->refs[list->count++] = i->slot;
        rc = map_put(&n->local, &n->local, key, key_length, &list->value, &e);
        map_value_drop(&list->value);
    }
    if (rc != 0)
        log_error("routes", "%s: %s", name, e.msg);
}

void routes_instance(struct node *n, struct instance *i)
{
    char key[KEY_SIZE];
    size_t key_length = key_of(key, 'i', i->id.text, strlen(i->id.text));
    struct err e = {0};
    int rc;
    if (i->phase == PHASE_ENDED) {
        rc = map_remove(&n->local, &n->local, key, key_length, &e);
    } else {
        struct local_instance *l = calloc(1, sizeof *l);
        if (l == NULL)
            return;
        map_value_init(&l->value, instance_release);
        l->slot = i->slot;
        l->state = i->phase <= PHASE_COMMITTED             ? INSTANCE_STATE_STARTING
                   : i->phase == PHASE_READY && !i->closed ? INSTANCE_STATE_READY
                                                           : INSTANCE_STATE_DRAINING;
        rc = map_put(&n->local, &n->local, key, key_length, &l->value, &e);
        map_value_drop(&l->value);
    }
    if (rc != 0)
        log_error("routes", "%s: %s", i->id.text, e.msg);
    if (i->name[0] != '\0' && i->spec->kind == WORKLOAD_SERVER)
        rebuild_list(n, i->name);
    routes_dirty(n);
}

/* --- other nodes ---------------------------------------------------------------------------------- */

/* What it takes of the loop: a twentieth. */
#define ELSEWHERE_REST 20u

/* False: it is too early to look again; the old one stands. */
static bool follow_others(struct node *n)
{
    uint64_t begin_us = clock_monotonic_us();
    struct registry_root *root = registry_root(n->registry);
    uint64_t index = registry_root_index(root);
    bool current = n->cluster == NULL ||
                   (index == n->elsewhere_index && !n->elsewhere_dirty && n->elsewhere != NULL);
    bool early = !current && begin_us < n->elsewhere_next_us;
    struct elsewhere *made = current || early ? NULL : elsewhere_new(n->cluster, root);
    registry_root_release(root);
    if (made != NULL) {
        elsewhere_drop(n->elsewhere);
        n->elsewhere = made;
        n->elsewhere_index = index;
        n->elsewhere_dirty = false;
        n->elsewhere_next_us = begin_us + (clock_monotonic_us() - begin_us) * ELSEWHERE_REST;
    }
    return current || made != NULL;
}

/* --- publishing ------------------------------------------------------------------------------------ */

static void free_routes(struct node *n, struct routes *r)
{
    struct routes **at = &n->routes_list;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    registry_root_release(r->root);
    map_release(&r->local);
    elsewhere_drop(r->elsewhere);
    free(r);
}

/* Under roots_mutex only the list is looked at; a root is released outside of it, since that may
 * free a large tree. */
static void collect(struct node *n)
{
    for (;;) {
        pthread_mutex_lock(&n->roots_mutex);
        struct routes *r = n->routes_list;
        while (r != NULL &&
               (r == n->current || r->readers > 0 || atomic_load(&r->gateway_holders) > 0))
            r = r->next;
        if (r != NULL) {
            struct routes **at = &n->routes_list;
            while (*at != r)
                at = &(*at)->next;
            *at = r->next;
        }
        pthread_mutex_unlock(&n->roots_mutex);
        if (r == NULL)
            return;
        registry_root_release(r->root);
        map_release(&r->local);
        elsewhere_drop(r->elsewhere);
        free(r);
    }
}

void routes_publish(struct node *n)
{
    n->publish_wanted = false;
    uv_timer_stop(&n->publish_timer);
    n->published_ms = uv_now(&n->loop);
    struct routes *r = calloc(1, sizeof *r);
    if (r == NULL) {
        routes_dirty(n);
        return;
    }
    r->root = registry_root(n->registry);
    r->local = map_hold(&n->local);
    bool followed = follow_others(n);
    r->elsewhere = elsewhere_hold(n->elsewhere);
    atomic_init(&r->gateway_holders, n->gateway != NULL ? gateway_thread_count(n->gateway) : 0);
    pthread_mutex_lock(&n->roots_mutex);
    r->next = n->routes_list;
    n->routes_list = r;
    n->current = r;
    pthread_mutex_unlock(&n->roots_mutex);
    if (n->gateway != NULL)
        gateway_publish(n->gateway, r);
    collect(n);
    if (!followed)
        routes_dirty(n);
}

static void publish_timer_cb(uv_timer_t *timer)
{
    routes_publish(container_of(timer, struct node, publish_timer));
}

void routes_dirty(struct node *n)
{
    if (n->publish_wanted)
        return;
    n->publish_wanted = true;
    uint64_t since_ms = uv_now(&n->loop) - n->published_ms;
    uv_timer_start(
        &n->publish_timer, publish_timer_cb,
        since_ms < CONTROL_PUBLISH_INTERVAL_MS ? CONTROL_PUBLISH_INTERVAL_MS - since_ms : 0, 0);
}

static void release_deliver(struct inbox_message *message, void *owner)
{
    free(container_of(message, struct release_message, message));
    collect(owner);
}

/* The last holder of routes that are not current any more wakes the control thread. */
static void wake_collector(struct node *n)
{
    struct release_message *m = malloc(sizeof *m);
    if (m == NULL)
        return; /* the next publication collects */
    m->message.deliver = release_deliver;
    if (!inbox_post_always(n->inbox, &m->message))
        free(m);
}

void routes_release(void *user, const void *routes)
{
    struct node *n = user;
    struct routes *r = (struct routes *)(uintptr_t)routes;
    if (atomic_fetch_sub(&r->gateway_holders, 1) == 1)
        wake_collector(n);
}

struct registry_root *node_root(struct node *n)
{
    pthread_mutex_lock(&n->roots_mutex);
    n->current->readers++;
    struct registry_root *root = n->current->root;
    pthread_mutex_unlock(&n->roots_mutex);
    return root;
}

void node_root_return(struct node *n, struct registry_root *root)
{
    pthread_mutex_lock(&n->roots_mutex);
    struct routes *r = n->routes_list;
    /* Several publications may share a root; any that counts a reader will do. */
    while (r != NULL && (r->root != root || r->readers == 0))
        r = r->next;
    assert_always(r != NULL);
    bool last = --r->readers == 0 && r != n->current;
    pthread_mutex_unlock(&n->roots_mutex);
    if (last)
        wake_collector(n);
}

int routes_open(struct node *n, struct err *e)
{
    (void)e;
    uv_timer_init(&n->loop, &n->publish_timer);
    pthread_mutex_init(&n->roots_mutex, NULL);
    return 0;
}

void routes_close(struct node *n)
{
    n->current = NULL;
    while (n->routes_list != NULL)
        free_routes(n, n->routes_list);
    map_release(&n->local);
    elsewhere_drop(n->elsewhere);
    n->elsewhere = NULL;
    pthread_mutex_destroy(&n->roots_mutex);
    uv_close((uv_handle_t *)&n->publish_timer, NULL);
}

/* --- reading, on gateway threads --------------------------------------------------------------------- */

static void copy_workload(struct gateway_workload *out, const struct registry_workload *w)
{
    text_copy(out->name, sizeof out->name, w->name);
    out->version = w->version;
    out->kind = (enum workload_kind)w->spec.kind;
    out->public_access = w->spec.access == ACCESS_PUBLIC;
    out->no_port = w->spec.kind == WORKLOAD_SERVER && w->spec.port == 0;
    out->tcp = w->spec.protocol == PROTOCOL_TCP;
    const char *key_name = "";
    out->key_source = workload_key_source(&w->spec, &key_name);
    text_copy(out->key_name, sizeof out->key_name, key_name != NULL ? key_name : "");
    out->first_byte_ms = w->spec.timeouts.first_byte_ms;
    out->request_ms = w->spec.timeouts.request_ms;
    out->stream_idle_ms = w->spec.timeouts.stream_idle_ms;
    out->queue_timeout_ms = w->spec.scale.queue_timeout_ms;
    out->candidate_count = 0;
    out->owner_count = 0;
}

bool routes_workload(void *user, const void *routes, const char *name, size_t length,
                     struct gateway_workload *out)
{
    struct node *n = user;
    const struct routes *r = routes;
    if (length > WORKLOAD_NAME_LENGTH_MAX)
        return false;
    const struct registry_workload *w = registry_root_workload(r->root, name, length);
    if (w == NULL)
        return false;
    copy_workload(out, w);
    elsewhere_owners(r->elsewhere, out);
    char key[KEY_SIZE];
    const struct local_list *list =
        (const struct local_list *)map_get(&r->local, key, key_of(key, 'w', name, length));
    if (list == NULL)
        return true;
    uint32_t take = list->count < GATEWAY_CANDIDATES_MAX ? list->count : GATEWAY_CANDIDATES_MAX;
    /* Another beginning each time, when there are more than one request looks at. */
    uint32_t first = take < list->count
                         ? atomic_fetch_add_explicit(&n->rotation, take, memory_order_relaxed)
                         : 0;
    for (uint32_t k = 0; k < take; k++)
        out->candidates[k] = list->refs[(first + k) % list->count];
    out->candidate_count = take;
    return true;
}

bool routes_find_instance(void *user, const void *routes, const struct instance_id *id,
                          struct gateway_instance *out, struct gateway_workload *out_workload)
{
    struct node *n = user;
    const struct routes *r = routes;
    size_t length = strlen(id->text);
    const struct registry_instance *i = registry_root_instance(r->root, id->text, length);
    if (i == NULL)
        return false;
    *out = (struct gateway_instance){
        .state = i->state,
        .reason = i->reason,
        .exit_code = i->exit_code,
        .local = i->owner == n->id,
        .owner = i->owner,
        .owner_alive = i->owner == n->id || elsewhere_alive(r->elsewhere, i->owner),
    };
    text_copy(out->detail, sizeof out->detail, i->detail);
    if (i->ended_wall_ms != 0)
        clock_format_rfc3339(i->ended_wall_ms, out->ended_at);
    char key[KEY_SIZE];
    const struct local_instance *l =
        (const struct local_instance *)map_get(&r->local, key, key_of(key, 'i', id->text, length));
    if (l != NULL && i->state != INSTANCE_STATE_ENDED) {
        out->slot = l->slot;
        out->state = l->state;
    }
    const struct registry_workload *w =
        registry_root_workload_version(r->root, i->workload, i->version);
    if (w != NULL)
        copy_workload(out_workload, w);
    else
        *out_workload = (struct gateway_workload){.first_byte_ms = DURATION_NONE,
                                                  .request_ms = DURATION_NONE,
                                                  .stream_idle_ms = DURATION_NONE};
    return true;
}

bool routes_peer(void *user, node_id id, struct gateway_peer *out)
{
    struct node *n = user;
    pthread_mutex_lock(&n->roots_mutex);
    bool known = n->current != NULL && elsewhere_peer(n->current->elsewhere, id, out);
    pthread_mutex_unlock(&n->roots_mutex);
    return known && cluster_address(n->cluster, id, CLUSTER_PORT_STREAM, &out->address);
}

bool routes_domain(void *user, const void *routes, const char *name, size_t length,
                   char workload[WORKLOAD_NAME_LENGTH_MAX + 1])
{
    const struct routes *r = routes;
    const struct registry_domain *domain = registry_root_domain(r->root, name, length);
    (void)user;
    if (domain != NULL)
        text_copy(workload, WORKLOAD_NAME_LENGTH_MAX + 1, domain->workload);
    return domain != NULL;
}

enum problem routes_authorize(void *user, const void *routes, const struct gateway_workload *w,
                              const struct instance_id *instance, const char *token, size_t length)
{
    (void)user;
    const struct routes *r = routes;
    return node_authorize(r->root, token, length, TOKEN_ROLE_INVOKE, w->name,
                          instance != NULL ? instance->text : NULL, clock_wall_ms());
}

static struct routes *routes_take(struct node *n)
{
    pthread_mutex_lock(&n->roots_mutex);
    struct routes *r = n->current;
    r->readers++;
    pthread_mutex_unlock(&n->roots_mutex);
    return r;
}

static void routes_give(struct node *n, struct routes *r)
{
    pthread_mutex_lock(&n->roots_mutex);
    bool last = --r->readers == 0 && r != n->current;
    pthread_mutex_unlock(&n->roots_mutex);
    if (last)
        wake_collector(n);
}

bool routes_workload_now(struct node *n, const char *name, struct gateway_workload *out)
{
    struct routes *r = routes_take(n);
    bool known = routes_workload(n, r, name, strlen(name), out);
    routes_give(n, r);
    return known;
}

bool node_instance_load(struct node *n, const struct instance_id *id, uint32_t *joiners,
                        uint32_t *max_joiners)
{
    bool found = false;
    struct routes *r = routes_take(n);
    char key[KEY_SIZE];
    const struct local_instance *l = (const struct local_instance *)map_get(
        &r->local, key, key_of(key, 'i', id->text, strlen(id->text)));
    if (l != NULL && l->slot.slot != NULL) {
        *joiners = slot_joiners(l->slot);
        *max_joiners = atomic_load(&l->slot.slot->max_joiners);
        found = true;
    }
    routes_give(n, r);
    return found;
}
