#include "raft/replica.h"

#include <errno.h>
#include <fcntl.h>
#include <raft/uv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/lock.h"
#include "base/log.h"
#include "base/memory.h"
#include "raft/snapshot.h"
#include "raft/transport.h"

struct replica {
    struct replica_options options;
    uv_loop_t *loop;
    int directory_fd; /* locked */
    struct raft raft;
    struct raft_io disk;
    struct transport *transport;
    struct raft_fsm fsm;
    struct guard *guard;
    bool halted;

    /* A snapshot under way: its root from `snapshot` to `snapshot_finalize`, its bytes since the
     * thread wrote them. */
    struct registry_root *snapshot_root;
    struct buffer snapshot_bytes;
    struct raft_buffer snapshot_buffer;
    uv_thread_t worker;
    uv_async_t worker_done;
    struct raft_io_async_work *work;
    int work_status;

    bool closing;
    uv_check_t closer;
    unsigned handles; /* that are open: worker_done and closer */
    void (*closed)(void *user);
    void *closed_user;
};

static void halt(struct replica *r, const struct err *cause)
{
    if (r->halted)
        return;
    r->halted = true;
    r->options.failed(r->options.user, cause);
}

/* --- the state machine, as libraft calls it ----------------------------------------------------------- */

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buffer, void **result)
{
    struct replica *r = fsm->data;
    struct state_outcome outcome;
    struct err e;
    *result = NULL;
    /* libraft does not tell the index; it applies in order and counts after. */
    uint64_t index = r->raft.last_applied + 1;
    if (state_apply(r->options.state, index, buffer->base, buffer->len, &outcome, &e) < 0) {
        halt(r, &e);
        return RAFT_SHUTDOWN;
    }
    recent_push(r->options.recent, index, buffer->base, buffer->len);
    r->options.applied(r->options.user, &outcome);
    return 0;
}

static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buffer)
{
    struct replica *r = fsm->data;
    struct state_content content;
    struct err e;
    if (snapshot_decode(&content, buffer->base, buffer->len, &e) < 0) {
        err_wrap(&e, "restore the registry from its snapshot");
        halt(r, &e);
        return RAFT_CORRUPT;
    }
    raft_free(buffer->base);
    recent_reset(r->options.recent, content.index);
    state_restore(r->options.state, &content);
    return 0;
}

/* On the loop: takes a root, which costs nothing. */
static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *buffers[], unsigned *count)
{
    struct replica *r = fsm->data;
    if (r->snapshot_root != NULL || r->halted || !guard_may_snapshot(r->guard))
        return RAFT_BUSY;
    struct registry_root *root = state_root(r->options.state);
    /* Without memory the root is an older one, which would lose commands. */
    if (root->content.index != state_content(r->options.state)->index) {
        registry_root_release(root);
        return RAFT_BUSY;
    }
    r->snapshot_root = root;
    *buffers = NULL;
    *count = 0;
    return 0;
}

/* On the worker's thread. */
static int fsm_snapshot_async(struct raft_fsm *fsm, struct raft_buffer *buffers[], unsigned *count)
{
    struct replica *r = fsm->data;
    struct err e;
    buffer_init(&r->snapshot_bytes, SNAPSHOT_BYTES_MAX);
    if (snapshot_encode(&r->snapshot_root->content, &r->snapshot_bytes, &e) < 0) {
        log_warn("registry", "snapshot: %s; it will be tried again", e.msg);
        return RAFT_NOMEM;
    }
    r->snapshot_buffer =
        (struct raft_buffer){.base = r->snapshot_bytes.data, .len = r->snapshot_bytes.length};
    *buffers = &r->snapshot_buffer;
    *count = 1;
    return 0;
}

static int fsm_snapshot_finalize(struct raft_fsm *fsm, struct raft_buffer *buffers[],
                                 unsigned *count)
{
    struct replica *r = fsm->data;
    *buffers = NULL;
    *count = 0;
    buffer_free(&r->snapshot_bytes);
    registry_root_release(r->snapshot_root);
    r->snapshot_root = NULL;
    return 0;
}

static void close_soon(struct replica *r);

/* --- the worker --------------------------------------------------------------------------------------- */

static void worker_main(void *user)
{
    struct replica *r = user;
    r->work_status = r->work->work(r->work);
    uv_async_send(&r->worker_done);
}

static void worker_done_cb(uv_async_t *async)
{
    struct replica *r = container_of(async, struct replica, worker_done);
    if (r->work == NULL)
        return;
    uv_thread_join(&r->worker);
    struct raft_io_async_work *work = r->work;
    r->work = NULL;
    guard_async_work_done(r->guard, work, r->work_status);
    if (r->closing)
        close_soon(r);
}

static int worker_start(void *user, struct raft_io_async_work *work)
{
    struct replica *r = user;
    if (r->work != NULL)
        return RAFT_BUSY;
    r->work = work;
    if (uv_thread_create(&r->worker, worker_main, r) == 0)
        return 0;
    r->work = NULL;
    return RAFT_IOERR;
}

/* --- the transport's calls ---------------------------------------------------------------------------- */

static bool address_of(void *user, node_id id, struct sockaddr_storage *out)
{
    const struct replica *r = user;
    const struct registry_peers *peers = r->options.peers;
    return peers->stream_address(peers->user, id, out);
}

/* Only a snapshot brings another generation than the first, and it is restored before anything is sent.
 * So a log tells as much as what was applied of it. */
uint64_t replica_generation(struct replica *r)
{
    return raft_last_index(&r->raft) == 0 ? 0 : state_content(r->options.state)->generation;
}

static uint64_t generation_of(void *user)
{
    return replica_generation(user);
}

/* --- the guard's calls -------------------------------------------------------------------------------- */

static void after(void *user)
{
    struct replica *r = user;
    r->options.after(r->options.user);
}

static void guard_failed_cb(void *user, const struct err *error)
{
    halt(user, error);
}

/* --- opening ------------------------------------------------------------------------------------------ */

static int directory_open(struct replica *r, struct err *e)
{
    const char *path = r->options.directory;
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make %s", path);
    r->directory_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r->directory_fd < 0)
        return err_sys(e, ERR_IO, errno, "open %s", path);
    int sys = lock_file(r->directory_fd);
    if (sys == EAGAIN)
        return err_set(e, ERR_CONFLICT, "%s is in use by another process", path);
    return sys == 0 ? 0 : err_sys(e, ERR_IO, sys, "lock %s", path);
}

/* Which of those that may follow the leader this node is, by id; 0: the first. */
static unsigned rank_without(const struct replica *r, node_id leader)
{
    const struct raft_configuration *all = &r->raft.configuration;
    unsigned rank = 0;
    for (unsigned i = 0; i < all->n; i++)
        rank += all->servers[i].role == RAFT_VOTER && all->servers[i].id != leader &&
                all->servers[i].id < r->options.id;
    return rank;
}

/* The process of a leader that ends closes its streams at once; waiting for an election's timeout would
 * teach nothing more. So its followers forget it, which lets them answer a pre-vote, and one after the
 * other stands for election, a rank each REPLICA_SUCCESSION_MS: two at once would split the votes. If it
 * lives and only the way is broken, the others still follow it and refuse the pre-vote, and its next
 * message is obeyed as ever. */
static void lost(void *user, node_id id)
{
    struct replica *r = user;
    struct raft *raft = &r->raft;
    if (r->closing || raft->state != RAFT_FOLLOWER || raft->follower_state.current_leader.id != id)
        return;
    raft_time now = raft->io->time(raft->io);
    raft_time elapsed = now - raft->election_timer_start;
    unsigned timeout = raft->follower_state.randomized_election_timeout;
    unsigned wait = REPLICA_TICK_MS + rank_without(r, id) * REPLICA_SUCCESSION_MS;
    raft->follower_state.current_leader.id = 0;
    if (elapsed + wait < timeout && now + wait > timeout)
        raft->election_timer_start = now + wait - timeout;
}

static int disk_open(struct replica *r, struct err *e)
{
    const struct transport_options options = {.secure = r->options.peers->secure,
                                              .user = r,
                                              .address = address_of,
                                              .generation = generation_of,
                                              .lost = lost};
    int rc = transport_new(&r->transport, r->loop, &options, e);
    if (rc < 0)
        return rc;
    int rv = raft_uv_init(&r->disk, r->loop, r->options.directory, transport_uv(r->transport));
    if (rv != 0)
        return err_set(e, ERR_IO, "open the log in %s: %s", r->options.directory,
                       raft_strerror(rv));
    /* Snapshots are compressed by us. */
    raft_uv_set_snapshot_compression(&r->disk, false);
    /* It would put damaged segments aside and go on without what they held. */
    raft_uv_set_auto_recovery(&r->disk, false);
    raft_uv_set_connect_retry_delay(&r->disk, REPLICA_CONNECT_AGAIN_MS);
    return 0;
}

static int bootstrap(struct replica *r, const char *address, struct err *e)
{
    struct raft_configuration configuration;
    raft_configuration_init(&configuration);
    int rv = raft_configuration_add(&configuration, r->options.id, address, RAFT_VOTER);
    if (rv == 0)
        rv = raft_bootstrap(&r->raft, &configuration);
    raft_configuration_close(&configuration);
    /* There is a log already. */
    if (rv == 0 || rv == RAFT_CANTBOOTSTRAP)
        return 0;
    return err_set(e, ERR_IO, "make a cluster in %s: %s (%.120s)", r->options.directory,
                   raft_strerror(rv), raft_errmsg(&r->raft));
}

static int start(struct replica *r, const char *address, struct err *e)
{
    raft_set_election_timeout(&r->raft, REPLICA_ELECTION_TIMEOUT_MS);
    raft_set_heartbeat_timeout(&r->raft, REPLICA_HEARTBEAT_MS);
    raft_set_snapshot_threshold(&r->raft, r->options.snapshot_threshold);
    raft_set_snapshot_trailing(&r->raft, r->options.snapshot_trailing);
    raft_set_install_snapshot_timeout(&r->raft, REPLICA_INSTALL_TIMEOUT_MS);
    raft_set_pre_vote(&r->raft, true);
    int rc = r->options.bootstrap ? bootstrap(r, address, e) : 0;
    if (rc < 0)
        return rc;
    int rv = raft_start(&r->raft);
    if (rv != 0)
        return err_set(e, ERR_IO, "read the log in %s: %s (%.150s)", r->options.directory,
                       raft_strerror(rv), raft_errmsg(&r->raft));
    guard_started(r->guard);
    return 0;
}

static void release(struct replica *r)
{
    guard_free(r->guard);
    transport_free(r->transport);
    memory_close(&r->directory_fd);
    free(r);
}

/* --- closing ------------------------------------------------------------------------------------------ */

static void handle_closed_cb(uv_handle_t *handle)
{
    struct replica *r = handle->data;
    if (--r->handles > 0)
        return;
    void (*closed)(void *user) = r->closed;
    void *user = r->closed_user;
    release(r);
    if (closed != NULL)
        closed(user);
}

static void closed_cb(struct raft *raft)
{
    struct replica *r = raft->data;
    raft_uv_close(&r->disk);
    uv_close((uv_handle_t *)&r->worker_done, handle_closed_cb);
    uv_close((uv_handle_t *)&r->closer, handle_closed_cb);
}

static void closer_cb(uv_check_t *closer)
{
    struct replica *r = container_of(closer, struct replica, closer);
    uv_check_stop(closer);
    raft_close(&r->raft, closed_cb);
}

/* libraft's disk must be closed in the check phase of the loop, right before handles close: it does not
 * wait for the handles of its writer, and if the last file work ended between its closing and theirs, it
 * would call back, be freed, and be called once more by the writer. */
static void close_soon(struct replica *r)
{
    uv_check_start(&r->closer, closer_cb);
    uv_async_send(&r->worker_done); /* so that the loop does not wait before */
}

void replica_close(struct replica *r, void (*cb)(void *user), void *user)
{
    r->closed = cb;
    r->closed_user = user;
    r->closing = true;
    r->halted = true; /* and so no new snapshot */
    if (r->work == NULL)
        close_soon(r);
}

static void handles_open(struct replica *r)
{
    int rc = uv_async_init(r->loop, &r->worker_done, worker_done_cb);
    rc |= uv_check_init(r->loop, &r->closer);
    assert_always(rc == 0);
    r->worker_done.data = r;
    r->closer.data = r;
    r->handles = 2;
}

int replica_open(struct replica **out, uv_loop_t *loop, const struct replica_options *options,
                 struct err *e)
{
    struct replica *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(e, ERR_NO_MEMORY, "the replica: no memory");
    r->options = *options;
    r->loop = loop;
    r->directory_fd = -1;
    const struct guard_options guard_options = {.inner = &r->disk,
                                                .tick_ms = REPLICA_TICK_MS,
                                                .user = r,
                                                .after = after,
                                                .failed = guard_failed_cb,
                                                .async_work = worker_start};
    int rc = directory_open(r, e);
    if (rc == 0)
        rc = guard_new(&r->guard, &guard_options, e);
    if (rc == 0)
        rc = disk_open(r, e);
    if (rc < 0) {
        release(r);
        return rc;
    }
    r->fsm = (struct raft_fsm){.version = 3,
                               .data = r,
                               .apply = fsm_apply,
                               .snapshot = fsm_snapshot,
                               .restore = fsm_restore,
                               .snapshot_finalize = fsm_snapshot_finalize,
                               .snapshot_async = fsm_snapshot_async};
    char address[24];
    text_format(address, sizeof address, "%llu", (unsigned long long)options->id);
    int rv = raft_init(&r->raft, guard_io(r->guard), &r->fsm, options->id, address);
    if (rv != 0) {
        rc = err_set(e, ERR_IO, "open the log in %s: %s (%.150s)", options->directory,
                     raft_strerror(rv), r->raft.errmsg);
        raft_uv_close(&r->disk);
        release(r);
        return rc;
    }
    r->raft.data = r;
    handles_open(r);
    rc = start(r, address, e);
    if (rc < 0) {
        replica_close(r, NULL, NULL);
        return rc;
    }
    *out = r;
    return 0;
}

struct raft *replica_raft(struct replica *r)
{
    return &r->raft;
}

bool replica_leads(const struct replica *r)
{
    return !r->halted && guard_leads(r->guard);
}

uint64_t replica_snapshot_index(const struct replica *r)
{
    return r->raft.log.snapshot.last_index;
}

bool replica_elected(const struct replica *r)
{
    return !r->halted && r->raft.state == RAFT_LEADER;
}

bool replica_follows(const struct replica *r, unsigned within_ms)
{
    const struct raft *raft = &r->raft;
    if (r->halted)
        return false;
    if (raft->state == RAFT_LEADER)
        return true;
    /* What a leader sends starts the timer anew, on those that do not vote as well. */
    return raft->state == RAFT_FOLLOWER && raft->follower_state.current_leader.id != 0 &&
           raft->io->time(raft->io) - raft->election_timer_start < within_ms;
}

node_id replica_leader(const struct replica *r)
{
    struct raft *raft = (struct raft *)(uintptr_t)&r->raft; /* it only reads */
    raft_id id = 0;
    const char *address;
    raft_leader(raft, &id, &address);
    return id;
}

void replica_spread(struct replica *r)
{
    if (!r->halted)
        guard_spread(r->guard);
}

void replica_accept(struct replica *r, struct secure_stream *s)
{
    transport_accept(r->transport, s);
}

void replica_review(struct replica *r)
{
    transport_review(r->transport);
}

size_t replica_streams(const struct replica *r)
{
    return transport_links(r->transport);
}
