/* What `skerry up` writes into a node's folder: its configuration, its part of the machine. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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

/* A range that no node of this folder has and no runner that lives. */
static int choose_range(const struct up_node *n, uint64_t *out_uid, struct err *e)
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
        if (!used[range] && !ids_taken(*out_uid, RANGE_IDS))
            return 0;
    }
    return err_set(
        e, ERR_LIMIT,
        "%s: all ranges of user ids are taken by other nodes on this machine; bring some "
        "down",
        n->directory);
}

/* --- the files -------------------------------------------------------------------------------- */

static int write_serve(const struct up_node *n, struct err *e)
{
    char path[UP_PATH_SIZE], http[ADDRESS_TEXT_SIZE], api[ADDRESS_TEXT_SIZE];
    char ssh[ADDRESS_TEXT_SIZE];
    const char *d = n->directory;
    (void)text_format(http, sizeof http, "%s:%d", n->address, CONFIG_HTTP_PORT);
    (void)text_format(api, sizeof api, "%s:%d", n->address, CONFIG_API_PORT);
    (void)text_format(ssh, sizeof ssh, "%s:%d", n->address, CONFIG_SSH_PORT);
    CLEANUP_FREE char *text =
        text_new("# Written by `skerry up` once; yours to change.\n"
                 "name: node%u\n"
                 "data: %s/data\n"
                 "bind: \"%s:%d\"\n"
                 "http: [\"%s\"]\n"
                 "api: \"%s\"\n"
                 "gateway: {ssh: \"%s\"}\n"
                 "api_socket: %s/run/api.sock\n"
                 "runner_socket: %s/run/runner.sock\n"
                 "limits: {instances_max: %d}\n",
                 n->number, d, n->address, CONFIG_PEER_PORT, n->http != NULL ? n->http : http,
                 n->api != NULL ? n->api : api, ssh, d, d, RANGE_INSTANCES);
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
    if (access(path, F_OK) == 0)
        return 0;
    int rc = choose_range(n, &uid, e);
    if (rc != 0)
        return rc;
    CLEANUP_FREE char *text =
        text_new("# What this node may do at most. Written by `skerry up` once; yours to change.\n"
                 "directory: %s/runner\n"
                 "socket: %s/run/runner.sock\n"
                 "cgroup: skerry-%08x\n"
                 "uid_base: %" PRIu64 "\n"
                 "max: {instances: %d}\n",
                 d, d, (unsigned)(hash_text(d) & 0xffffffff), uid, RANGE_INSTANCES);
    if (text == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    return up_write_file(path, text, 0644, e);
}

int up_write_configuration(const struct up_node *n, struct err *e)
{
    int rc = write_serve(n, e);
    return rc == 0 ? write_runner(n, e) : rc;
}
