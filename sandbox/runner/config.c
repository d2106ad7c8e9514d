#include "sandbox/runner/config.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/net_egress.h"
#include "sandbox/runner/net_names.h"
#include "sandbox/runner/net_names_wire.h"
#include "sandbox/runner/seccomp.h"

#define AT(member) offsetof(struct runner_config, member)
#define KiB 1024ull
#define MiB (1024ull * KiB)
#define GiB (1024ull * MiB)

static const struct field fields[] = {
    {.path = "directory",
     .type = FIELD_TEXT,
     .offset = AT(directory),
     .fallback = "/var/lib/skerry/runner",
     .min = 1,
     .max = 60, /* a socket's path has 108 bytes, and an instance's ends in 50 of ours */
     .meaning = "Folder of images and logs."},
    {.path = "instances",
     .type = FIELD_TEXT,
     .offset = AT(instances),
     .fallback = "",
     .max = 100,
     .meaning =
         "Folder of what a runner that is started again must know of its instances; unset: "
         "`instances` "
         "below `directory`. None of it outlives the machine's end: a tmpfs as /run is quicker."},
    {.path = "socket",
     .type = FIELD_TEXT,
     .offset = AT(socket),
     .fallback = "/run/skerry/runner.sock",
     .min = 1,
     .max = 100,
     .meaning = "Where the node connects."},
    {.path = "node_user",
     .type = FIELD_TEXT,
     .offset = AT(node_user),
     .fallback = "skerry",
     .min = 1,
     .max = 64,
     .meaning = "The user that may connect beside root, and whose group reads the logs."},
    {.path = "allow.profiles",
     .type = FIELD_TEXT_LIST,
     .offset = AT(profiles),
     .fallback = "default",
     .max = 16,
     .meaning = "System call profiles, beside strict, that a node may ask for: default, relaxed."},
    {.path = "allow.egress",
     .type = FIELD_BOOL,
     .offset = AT(egress),
     .fallback = "false",
     .meaning = "Whether an instance may reach out of its network namespace."},
    {.path = "allow.io",
     .type = FIELD_BOOL,
     .offset = AT(io),
     .fallback = "false",
     .meaning =
         "Whether a workload may limit what it reads from disks. Code that is limited can make "
         "others wait for pages that it has asked for."},
    {.path = "allow.destinations",
     .type = FIELD_TEXT_LIST,
     .offset = AT(destinations),
     .fallback = "",
     .max = NET_DESTINATIONS_MAX,
     .meaning = "What instances with egress may reach although it is always denied: private "
                "networks, this machine."},
    {.path = "sandbox.network",
     .type = FIELD_TEXT,
     .offset = AT(sandbox.network),
     .fallback = "10.166.0.0/16",
     .min = 1,
     .max = 18,
     .meaning = "The IPv4 network that instances with egress get their addresses from."},
    {.path = "sandbox.uplinks",
     .type = FIELD_TEXT_LIST,
     .offset = AT(sandbox.uplinks),
     .fallback = "",
     .max = NET_UPLINKS_MAX,
     .meaning = "Interfaces that instances with egress go out by. If empty: those of the default "
                "routes."},
    {.path = "sandbox.resolvers",
     .type = FIELD_TEXT_LIST,
     .offset = AT(sandbox.resolvers),
     .fallback = "",
     .max = NAMES_RESOLVERS_MAX,
     .meaning =
         "Addresses of the resolvers that are asked for the names that instances with egress ask "
         "for. If empty: the nameservers of /etc/resolv.conf."},
    {.path = "max.cpus",
     .type = FIELD_DECIMAL,
     .offset = AT(max.cpus_thousandths),
     .fallback = "64",
     .min = 10,
     .max = 1024000,
     .meaning = "Processors of one instance."},
    {.path = "max.memory",
     .type = FIELD_BYTES,
     .offset = AT(max.memory_bytes),
     .fallback = "16G",
     .min = 4 * MiB,
     .max = 1024 * GiB,
     .meaning = "Memory of one instance."},
    {.path = "max.pids",
     .type = FIELD_UINT,
     .offset = AT(max.pids),
     .fallback = "4096",
     .min = 4,
     .max = 1000000,
     .meaning = "Processes and threads of one instance."},
    {.path = "max.disk",
     .type = FIELD_BYTES,
     .offset = AT(max.disk_bytes),
     .fallback = "4G",
     .min = MiB,
     .max = 1024 * GiB,
     .meaning = "What one instance may write; it lies in memory."},
    {.path = "max.io",
     .type = FIELD_BYTES,
     .offset = AT(max.io_bytes),
     .fallback = "none",
     .min = MiB,
     .max = 1024 * GiB,
     .none_allowed = true,
     .meaning = "Bytes a second that one instance may have read from disks."},
    {.path = "max.bandwidth",
     .type = FIELD_BYTES,
     .offset = AT(max.bandwidth_bytes),
     .fallback = "none",
     .min = 16 * 1024,
     .max = GiB,
     .none_allowed = true,
     .meaning = "Bytes a second that one instance with egress may send, and receive."},
    {.path = "max.instances",
     .type = FIELD_UINT,
     .offset = AT(max.instances),
     .fallback = "1000",
     .min = 1,
     .max = RUNNER_INSTANCES_MAX,
     .meaning = "Instances at the same time."},
    {.path = "uid_base",
     .type = FIELD_UINT,
     .offset = AT(uid_base),
     .fallback = "1879048192",
     .min = RUNNER_UID_BASE,
     .max = RUNNER_UID_BASE + (RUNNER_INSTANCES_MAX - 1) * RUNNER_UIDS_PER_INSTANCE,
     .meaning = "First of the user ids that instances take, 65,536 each. Two runners on one "
                "machine need ranges of their own."},
    {.path = "cgroup",
     .type = FIELD_TEXT,
     .offset = AT(cgroup),
     .fallback = "skerry",
     .min = 1,
     .max = 32,
     .meaning = "Name of the control group, below the runner's own, that holds the instances."},
    {.path = "grace",
     .type = FIELD_DURATION,
     .offset = AT(grace_ms),
     .fallback = "5m",
     .min = 1000,
     .max = 24 * 3600 * 1000ull,
     .meaning = "How long instances live on without a runner."},
    {.path = "blanks",
     .type = FIELD_UINT,
     .offset = AT(blanks),
     .fallback = "2",
     .max = 64,
     .meaning = "Empty sandboxes kept ready to make the next start quick."},
    {.path = "images.erofs",
     .type = FIELD_BOOL,
     .offset = AT(images.erofs),
     .fallback = "true",
     .meaning =
         "Whether an image is kept as one file of erofs, mounted for all that use it, if the "
         "kernel and mkfs.erofs can. Else, and those that are there: as a folder."},
    {.path = "logs.bytes",
     .type = FIELD_BYTES,
     .offset = AT(logs.bytes),
     .fallback = "8M",
     .min = 64 * KiB,
     .max = GiB,
     .meaning = "What is kept of one instance's output."},
    {.path = "logs.keep",
     .type = FIELD_DURATION,
     .offset = AT(logs.keep_ms),
     .fallback = "24h",
     .min = 60 * 1000,
     .max = 366 * 24 * 3600 * 1000ull,
     .meaning = "How long the log of an ended instance is kept."},
    {.path = "logs.total",
     .type = FIELD_BYTES,
     .offset = AT(logs.total_bytes),
     .fallback = "1G",
     .min = MiB,
     .max = 1024 * GiB,
     .meaning = "Bound of the logs of ended instances together; the oldest go first."},
};

static const struct field_hint hints[] = {{NULL, NULL}};

static const struct field_table table = {fields, ARRAY_SIZE(fields), hints};

const struct field_table *runner_config_fields(void)
{
    return &table;
}

/* Reads the file after checking, on the open descriptor, that only root, or the user that we run as, can
 * have written it. */
static int read_trusted(const char *path, char **out, size_t *out_length, struct err *e)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s", path);
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(e, ERR_IO, errno, "stat %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(e, ERR_DENIED, "%s is not a regular file", path);
    if ((st.st_uid != 0 && st.st_uid != geteuid()) || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return err_set(e, ERR_DENIED,
                       "%s must belong to root and be writable by root only: chown root, chmod 644",
                       path);
    if (st.st_size > DOCUMENT_BYTES_MAX)
        return err_set(e, ERR_LIMIT, "%s is larger than %d bytes", path, DOCUMENT_BYTES_MAX);
    size_t size = (size_t)st.st_size;
    CLEANUP_FREE char *text = malloc(size + 1);
    if (text == NULL)
        return err_set(e, ERR_NO_MEMORY, "read %s", path);
    size_t length = 0;
    while (length < size) {
        ssize_t n = read(fd, text + length, size - length);
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "read %s", path);
        if (n == 0)
            break;
        length += (size_t)n;
    }
    text[length] = '\0';
    *out = steal_pointer(&text);
    *out_length = length;
    return 0;
}

static void find_node_user(struct runner_config *c)
{
    struct passwd *user = getpwnam(c->node_user);
    c->node_uid = user == NULL ? 0 : user->pw_uid;
    c->node_gid = user == NULL ? 0 : user->pw_gid;
}

bool runner_config_range_valid(const struct runner_config *c)
{
    return c->uid_base >= RUNNER_UID_BASE && c->uid_base < RUNNER_UID_END &&
           c->max.instances >= 1 &&
           c->max.instances <= (RUNNER_UID_END - c->uid_base) / RUNNER_UIDS_PER_INSTANCE;
}

static int check(const struct runner_config *c, const struct document *d, struct err *e)
{
    if (!runner_config_range_valid(c))
        return err_set(e, ERR_INVALID,
                       "%s:%d: uid_base: %llu instances from %llu end above %u; lower "
                       "max.instances or uid_base",
                       document_name(d), fields_line(d, "uid_base"),
                       (unsigned long long)c->max.instances, (unsigned long long)c->uid_base,
                       RUNNER_UID_END);
    enum seccomp_profile profile;
    for (size_t i = 0; i < c->profiles.count; i++)
        if (!seccomp_profile_find(c->profiles.items[i], &profile))
            return err_set(
                e, ERR_INVALID,
                "%s:%d: allow.profiles: %.32s is none; there are strict, default, relaxed",
                document_name(d), fields_line(d, "allow.profiles"), c->profiles.items[i]);
    struct net_site site;
    struct net_uplinks uplinks;
    const char *key;
    struct err why;
    if (net_site_read(&site, &uplinks, c, &key, &why) < 0)
        return fields_refuse(d, key, e, "%s", why.msg);
    char shown[TEXT_SHOWN_SIZE];
    for (size_t i = 0; i < c->sandbox.resolvers.count; i++)
        if (!net_names_resolver_valid(c->sandbox.resolvers.items[i]))
            return fields_refuse(d, "sandbox.resolvers", e,
                                 "%s is no address; write 192.0.2.53 or 2001:db8::53",
                                 text_show(c->sandbox.resolvers.items[i], shown));
    if (strchr(c->cgroup, '/') != NULL || c->cgroup[0] == '.')
        return err_set(e, ERR_INVALID, "%s:%d: cgroup: a name without slashes and leading dots",
                       document_name(d), fields_line(d, "cgroup"));
    if (c->directory[0] != '/' || c->socket[0] != '/' ||
        (c->instances[0] != '\0' && c->instances[0] != '/'))
        return err_set(e, ERR_INVALID, "%s: directory, instances and socket must be absolute paths",
                       document_name(d));
    return 0;
}

int runner_config_load(struct runner_config *c, const char *path, struct err *e)
{
    memset(c, 0, sizeof *c);
    const char *name = path == NULL ? RUNNER_CONFIG_PATH : path;
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;
    int rc = read_trusted(name, &text, &length, e);
    if (rc == -ERR_NOT_FOUND && path == NULL) {
        text = strdup("{}");
        length = 2;
        rc = text == NULL ? err_set(e, ERR_NO_MEMORY, "configuration") : 0;
    }
    if (rc < 0)
        return rc;
    struct document *d = NULL;
    rc = document_parse(&d, name, text, length, e);
    if (rc < 0)
        return rc;
    rc = fields_parse(&table, d, c, e);
    if (rc == 0) {
        rc = check(c, d, e);
        if (rc < 0)
            runner_config_free(c);
        else
            find_node_user(c);
    }
    document_free(d);
    return rc;
}

void runner_config_free(struct runner_config *c)
{
    fields_free(&table, c);
}
