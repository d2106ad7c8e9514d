#include "sandbox/runner/adopt.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/imports.h"
#include "sandbox/runner/instance.h"
#include "sandbox/runner/reaper.h"
#include "sandbox/runner/runner.h"
#include "sandbox/runner/state.h"

#define ANSWER_TIMEOUT_MS 3000

struct adoption {
    struct runner *runner;
    size_t waiting;
    bool over;
    struct loop_timer timeout;
};

/* --- one folder --------------------------------------------------------------------------------- */

static int agent_connect(int folder, struct err *e)
{
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const struct sockaddr_un address = state_socket_address(folder);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) < 0)
        return err_sys(e, ERR_UNAVAILABLE, errno, "connect to its agent");
    return steal_fd(&fd);
}

static void groups_restore(struct cgroup *cgroup, const Skerry__State__State *s)
{
    cgroup->group_count = 0;
    for (size_t n = 0; n < s->n_groups; n++)
        if (cgroup_group_restore(&cgroup->groups[cgroup->group_count], s->groups[n]->path,
                                 s->groups[n]->controllers, s->groups[n]->v2))
            cgroup->group_count++;
}

static int hello(struct instance *i, struct err *e)
{
    Skerry__Agent__Empty empty = SKERRY__AGENT__EMPTY__INIT;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_HELLO;
    message.hello = &empty;
    struct waiting *w = waiting_new(NULL);
    if (w == NULL)
        return err_set(e, ERR_NO_MEMORY, "hello");
    return instance_ask(i, &message, NULL, 0, w, e);
}

static int network_open_of(pid_t pid, struct err *e)
{
    char path[64];
    text_format(path, sizeof path, "/proc/%d/ns/net", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? err_sys(e, ERR_IO, errno, "open its network") : fd;
}

static void layers_hold(struct instance *i, const Skerry__State__State *s)
{
    struct err e;
    for (size_t n = 0; n < s->n_layers; n++) {
        int rc = -1;
        for (int kind = IMAGE_KIND_IMAGE; rc < 0 && kind <= IMAGE_KIND_SOURCE; kind++)
            rc = imports_layer_hold(i->runner->imports, s->layers[n], (enum image_kind)kind, &e);
        if (rc == 0)
            text_copy(i->layers[i->layer_count++], sizeof i->layers[0], s->layers[n]);
        else
            log_warn("runner", "%s: layer %s: %s", i->id, s->layers[n], e.msg);
    }
}

/* Its rules are in its namespace; what it was allowed is needed for the names it asks for. A policy that
 * root's file does not take any more keeps what it has, and gets no further names. */
static void egress_hold(struct instance *i, const Skerry__State__State *s)
{
    struct err e;
    if (!s->egress)
        return;
    i->egress = calloc(1, sizeof *i->egress);
    if (i->egress == NULL) {
        log_error("runner", "%s: no memory for its network", i->id);
        return;
    }
    if (net_policy_parse(i->egress, net_egress_site(i->runner->egress), s->network_allow,
                         s->n_network_allow, s->network_deny, s->n_network_deny, &e) < 0) {
        log_warn("runner", "%s: %s", i->id, e.msg);
        memset(i->egress, 0, sizeof *i->egress);
    }
    if (net_names_add(i->runner->names, i->id, i->network_fd, i->egress, &i->names, &e) < 0)
        log_warn("runner", "%s: %s", i->id, e.msg);
}

/* From here on the instance is whole: what fails ends it in the usual way. */
static int live_start(struct instance *i, int pidfd, const Skerry__State__State *s, struct err *e)
{
    int rc = instance_watch(i, pidfd, false, e);
    if (rc == 0)
        rc = instance_watch_memory(i, e);
    if (rc < 0)
        return rc;
    i->network_fd = network_open_of(i->pid, e);
    if (i->network_fd < 0)
        return i->network_fd;
    i->channel = agent_connect(i->folder.fd, e);
    if (i->channel < 0)
        return i->channel;
    layers_hold(i, s);
    egress_hold(i, s);
    rc = loop_watch_start(i->runner->loop, &i->channel_watch, i->channel, EPOLLIN,
                          instance_channel_cb, e);
    if (rc == 0)
        rc = hello(i, e);
    uint64_t deadline = state_deadline_read(i->folder.fd);
    if (rc == 0 && deadline != 0)
        rc = instance_deadline_set(i, deadline, e);
    return rc;
}

/* Its end is told as if it had happened now: nobody saw when and how. */
static void adopt_dead(struct instance *i, const struct err *why)
{
    log_info("runner", "%s: swept: %s", i->id, why->msg);
    text_format(i->message, sizeof i->message, "it ended while no runner was there");
    i->asked_reason = END_AGENT_LOST;
    instance_ended_unseen(i);
}

static int adopt_folder(struct adoption *a, const char *name, struct err *e)
{
    struct runner *r = a->runner;
    CLEANUP_FD int folder =
        openat(r->instances_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0)
        return err_sys(e, ERR_IO, errno, "open");
    Skerry__State__State *s;
    int rc = state_read(folder, &s, e);
    if (rc < 0)
        return rc;
    struct instance *i = NULL;
    struct place *place = NULL;
    if (strcmp(s->id, name) != 0)
        rc = err_set(e, ERR_INVALID, "its state is of another");
    if (rc == 0)
        rc = blanks_place_claim(r->blanks, s->uid_base, &place, e);
    if (rc == 0)
        rc = instance_new(r->instances, name, &i, e);
    if (rc != 0) {
        blanks_place_free(r->blanks, place);
        skerry__state__state__free_unpacked(s, NULL);
        return rc;
    }
    groups_restore(&place->cgroup, s);
    i->place = place;
    i->epoch = s->epoch;
    i->uid = s->uid;
    i->gid = s->gid;
    i->pid = (pid_t)s->pid;
    i->folder.fd = steal_fd(&folder);
    i->phase = INSTANCE_ADOPTING;
    i->told = true;
    int pidfd = state_process_open(s, r->boot, e);
    if (pidfd < 0) {
        adopt_dead(i, e);
    } else {
        a->waiting++;
        struct err why;
        if (live_start(i, pidfd, s, &why) < 0) {
            log_warn("runner", "%s: not adopted: %s", i->id, why.msg);
            instance_kill(i, END_AGENT_LOST);
        }
    }
    skerry__state__state__free_unpacked(s, NULL);
    return 0;
}

/* A folder without a state: its preparation was under way. Its groups are found by sweep_groups. */
static void folder_sweep(struct runner *r, const char *name)
{
    struct place *place = calloc(1, sizeof *place);
    if (place == NULL)
        return;
    place->layer_map = place->mounts_fd = -1;
    reaper_add(r->reaper, place, name);
}

static void folders_adopt(struct adoption *a)
{
    int copy = openat(a->runner->instances_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = copy < 0 ? NULL : fdopendir(copy);
    if (folder == NULL)
        return;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        struct instance_id id;
        struct err e;
        if (blanks_place_named(entry->d_name)) /* at once: the next blanks may have these names */
            state_folder_remove(a->runner->instances_fd, entry->d_name);
        else if (!instance_id_parse(&id, entry->d_name, strlen(entry->d_name)))
            continue;
        else if (adopt_folder(a, entry->d_name, &e) < 0) {
            log_warn("runner", "%s: swept: %s", entry->d_name, e.msg);
            folder_sweep(a->runner, entry->d_name);
        }
    }
    closedir(folder);
}

/* --- groups that belong to nobody ---------------------------------------------------------------- */

static bool group_in_use(struct runner *r, const char *path)
{
    for (struct instance *i = instances_first(r->instances); i != NULL; i = i->hh.next)
        for (size_t n = 0; i->place != NULL && n < i->place->cgroup.group_count; n++)
            if (strcmp(i->place->cgroup.groups[n].path, path) == 0)
                return true;
    return false;
}

/* A place whose groups are found one hierarchy after the other. */
struct lost {
    struct lost *next;
    struct place *place;
    char name[64];
};

/* The name begins with the number of its place: its ids stay taken until the groups are empty. */
static struct lost *lost_find(struct runner *r, struct lost **all, const char *name)
{
    for (struct lost *lost = *all; lost != NULL; lost = lost->next)
        if (strcmp(lost->name, name) == 0)
            return lost;
    struct lost *lost = calloc(1, sizeof *lost);
    struct err e;
    uint32_t slot = (uint32_t)strtoul(name + 1, NULL, 10);
    uint32_t uid = powers_ids(&r->powers, r->config.uid_base, slot).first;
    if (lost == NULL || !text_copy(lost->name, sizeof lost->name, name) ||
        (blanks_place_claim(r->blanks, uid, &lost->place, &e) < 0 &&
         (lost->place = calloc(1, sizeof *lost->place)) == NULL)) {
        free(lost);
        return NULL;
    }
    lost->next = *all;
    *all = lost;
    return lost;
}

static void tree_sweep(struct runner *r, const struct cgroup_tree *tree, struct lost **all)
{
    DIR *folder = opendir(tree->parent);
    for (struct dirent *entry = folder == NULL ? NULL : readdir(folder); entry != NULL;
         entry = readdir(folder)) {
        char path[CGROUP_PATH_SIZE];
        if (entry->d_type != DT_DIR || entry->d_name[0] != 'i' ||
            !text_format(path, sizeof path, "%s/%s", tree->parent, entry->d_name) ||
            group_in_use(r, path))
            continue;
        struct lost *lost = lost_find(r, all, entry->d_name);
        if (lost == NULL || lost->place->cgroup.group_count == CGROUP_TREES_MAX)
            continue;
        struct cgroup *cgroup = &lost->place->cgroup;
        struct cgroup_group *group = &cgroup->groups[cgroup->group_count++];
        group->backend = tree->backend;
        group->controllers = tree->controllers;
        text_copy(group->path, sizeof group->path, path);
    }
    if (folder != NULL)
        closedir(folder);
}

static void groups_sweep(struct runner *r)
{
    struct lost *all = NULL;
    for (size_t n = 0; n < r->cgroups.tree_count; n++)
        tree_sweep(r, &r->cgroups.trees[n], &all);
    while (all != NULL) {
        struct lost *lost = all;
        all = lost->next;
        reaper_add(r->reaper, lost->place, "");
        free(lost);
    }
}

/* --- the whole ----------------------------------------------------------------------------------- */

static void over(struct adoption *a)
{
    if (a->over)
        return;
    a->over = true;
    loop_timer_stop(a->runner->loop, &a->timeout);
    runner_serve(a->runner);
}

static void timeout_cb(struct loop_timer *timer)
{
    struct adoption *a = container_of(timer, struct adoption, timeout);
    for (struct instance *i = instances_first(a->runner->instances); i != NULL; i = i->hh.next)
        if (i->phase == INSTANCE_ADOPTING) {
            log_warn("runner", "%s: its agent does not answer", i->id);
            instance_kill(i, END_AGENT_LOST);
        }
    over(a);
}

void adopt_done(struct runner *r)
{
    struct adoption *a = r->adoption;
    if (a == NULL || a->over)
        return;
    if (a->waiting > 0)
        a->waiting--;
    if (a->waiting == 0)
        over(a);
}

int adopt_start(struct runner *r, struct err *e)
{
    struct adoption *a = calloc(1, sizeof *a);
    if (a == NULL)
        return err_set(e, ERR_NO_MEMORY, "adoption");
    a->runner = r;
    r->adoption = a;
    folders_adopt(a);
    groups_sweep(r);
    size_t held = instances_held_count(r->instances);
    if (held > 0)
        log_info("runner", "found %zu instances of an earlier runner", held);
    if (a->waiting > 0)
        return loop_timer_start(r->loop, &a->timeout, clock_boot_ms() + ANSWER_TIMEOUT_MS,
                                timeout_cb, e);
    over(a);
    return 0;
}

void adopt_free(struct adoption *adoption)
{
    free(adoption);
}
