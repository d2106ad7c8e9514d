/* Who this node is, decided once, before anything of it is open.
 *
 *   node.json         as it says; the registry's folder must be there too
 *   data/raft alone   of a version that knew only lone nodes: node 1 of its cluster, in place
 *   --bootstrap       node 1 of a new cluster
 *   --peers, token    asks one of them to join
 *   else              refused, with what to do */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/members_internal.h"
#include "node/config.h"

enum { JOIN_MS = 60000, TAKE_OVER_MS = 20000, TOKEN_FILE_MAX = 4096 };

/* --- the registry's folder -------------------------------------------------------------------------- */

enum folder { FOLDER_MISSING, FOLDER_EMPTY, FOLDER_FILLED };

static int look_at_folder(const char *path, enum folder *out, struct err *e)
{
    const struct dirent *entry;
    DIR *dir = opendir(path);
    if (dir == NULL && errno != ENOENT)
        return err_sys(e, ERR_IO, errno, "look into %s", path);
    *out = dir == NULL ? FOLDER_MISSING : FOLDER_EMPTY;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            *out = FOLDER_FILLED;
    }
    if (dir != NULL)
        closedir(dir);
    return 0;
}

/* Made before the membership is stored: where that is and this is not, something was lost. */
static int make_folder(const char *path, struct err *e)
{
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make %s", path);
    return 0;
}

/* --- taking over a lone node ------------------------------------------------------------------------ */

struct taking {
    uv_loop_t loop;
    uv_timer_t timer;
    struct registry *registry;
    bool leads, late, closed;
};

static void taking_leads_cb(void *user, bool leader)
{
    ((struct taking *)user)->leads = leader;
}

static void taking_failed_cb(void *user, const struct err *error)
{
    log_error("registry", "%s", error->msg);
    ((struct taking *)user)->late = true;
}

static void taking_late_cb(uv_timer_t *timer)
{
    ((struct taking *)timer->data)->late = true;
}

static void taking_closed_cb(void *user)
{
    ((struct taking *)user)->closed = true;
}

/* The cluster's id, "" when it has none yet: what a leader knows, since all is committed then. */
static int taking_read(struct taking *t, char cluster_id[MEMBERSHIP_CLUSTER_SIZE], struct err *e)
{
    while (!t->leads && !t->late)
        uv_run(&t->loop, UV_RUN_ONCE);
    if (!t->leads)
        return err_set(e, ERR_TIMEOUT, "it did not lead itself within %d s", TAKE_OVER_MS / 1000);
    struct registry_root *root = registry_root(t->registry);
    (void)text_copy(cluster_id, MEMBERSHIP_CLUSTER_SIZE, registry_root_cluster_id(root));
    registry_root_release(root);
    return 0;
}

static int take_over(struct membership *m, const char *raft, struct err *e)
{
    struct taking t = {.leads = false};
    char cluster_id[MEMBERSHIP_CLUSTER_SIZE] = "";
    struct registry_options o = {.directory = raft,
                                 .id = 1,
                                 .boot = clock_wall_ms(),
                                 .user = &t,
                                 .leader_changed = taking_leads_cb,
                                 .failed = taking_failed_cb};
    assert_always(uv_loop_init(&t.loop) == 0 && uv_timer_init(&t.loop, &t.timer) == 0);
    t.timer.data = &t;
    (void)uv_timer_start(&t.timer, taking_late_cb, TAKE_OVER_MS, 0);
    int rc = registry_open(&t.registry, &t.loop, &o, e);
    if (rc == 0) {
        rc = taking_read(&t, cluster_id, e);
        registry_close(t.registry, taking_closed_cb, &t);
        while (!t.closed)
            uv_run(&t.loop, UV_RUN_ONCE);
    }
    uv_close((uv_handle_t *)&t.timer, NULL);
    uv_run(&t.loop, UV_RUN_DEFAULT);
    assert_always(uv_loop_close(&t.loop) == 0);
    if (rc != 0)
        return err_wrap(e, "take over the registry in %s", raft);
    membership_make(m);
    if (cluster_id[0] != '\0')
        memcpy(m->cluster_id, cluster_id, sizeof m->cluster_id);
    return 0;
}

/* --- joining ---------------------------------------------------------------------------------------- */

/* The file may belong to root and have any mode: it was given to us. */
static int read_token(const char *path, char out[TOKEN_FILE_MAX], struct err *e)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s", path);
    ssize_t length = read(fd, out, TOKEN_FILE_MAX);
    if (length < 0)
        return err_sys(e, ERR_IO, errno, "read %s", path);
    if (length == TOKEN_FILE_MAX)
        return err_set(e, ERR_INVALID, "%s is too long for a token", path);
    out[length] = '\0';
    return 0;
}

static int join(struct membership *m, const struct config *c, struct err *e)
{
    struct identity *identity = NULL;
    char token[TOKEN_FILE_MAX];
    int rc = read_token(c->token_file, token, e);
    if (rc != 0)
        return err_wrap(e, "token_file");
    rc = identity_open(&identity, c->data, e);
    if (rc == 0) {
        struct enroll_join_options o = {.data = c->data,
                                        .identity = identity,
                                        .name = c->name,
                                        .advertise = c->advertise,
                                        .peers = (const char *const *)c->peers.items,
                                        .peer_count = c->peers.count,
                                        .token = token,
                                        .timeout_ms = JOIN_MS};
        log_info("node", "%s asks to join a cluster by %s", c->name, c->peers.items[0]);
        rc = enroll_join(&o, m, e);
    }
    sodium_memzero(token, sizeof token);
    identity_free(identity);
    if (rc == 0)
        log_info("node", "%s is node %llu of cluster %s now; %s is of no use any more", c->name,
                 (unsigned long long)m->id, m->cluster_id, c->token_file);
    return rc;
}

/* --- the decision ----------------------------------------------------------------------------------- */

static int refuse(const struct config *c, struct err *e)
{
    if (c->peers.count > 0 || c->token_file[0] != '\0')
        return err_set(e, ERR_INVALID,
                       "to join a cluster both are needed: --peers ADDR of its nodes, and "
                       "--token-file FILE with what `skerry token create --node` printed there");
    return err_set(e, ERR_INVALID,
                   "%s belongs to no cluster: start with --bootstrap to make one, or with --peers "
                   "ADDR --token-file FILE to join one (skerry token create --node)",
                   c->data);
}

/* -ERR_NOT_FOUND of membership_load came before. */
static int become(struct membership *m, const struct config *c, const char *raft,
                  enum folder folder, struct err *e)
{
    bool joins = c->peers.count > 0 && c->token_file[0] != '\0';
    if (folder != FOLDER_FILLED && c->bootstrap && c->peers.count > 0)
        return err_set(e, ERR_INVALID,
                       "bootstrap and peers: a node makes a cluster or joins one; leave one of "
                       "them out");
    if (folder != FOLDER_FILLED && !c->bootstrap && !joins)
        return refuse(c, e);
    int rc = make_folder(raft, e);
    if (rc != 0)
        return rc;
    if (folder != FOLDER_FILLED && joins)
        return join(m, c, e); /* stores it, too */
    if (folder == FOLDER_FILLED)
        rc = take_over(m, raft, e);
    else
        membership_make(m);
    return rc == 0 ? membership_save(m, c->data, e) : rc;
}

static int decide(struct membership *m, const struct config *c, struct err *e)
{
    enum folder folder = FOLDER_MISSING;
    struct err none = {0};
    CLEANUP_FREE char *raft = text_new("%s/raft", c->data);
    if (raft == NULL)
        return err_set(e, ERR_NO_MEMORY, "start the node: no memory");
    int rc = look_at_folder(raft, &folder, e);
    if (rc != 0)
        return rc;
    rc = membership_load(m, c->data, &none);
    if (rc == -ERR_NOT_FOUND)
        return become(m, c, raft, folder, e);
    if (rc != 0)
        return err_set(e, none.code, "%s", none.msg);
    /* A voter that forgot what it voted would break the others' promises. */
    if (folder == FOLDER_MISSING)
        return err_set(e, ERR_CONFLICT,
                       "%s is gone, %s/" MEMBERSHIP_FILE " is not: restore both from one backup, "
                       "or remove %s and join anew",
                       raft, c->data, c->data);
    return 0;
}

int members_begin(struct node *n, struct err *e)
{
    struct members *m = calloc(1, sizeof *m);
    if (m == NULL)
        return err_set(e, ERR_NO_MEMORY, "start the node: no memory");
    m->node = n;
    int rc = decide(&m->membership, n->config, e);
    if (rc != 0) {
        membership_wipe(&m->membership);
        free(m);
        return rc;
    }
    n->id = m->membership.id;
    n->members = m;
    return 0;
}
