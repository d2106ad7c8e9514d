/* tests/lib/agent_host.h - runs the real agent as process 1 of namespaces made here.
 *
 * What the runner does in production, in little: user, pid, mount, net and ipc namespaces, /proc and
 * /dev/pts of their own, loopback up, the agent from a sealed memfd of mode 0111, its listening
 * socket on 3 and its first connection on 4. The root file system stays the machine's. Needs root.
 * Header only, as runner tests link no test library; asserts by cmocka. */
#ifndef SKERRY_TESTS_LIB_AGENT_HOST_H
#define SKERRY_TESTS_LIB_AGENT_HOST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/words.h"
#include "sandbox/agent.pb-c.h"
#include "sandbox/runner.pb-c.h"
#include "sandbox/shared/agent_check.h"
#include "sandbox/shared/wire.h"

#define HOST_DEADLINE_MS 40000
#define HOST_UID_FIRST 300000
#define HOST_KEPT_MAX 128

extern const uint8_t embedded_agent_begin[];
extern const uint8_t embedded_agent_end[];

struct host {
    char directory[64];
    char socket_path[96];
    int socket;
    int logs[2];
    pid_t pid;
    uint64_t seq;
    Skerry__Agent__FromAgent *kept[HOST_KEPT_MAX];
    int kept_fd[HOST_KEPT_MAX];
    size_t kept_count;
    bool closed;
};

static inline int host_memfd(void)
{
    size_t size = (size_t)(embedded_agent_end - embedded_agent_begin);
    int fd = memfd_create("skerry-agent", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, embedded_agent_begin, size), size);
    assert_int_equal(fchmod(fd, 0111), 0);
    assert_int_equal(
        fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL), 0);
    return fd;
}

static inline void host_write_file(const char *path, const char *text)
{
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
}

static inline void host_child_fail(const char *what)
{
    fprintf(stderr, "agent host: %s: %s\n", what, strerror(errno));
    _exit(99);
}

static inline void host_child(int go, int agent, int listener, int channel)
{
    char byte;
    struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    char *argv[] = {(char *)(uintptr_t) "skerry-agent", NULL};
    char *environment[] = {NULL};
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || read(go, &byte, 1) != 1)
        host_child_fail("wait");
    if (setresgid(0, 0, 0) != 0 || setresuid(0, 0, 0) != 0)
        host_child_fail("become root inside");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        host_child_fail("make mounts private");
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0)
        host_child_fail("mount /proc");
    if (mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=0620") != 0)
        host_child_fail("mount /dev/pts");
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (ioctl(s, SIOCSIFFLAGS, &loopback) != 0)
        host_child_fail("raise lo");
    /* Above what they are moved to. */
    agent = fcntl(agent, F_DUPFD, 64);
    listener = fcntl(listener, F_DUPFD, 64);
    channel = fcntl(channel, F_DUPFD, 64);
    if (dup2(listener, 3) < 0 || dup2(channel, 4) < 0)
        host_child_fail("descriptors");
    syscall(SYS_execveat, agent, "", argv, environment, AT_EMPTY_PATH);
    host_child_fail("execute the agent");
}

static inline void host_map_ids(pid_t pid)
{
    char path[64], map[64];
    snprintf(map, sizeof map, "0 %d 65536", HOST_UID_FIRST);
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
    host_write_file(path, map);
    snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
    host_write_file(path, map);
}

static inline void host_start(struct host *h)
{
    *h = (struct host){.directory = "/tmp/skerry-agent-XXXXXX"};
    assert_non_null(mkdtemp(h->directory));
    assert_int_equal(chmod(h->directory, 0711), 0);
    snprintf(h->socket_path, sizeof h->socket_path, "%s/agent.sock", h->directory);
    for (int i = 0; i < 2; i++) {
        char path[96];
        snprintf(path, sizeof path, "%s/id.log%s", h->directory, i == 0 ? "" : ".1");
        h->logs[i] = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(h->logs[i] >= 0);
    }
    CLEANUP_FD int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", h->socket_path);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    int pair[2], go[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(pipe2(go, O_CLOEXEC), 0);
    CLEANUP_FD int agent = host_memfd();
    h->pid = (pid_t)syscall(SYS_clone,
                            CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET |
                                CLONE_NEWIPC | SIGCHLD,
                            NULL, NULL, NULL, NULL);
    assert_true(h->pid >= 0);
    if (h->pid == 0)
        host_child(go[0], agent, listener, pair[1]);
    host_map_ids(h->pid);
    assert_int_equal(write(go[1], "", 1), 1);
    close(go[0]);
    close(go[1]);
    close(pair[1]);
    h->socket = pair[0];
}

/* Waits until the agent is gone; its wait status. */
static inline int host_wait_end(struct host *h)
{
    uint64_t until = clock_monotonic_ms() + HOST_DEADLINE_MS;
    CLEANUP_FD int pidfd = (int)syscall(SYS_pidfd_open, h->pid, 0);
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    if (poll(&ended, 1, (int)(until - clock_monotonic_ms())) != 1)
        fail_msg("the agent did not end");
    int status = 0;
    assert_int_equal(waitpid(h->pid, &status, 0), h->pid);
    h->pid = 0;
    return status;
}

static inline void host_stop(struct host *h)
{
    if (h->pid > 0) {
        kill(h->pid, SIGKILL);
        (void)host_wait_end(h);
    }
    for (size_t i = 0; i < h->kept_count; i++) {
        skerry__agent__from_agent__free_unpacked(h->kept[i], NULL);
        memory_close(&h->kept_fd[i]);
    }
    memory_close(&h->socket);
    memory_close(&h->logs[0]);
    memory_close(&h->logs[1]);
    static const char *const files[] = {"agent.sock", "id.log", "id.log.1"};
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        char path[96];
        snprintf(path, sizeof path, "%s/%s", h->directory, files[i]);
        unlink(path);
    }
    rmdir(h->directory);
}

static inline uint64_t host_send(struct host *h, Skerry__Agent__ToAgent *message, const int *fds,
                                 size_t count)
{
    struct err e = {0};
    message->seq = ++h->seq;
    if (wire_send(h->socket, &message->base, fds, count, &e) != 0)
        fail_msg("send to the agent: %s", e.msg);
    return message->seq;
}

static inline void host_keep(struct host *h, const uint8_t *data, size_t length, int fd)
{
    assert_true(h->kept_count < HOST_KEPT_MAX);
    h->kept[h->kept_count] = skerry__agent__from_agent__unpack(NULL, length, data);
    assert_non_null(h->kept[h->kept_count]);
    h->kept_fd[h->kept_count++] = fd;
}

/* An end that came with the exit of main, as the message that others come in. */
static inline void host_keep_ending(struct host *h, uint32_t reason)
{
    uint8_t data[64];
    Skerry__Agent__Ending ending = SKERRY__AGENT__ENDING__INIT;
    Skerry__Agent__FromAgent message = SKERRY__AGENT__FROM_AGENT__INIT;
    ending.reason = reason;
    message.message_case = SKERRY__AGENT__FROM_AGENT__MESSAGE_ENDING;
    message.ending = &ending;
    assert_true(skerry__agent__from_agent__get_packed_size(&message) <= sizeof data);
    host_keep(h, data, skerry__agent__from_agent__pack(&message, data), -1);
}

/* Receives one message into `kept`; false at the deadline or when the agent is gone. */
static inline bool host_receive(struct host *h, uint64_t until_ms)
{
    static uint8_t data[AGENT_MESSAGE_BYTES_MAX];
    uint64_t now = clock_monotonic_ms();
    struct pollfd wait = {.fd = h->socket, .events = POLLIN};
    if (h->closed || now >= until_ms || poll(&wait, 1, (int)(until_ms - now)) != 1)
        return false;
    size_t length, fd_count;
    int fd = -1;
    struct err e = {0};
    if (wire_receive(h->socket, data, sizeof data, &length, &fd, 1, &fd_count, &e) != 0) {
        h->closed = true;
        return false;
    }
    host_keep(h, data, length, fd_count == 1 ? fd : -1);
    const Skerry__Agent__FromAgent *last = h->kept[h->kept_count - 1];
    if (last->message_case == SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED &&
        last->exited->ending != 0)
        host_keep_ending(h, last->exited->ending);
    return true;
}

/* The oldest message of that kind that was not taken yet (`seq` 0: any); waits for it. The caller
 * frees it. NULL at the deadline. */
static inline Skerry__Agent__FromAgent *host_take_within(struct host *h,
                                                         Skerry__Agent__FromAgent__MessageCase kind,
                                                         uint64_t seq, int *fd, uint64_t within_ms)
{
    uint64_t until = clock_monotonic_ms() + within_ms;
    size_t i = 0;
    for (;;) {
        for (; i < h->kept_count; i++) {
            Skerry__Agent__FromAgent *message = h->kept[i];
            if (message->message_case != kind || (seq != 0 && message->seq != seq))
                continue;
            if (fd != NULL)
                *fd = h->kept_fd[i];
            else
                memory_close(&h->kept_fd[i]);
            h->kept_count--;
            for (; i < h->kept_count; i++) {
                h->kept[i] = h->kept[i + 1];
                h->kept_fd[i] = h->kept_fd[i + 1];
            }
            return message;
        }
        if (!host_receive(h, until))
            return NULL;
    }
}

static inline Skerry__Agent__FromAgent *
host_take(struct host *h, Skerry__Agent__FromAgent__MessageCase kind, uint64_t seq, int *fd)
{
    Skerry__Agent__FromAgent *message = host_take_within(h, kind, seq, fd, HOST_DEADLINE_MS);
    if (message == NULL) {
        for (size_t i = 0; i < h->kept_count; i++)
            print_message("waiting: kind %d seq %d\n", (int)h->kept[i]->message_case,
                          (int)h->kept[i]->seq);
        if (h->closed && h->pid > 0) {
            int status = host_wait_end(h);
            print_message("the agent ended with status %#x\n", (unsigned)status);
        }
        fail_msg("no message of kind %d from the agent", (int)kind);
    }
    return message;
}

static inline void host_free(Skerry__Agent__FromAgent *message)
{
    skerry__agent__from_agent__free_unpacked(message, NULL);
}

/* Sends and expects Done; its error. `fd`: the terminal's master, or NULL. */
static inline uint32_t host_ask(struct host *h, Skerry__Agent__ToAgent *message, const int *fds,
                                size_t count, int *fd)
{
    uint64_t seq = host_send(h, message, fds, count);
    Skerry__Agent__FromAgent *done = host_take(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_DONE, seq, fd);
    uint32_t error = done->done->error;
    if (error != 0)
        print_message("agent: %s\n", done->done->message);
    host_free(done);
    return error;
}

/* A setup to change before it is sent: no readiness, uid 1000, a filter that allows all. */
struct host_setup {
    Skerry__Agent__Setup setup;
    struct sock_filter filter[1];
    char *environment[4];
};

static inline void host_setup_default(struct host_setup *s)
{
    skerry__agent__setup__init(&s->setup);
    s->filter[0] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0x7fff0000u);
    s->setup.seccomp.data = (uint8_t *)s->filter;
    s->setup.seccomp.len = sizeof s->filter;
    s->environment[0] = (char *)(uintptr_t) "PATH=/usr/bin:/bin";
    s->environment[1] = (char *)(uintptr_t) "COLOR=red";
    s->setup.environment = s->environment;
    s->setup.n_environment = 2;
    s->setup.uid = 1000;
    s->setup.gid = 1001;
    s->setup.directory = (char *)(uintptr_t) "/";
    s->setup.ready = SKERRY__RUNNER__READY__READY_NONE;
    s->setup.drain_ms = 200;
    s->setup.log_bytes_max = 1 << 20;
    s->setup.runner_grace_ms = 5000;
    s->setup.open_files_max = 256;
}

static inline void host_setup_send(struct host *h, struct host_setup *s)
{
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_SETUP;
    message.setup = &s->setup;
    assert_int_equal(host_ask(h, &message, h->logs, 2, NULL), 0);
}

static inline uint32_t host_stop_verb(struct host *h, uint32_t grace_ms, uint32_t reason)
{
    Skerry__Agent__Stop stop = SKERRY__AGENT__STOP__INIT;
    stop.grace_ms = grace_ms;
    stop.reason = reason;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_STOP;
    message.stop = &stop;
    return host_ask(h, &message, NULL, 0, NULL);
}

/* Starts `argv` as main (exec_id 0) or as an exec. */
static inline uint32_t host_run_fds(struct host *h, Skerry__Agent__Command *command,
                                    const char *const *argv, const int *fds, size_t count,
                                    int *master)
{
    char *words[16] = {NULL};
    for (; argv != NULL && argv[command->n_command] != NULL; command->n_command++)
        words[command->n_command] = (char *)(uintptr_t)argv[command->n_command];
    command->command = words;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = command->exec_id == 0 ? SKERRY__AGENT__TO_AGENT__VERB_START
                                              : SKERRY__AGENT__TO_AGENT__VERB_EXEC;
    if (command->exec_id == 0)
        message.start = command;
    else
        message.exec = command;
    return host_ask(h, &message, fds, count, master);
}

/* The log gets the output. */
static inline uint32_t host_run(struct host *h, uint32_t exec_id, const char *const *argv)
{
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command.exec_id = exec_id;
    return host_run_fds(h, &command, argv, NULL, 0, NULL);
}

/* Reads `fd` to its end, at most size - 1 bytes, and closes it. */
static inline size_t host_read_all(int fd, char *out, size_t size)
{
    size_t length = 0;
    uint64_t until = clock_monotonic_ms() + HOST_DEADLINE_MS;
    for (;;) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        uint64_t now = clock_monotonic_ms();
        if (now >= until || poll(&wait, 1, (int)(until - now)) != 1)
            fail_msg("a stream did not end");
        ssize_t got = read(fd, out + length, size - 1 - length);
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    out[length] = '\0';
    close(fd);
    return length;
}

/* Runs `command` with pipes: `input` on stdin, stdout to `output`; stderr goes to ours. Returns the
 * exit event, which the caller frees. */
static inline Skerry__Agent__FromAgent *host_pipe(struct host *h, Skerry__Agent__Command *command,
                                                  const char *const *argv, const void *input,
                                                  size_t input_length, char *output, size_t size)
{
    int in[2], out[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    const int fds[3] = {in[0], out[1], STDERR_FILENO};
    command->pipes = true;
    if (input_length > 0) /* it fits into a pipe, and who refuses does not wait for it */
        assert_int_equal(write(in[1], input, input_length), input_length);
    assert_int_equal(host_run_fds(h, command, argv, fds, 3, NULL), 0);
    close(in[0]);
    close(out[1]);
    close(in[1]);
    (void)host_read_all(out[0], output, size);
    return host_take(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED, 0, NULL);
}

#define HOST_ARGV(...)                                                                             \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }

#endif
