/* sandbox/runner/config.h - what the root-owned runner.yaml allows at most.
 *
 * The file must belong to root and be writable by nobody else, or it is refused: the node that the
 * runner serves is not trusted to raise its own limits. Without a file the defaults hold. Where an ordinary
 * user started the runner, node and file are that user's. */
#ifndef SKERRY_SANDBOX_RUNNER_CONFIG_H
#define SKERRY_SANDBOX_RUNNER_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/fields.h"

#define RUNNER_CONFIG_PATH "/etc/skerry/runner.yaml"
/* The ranges of instances: 65,536 ids each, from 0x70000000, and below IMAGE_UID_BASE. */
#define RUNNER_UID_BASE 0x70000000u
#define RUNNER_UIDS_PER_INSTANCE 65536u
#define RUNNER_UID_END 0x7ff00000u /* IMAGE_UID_BASE of image.h */
#define RUNNER_INSTANCES_MAX 4080u /* (RUNNER_UID_END - RUNNER_UID_BASE) / 65,536 */

struct runner_config {
    char *directory;
    char *instances; /* empty: below directory */
    char *socket;
    char *node_user; /* its uid and gid may connect; see node_uid, node_gid */
    struct field_list profiles;
    bool egress;
    bool io; /* nodes may ask for limits of it */
    struct field_list destinations;
    struct {
        char *network;
        struct field_list uplinks;
        struct field_list resolvers;
    } sandbox;
    struct {
        uint64_t cpus_thousandths, memory_bytes, pids, disk_bytes, instances, bandwidth_bytes;
        uint64_t io_bytes;
    } max; /* of one instance; instances: on this machine */
    uint64_t uid_base;
    char *cgroup;
    uint64_t grace_ms; /* an agent ends its instance when no runner came back for so long */
    uint64_t blanks;
    struct {
        bool erofs;
    } images;
    struct {
        uint64_t bytes, keep_ms, total_bytes;
    } logs;
    /* Not in the file: of `node_user`, or as the command line says. */
    uid_t node_uid;
    gid_t node_gid;
};

/* `path` NULL: RUNNER_CONFIG_PATH, which may be missing. */
int runner_config_load(struct runner_config *c, const char *path, struct err *e) ERR_CHECKED;
/* Whether the ids of all instances lie where they may. */
bool runner_config_range_valid(const struct runner_config *c);
void runner_config_free(struct runner_config *c);
/* For docs. */
const struct field_table *runner_config_fields(void);

#endif
