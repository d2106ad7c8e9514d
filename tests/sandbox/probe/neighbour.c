/* Another instance on the same machine. `probe --neighbour` plays it: it offers itself in every way that
 * a program has to be found by others, takes all that the kernel gives one user, says "ready", and waits
 * for the end of its standard input. The checks run beside it and must find nothing, and all they need. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "probe.h"

#define NAME "skerry-probe-neighbour"
#define KEY 0x534b5259
#define PORT 47123
#define UDP_PORT 47124
/* More than the kernel gives one user, so that all of it is taken. */
#define INOTIFY_MAX 4096
#define INODES_MAX 200000

static int unix_socket(int type, const char *path, struct sockaddr_un *at, socklen_t *size)
{
    *at = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (path != NULL) {
        snprintf(at->sun_path, sizeof at->sun_path, "%s", path);
        *size = sizeof *at;
    } else {
        memcpy(at->sun_path + 1, NAME, sizeof NAME - 1);
        *size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + sizeof NAME);
    }
    return socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
}

static int inet_socket(int family, int type, int port, struct sockaddr_storage *at, socklen_t *size)
{
    memset(at, 0, sizeof *at);
    if (family == AF_INET) {
        *(struct sockaddr_in *)at = (struct sockaddr_in){.sin_family = AF_INET,
                                                         .sin_port = htons((unsigned short)port),
                                                         .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        *size = sizeof(struct sockaddr_in);
    } else {
        *(struct sockaddr_in6 *)at = (struct sockaddr_in6){.sin6_family = AF_INET6,
                                                           .sin6_port = htons((unsigned short)port),
                                                           .sin6_addr = in6addr_loopback};
        *size = sizeof(struct sockaddr_in6);
    }
    return socket(family, type | SOCK_CLOEXEC, 0);
}

/* --- the neighbour ---------------------------------------------------------------------------- */

static void offer_sockets(void)
{
    struct sockaddr_un here;
    struct sockaddr_storage there;
    socklen_t size;
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM};
    static const char *const paths[] = {NULL, "/tmp/" NAME ".socket"};
    for (int i = 0; i < 2; i++) {
        int fd = unix_socket(types[i], paths[i], &here, &size);
        if (bind(fd, (struct sockaddr *)&here, size) == 0)
            listen(fd, 8);
    }
    static const int families[] = {AF_INET, AF_INET6};
    for (int i = 0; i < 2; i++) {
        int fd = inet_socket(families[i], SOCK_STREAM, PORT, &there, &size);
        if (bind(fd, (struct sockaddr *)&there, size) == 0)
            listen(fd, 8);
        fd = inet_socket(families[i], SOCK_DGRAM, UDP_PORT, &there, &size);
        (void)bind(fd, (struct sockaddr *)&there, size);
    }
}

static void offer_memory(void)
{
    (void)shmget(KEY, 4096, IPC_CREAT | 0666);
    (void)semget(KEY, 1, IPC_CREAT | 0666);
    (void)msgget(KEY, IPC_CREAT | 0666);
    mode_t old = umask(0);
    (void)mq_open("/" NAME, O_RDWR | O_CREAT, 0666, NULL);
    (void)shm_open("/" NAME, O_RDWR | O_CREAT, 0666);
    (void)open("/tmp/" NAME, O_RDWR | O_CREAT, 0666);
    umask(old);
}

/* Only in a sandbox: what is bounded there is the machine's elsewhere. */
static void take_all(void)
{
    char path[64];
    for (int i = 0; i < INOTIFY_MAX && inotify_init1(IN_CLOEXEC) >= 0; i++)
        ;
    for (int i = 0; i < INODES_MAX; i++) {
        snprintf(path, sizeof path, "/tmp/" NAME "-%d", i);
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
            break;
        close(fd);
    }
    for (int i = 0; i < 128 && posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC) >= 0; i++)
        ;
    for (;;) {
        pid_t pid = fork();
        if (pid < 0)
            break;
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                pause();
        }
    }
}

int probe_neighbour(bool greedy)
{
    char byte;
    prctl(PR_SET_NAME, "skerry-neighbr");
    offer_sockets();
    offer_memory();
    if (greedy)
        take_all();
    printf("ready\n");
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    shmctl(shmget(KEY, 0, 0), IPC_RMID, NULL);
    semctl(semget(KEY, 0, 0), 0, IPC_RMID);
    msgctl(msgget(KEY, 0), IPC_RMID, NULL);
    mq_unlink("/" NAME);
    shm_unlink("/" NAME);
    unlink("/tmp/" NAME);
    unlink("/tmp/" NAME ".socket");
    return 0;
}

/* --- the checks ------------------------------------------------------------------------------- */

static bool no_abstract_socket(const void *with, struct probe_text *what)
{
    (void)with;
    struct sockaddr_un to;
    socklen_t size;
    int fd = unix_socket(SOCK_STREAM, NULL, &to, &size);
    return probe_failed(what, connect(fd, (struct sockaddr *)&to, size));
}

static bool no_named_socket(const void *with, struct probe_text *what)
{
    (void)with;
    struct sockaddr_un to;
    socklen_t size;
    int fd = unix_socket(SOCK_DGRAM, "/tmp/" NAME ".socket", &to, &size);
    return probe_failed(what, connect(fd, (struct sockaddr *)&to, size));
}

static bool no_listener(const void *with, struct probe_text *what)
{
    const int *family = with;
    struct sockaddr_storage to;
    socklen_t size;
    int fd = inet_socket(*family, SOCK_STREAM, PORT, &to, &size);
    return fd < 0 || probe_failed(what, connect(fd, (struct sockaddr *)&to, size));
}

/* A datagram to nobody comes back as an error. */
static bool no_datagrams(const void *with, struct probe_text *what)
{
    const int *family = with;
    struct sockaddr_storage to;
    socklen_t size;
    int fd = inet_socket(*family, SOCK_DGRAM, UDP_PORT, &to, &size);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, size) != 0)
        return true;
    (void)send(fd, "x", 1, 0);
    /* That nobody is there is told a moment later. */
    struct pollfd refused = {.fd = fd};
    (void)poll(&refused, 1, 1000);
    return probe_failed(what, send(fd, "x", 1, 0));
}

static bool no_shared_memory(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_failed(what, shmget(KEY, 0, 0));
}

static bool no_semaphore(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_failed(what, semget(KEY, 0, 0));
}

static bool no_message_queue(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_failed(what, msgget(KEY, 0)) && probe_failed(what, mq_open("/" NAME, O_RDWR));
}

static bool no_named_memory(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_failed(what, shm_open("/" NAME, O_RDWR, 0));
}

static bool no_file(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_failed(what, open("/tmp/" NAME, O_RDONLY));
}

static bool no_process(const void *with, struct probe_text *what)
{
    (void)with;
    for (int pid = 1; pid < 40000; pid++) {
        char path[64];
        char name[32] = "";
        snprintf(path, sizeof path, "/proc/%d/comm", pid);
        int fd = open(path, O_RDONLY);
        if (fd < 0)
            continue;
        ssize_t n = read(fd, name, sizeof name - 1);
        close(fd);
        if (n > 0 && strncmp(name, "skerry-neighbr", 14) == 0)
            return probe_fail(what, "its process is %d", pid);
    }
    return true;
}

static bool no_foreign_ipc(const void *with, struct probe_text *what)
{
    const char *path = with;
    char line[512];
    FILE *file = fopen(path, "re");
    int lines = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        lines++;
    if (file != NULL)
        fclose(file);
    return lines <= 1 || probe_fail(what, "%s tells of %d", path, lines - 1);
}

static bool terminals_are_left(const void *with, struct probe_text *what)
{
    (void)with;
    return posix_openpt(O_RDWR | O_NOCTTY) >= 0 || probe_fail(what, "%s", strerror(errno));
}

void probe_add_neighbour(struct probe_list *list)
{
    static const int ipv4 = AF_INET, ipv6 = AF_INET6;
    static const char group[] = "neighbours";
    probe_add(list, group, "no abstract socket of it", no_abstract_socket, NULL, false);
    probe_add(list, group, "no named socket of it", no_named_socket, NULL, false);
    probe_add(list, group, "no listener of it", no_listener, &ipv4, false);
    probe_add(list, group, "no listener of it by IPv6", no_listener, &ipv6, false);
    probe_add(list, group, "no datagrams to it", no_datagrams, &ipv4, false);
    probe_add(list, group, "no datagrams to it by IPv6", no_datagrams, &ipv6, false);
    probe_add(list, group, "no shared memory of it", no_shared_memory, NULL, false);
    probe_add(list, group, "no semaphore of it", no_semaphore, NULL, false);
    probe_add(list, group, "no message queue of it", no_message_queue, NULL, false);
    probe_add(list, group, "no named memory of it", no_named_memory, NULL, false);
    probe_add(list, group, "no file of it", no_file, NULL, false);
    probe_add(list, group, "no process of it", no_process, NULL, false);
    probe_add(list, group, "no list of its memory", no_foreign_ipc, "/proc/sysvipc/shm", false);
    probe_add(list, group, "no list of its semaphores", no_foreign_ipc, "/proc/sysvipc/sem", false);
    probe_add(list, group, "no list of its queues", no_foreign_ipc, "/proc/sysvipc/msg", false);
    probe_add(list, group, "it leaves terminals", terminals_are_left, NULL, false);
}
