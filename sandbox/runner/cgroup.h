/* sandbox/runner/cgroup.h - the control groups of an instance, on v1, v2 or both.
 *
 * Each controller is used where the machine has it: on a hybrid host some live in v1 hierarchies
 * and some in v2. All groups are made below the runner's own position, in one folder per runner.
 *
 * Entering. v1: the process itself writes "0" into an inherited descriptor of `tasks` (0.1 ms; a
 * pid written into cgroup.procs from outside takes 15 ms on a quiet machine). v2: it is cloned into
 * the group. Memory: tmpfs pages are charged to their writer, so the group's limit is the
 * instance's memory, its disk and an allowance for inodes together.
 *
 * What a process reads from a disk counts for the group that it was in when the page was missing, also where a
 * loop device lies in between. A read that has to wait holds its page, for everybody: so who kills a group lets
 * go what waits, and a limit is felt by others who miss the same page at that moment.
 *
 * Thread: one. cgroup_remove may wait and belongs into a child of the runner. */
#ifndef SKERRY_SANDBOX_RUNNER_CGROUP_H
#define SKERRY_SANDBOX_RUNNER_CGROUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/runner/disks.h"

enum cgroup_controller {
    CGROUP_CPU = 1,
    CGROUP_CPUACCT = 2, /* v1 only; v2's cpu counts */
    CGROUP_MEMORY = 4,
    CGROUP_PIDS = 8,
    CGROUP_FREEZER = 16, /* v1 only: a frozen group must be thawed to be killed */
    CGROUP_IO = 32,      /* v1's name is blkio */
};

/* What can be limited here; the names are those of HelloReply.unenforced. */
enum cgroup_limit {
    CGROUP_LIMIT_CPU = 1,
    CGROUP_LIMIT_MEMORY = 2,
    CGROUP_LIMIT_PIDS = 4,
    CGROUP_LIMIT_TCP_MEMORY = 8,
    CGROUP_LIMIT_IO = 16,
};

struct cgroup_limits {
    uint32_t cpu_thousandths; /* 0: none */
    uint64_t memory_bytes;
    uint64_t tcp_bytes; /* of it, in TCP buffers */
    uint32_t pids;
    uint64_t io_bytes;         /* a second, read from each of `disks`; 0: none */
    const struct disks *disks; /* of io_bytes */
};

struct cgroup_stats {
    uint64_t cpu_us;
    uint64_t memory_bytes;
    uint64_t memory_peak_bytes;
    uint32_t pids;
};

#define CGROUP_TREES_MAX 6
#define CGROUP_PATH_SIZE 512
#define CGROUP_NAME_SIZE 32

/* One hierarchy of the machine and our folder in it. */
struct cgroup_tree {
    const struct cgroup_backend *backend;
    unsigned controllers;
    /* Instances have a group there only if they ask for what it limits: entering one more hierarchy of v1 would
     * be a part of every start. */
    bool on_demand;
    char parent[CGROUP_PATH_SIZE];
};

struct cgroup_host {
    struct cgroup_tree trees[CGROUP_TREES_MAX];
    size_t tree_count;
    unsigned enforced; /* enum cgroup_limit */
};

/* One instance's group in one hierarchy. */
struct cgroup_group {
    const struct cgroup_backend *backend;
    unsigned controllers;
    char path[CGROUP_PATH_SIZE];
};
struct cgroup {
    char name[CGROUP_NAME_SIZE];
    struct cgroup_group groups[CGROUP_TREES_MAX];
    size_t group_count;
};

struct cgroup_host_options {
    const char *name; /* of the folder below our own position */
    bool io;          /* limits of it may be asked for; else its controller is left alone */
    bool loud;        /* that a controller which is there cannot be used is a warning */
};
/* Finding no controller at all is no error. */
int cgroup_host_open(struct cgroup_host *host, const struct cgroup_host_options *options,
                     struct err *e) ERR_CHECKED;
/* Removes the folders, and the groups in them that are empty; waits so long for those that are about to be,
 * and says which stay. 0: instances go on in them, which is as it should be. */
void cgroup_host_close(struct cgroup_host *host, unsigned wait_ms);
/* Removes what other runners have left beside ours; only when none of them lives (sandbox/shared/ids.h). Empty
 * folders that were made so many seconds ago or earlier, so that one who starts now keeps its own. */
void cgroup_host_sweep(const struct cgroup_host *host, unsigned seconds);
const char *cgroup_host_kind(const struct cgroup_host *host); /* "v1", "v2", "hybrid", "none" */

/* Says where its groups are, but for those on demand. */
int cgroup_name(const struct cgroup_host *host, struct cgroup *out, const char *name,
                struct err *e) ERR_CHECKED;
/* Makes them, all or none. */
int cgroup_make(const struct cgroup *cgroup, struct err *e) ERR_CHECKED;
/* One more, where the controller is in a hierarchy of those on demand; *out_entry is its entry then, the caller's,
 * as of cgroup_entries_open, else -1. */
int cgroup_demand(const struct cgroup_host *host, struct cgroup *cgroup,
                  enum cgroup_controller controller, int *out_entry, struct err *e) ERR_CHECKED;
int cgroup_limit(const struct cgroup *cgroup, const struct cgroup_limits *limits,
                 struct err *e) ERR_CHECKED;
/* Has the kernel make its objects of the files that a start and an end use: the first look at a file of a new group
 * takes five times as long as the others. */
void cgroup_touch(const struct cgroup *cgroup);
/* Descriptors into which the process writes "0" to enter, at most CGROUP_TREES_MAX; the caller's. */
int cgroup_entries_open(const struct cgroup *cgroup, int *out, size_t *out_count,
                        struct err *e) ERR_CHECKED;
/* For CLONE_INTO_CGROUP, the caller's; -1: there is no v2 group. */
int cgroup_clone_fd(const struct cgroup *cgroup);
/* Readable when the group may have run out of memory; the caller's. -1: cannot be watched. */
int cgroup_oom_fd(const struct cgroup *cgroup);
bool cgroup_oom_happened(const struct cgroup *cgroup);
void cgroup_stats_read(const struct cgroup *cgroup, struct cgroup_stats *out);
/* Thaws what is frozen and lets go what waits for a disk, so that SIGKILL reaches it; kills the group where the
 * kernel can. */
void cgroup_kill(const struct cgroup *cgroup);
/* Kills and waits until no process is left, then removes the groups. Blocks up to `wait_ms`. */
int cgroup_remove(const struct cgroup *cgroup, unsigned wait_ms, struct err *e) ERR_CHECKED;
/* For groups read back from a state file. False when the path is not one of a cgroup mount. */
bool cgroup_group_restore(struct cgroup_group *group, const char *path, unsigned controllers,
                          bool v2);
bool cgroup_group_is_v2(const struct cgroup_group *group);

/* --- between cgroup.c and its two back-ends --------------------------------------------------- */

struct cgroup_file {
    unsigned controllers; /* one of those must be in its hierarchy */
    const char *name;
};

struct cgroup_backend {
    const struct cgroup_file *files; /* that are written or read; up to one without a name */
    int (*parent_prepare)(struct cgroup_tree *tree, const char *own, const char *name,
                          struct err *e);
    int (*limit)(const struct cgroup_group *group, const struct cgroup_limits *limits,
                 struct err *e);
    const char *entry; /* a file to write "0" into; NULL: cloned into */
    int (*oom_fd)(const struct cgroup_group *group);
    bool (*oom_happened)(const struct cgroup_group *group);
    void (*stats)(const struct cgroup_group *group, struct cgroup_stats *stats);
    void (*kill)(const struct cgroup_group *group);
};
extern const struct cgroup_backend cgroup_v1_backend, cgroup_v2_backend;

int cgroup_write(const char *folder, const char *file, const char *text, struct err *e);
int cgroup_write_u64(const char *folder, const char *file, uint64_t value,
                     struct err *e) ERR_CHECKED;
/* The whole of a small file; -1 when it cannot be read. */
int cgroup_read(const char *folder, const char *file, char *out, size_t size);
uint64_t cgroup_read_u64(const char *folder, const char *file);
/* For each of the disks writes "MAJOR:MINOR ", `before` and the value. */
int cgroup_write_disks(const char *folder, const char *file, const struct disks *disks,
                       const char *before, uint64_t value, struct err *e) ERR_CHECKED;
/* For each disk that is limited there writes `text` behind its number. */
void cgroup_free_disks(const char *folder, const char *file, const char *text);
/* The number behind `key` in lines of "key number"; 0 when there is none. */
uint64_t cgroup_read_key(const char *folder, const char *file, const char *key);

#endif
