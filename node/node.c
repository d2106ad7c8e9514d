/* node_run: opens the parts in the order of their needs, turns ready when this node is registered, has
 * its lease and the runner was reconciled, and closes them the other way round.
 *
 *   who we are -> cluster -> registry, runner client, scheduler, API -> registered -> reconcile
 *      -> gateway -> ready
 *   SIGTERM: not ready, another leads -> notice, while joins still come -> gateway drains -> joins finish,
 *      at most NODE_DRAIN_MS -> gateway is shut -> the others are told -> close
 *
 * Instances are not ended by that: the runner keeps them, and the next start adopts them. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/ssh.h"
#include "node/api/api.h"
#include "node/cluster/cluster.h"
#include "node/cluster/members.h"
#include "node/config.h"
#include "node/control/certain.h"
#include "node/control/control.h"
#include "node/control/fences.h"
#include "node/control/reports.h"
#include "node/errands/errands.h"
#include "node/layers/copies.h"
#include "node/layers/layers.h"

#define NODE_DRAIN_MS 30000u
/* Whoever looks at /readyz (a load balancer) goes elsewhere some time after it has turned: until then joins
 * are taken as ever. They have gone when none came for five intervals of twenty a second, and those who do
 * not look are not waited for. */
#define NODE_NOTICE_QUIET_MS 250u
#define NODE_NOTICE_MS 5000u
#define NODE_DRAIN_LOOK_MS 20u
#define NODE_INBOX_MAX 100000u
#define NODE_LAG_INTERVAL_MS 20u
#define NODE_MACHINE_INTERVAL_US 1000000u /* two small files of /proc, 50 us */

/* --- for other threads ------------------------------------------------------------------------------ */

const struct config *node_config(const struct node *n)
{
    return n->config;
}

struct gateway *node_gateway(const struct node *n)
{
    return n->gateway;
}

enum problem node_ready(const struct node *n, char *why, size_t size)
{
    if (atomic_load(&((struct node *)(uintptr_t)n)->draining)) {
        text_copy(why, size, "draining: the node is stopping");
        return PROBLEM_DRAINING;
    }
    if (!atomic_load(&((struct node *)(uintptr_t)n)->ready)) {
        text_copy(why, size, "starting: the registry or the runner is not there yet");
        return PROBLEM_DRAINING; /* likewise: no requests for now, to whoever reads the code alone */
    }
    if (atomic_load(&((struct node *)(uintptr_t)n)->no_quorum)) {
        text_copy(why, size, "no_quorum: nothing can start; running instances can still be joined");
        return PROBLEM_NO_QUORUM;
    }
    return PROBLEM_NONE;
}

static enum problem ready_call(void *user, char *why, size_t size)
{
    return node_ready(user, why, size);
}

/* --- opening ------------------------------------------------------------------------------------------ */

static void registry_changed(void *user)
{
    struct node *n = user;
    struct registry_root *root = registry_root(n->registry);
    /* Held as long as it is compared with: nothing else comes to lie where its maps are. */
    bool workloads =
        n->workloads_root == NULL || !registry_root_workloads_same(n->workloads_root, root);
    imports_follow(n, root, workloads);
    if (n->reconciled && workloads) {
        steps_sync_workloads(n);
        if (n->workloads_root != NULL)
            registry_root_release(n->workloads_root);
        n->workloads_root = registry_root_hold(root);
    }
    if (n->layers_wanted && n->layers != NULL) {
        n->layers_wanted = false;
        layers_follow(n->layers, root);
    }
    registry_root_release(root);
    if (n->fences != NULL)
        fences_follow(n);
    /* The lease may have been granted before our root showed it. */
    if (n->fences != NULL && !n->gateway_opened)
        node_progress(n);
    members_registry_changed(n);
    routes_dirty(n);
}

static void leader_changed(void *user, bool leader)
{
    struct node *n = user;
    n->leader = leader;
    log_info("registry", leader ? "this node leads" : "this node does not lead");
    members_leader_changed(n);
    if (!leader || n->registered)
        fences_leader_changed(n);
    node_progress(n);
}

static void registry_failed(void *user, const struct err *error)
{
    struct node *n = user;
    log_error("registry",
              "the disk failed: %s. The node ends; its instances live on in the "
              "runner. Mend %s and start it again",
              error->msg, n->config->data);
    _exit(1);
}

static void runner_connected(void *user, const Skerry__Runner__HelloReply *hello)
{
    adopt_connected(user, hello);
    members_machine_changed(user);
}

static void runner_event(void *user, const Skerry__Runner__Event *event)
{
    instance_event(user, event);
}

static int open_registry(struct node *n, struct err *e)
{
    CLEANUP_FREE char *directory = text_new("%s/raft", n->config->data);
    if (directory == NULL)
        return err_set(e, ERR_NO_MEMORY, "open the registry");
    struct registry_options o = {
        .directory = directory,
        .user = n,
        .changed = registry_changed,
        .leader_changed = leader_changed,
        .failed = registry_failed,
    };
    members_registry_options(n, &o);
    return registry_open(&n->registry, &n->loop, &o, e);
}

static int open_runner(struct node *n, struct err *e)
{
    struct sandbox_options o = {
        .socket_path = n->config->runner_socket,
        .node_boot = n->boot,
        .calls = {.user = n,
                  .connected = runner_connected,
                  .disconnected = adopt_disconnected,
                  .event = runner_event},
    };
    return sandbox_open(&n->sandbox, &n->loop, &o, e);
}

static int open_layers(struct node *n, struct err *e)
{
    struct layers_options o = {
        .secure = cluster_secure(n->cluster),
        .sandbox = n->sandbox,
        .inbox = n->inbox,
        .user = n,
        .peers = members_layers_peers,
    };
    return layers_open(&n->layers, &n->loop, &o, e);
}

static struct gateway_tls_options tls_options(const struct config *c)
{
    return (struct gateway_tls_options){
        .listen = (const char *const *)c->gateway.tls.listen.items,
        .listen_count = c->gateway.tls.listen.count,
        .redirect = (const char *const *)c->gateway.tls.redirect.items,
        .redirect_count = c->gateway.tls.redirect.count,
        .redirect_port = (unsigned)c->gateway.tls.redirect_port,
        .certificates = (const char *const *)c->gateway.tls.certificate.items,
        .keys = (const char *const *)c->gateway.tls.key.items,
        .certificate_count = c->gateway.tls.certificate.count,
        .tls13_only = c->gateway.tls.minimum == CONFIG_TLS_13,
        .handshake_timeout_ms = (unsigned)c->gateway.tls.handshake_timeout_ms,
    };
}

static int open_gateway(struct node *n, struct err *e)
{
    const struct config *c = n->config;
    struct gateway_options o = {
        .listen = (const char *const *)c->http.items,
        .listen_count = c->http.count,
        .threads = (unsigned)c->gateway.threads,
        .domain = c->domain,
        .node_name = c->name,
        .trust_forwarded = c->gateway.forwarded,
        .header_bytes_max = (size_t)c->gateway.header_bytes_max,
        .body_bytes_max = c->gateway.body_bytes_max,
        .header_timeout_ms = (unsigned)c->gateway.header_timeout_ms,
        .body_timeout_ms = (unsigned)c->gateway.body_timeout_ms,
        .keepalive_timeout_ms = (unsigned)c->gateway.keepalive_timeout_ms,
        .connections_max = (unsigned)c->gateway.connections_max,
        .tls = tls_options(c),
        .acme_webroot = c->gateway.acme_webroot[0] != '\0' ? c->gateway.acme_webroot : NULL,
        .id = n->id,
        .secure = cluster_secure(n->cluster),
        .calls = {.user = n,
                  .workload = routes_workload,
                  .instance = routes_find_instance,
                  .authorize = routes_authorize,
                  .ask = joins_ask,
                  .cancel = joins_cancel,
                  .sockets = joins_sockets,
                  .slot_left = joins_slot_left,
                  .release = routes_release,
                  .ready = ready_call,
                  .peer = routes_peer,
                  .domain = routes_domain,
                  .pass = routes_pass},
    };
    return gateway_open(&n->gateway, &o, e);
}

static int open_api(struct node *n, struct err *e)
{
    const struct config *c = n->config;
    bool tcp = strcmp(c->api, "none") != 0;
    const char *listen[1] = {c->api};
    struct api_options o = {
        .listen = listen,
        .listen_count = tcp ? 1 : 0,
        .socket_path = c->api_socket,
        .socket_group = getegid(),
        .node_name = c->name,
        .domain = c->domain,
        .hosts = (const char *const[]){c->domain},
        .host_count = 1,
        .calls = api_calls_of(n),
    };
    (void)config_tcp_ports(c, &o.tcp_first, &o.tcp_last);
    members_api_peers(n, &o.peers);
    return api_open(&n->api, &o, e);
}

static void open_front(struct node *n)
{
    struct err e = {0};
    n->gateway_opened = true;
    if (open_gateway(n, &e) != 0) {
        log_error("gateway", "%s", e.msg);
        node_stop(n, 1);
        return;
    }
    routes_publish(n);
    tcp_ports_sync(n);
    node_ssh_open(n);
    atomic_store(&n->ready, true);
    log_info("node", "%s is ready: gateway at %s, API at %s", n->config->name,
             n->config->http.count > 0 ? n->config->http.items[0] : "none", n->config->api);
}

void node_progress(struct node *n)
{
    if (n->stopping || !n->registered)
        return;
    /* The lease was granted after all that may have ended what we held: the registry shows it. */
    if (!n->gateway_opened && !fences_leased(n))
        return;
    if (n->runner_seen && !n->reconciled) {
        steps_sync_workloads(n);
        adopt_reconcile(n);
        return;
    }
    if (n->reconciled && !n->gateway_opened)
        open_front(n);
}

/* --- timers -------------------------------------------------------------------------------------------- */

static void sweep(struct node *n);

static void sweep_cb(void *user, const struct err *error, const struct registry_result *result)
{
    if (error != NULL)
        log_warn("registry", "sweep: %s", error->msg);
    else if (result->changed)
        sweep(user); /* a command forgets a few hundred at most: there may be more */
}

static void sweep(struct node *n)
{
    if (!n->leader || n->stopping)
        return;
    struct registry_command command = {.kind = REGISTRY_SWEEP, .wall_ms = clock_wall_ms()};
    struct err e = {0};
    if (registry_propose(n->registry, &command, sweep_cb, n, &e) != 0)
        log_warn("registry", "sweep: %s", e.msg);
}

static void sweep_timer_cb(uv_timer_t *timer)
{
    sweep(container_of(timer, struct node, sweep_timer));
}

static void lag_timer_cb(uv_timer_t *timer)
{
    struct node *n = container_of(timer, struct node, lag_timer);
    uint64_t now_us = clock_monotonic_us();
    double late = n->lag_expected_us != 0 && now_us > n->lag_expected_us
                      ? (double)(now_us - n->lag_expected_us) / 1e6
                      : 0.0;
    n->lag_expected_us = now_us + NODE_LAG_INTERVAL_MS * 1000u;
    struct registry_status r;
    registry_status(n->registry, &r);
    if (now_us >= n->machine_read_us) {
        machine_read(&n->machine);
        n->machine_read_us = now_us + NODE_MACHINE_INTERVAL_US;
    }
    pthread_mutex_lock(&n->facts_mutex);
    histogram_add(&n->metrics.loop_lag_seconds, late);
    n->metrics.registry = r;
    n->metrics.cpus_used = n->machine.cpus_used;
    n->metrics.memory_used_bytes = n->machine.memory_used_bytes;
    n->metrics.memory_bytes = n->machine.memory_bytes;
    members_metrics(n, &n->metrics);
    pthread_mutex_unlock(&n->facts_mutex);
    uv_timer_start(timer, lag_timer_cb, NODE_LAG_INTERVAL_MS, 0);
}

/* --- stopping -------------------------------------------------------------------------------------------- */

static void pump(void *user)
{
    struct node *n = user;
    uv_run(&n->loop, UV_RUN_NOWAIT);
    usleep(1000);
}

static void part_closed(void *user)
{
    struct node *n = user;
    n->closing--;
}

static void close_signals(struct node *n)
{
    for (size_t k = 0; k < ARRAY_SIZE(n->signals); k++)
        uv_close((uv_handle_t *)&n->signals[k], NULL);
    uv_close((uv_handle_t *)&n->sweep_timer, NULL);
    uv_close((uv_handle_t *)&n->lag_timer, NULL);
    uv_close((uv_handle_t *)&n->drain_timer, NULL);
    uv_close((uv_handle_t *)&n->autopsy_timer, NULL);
}

void node_stop(struct node *n, int exit_code)
{
    n->exit_code = exit_code;
    n->stopping = true;
    uv_stop(&n->loop);
}

static void left_cb(struct node *n)
{
    node_stop(n, 0);
}

/* Nobody comes any more: what is here may finish. */
static void drain_begin(struct node *n)
{
    n->stopping = true;
    steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_SHUTDOWN});
    if (n->gateway != NULL)
        gateway_drain(n->gateway);
    n->drain_until_ms = uv_now(&n->loop) + NODE_DRAIN_MS;
}

/* Joins of clients that were answered since the process began; looks at /readyz are none. */
static uint64_t joins_answered(struct node *n)
{
    struct gateway_counters counters;
    uint64_t joins = 0;
    gateway_counters(n->gateway, &counters);
    for (size_t s = 0; s < ARRAY_SIZE(counters.by_start); s++)
        joins += counters.by_start[s].count;
    return joins;
}

static bool notice_goes_on(struct node *n)
{
    uint64_t now_ms = uv_now(&n->loop);
    uint64_t joins = joins_answered(n);
    /* Whoever waits for an instance was promised a place or a reason, and stopping is a poor one. */
    if (joins != n->notice_joins || n->waiters != NULL)
        n->notice_quiet_ms = now_ms;
    n->notice_joins = joins;
    return now_ms < n->notice_until_ms && now_ms - n->notice_quiet_ms < NODE_NOTICE_QUIET_MS;
}

/* Joins that only this node can serve come as long as others are waited for anyway; then it is shut, and
 * their nodes wait with them until it is back. */
static bool is_busy(struct node *n)
{
    if (errands_count(n) > 0)
        return true;
    if (n->gateway == NULL)
        return false;
    return (gateway_accepts(n->gateway) ? gateway_old_connections(n->gateway)
                                        : gateway_connections(n->gateway)) > 0;
}

static void drain_timer_cb(uv_timer_t *timer)
{
    struct node *n = container_of(timer, struct node, drain_timer);
    if (!n->stopping && n->gateway != NULL && notice_goes_on(n))
        return;
    if (!n->stopping)
        drain_begin(n);
    if (is_busy(n) && uv_now(&n->loop) < n->drain_until_ms)
        return;
    if (n->gateway != NULL && gateway_accepts(n->gateway)) {
        gateway_shut(n->gateway);
        return;
    }
    if (n->gateway != NULL && !gateway_is_shut(n->gateway))
        return;
    uv_timer_stop(timer);
    members_leave(n, left_cb);
}

static void signal_cb(uv_signal_t *handle, int number)
{
    struct node *n = handle->data;
    if (n->stopping || atomic_load(&n->draining)) {
        node_stop(n, 128 + number);
        return;
    }
    atomic_store(&n->draining, true);
    log_info("node", "stopping: joins may finish within %u s; instances live on",
             NODE_DRAIN_MS / 1000);
    members_resign(n);
    /* Where there is nowhere else to go, nobody is given time to. */
    if (n->gateway != NULL && members_others(n)) {
        gateway_leave(n->gateway);
        n->notice_joins = joins_answered(n);
        n->notice_quiet_ms = uv_now(&n->loop);
        n->notice_until_ms = n->notice_quiet_ms + NODE_NOTICE_MS;
    } else {
        drain_begin(n);
    }
    uv_timer_start(&n->drain_timer, drain_timer_cb, 0, NODE_DRAIN_LOOK_MS);
}

static void reload_cb(uv_signal_t *handle, int number)
{
    struct node *n = handle->data;
    (void)number;
    if (n->gateway != NULL && !n->stopping)
        gateway_reload_certificates(n->gateway);
}

static void free_instances(struct node *n)
{
    struct instance *i, *next;
    HASH_ITER(by_id, n->instances_by_id, i, next)
    instance_abandon(i);
}

static void wait_for_parts(struct node *n)
{
    /* Timers that are still set must not keep the process: only the parts are waited for. */
    while (n->closing > 0)
        uv_run(&n->loop, UV_RUN_ONCE);
}

static void close_all(struct node *n)
{
    n->stopping = true;
    members_stop(n);
    errands_close(n, pump, n);
    copies_stop(n);
    reports_stop(n);
    /* SSH before the API, on which its sessions rest, and that before the gateway, whose counters it
     * reads. */
    if (n->ssh != NULL)
        ssh_front_close(n->ssh);
    n->ssh = NULL;
    if (n->api != NULL)
        api_close(n->api, pump, n);
    if (n->gateway != NULL)
        gateway_close(n->gateway, pump, n);
    n->gateway = NULL;
    fences_stop(n);
    /* Layers wait for answers of the runner's client, and their threads post to the inbox. */
    n->closing = (n->layers != NULL ? 1u : 0u) + (n->sandbox != NULL ? 1u : 0u);
    if (n->layers != NULL)
        layers_close(n->layers, part_closed, n);
    if (n->sandbox != NULL)
        sandbox_close(n->sandbox, part_closed, n);
    wait_for_parts(n);
    n->layers = NULL;
    n->closing = (n->registry != NULL ? 1u : 0u) + (n->inbox != NULL ? 1u : 0u);
    if (n->registry != NULL)
        registry_close(n->registry, part_closed, n);
    if (n->inbox != NULL)
        inbox_close(n->inbox, part_closed);
    close_signals(n);
    wait_for_parts(n);
    /* What the others had asked was answered by those parts, and their streams are closed. */
    if (n->members != NULL) {
        n->closing = 1;
        members_close(n, part_closed);
        wait_for_parts(n);
    }
}

static void dispose(struct node *n)
{
    free_instances(n);
    fences_close(n);
    certain_close(n);
    copies_close(n);
    reports_close(n);
    tcp_ports_close(n);
    steps_close(n);
    instances_close(n);
    routes_close(n);
    uv_run(&n->loop, UV_RUN_DEFAULT);
    map_release(&n->known_workloads);
    if (n->workloads_root != NULL)
        registry_root_release(n->workloads_root);
    explain_close(n);
    if (n->scheduler != NULL)
        scheduler_free(n->scheduler);
    if (n->slots != NULL)
        slot_table_free(n->slots);
    if (n->hello != NULL)
        skerry__runner__hello_reply__free_unpacked(n->hello, NULL);
    free(n->events);
    free(n->node_states);
    pthread_mutex_destroy(&n->facts_mutex);
    int rc = uv_loop_close(&n->loop);
    if (rc != 0)
        log_error("node", "handles were left open: %s", uv_strerror(rc));
}

/* --- run -------------------------------------------------------------------------------------------------- */

/* One `serve` a data folder, whatever its name is today. */
static int lock_data(const struct config *c, int *out_fd, struct err *e)
{
    if (mkdir(c->data, 0750) != 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make the data folder %s", c->data);
    CLEANUP_FREE char *path = text_new("%s/lock", c->data);
    if (path == NULL)
        return err_set(e, ERR_NO_MEMORY, "lock %s", c->data);
    CLEANUP_FD int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open %s; it must belong to uid %u", path,
                       (unsigned)geteuid());
    if (lock_file(fd) != 0)
        return err_set(e, ERR_CONFLICT, "another skerry serve uses %s", c->data);
    *out_fd = steal_fd(&fd);
    return 0;
}

static void open_signals(struct node *n)
{
    const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    for (size_t k = 0; k < ARRAY_SIZE(numbers); k++) {
        uv_signal_init(&n->loop, &n->signals[k]);
        n->signals[k].data = n;
        uv_signal_start(&n->signals[k], numbers[k] == SIGHUP ? reload_cb : signal_cb, numbers[k]);
    }
    signal(SIGPIPE, SIG_IGN);
    uv_timer_init(&n->loop, &n->sweep_timer);
    uv_timer_init(&n->loop, &n->lag_timer);
    uv_timer_init(&n->loop, &n->drain_timer);
    uv_timer_init(&n->loop, &n->autopsy_timer);
    uv_timer_start(&n->sweep_timer, sweep_timer_cb, CONTROL_SWEEP_INTERVAL_MS,
                   CONTROL_SWEEP_INTERVAL_MS);
    uv_timer_start(&n->lag_timer, lag_timer_cb, NODE_LAG_INTERVAL_MS, 0);
}

static int open_all(struct node *n, struct err *e)
{
    n->events = calloc(NODE_EVENTS_KEPT, sizeof *n->events);
    if (n->events == NULL)
        return err_set(e, ERR_NO_MEMORY, "start the node");
    if (inbox_open(&n->inbox, &n->loop, n, NODE_INBOX_MAX, e) != 0 ||
        slot_table_new(&n->slots, (uint32_t)n->config->limits.instances_max, e) != 0 ||
        members_open(n, e) != 0 || open_registry(n, e) != 0 || fences_open(n, e) != 0 ||
        certain_open(n, e) != 0 || open_runner(n, e) != 0 || open_layers(n, e) != 0 ||
        copies_open(n, e) != 0 || errands_open(n, e) != 0 || reports_open(n, e) != 0)
        return -(int)(e->code);
    routes_publish(n);
    return open_api(n, e);
}

int node_run(const struct config *config)
{
    struct err e = {0};
    CLEANUP_FD int lock = -1;
    log_setup((enum log_level)config->log.level, (enum log_format)config->log.format);
    if (geteuid() == 0)
        log_warn("node", "skerry serve runs as root; give it a user of its own");
    if (sodium_init() < 0) {
        log_error("node", "libsodium cannot be used on this machine");
        return 1;
    }
    memory_descriptors_raise(); /* each join takes two */
    /* The gateway opens when the node holds its lease; what is wrong here is said at once. */
    struct gateway_tls_options tls = tls_options(config);
    if (gateway_check_certificates(&tls, &e) != 0 || lock_data(config, &lock, &e) != 0) {
        log_error("node", "%s", e.msg);
        return 1;
    }
    struct node *n = calloc(1, sizeof *n);
    assert_always(n != NULL);
    n->config = config;
    if (members_begin(n, &e) != 0) {
        log_error("node", "%s", e.msg);
        free(n);
        return 1;
    }
    n->adopted_next = SCHEDULER_ADOPTED_FIRST;
    n->started_wall_ms = clock_wall_ms();
    pthread_mutex_init(&n->facts_mutex, NULL);
    uv_loop_init(&n->loop);
    open_signals(n);
    instances_open(n);
    if (routes_open(n, &e) != 0 || steps_open(n, &e) != 0 || tcp_ports_open(n, &e) != 0 ||
        open_all(n, &e) != 0) {
        log_error("node", "%s", e.msg);
        n->exit_code = 1;
    } else {
        uv_run(&n->loop, UV_RUN_DEFAULT);
    }
    int exit_code = n->exit_code;
    close_all(n);
    dispose(n);
    free(n);
    log_info("node", "stopped");
    return exit_code;
}
