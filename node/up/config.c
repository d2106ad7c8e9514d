/* What `skerry up` writes into a node's folder: its configuration, its part of the machine. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "base/address.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/up/node.h"
#include "sandbox/shared/ids.h"

/* Each node gets a range of user ids and a control group of its own, so that two of them do not meet:
 * the ids of 4,080 instances are there in all, the first 1,000 are the service's. */
enum { RANGE_INSTANCES = 220, RANGES = (4080 - 1000) / RANGE_INSTANCES };
#define IDS_PER_INSTANCE 65536ull
#define RANGE_IDS (RANGE_INSTANCES * IDS_PER_INSTANCE)
#define RANGE_FIRST_UID (0x70000000ull + 1000ull * IDS_PER_INSTANCE)
_Static_assert(RANGES == UP_NODES_MAX, "a range for each node");
#define CLAIMS "/run/skerry-up"

int up_write_file(const char *path, const char *text, mode_t mode, struct err *e)
{
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0 && errno == EEXIST)
        return 0;
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "write %s", path);
    (void)fchmod(fd, mode);
    size_t length = strlen(text);
    if (write(fd, text, length) != (ssize_t)length)
        return err_sys(e, ERR_IO, errno, "write %s", path);
    return 0;
}

/* --- addresses -------------------------------------------------------------------------------- */

bool up_address(char out[ADDRESS_TEXT_SIZE], const char *first, unsigned number)
{
    struct in_addr address;
    struct sockaddr_storage storage = {0};
    if (inet_pton(AF_INET, first, &address) != 1)
        return false;
    address.s_addr = htonl(ntohl(address.s_addr) + number - 1);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = address};
    memcpy(&storage, &in, sizeof in);
    return address_private(&storage) &&
           inet_ntop(AF_INET, &address, out, ADDRESS_TEXT_SIZE) != NULL;
}

/* --- user ids --------------------------------------------------------------------------------- */

static uint64_t hash_text(const char *text)
{
    uint64_t hash = 14695981039346656037ull; /* FNV-1a */
    for (; *text != '\0'; text++)
        hash = (hash ^ (unsigned char)*text) * 1099511628211ull;
    return hash;
}

/* Of its control groups, and of its folder of instances. */
static unsigned name_of(const char *directory)
{
    return (unsigned)(hash_text(directory) & 0xffffffff);
}

/* The range that another node's runner.yaml names; RANGES: none of ours. */
static unsigned range_of(const char *directory)
{
    char path[UP_PATH_SIZE], line[512];
    unsigned long long uid = 0;
    (void)text_format(path, sizeof path, "%s/runner.yaml", directory);
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return RANGES;
    while (uid == 0 && fgets(line, sizeof line, f) != NULL)
        (void)sscanf(line, "uid_base: %llu", &uid);
    (void)fclose(f);
    return uid < RANGE_FIRST_UID ? (unsigned)RANGES
                                 : (unsigned)((uid - RANGE_FIRST_UID) / RANGE_IDS);
}

/* Instances outlive a runner that was killed: so a range stays a folder's until the folder is removed, or
 * the machine starts anew. A link in CLAIMS with the number of the range leads to it. Only the holder of
 * the folder's lock looks and writes there. */
static int claims_open(struct err *e)
{
    if (mkdir(CLAIMS, 0755) < 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make %s", CLAIMS);
    CLEANUP_FD int fd = open(CLAIMS, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX) < 0)
        return err_sys(e, ERR_IO, errno, "lock %s", CLAIMS);
    return steal_fd(&fd);
}

static bool claimed(int claims, unsigned range, char name[16], char holder[UP_PATH_SIZE])
{
    (void)text_format(name, 16, "%u", range);
    ssize_t length = readlinkat(claims, name, holder, UP_PATH_SIZE - 1);
    if (length > 0)
        holder[length] = '\0';
    return length > 0;
}

static bool in_memory(int folder)
{
    struct statfs fs;
    return fstatfs(folder, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

static bool claim(int claims, unsigned range, const char *directory)
{
    char name[16], holder[UP_PATH_SIZE];
    if (range >= RANGES)
        return false;
    if (claimed(claims, range, name, holder)) {
        if (strcmp(holder, directory) != 0 && range_of(holder) == range)
            return false;
        (void)unlinkat(claims, name, 0);
    }
    return symlinkat(directory, claims, name) == 0;
}

void up_forget_claims(const struct up_node *n)
{
    struct err ignored;
    char name[16], holder[UP_PATH_SIZE];
    CLEANUP_FD int claims = n->root ? claims_open(&ignored) : -1;
    if (claims < 0)
        return;
    for (unsigned range = 0; range < RANGES; range++)
        if (claimed(claims, range, name, holder) && strcmp(holder, n->directory) == 0)
            (void)unlinkat(claims, name, 0);
    (void)text_format(name, sizeof name, "%08x", name_of(n->directory));
    (void)unlinkat(claims, name, AT_REMOVEDIR);
}

/* A range that no node of this folder has, no other folder has claimed and no runner that lives holds. */
static int choose_range(const struct up_node *n, int claims, uint64_t *out_uid, struct err *e)
{
    bool used[RANGES] = {false};
    char base[UP_PATH_SIZE];
    (void)text_copy(base, sizeof base, n->directory);
    *strrchr(base, '/') = '\0';
    for (unsigned number = 1; number <= UP_NODES_MAX; number++) {
        char other[UP_PATH_SIZE];
        (void)text_format(other, sizeof other, "%s/node%u", base, number);
        unsigned range = range_of(other);
        if (range < RANGES)
            used[range] = true;
    }
    uint64_t start = hash_text(base);
    for (unsigned i = 0; i < RANGES; i++) {
        unsigned range = (unsigned)((start + n->number + i) % RANGES);
        *out_uid = RANGE_FIRST_UID + range * RANGE_IDS;
        if (!used[range] && !ids_taken(*out_uid, RANGE_IDS) && claim(claims, range, n->directory))
            return 0;
    }
    return err_set(e, ERR_LIMIT,
                   "%s: all ranges of user ids are taken by other nodes on this machine (%s says "
                   "by which); bring "
                   "some down with --delete",
                   n->directory, CLAIMS);
}

/* --- the files -------------------------------------------------------------------------------- */

/* Without root there is seldom a control group to use, and the examples ask for limits. */
#define WITHOUT_LIMITS                                                                             \
    "# Without root limits are seldom enforced; `skerry status` tells. false: refuse them.\n"      \
    "sandbox: {allow_unenforced: true}\n"

static int write_serve(const struct up_node *n, struct err *e)
{
    char path[UP_PATH_SIZE], http[ADDRESS_TEXT_SIZE], api[ADDRESS_TEXT_SIZE];
    char ssh[ADDRESS_TEXT_SIZE];
    const char *d = n->directory;
    (void)text_format(http, sizeof http, "%s:%d", n->address, CONFIG_HTTP_PORT);
    (void)text_format(api, sizeof api, "%s:%d", n->address, CONFIG_API_PORT);
    (void)text_format(ssh, sizeof ssh, "%s:%d", n->address, CONFIG_SSH_PORT);
    CLEANUP_FREE char *text = text_new(
        "# Written by `skerry up` once; yours to change.\n"
        "name: node%u\n"
        "data: %s/data\n"
        "bind: \"%s:%d\"\n"
        "http: [\"%s\"]\n"
        "api: \"%s\"\n"
        "gateway: {ssh: \"%s\"}\n"
        "api_socket: %s/run/api.sock\n"
        "runner_socket: %s/run/runner.sock\n"
        "limits: {instances_max: %d}\n"
        "%s",
        n->number, d, n->address, CONFIG_PEER_PORT, n->http != NULL ? n->http : http,
        n->api != NULL ? n->api : api, ssh, d, d, RANGE_INSTANCES, n->root ? "" : WITHOUT_LIMITS);
    if (text == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    up_node_path(n, up_config_names[UP_SERVE], path);
    return up_write_file(path, text, 0644, e);
}

static int write_runner(const struct up_node *n, struct err *e)
{
    char path[UP_PATH_SIZE];
    const char *d = n->directory;
    uint64_t uid = 0;
    up_node_path(n, up_config_names[UP_RUNNER], path);
    CLEANUP_FD int claims = n->root ? claims_open(e) : -1;
    if (n->root && claims < 0)
        return claims;
    if (access(path, F_OK) == 0) {
        /* The machine may have started anew since; the runner has the last word. */
        if (n->root)
            (void)claim(claims, range_of(n->directory), n->directory);
        return 0;
    }
    char range[32] = ""; /* only the ids of the machine are to be shared out */
    char instances[UP_PATH_SIZE] = "";
    int rc = n->root ? choose_range(n, claims, &uid, e) : 0;
    if (rc != 0)
        return rc;
    if (n->root)
        (void)text_format(range, sizeof range, "uid_base: %" PRIu64 "\n", uid);
    if (n->root && in_memory(claims))
        (void)text_format(instances, sizeof instances, "instances: " CLAIMS "/%08x\n", name_of(d));
    CLEANUP_FREE char *text =
        text_new("# What this node may do at most. Written by `skerry up` once; yours to change.\n"
                 "directory: %s/runner\n"
                 "socket: %s/run/runner.sock\n"
                 "cgroup: skerry-%08x\n"
                 "%s%s"
                 "max: {instances: %d}\n",
                 d, d, name_of(d), range, instances, RANGE_INSTANCES);
    if (text == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    return up_write_file(path, text, 0644, e);
}

int up_write_configuration(const struct up_node *n, struct err *e)
{
    int rc = write_serve(n, e);
    return rc == 0 ? write_runner(n, e) : rc;
}
