/* skerry doctor: what this machine can do, and what to do about the rest. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/landlock.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/memory.h"
#include "node/cli/cli.h"
#include "node/cli/home.h"
#include "sandbox/shared/userns.h"

enum verdict { VERDICT_OK, VERDICT_WARN, VERDICT_FAIL };

static const char *const verdict_words[] = {"ok", "warn", "fail"};

struct report {
    json_t *checks;
    bool failed;
};

static void tell(struct report *r, const char *check, enum verdict verdict, const char *remedy,
                 const char *format, ...) __attribute__((format(printf, 5, 6)));
static void tell(struct report *r, const char *check, enum verdict verdict, const char *remedy,
                 const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    r->failed = r->failed || verdict == VERDICT_FAIL;
    json_t *one = json_object();
    json_object_set_new(one, "check", json_string(check));
    json_object_set_new(one, "state", json_string(verdict_words[verdict]));
    json_object_set_new(one, "text", json_string(text));
    json_object_set_new(
        one, "remedy", verdict == VERDICT_OK || remedy == NULL ? json_null() : json_string(remedy));
    json_array_append_new(r->checks, one);
}

/* The first `size - 1` bytes of a small file; false if it cannot be read. */
static bool read_small(const char *path, char *out, size_t size)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, out, size - 1);
    if (n < 0)
        return false;
    out[n] = '\0';
    return true;
}

/* --- kernel ----------------------------------------------------------------------------------- */

static void check_kernel(struct report *r)
{
    struct utsname name;
    unsigned major = 0, minor = 0;
    if (uname(&name) < 0 || sscanf(name.release, "%u.%u", &major, &minor) != 2) {
        tell(r, "kernel", VERDICT_WARN, NULL, "its version is unknown");
        return;
    }
    bool good = major > 6 || (major == 6 && minor >= 1);
    tell(r, "kernel", good ? VERDICT_OK : VERDICT_FAIL,
         "Use Linux 6.1 or newer (Debian 12 has it).", "Linux %s", name.release);
#ifdef __x86_64__
    tell(r, "processor", VERDICT_OK, NULL, "%s", name.machine);
#else
    tell(r, "processor", VERDICT_FAIL, "The system call filter is written for x86-64.", "%s",
         name.machine);
#endif
}

static void check_namespaces(struct report *r)
{
    static const char *const kinds[] = {"user", "mnt", "pid", "ipc", "uts", "net", "cgroup"};
    char missing[128] = "", text[32] = "1";
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        char path[64];
        (void)text_format(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
        if (access(path, F_OK) == 0)
            continue;
        size_t length = strlen(missing);
        (void)text_format(missing + length, sizeof missing - length, " %s", kinds[i]);
    }
    (void)read_small("/proc/sys/user/max_user_namespaces", text, sizeof text);
    if (missing[0] != '\0')
        tell(r, "namespaces", VERDICT_FAIL, "Use a kernel that is built with them.", "missing:%s",
             missing);
    else if (strtol(text, NULL, 10) == 0)
        tell(r, "namespaces", VERDICT_FAIL, "sysctl user.max_user_namespaces=65536",
             "user namespaces are turned off");
    else
        tell(r, "namespaces", VERDICT_OK, NULL, "all seven kinds, %ld user namespaces",
             strtol(text, NULL, 10));
}

/* Root of the machine has all ids; everybody else what a user namespace gives. */
static void check_uids(struct report *r)
{
    enum userns_ids ids = USERNS_MACHINE;
    char lack[256] = "";
    struct err e = {0};
    if (userns_is_machine())
        tell(r, "user ids", VERDICT_OK, NULL, "instances take theirs from 1879048192 on");
    else if (userns_probe(&ids, lack, sizeof lack, &e) != 0)
        tell(r, "user ids", VERDICT_FAIL, NULL, "%s", e.msg);
    else if (ids == USERNS_RANGE)
        tell(r, "user ids", VERDICT_OK, NULL,
             "%u subordinate ids of this user, which all instances share", USERNS_RANGE_IDS);
    else
        tell(r, "user ids", VERDICT_WARN, lack, "instances have the id of this user and no other");
}

static void check_filters(struct report *r)
{
    char text[256];
    bool seccomp = read_small("/proc/sys/kernel/seccomp/actions_avail", text, sizeof text);
    tell(r, "seccomp", seccomp ? VERDICT_OK : VERDICT_FAIL,
         "Use a kernel with CONFIG_SECCOMP_FILTER.", "%s",
         seccomp ? "system calls can be filtered" : "system calls cannot be filtered");
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version > 0)
        tell(r, "landlock", VERDICT_OK, NULL, "version %ld", version);
    else
        tell(r, "landlock", VERDICT_WARN, "Boot with lsm=landlock,... if the kernel has it.",
             "not there; namespaces and the filter stand without it");
}

static void check_file_systems(struct report *r)
{
    char text[8192] = "";
    (void)read_small("/proc/filesystems", text, sizeof text);
    bool overlay = strstr(text, "\toverlay\n") != NULL;
    tell(r, "overlay", overlay ? VERDICT_OK : VERDICT_FAIL, "modprobe overlay", "%s",
         overlay ? "there" : "the overlay file system is missing");
    tell(r, "tmpfs", strstr(text, "\ttmpfs\n") != NULL ? VERDICT_OK : VERDICT_FAIL,
         "Use a kernel with CONFIG_TMPFS.", "what instances write lies in memory");
    bool erofs = strstr(text, "\terofs\n") != NULL;
    bool tool =
        access("/usr/bin/mkfs.erofs", X_OK) == 0 || access("/usr/sbin/mkfs.erofs", X_OK) == 0;
    if (!userns_is_machine()) {
        tell(r, "erofs", VERDICT_OK, NULL, "only root mounts it: images are kept as folders");
        return;
    }
    tell(r, "erofs", erofs && tool ? VERDICT_OK : VERDICT_WARN,
         tool ? "modprobe erofs, if this kernel has it." : "apt-get install erofs-utils", "%s",
         erofs && tool ? "images are kept as files that are mounted"
         : tool        ? "not loaded; if it cannot be, images are kept as folders"
                       : "mkfs.erofs is missing: images are kept as folders");
}

/* --- control groups --------------------------------------------------------------------------- */

static bool has_word(const char *text, const char *word)
{
    size_t length = strlen(word);
    for (const char *p = text; (p = strstr(p, word)) != NULL; p += length) {
        bool begins = p == text || strchr(" ,\n:", p[-1]) != NULL;
        if (begins && (p[length] == '\0' || strchr(" ,\n:", p[length]) != NULL))
            return true;
    }
    return false;
}

/* Whether this process may share out what its own group of version 2 has; `own`: /proc/self/cgroup. */
static bool groups_delegated(const char *own)
{
    char path[512];
    const char *line = strncmp(own, "0::", 3) == 0 ? own : strstr(own, "\n0::");
    if (line == NULL)
        return false;
    line += line[0] == '\n' ? 4 : 3;
    return text_format(path, sizeof path, "/sys/fs/cgroup%.*s/cgroup.subtree_control",
                       (int)strcspn(line, "\n"), line) &&
           access(path, W_OK) == 0;
}

static void check_cgroups(struct report *r)
{
    static const char *const controllers[] = {"cpu", "memory", "pids"};
    char v2[1024] = "", own[4096] = "", missing[128] = "", found[128] = "";
    if (!read_small("/sys/fs/cgroup/cgroup.controllers", v2, sizeof v2))
        (void)read_small("/sys/fs/cgroup/unified/cgroup.controllers", v2, sizeof v2);
    (void)read_small("/proc/self/cgroup", own, sizeof own);
    for (size_t i = 0; i < ARRAY_SIZE(controllers); i++) {
        bool second = has_word(v2, controllers[i]),
             first = !second && has_word(own, controllers[i]);
        char *out = second || first ? found : missing;
        size_t length = strlen(out);
        (void)text_format(out + length, 128 - length, " %s%s", controllers[i],
                          second  ? " (v2)"
                          : first ? " (v1)"
                                  : "");
    }
    if (!userns_is_machine() && !groups_delegated(own))
        tell(
            r, "control groups", VERDICT_WARN,
            "Run as root for limits, or have systemd delegate groups: Delegate=yes in a user unit.",
            "none is delegated to this user: limits are not enforced");
    else if (missing[0] == '\0')
        tell(r, "control groups", VERDICT_OK, NULL, "%s", found + 1);
    else
        tell(r, "control groups", VERDICT_FAIL,
             "Mount the controllers, or set sandbox: {allow_unenforced: true} and do without "
             "limits.",
             "missing:%s", missing);
}

static void check_limits(struct report *r)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) < 0)
        return;
    bool enough = files.rlim_max >= 65536;
    tell(r, "descriptors", enough ? VERDICT_OK : VERDICT_WARN,
         "Raise it: LimitNOFILE=1048576 in the unit, or ulimit -Hn.",
         "%" PRIu64 " at most; connections take one or two each", (uint64_t)files.rlim_max);
}

/* --- the `host` image, ports, disk, time ------------------------------------------------------ */

static void check_programs(struct report *r)
{
    static const char *const programs[] = {"python3", "bash", "node", "perl"};
    char found[128] = "";
    for (size_t i = 0; i < ARRAY_SIZE(programs); i++) {
        char path[64];
        (void)text_format(path, sizeof path, "/usr/bin/%s", programs[i]);
        size_t length = strlen(found);
        if (access(path, X_OK) == 0)
            (void)text_format(found + length, sizeof found - length, " %s", programs[i]);
    }
    bool python = strstr(found, " python3") != NULL;
    tell(r, "image host", python ? VERDICT_OK : VERDICT_WARN,
         "apt-get install python3: the examples are written in it.", "in /usr/bin:%s",
         found[0] == '\0' ? " none of python3, bash, node, perl" : found);
}

/* Whether something listens at 127.0.0.1:port. */
static bool port_taken(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(port),
                                  .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
    int one = 1;
    CLEANUP_FD int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    return bind(fd, (const struct sockaddr *)&address, sizeof address) < 0 && errno == EADDRINUSE;
}

static bool node_answers(struct cli *c)
{
    struct client *client = NULL;
    struct client_answer answer = {0};
    struct client_request request = {.path = "/livez", .timeout_ms = 2000};
    struct err e = {0};
    if (cli_client(c, &client) != CLI_DONE)
        return false;
    bool answers = client_do(client, &request, &answer, &e) == 0 && answer.status == 200;
    client_answer_free(&answer);
    return answers;
}

static void check_ports(struct cli *c, struct report *r)
{
    bool runs = node_answers(c);
    tell(r, "node", VERDICT_OK, NULL, runs ? "one answers at %s" : "none answers at %s",
         client_address(c->client));
    static const struct {
        uint16_t port;
        const char *use;
    } ports[] = {{8080, "joins"}, {8081, "the API"}};
    for (size_t i = 0; i < ARRAY_SIZE(ports); i++) {
        char check[32];
        (void)text_format(check, sizeof check, "port %u", (unsigned)ports[i].port);
        if (!port_taken(ports[i].port))
            tell(r, check, VERDICT_OK, NULL, "free, for %s", ports[i].use);
        else if (runs)
            tell(r, check, VERDICT_OK, NULL, "in use, for %s", ports[i].use);
        else
            tell(r, check, VERDICT_WARN,
                 "ss -ltnp tells who; or use others: skerry up --http 127.0.0.1:9080 --api "
                 "127.0.0.1:9081",
                 "in use by another program; it is the default for %s", ports[i].use);
    }
}

/* What the node that answers says of its runner: whether instances can call out. */
static void check_egress(struct cli *c, struct report *r)
{
    struct client_answer answer = {0};
    struct client_request request = {
        .path = "/v1/status", .accept = "application/json", .timeout_ms = 2000};
    struct err e = {0};
    if (client_do(c->client, &request, &answer, &e) != 0)
        return;
    json_t *status = answer.status == 200 ? client_json(&answer) : NULL, *warning;
    size_t i;
    json_array_foreach(json_object_get(status, "warnings"), i, warning)
    {
        const char *text = json_string_value(warning);
        if (text != NULL && strstr(text, "egress") != NULL)
            tell(r, "egress", VERDICT_WARN, NULL, "%s", text);
    }
    json_decref(status);
    client_answer_free(&answer);
}

static void check_space(struct report *r)
{
    struct statvfs fs;
    char home[512] = "", *slash;
    const char *path = access("/var/lib/skerry", F_OK) == 0 ? "/var/lib/skerry" : "/var/lib";
    if (!userns_is_machine() && home_state(home, sizeof home))
        path = home;
    /* What is not there yet lies where its folder does. */
    while (access(path, F_OK) != 0 && (slash = strrchr(home, '/')) != NULL && slash != home)
        *slash = '\0';
    char text[CLI_UNIT_SIZE];
    if (statvfs(path, &fs) == 0) {
        uint64_t bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
        cli_bytes(bytes, text);
        tell(r, "disk", bytes >= 1ull << 30 ? VERDICT_OK : VERDICT_WARN,
             "Images, logs and the registry need room: free some, or set data: elsewhere.",
             "%s free in %s", text, path);
    }
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    cli_bytes(memory, text);
    tell(r, "memory", memory >= 512ull << 20 ? VERDICT_OK : VERDICT_WARN,
         "Instances need memory of their own.", "%s, %ld processors", text,
         sysconf(_SC_NPROCESSORS_ONLN));
}

static void check_time(struct report *r)
{
    struct timex state = {0};
    bool synchronized = adjtimex(&state) != TIME_ERROR;
    tell(r, "time", synchronized ? VERDICT_OK : VERDICT_WARN,
         "Run chrony or systemd-timesyncd: logs and the ends of tokens are read by the clock.",
         "%s", synchronized ? "the clock is synchronized" : "nobody synchronizes the clock");
}

static void check_user(struct report *r)
{
    bool root = userns_is_machine();
    tell(r, "user", VERDICT_OK, NULL, "%s",
         root ? "root" : "not root: sandboxes without egress, in a user namespace");
}

static int doctor(struct cli *c)
{
    struct report r = {.checks = json_array()};
    check_kernel(&r);
    check_user(&r);
    check_uids(&r);
    check_namespaces(&r);
    check_cgroups(&r);
    check_filters(&r);
    check_file_systems(&r);
    check_limits(&r);
    check_programs(&r);
    check_ports(c, &r);
    check_egress(c, &r);
    check_space(&r);
    check_time(&r);
    json_t *check;
    size_t i;
    if (c->json) {
        cli_print_json(r.checks);
    } else {
        json_array_foreach(r.checks, i, check)
        {
            static const char *const paints[] = {"\033[32m", "\033[33m", "\033[1;31m"};
            const char *state = cli_text(check, "state");
            size_t verdict = state[0] == 'o' ? 0 : state[0] == 'w' ? 1 : 2;
            printf("%s%-4s%s  %-15s %s\n", c->color ? paints[verdict] : "", state,
                   c->color ? "\033[0m" : "", cli_text(check, "check"), cli_text(check, "text"));
            if (cli_text(check, "remedy")[0] != '\0')
                printf("      %-15s %s\n", "", cli_text(check, "remedy"));
        }
    }
    json_decref(r.checks);
    return r.failed ? CLI_FAILED : CLI_DONE;
}

const struct cli_command cli_doctor_command = {
    .name = "doctor",
    .arguments = "",
    .summary = "what this machine can do, and what to do about the rest",
    .text = "Exits with 1 if something is missing that Skerry cannot do without.",
    .flags = CLI_API | CLI_JSON,
    .run = doctor,
};
