/* Code that takes all it can get: bomb MODE. Ends only when it is stopped, or when it is refused,
 * with a line that says how far it came. An upper bound for each keeps a machine without limits
 * alive.
 *
 *     fork       processes           memory     pages that are written
 *     disk       bytes in /tmp       inode      empty files in /tmp
 *     tcp        bytes in the buffers of loopback connections that nobody reads
 *     files      open descriptors    cpu        one busy loop, for ever
 *     shm        System V shared memory that is written
 *     symlink    links that point at each other
 *     depth      folders within folders
 *     processes  10,000 that end at once, one after the other */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROCESSES_MAX 20000
#define BYTES_MAX (4ul << 30)
#define FILES_MAX 2000000ul
#define SHORT_LIVED 10000
#define CONNECTIONS_MAX 4000
#define TCP_BYTES_MAX (1ul << 30)
#define BLOCK (1ul << 20)

static int told(const char *what, unsigned long count, int sys)
{
    printf("%s: %lu: %s\n", what, count, sys == 0 ? "no limit was met" : strerror(sys));
    fflush(stdout);
    return sys == 0 ? 3 : 0;
}

static int bomb_fork(void)
{
    unsigned long count = 0;
    for (; count < PROCESSES_MAX; count++) {
        pid_t pid = fork();
        if (pid < 0)
            return told("fork", count, errno);
        if (pid == 0)
            for (;;)
                pause();
    }
    return told("fork", count, 0);
}

static int bomb_memory(void)
{
    for (unsigned long bytes = 0; bytes < BYTES_MAX; bytes += BLOCK) {
        char *block = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED)
            return told("memory", bytes, errno);
        memset(block, 'x', BLOCK);
    }
    return told("memory", BYTES_MAX, 0);
}

static int bomb_shm(void)
{
    int id = shmget(IPC_PRIVATE, BYTES_MAX, IPC_CREAT | 0600);
    char *at = id >= 0 ? shmat(id, NULL, 0) : (char *)-1;
    if (id >= 0)
        shmctl(id, IPC_RMID, NULL);
    if (at == (char *)-1)
        return told("shm", 0, errno);
    for (unsigned long bytes = 0; bytes < BYTES_MAX; bytes += 4096)
        at[bytes] = 'x';
    return told("shm", BYTES_MAX, 0);
}

static int bomb_disk(void)
{
    static char block[BLOCK];
    int fd = open("/tmp/bomb", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    unsigned long bytes = 0;
    while (bytes < BYTES_MAX) {
        ssize_t n = write(fd, block, sizeof block);
        if (n <= 0)
            return told("disk", bytes, errno);
        bytes += (unsigned long)n;
    }
    return told("disk", bytes, 0);
}

static int bomb_inode(void)
{
    for (unsigned long i = 0; i < FILES_MAX; i++) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/bomb-%lu", i);
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
            return told("inode", i, errno);
        close(fd);
    }
    return told("inode", FILES_MAX, 0);
}

static int bomb_files(void)
{
    for (unsigned long i = 0; i < FILES_MAX; i++)
        if (open("/dev/null", O_RDONLY) < 0)
            return told("files", i, errno);
    return told("files", FILES_MAX, 0);
}

/* What all TCP sockets of the machine hold, in pages. */
static void tell_tcp_pages(void)
{
    char line[256];
    FILE *file = fopen("/proc/net/sockstat", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, "TCP:", 4) == 0)
            fputs(line, stderr);
    if (file != NULL)
        fclose(file);
}

/* Each connection takes what its buffers hold, then the next is made. */
static int bomb_tcp(void)
{
    static char block[64 * 1024];
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    unsigned long bytes = 0;
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 128) != 0 ||
        getsockname(listener, (struct sockaddr *)&at, &size) != 0)
        return told("tcp", 0, errno);
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        int sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (sender < 0 || connect(sender, (struct sockaddr *)&at, size) != 0)
            return told("tcp", bytes, errno);
        if (accept4(listener, NULL, NULL, SOCK_CLOEXEC) < 0)
            return told("tcp", bytes, errno);
        fcntl(sender, F_SETFL, O_NONBLOCK);
        ssize_t n;
        while (bytes < TCP_BYTES_MAX && (n = send(sender, block, sizeof block, MSG_NOSIGNAL)) > 0)
            bytes += (unsigned long)n;
        if (bytes >= TCP_BYTES_MAX)
            return told("tcp", bytes, 0);
    }
    tell_tcp_pages();
    return told("tcp", bytes, ENOBUFS);
}

static int bomb_symlink(void)
{
    for (unsigned long i = 0; i < FILES_MAX; i++) {
        char target[64], path[64];
        snprintf(target, sizeof target, "/tmp/bomb-link-%lu", i + 1);
        snprintf(path, sizeof path, "/tmp/bomb-link-%lu", i);
        if (symlink(target, path) != 0)
            return told("symlink", i, errno);
    }
    return told("symlink", FILES_MAX, 0);
}

/* Deeper than any path can name: each is entered by itself. */
static int bomb_depth(void)
{
    if (chdir("/tmp") != 0)
        return told("depth", 0, errno);
    for (unsigned long i = 0; i < FILES_MAX; i++)
        if (mkdir("bomb", 0700) != 0 || chdir("bomb") != 0)
            return told("depth", i, errno);
    return told("depth", FILES_MAX, 0);
}

/* A few at the same time, as a shell's pipes are. */
static int bomb_processes(void)
{
    for (unsigned long count = 0; count < SHORT_LIVED; count++) {
        pid_t pid = fork();
        if (pid < 0)
            return told("processes", count, errno);
        if (pid == 0)
            _exit(0);
        if (count % 16 == 15)
            while (waitpid(-1, NULL, 0) > 0)
                ;
    }
    printf("processes: %d: done\n", SHORT_LIVED);
    return 0;
}

static int bomb_cpu(void)
{
    volatile unsigned long turns = 0;
    while (turns + 1 != 0)
        turns++;
    return told("cpu", turns, 0);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(void);
    } modes[] = {
        {"fork", bomb_fork},
        {"memory", bomb_memory},
        {"shm", bomb_shm},
        {"disk", bomb_disk},
        {"inode", bomb_inode},
        {"files", bomb_files},
        {"tcp", bomb_tcp},
        {"cpu", bomb_cpu},
        {"symlink", bomb_symlink},
        {"depth", bomb_depth},
        {"processes", bomb_processes},
    };
    for (size_t i = 0; argc == 2 && i < sizeof modes / sizeof modes[0]; i++)
        if (strcmp(argv[1], modes[i].name) == 0)
            return modes[i].run();
    fprintf(stderr,
            "usage: bomb fork|memory|shm|disk|inode|files|tcp|cpu|symlink|depth|processes\n");
    return 2;
}
