/* tests/lib/api_fake.h - a node behind the API that is none: a real registry's state machine, and
 * commands that are plain processes of this machine.
 *
 * Questions are answered on the API's own thread, or later by a thread that waits for a process.
 * Header only; asserts by cmocka. */
#ifndef SKERRY_TESTS_LIB_API_FAKE_H
#define SKERRY_TESTS_LIB_API_FAKE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sodium.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/api/api.h"
#include "raft/command.h"
#include "raft/state.h"

#define FAKE_WAIT_MS 40000
#define FAKE_DIGEST "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

struct fake {
    pthread_mutex_t lock; /* of all below */
    struct state *state;
    uint64_t index, sequence;
    node_id owner; /* of the instances that start here; 0: node 1 */
    struct registry_root *published;
    unsigned root_lag; /* so often the root before the last change is given out once more */
    struct api *api;
    unsigned port;
    char directory[64];
    char socket_path[96];
    char admin[NODE_TOKEN_TEXT_SIZE];
    bool not_ready, refuse_asks;
    unsigned canceled, signaled, reads;
    bool no_quorum;
    unsigned resized_rows, resized_columns;
    uint64_t extended_ms;
    node_id transferred;
    const char *copies_warning; /* NULL: there are enough */
    uint64_t imported_bytes;
    bool import_slow;
    struct node_event events[16];
    size_t event_count;
    void (*post)(void *user);
    void *post_user;
};

/* A process that runs for a RUN or EXEC, or a thread that reads an import. */
struct fake_child {
    struct fake *fake;
    struct node_ask *ask;
    pid_t pid;
    int fd;
    bool timed_out;
};

static inline void fake_pause(void)
{
    (void)poll(NULL, 0, 2);
}

#define fake_wait_for(condition)                                                                   \
    do {                                                                                           \
        uint64_t until_ = clock_monotonic_ms() + FAKE_WAIT_MS;                                     \
        while (!(condition)) {                                                                     \
            if (clock_monotonic_ms() > until_)                                                     \
                fail_msg("never: %s", #condition);                                                 \
            fake_pause();                                                                          \
        }                                                                                          \
    } while (0)

/* A number of the fake's, while its threads go on. */
#define fake_get(f, member)                                                                        \
    __extension__({                                                                                \
        (void)pthread_mutex_lock(&(f)->lock);                                                      \
        __typeof__((f)->member) got_ = (f)->member;                                                \
        (void)pthread_mutex_unlock(&(f)->lock);                                                    \
        got_;                                                                                      \
    })
#define fake_set(f, member, to)                                                                    \
    do {                                                                                           \
        (void)pthread_mutex_lock(&(f)->lock);                                                      \
        (f)->member = (to);                                                                        \
        (void)pthread_mutex_unlock(&(f)->lock);                                                    \
    } while (0)

/* --- answers ------------------------------------------------------------------------------------ */

static void fake_answered_cb(struct inbox_message *message, void *owner)
{
    struct node_ask *ask = container_of(message, struct node_ask, message);
    ask->answered(ask, owner);
}

static void fake_ended_cb(struct inbox_message *message, void *owner)
{
    struct node_ask *ask = container_of(message, struct node_ask, ended_message);
    ask->ended(ask, owner);
}

static void fake_answer(struct node_ask *ask)
{
    ask->message.deliver = fake_answered_cb;
    assert_always(inbox_post_always(ask->reply_to, &ask->message));
}

static void fake_end(struct node_ask *ask)
{
    ask->ended_message.deliver = fake_ended_cb;
    assert_always(inbox_post_always(ask->reply_to, &ask->ended_message));
}

static void fake_refuse(struct node_ask *ask, enum problem problem, const char *detail)
{
    ask->problem = problem;
    (void)text_copy(ask->detail, sizeof(ask->detail), detail);
    fake_answer(ask);
}

/* --- the registry ------------------------------------------------------------------------------- */

/* Under the lock. */
static void fake_apply(struct fake *f, const struct registry_command *command,
                       struct registry_result *out)
{
    struct err e = {0};
    uint8_t *bytes = NULL;
    size_t length = 0;
    struct command_session session = {1, 1, ++f->sequence};
    *out = (struct registry_result){0};
    if (command_encode(&bytes, &length, &session, command, &e) != 0) {
        out->problem = PROBLEM_BAD_REQUEST;
        (void)text_copy(out->detail, sizeof(out->detail), e.msg);
        return;
    }
    struct state_outcome outcome;
    assert_always(state_apply(f->state, ++f->index, bytes, length, &outcome, &e) == 0);
    free(bytes);
    *out = outcome.result;
    out->index = f->index;
}

static void fake_propose(struct fake *f, const struct registry_command *command)
{
    struct registry_result result;
    (void)pthread_mutex_lock(&f->lock);
    fake_apply(f, command, &result);
    (void)pthread_mutex_unlock(&f->lock);
    if (result.problem != PROBLEM_NONE)
        fail_msg("%s", result.detail);
}

/* A registered, ready instance of `workload` ("" for a run); under the lock. */
static enum problem fake_instance(struct fake *f, const char *workload, const char *key,
                                  struct instance_id *out)
{
    uint8_t random[11];
    struct registry_result result;
    struct registry_root *root = state_root(f->state);
    const struct registry_workload *w = registry_root_workload(root, workload, strlen(workload));
    node_id owner = f->owner != 0 ? f->owner : 1;
    struct registry_instance i = {.owner = owner,
                                  .version = w == NULL ? 0 : w->version,
                                  .started_wall_ms = clock_wall_ms(),
                                  .exit_code = -1,
                                  .state = INSTANCE_STATE_STARTING};
    registry_root_release(root);
    randombytes_buf(random, sizeof(random));
    instance_id_make(&i.id, owner, random);
    (void)text_copy(i.workload, sizeof(i.workload), workload);
    (void)text_copy(i.key, sizeof(i.key), key == NULL ? "" : key);
    (void)text_copy(i.asked_by, sizeof(i.asked_by), "a test");
    fake_apply(f,
               &(struct registry_command){
                   .kind = REGISTRY_INSTANCE_RESERVE, .wall_ms = i.started_wall_ms, .instance = &i},
               &result);
    if (result.problem != PROBLEM_NONE)
        return result.problem;
    i.epoch = result.epoch;
    i.state = INSTANCE_STATE_READY;
    fake_apply(f,
               &(struct registry_command){
                   .kind = REGISTRY_INSTANCE_UPDATE, .wall_ms = i.started_wall_ms, .instance = &i},
               &result);
    *out = i.id;
    return result.problem;
}

static bool fake_end_instance(struct fake *f, const char *id, enum end_reason reason)
{
    struct registry_result result;
    struct registry_root *root = state_root(f->state);
    const struct registry_instance *there = registry_root_instance(root, id, strlen(id));
    bool found = there != NULL && there->state != INSTANCE_STATE_ENDED;
    if (found) {
        struct registry_instance i = {.id = there->id,
                                      .epoch = there->epoch,
                                      .reason = reason,
                                      .exit_code = -1,
                                      .signal = 9,
                                      .ended_wall_ms = clock_wall_ms()};
        fake_apply(f,
                   &(struct registry_command){
                       .kind = REGISTRY_INSTANCE_END, .wall_ms = i.ended_wall_ms, .instance = &i},
                   &result);
    }
    registry_root_release(root);
    return found;
}

/* --- commands ----------------------------------------------------------------------------------- */

static void *fake_child_main(void *user)
{
    struct fake_child *c = user;
    struct node_ask *ask = c->ask;
    int status = 0;
    while (waitpid(c->pid, &status, 0) < 0 && errno == EINTR)
        ;
    (void)pthread_mutex_lock(&c->fake->lock);
    ask->control = NULL;
    (void)pthread_mutex_unlock(&c->fake->lock);
    ask->end.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    ask->end.signal = WIFSIGNALED(status) ? (unsigned)WTERMSIG(status) : 0;
    ask->end.reason = END_EXITED;
    ask->end.wall_us = 1500000;
    ask->end.cpu_us = 250000;
    ask->end.memory_peak_bytes = 4096;
    free(c);
    fake_end(ask);
    return NULL;
}

static void fake_pipe(int out[2])
{
    assert_always(pipe2(out, O_CLOEXEC) == 0);
}

/* Starts argv with pipes or a terminal, its descriptors in ask->descriptors. */
static pid_t fake_spawn(struct node_ask *ask, char *const argv[])
{
    int pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    pid_t pid = -1;
    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawnattr_init(&attributes);
    (void)sigemptyset(&none);
    (void)posix_spawnattr_setsigmask(&attributes, &none);
    (void)posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    if (ask->tty) {
        int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
        assert_always(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
        pipes[0][0] = pipes[1][1] = pipes[2][1] =
            open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
        ask->descriptors[0] = master;
    } else {
        for (int i = 0; i < 3; i++)
            fake_pipe(pipes[i]);
        ask->descriptors[0] = pipes[0][1];
        ask->descriptors[1] = pipes[1][0];
        ask->descriptors[2] = pipes[2][0];
        if (ask->no_stdin)
            memory_close(&ask->descriptors[0]);
    }
    (void)posix_spawn_file_actions_adddup2(&actions, pipes[0][0], 0);
    (void)posix_spawn_file_actions_adddup2(&actions, pipes[1][1], 1);
    (void)posix_spawn_file_actions_adddup2(&actions, pipes[2][1], 2);
    int error = posix_spawnp(&pid, argv[0], &actions, &attributes, argv, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    (void)posix_spawnattr_destroy(&attributes);
    memory_close(&pipes[0][0]);
    if (!ask->tty) {
        memory_close(&pipes[1][1]);
        memory_close(&pipes[2][1]);
    }
    return error == 0 ? pid : -1;
}

static void fake_detach(void *(*main)(void *), void *user)
{
    pthread_t thread;
    assert_always(pthread_create(&thread, NULL, main, user) == 0);
    (void)pthread_detach(thread);
}

static void fake_command(struct fake *f, struct node_ask *ask)
{
    char *argv[64] = {NULL};
    const char *const files[][6] = {
        [NODE_FILE_READ] = {"tar", "-C", "/", "-cf", "-", NULL},
        [NODE_FILE_WRITE] = {"tar", "-xf", "-", "-C", NULL},
        [NODE_FILE_READ_PLAIN] = {"cat", NULL},
        [NODE_FILE_WRITE_PLAIN] = {"dd", "status=none", NULL},
    };
    char path[4200];
    size_t count = 0;
    if (ask->file_verb == NODE_FILE_READ && access(ask->path, F_OK) != 0)
        ask->file_verb = NODE_FILE_READ_PLAIN; /* tar writes something for nothing, cat does not */
    if (ask->file_verb != NODE_FILE_NONE) {
        while (files[ask->file_verb][count] != NULL) {
            argv[count] = (char *)(uintptr_t)files[ask->file_verb][count];
            count++;
        }
        bool tar = ask->file_verb == NODE_FILE_READ;
        (void)text_format(path, sizeof(path), "%s%s",
                          ask->file_verb == NODE_FILE_WRITE_PLAIN ? "of=" : "",
                          ask->path + (tar ? 1 : 0));
        argv[count] = path;
    } else {
        for (; count < ask->spec->command.count && count < 63; count++)
            argv[count] = ask->spec->command.items[count];
    }
    struct fake_child *c = calloc(1, sizeof(*c));
    c->fake = f;
    c->ask = ask;
    c->pid = fake_spawn(ask, argv);
    if (c->pid < 0) {
        free(c);
        for (size_t i = 0; i < 3; i++)
            memory_close(&ask->descriptors[i]);
        fake_refuse(ask, PROBLEM_START_FAILED, "no such command");
        return;
    }
    ask->control = c;
    if (ask->kind == NODE_ASK_RUN)
        (void)fake_instance(f, "", NULL, &ask->id);
    fake_answer(ask);
    fake_detach(fake_child_main, c);
}

static void *fake_import_main(void *user)
{
    struct fake_child *c = user;
    struct node_ask *ask = c->ask;
    char data[65536];
    bool bad = false;
    uint64_t bytes = 0;
    ssize_t got;
    while (!bad && (got = read(c->fd, data, sizeof(data))) > 0) {
        bad = bytes == 0 && data[0] == 'X';
        bytes += (uint64_t)got;
        fake_set(c->fake, imported_bytes, bytes);
        if (fake_get(c->fake, import_slow) && bytes % (1024 * 1024) < sizeof(data))
            fake_pause();
    }
    (void)close(c->fd);
    if (bad) {
        ask->import.problem = PROBLEM_IMAGE_INVALID;
        (void)text_copy(ask->end.detail, sizeof(ask->end.detail), "not an archive");
    }
    (void)text_copy(ask->import.digest, sizeof(ask->import.digest), FAKE_DIGEST);
    ask->import.bytes = bytes;
    ask->import.files = 3;
    free(c);
    fake_end(ask);
    return NULL;
}

static void fake_import(struct fake *f, struct node_ask *ask)
{
    int pipe[2];
    fake_pipe(pipe);
    struct fake_child *c = calloc(1, sizeof(*c));
    c->fake = f;
    c->ask = ask;
    c->fd = pipe[0];
    ask->descriptors[0] = pipe[1];
    fake_answer(ask);
    fake_detach(fake_import_main, c);
}

static void fake_about(struct fake *f, struct node_ask *ask)
{
    struct fake_child *c = ask->target->control;
    if (ask->kind == NODE_ASK_CANCEL)
        f->canceled++;
    if (ask->kind == NODE_ASK_SIGNAL)
        f->signaled = ask->signal;
    if (ask->kind == NODE_ASK_RESIZE) {
        f->resized_rows = ask->rows;
        f->resized_columns = ask->columns;
    }
    if (c != NULL && ask->target->kind != NODE_ASK_IMPORT && ask->kind != NODE_ASK_RESIZE)
        (void)kill(c->pid, ask->kind == NODE_ASK_CANCEL ? SIGKILL : (int)ask->signal);
    fake_answer(ask);
}

/* --- questions ---------------------------------------------------------------------------------- */

static void fake_start(struct fake *f, struct node_ask *ask)
{
    enum problem problem = fake_instance(f, ask->workload, ask->key, &ask->id);
    if (problem == PROBLEM_NONE)
        fake_answer(ask);
    else
        fake_refuse(ask, problem, "it did not start");
}

static void fake_ask_locked(struct fake *f, struct node_ask *ask)
{
    switch (ask->kind) {
    case NODE_ASK_PROPOSE:
        fake_apply(f, ask->command, &ask->result);
        if (ask->result.problem != PROBLEM_NONE)
            fake_refuse(ask, ask->result.problem, ask->result.detail);
        else
            fake_answer(ask);
        break;
    case NODE_ASK_START:
        fake_start(f, ask);
        break;
    case NODE_ASK_COMMAND:
    case NODE_ASK_RUN:
    case NODE_ASK_EXEC:
        fake_command(f, ask);
        break;
    case NODE_ASK_STOP:
        (void)fake_end_instance(f, ask->instance, END_KILLED);
        fake_answer(ask);
        break;
    case NODE_ASK_EXTEND:
        f->extended_ms = ask->duration_ms;
        fake_answer(ask);
        break;
    case NODE_ASK_SIGNAL:
    case NODE_ASK_RESIZE:
    case NODE_ASK_CANCEL:
        fake_about(f, ask);
        break;
    case NODE_ASK_IMPORT:
        fake_import(f, ask);
        break;
    case NODE_ASK_SOCKET:
        (void)instance_id_parse(&ask->id, ask->instance, strlen(ask->instance));
        ask->descriptors[0] =
            socket(ask->ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        fake_answer(ask);
        break;
    case NODE_ASK_STATS:
        ask->usage.memory_bytes = 12345;
        ask->usage.cpu_us = 500000;
        fake_answer(ask);
        break;
    case NODE_ASK_READ:
        f->reads++;
        if (f->no_quorum) {
            fake_refuse(ask, PROBLEM_NO_QUORUM, "1 of 3 voters");
            break;
        }
        ask->result.index = state_content(f->state)->index;
        fake_answer(ask);
        break;
    case NODE_ASK_STATUS:
        ask->json = json_pack("{s:s, s:b, s:[{s:s, s:s}]}", "cluster", "demo", "healthy", 1,
                              "nodes", "id", "1", "name", "node1");
        fake_answer(ask);
        break;
    case NODE_ASK_EXPLAIN:
        if (strcmp(ask->instance, "nothing") == 0) {
            fake_refuse(ask, PROBLEM_NOT_FOUND, "nothing is known of it");
            break;
        }
        ask->json = json_pack("{s:s, s:s}", "subject", ask->instance, "kind", "workload");
        fake_answer(ask);
        break;
    case NODE_ASK_TRANSFER:
        f->transferred = ask->node;
        fake_answer(ask);
        break;
    case NODE_ASK_COPIES:
        if (f->copies_warning != NULL)
            (void)text_copy(ask->detail, sizeof(ask->detail), f->copies_warning);
        fake_answer(ask);
        break;
    case NODE_ASK_IMAGE_GC:
        ask->import.bytes = 4096;
        fake_answer(ask);
        break;
    }
}

static bool fake_ask(void *user, struct node_ask *ask)
{
    struct fake *f = user;
    ask->problem = PROBLEM_NONE;
    memset(&ask->end, 0, sizeof(ask->end));
    (void)pthread_mutex_lock(&f->lock);
    bool taken = !f->refuse_asks;
    if (taken)
        fake_ask_locked(f, ask);
    (void)pthread_mutex_unlock(&f->lock);
    return taken;
}

static struct registry_root *fake_root(void *user)
{
    struct fake *f = user;
    (void)pthread_mutex_lock(&f->lock);
    if (f->published == NULL || f->root_lag == 0) {
        if (f->published != NULL)
            registry_root_release(f->published);
        f->published = state_root(f->state);
    } else {
        f->root_lag--;
    }
    struct registry_root *root = registry_root_hold(f->published);
    (void)pthread_mutex_unlock(&f->lock);
    return root;
}

static void fake_root_return(void *user, struct registry_root *root)
{
    struct fake *f = user;
    (void)pthread_mutex_lock(&f->lock);
    registry_root_release(root);
    (void)pthread_mutex_unlock(&f->lock);
}

static enum problem fake_authorize(void *user, const struct registry_root *root, const char *token,
                                   size_t length, enum token_role need, const char *workload,
                                   const char *instance, uint64_t wall_ms)
{
    (void)user;
    return node_authorize(root, token, length, need, workload, instance, wall_ms);
}

static enum problem fake_ready(void *user, char *why, size_t size)
{
    struct fake *f = user;
    (void)pthread_mutex_lock(&f->lock);
    bool ready = !f->not_ready;
    (void)pthread_mutex_unlock(&f->lock);
    if (!ready)
        (void)text_copy(why, size, "no leader");
    return ready ? PROBLEM_NONE : PROBLEM_NO_QUORUM;
}

static bool fake_load(void *user, const struct instance_id *id, uint32_t *joiners,
                      uint32_t *max_joiners)
{
    (void)user;
    (void)id;
    *joiners = 2;
    *max_joiners = 7;
    return true;
}

static size_t fake_events(void *user, uint64_t after, struct node_event *out, size_t out_max)
{
    struct fake *f = user;
    size_t count = 0;
    (void)pthread_mutex_lock(&f->lock);
    for (size_t i = 0; i < f->event_count && count < out_max; i++)
        if (f->events[i].sequence > after)
            out[count++] = f->events[i];
    (void)pthread_mutex_unlock(&f->lock);
    return count;
}

static void fake_events_watch(void *user, void (*post)(void *user), void *post_user)
{
    struct fake *f = user;
    (void)pthread_mutex_lock(&f->lock);
    f->post = post;
    f->post_user = post_user;
    (void)pthread_mutex_unlock(&f->lock);
}

static inline void fake_event(struct fake *f, const char *kind)
{
    (void)pthread_mutex_lock(&f->lock);
    struct node_event *e = &f->events[f->event_count++];
    e->sequence = f->event_count;
    e->wall_ms = clock_wall_ms();
    (void)text_copy(e->kind, sizeof(e->kind), kind);
    (void)text_copy(e->text, sizeof(e->text), "it \"happened\"");
    if (f->post != NULL)
        f->post(f->post_user);
    (void)pthread_mutex_unlock(&f->lock);
}

static void fake_logs_directory(void *user, char *out, size_t size)
{
    struct fake *f = user;
    (void)text_copy(out, size, f->directory);
}

static void fake_metrics(void *user, struct node_metrics *out)
{
    (void)user;
    *out = (struct node_metrics){.starts_total = 5, .runner_connected = true};
    out->start_seconds[0].buckets[3] = 2;
    out->start_seconds[0].buckets[GATEWAY_BUCKETS] = 1;
    out->start_seconds[0].count = 3;
    out->start_seconds[0].sum_seconds = 31.25;
}

static void fake_counters(void *user, struct gateway_counters *out, unsigned *connections)
{
    (void)user;
    *out = (struct gateway_counters){.requests = {1, 0, 20, 3, 4, 5}};
    *connections = 9;
}

/* --- life --------------------------------------------------------------------------------------- */

static void fake_admin_token(struct fake *f)
{
    struct err e = {0};
    struct registry_token token = {.role = TOKEN_ROLE_ADMIN, .created_wall_ms = clock_wall_ms()};
    assert_int_equal(node_token_make(&token, f->admin, &e), 0);
    fake_propose(f, &(struct registry_command){.kind = REGISTRY_TOKEN_PUT,
                                               .wall_ms = token.created_wall_ms,
                                               .token = &token});
}

/* `change` may alter the options; NULL: none. */
static void fake_open(struct fake *f, void (*change)(struct api_options *o))
{
    struct err e = {0};
    static const char *const listen[] = {"127.0.0.1:0"};
    static const char *const hosts[] = {"api.example"};
    *f = (struct fake){0};
    (void)pthread_mutex_init(&f->lock, NULL);
    assert_true(sodium_init() >= 0);
    (void)text_copy(f->directory, sizeof(f->directory), "/tmp/skerry-api-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    assert_int_equal(chmod(f->directory, 0755), 0);
    (void)text_format(f->socket_path, sizeof(f->socket_path), "%s/api.sock", f->directory);
    assert_int_equal(state_new(&f->state, &e), 0);
    fake_propose(f, &(struct registry_command){.kind = REGISTRY_CLUSTER_INIT,
                                               .wall_ms = clock_wall_ms(),
                                               .cluster_id = "0011223344556677"});
    struct registry_node node = {.id = 0, .name = "node1"};
    fake_propose(f, &(struct registry_command){
                        .kind = REGISTRY_NODE_PUT, .wall_ms = clock_wall_ms(), .node = &node});
    node.id = 1;
    fake_propose(f, &(struct registry_command){
                        .kind = REGISTRY_LEASE_GRANT, .wall_ms = clock_wall_ms(), .node = &node});
    fake_admin_token(f);
    struct api_options options = {.listen = listen,
                                  .listen_count = 1,
                                  .socket_path = f->socket_path,
                                  .socket_group = (gid_t)-1,
                                  .node_name = "node1",
                                  .hosts = hosts,
                                  .host_count = 1,
                                  .calls = {.user = f,
                                            .ask = fake_ask,
                                            .root = fake_root,
                                            .root_return = fake_root_return,
                                            .authorize = fake_authorize,
                                            .ready = fake_ready,
                                            .instance_load = fake_load,
                                            .events = fake_events,
                                            .events_watch = fake_events_watch,
                                            .logs_directory = fake_logs_directory,
                                            .metrics = fake_metrics,
                                            .gateway_counters = fake_counters}};
    if (change != NULL)
        change(&options);
    if (api_open(&f->api, &options, &e) != 0)
        fail_msg("%s", e.msg);
    f->port = api_port(f->api, 0);
}

static void fake_pump(void *user)
{
    (void)user;
    fake_pause();
}

static void fake_close(struct fake *f)
{
    api_close(f->api, fake_pump, NULL);
    assert_int_equal(access(f->socket_path, F_OK), -1);
    if (f->published != NULL)
        registry_root_release(f->published);
    state_free(f->state);
    char command[128];
    (void)text_format(command, sizeof(command), "%s", f->directory);
    char *argv[] = {(char *)(uintptr_t) "rm", (char *)(uintptr_t) "-rf", command, NULL};
    pid_t pid;
    assert_int_equal(posix_spawnp(&pid, "rm", NULL, NULL, argv, environ), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    (void)pthread_mutex_destroy(&f->lock);
}

#endif
