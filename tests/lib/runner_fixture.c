#include "tests/lib/runner_fixture.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/id.h"
#include "base/memory.h"
#include "sandbox/shared/wire.h"

#define MESSAGE_BYTES_MAX (256 * 1024)

static void check(bool good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "runner fixture: %s: %s\n", what, strerror(errno));
    abort();
}

void fixture_open(struct runner_fixture *f, fixture_run run)
{
    memset(f, 0, sizeof *f);
    f->run = run;
    f->node = -1;
    text_copy(f->directory, sizeof f->directory, "/tmp/skerry-runner-XXXXXX");
    check(mkdtemp(f->directory) != NULL && chmod(f->directory, 0711) == 0, "make folder");
    text_format(f->socket, sizeof f->socket, "%s/s", f->directory);
    fixture_start(f);
}

void fixture_start(struct runner_fixture *f)
{
    int ready[2];
    check(pipe2(ready, O_CLOEXEC) == 0, "pipe");
    f->pid = fork();
    check(f->pid >= 0, "fork");
    if (f->pid == 0) {
        close(ready[0]);
        exit(f->run(f->directory, f->socket, ready[1]));
    }
    close(ready[1]);
    struct pollfd wait = {.fd = ready[0], .events = POLLIN};
    char byte;
    check(poll(&wait, 1, FIXTURE_WAIT_MS) == 1 && read(ready[0], &byte, 1) == 1,
          "the runner did not become ready");
    close(ready[0]);
    f->node = fixture_connect(f);
    check(f->node >= 0, "connect");
}

static void events_clear(struct runner_fixture *f)
{
    while (f->event_count > 0)
        skerry__runner__to_node__free_unpacked(f->events[--f->event_count], NULL);
}

void fixture_stop(struct runner_fixture *f, int signal)
{
    memory_close(&f->node);
    events_clear(f);
    check(kill(f->pid, signal) == 0, "kill the runner");
    int status;
    check(waitpid(f->pid, &status, 0) == f->pid, "wait for the runner");
    if (signal == SIGTERM)
        check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the runner's exit status");
}

void fixture_close(struct runner_fixture *f)
{
    fixture_stop(f, SIGTERM);
    char *argv[] = {(char *)(uintptr_t) "rm", (char *)(uintptr_t) "-rf", f->directory, NULL};
    pid_t pid = fork();
    if (pid == 0) {
        execv("/bin/rm", argv);
        _exit(1);
    }
    waitpid(pid, NULL, 0);
}

int fixture_connect(struct runner_fixture *f)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    text_copy(address.sun_path, sizeof address.sun_path, f->socket);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        memory_close(&fd);
    int bytes = 1024 * 1024;
    if (fd >= 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
    return fd;
}

/* One message, or NULL when there is none within `wait_ms` or the connection ended. */
static Skerry__Runner__ToNode *receive(struct runner_fixture *f, unsigned wait_ms, int *descriptors,
                                       size_t *count)
{
    static uint8_t data[MESSAGE_BYTES_MAX];
    struct pollfd wait = {.fd = f->node, .events = POLLIN};
    if (poll(&wait, 1, (int)wait_ms) != 1)
        return NULL;
    size_t length;
    struct err e = {0};
    if (wire_receive(f->node, data, sizeof data, &length, descriptors, 64, count, &e) < 0)
        return NULL;
    Skerry__Runner__ToNode *m = skerry__runner__to_node__unpack(NULL, length, data);
    check(m != NULL, "message of the runner");
    return m;
}

static void event_keep(struct runner_fixture *f, Skerry__Runner__ToNode *m)
{
    check(f->event_count < FIXTURE_EVENTS_MAX, "too many events");
    f->events[f->event_count++] = m;
}

void fixture_ask(struct runner_fixture *f, Skerry__Runner__Request *request,
                 struct fixture_answer *out)
{
    struct err e;
    request->seq = ++f->seq;
    memset(out, 0, sizeof *out);
    check(wire_send(f->node, &request->base, NULL, 0, &e) == 0, "send");
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    while (clock_monotonic_ms() < until) {
        size_t count = 0;
        Skerry__Runner__ToNode *m = receive(f, FIXTURE_WAIT_MS, out->descriptors, &count);
        if (m == NULL)
            return;
        if (m->message_case == SKERRY__RUNNER__TO_NODE__MESSAGE_REPLY) {
            check(m->reply->seq == f->seq, "an answer to something else");
            check(m->reply->descriptors == count, "descriptors of an answer");
            out->message = m;
            out->reply = m->reply;
            out->count = count;
            return;
        }
        event_keep(f, m);
    }
}

void fixture_answer_free(struct fixture_answer *answer)
{
    for (size_t i = 0; i < answer->count; i++)
        memory_close(&answer->descriptors[i]);
    if (answer->message != NULL)
        skerry__runner__to_node__free_unpacked(answer->message, NULL);
    memset(answer, 0, sizeof *answer);
}

uint32_t fixture_code(struct runner_fixture *f, Skerry__Runner__Request *request)
{
    struct fixture_answer answer;
    fixture_ask(f, request, &answer);
    uint32_t code = answer.reply == NULL ? UINT32_MAX : answer.reply->error;
    fixture_answer_free(&answer);
    return code;
}

static const char *event_id(const Skerry__Runner__Event *event)
{
    switch (event->event_case) {
    case SKERRY__RUNNER__EVENT__EVENT_READY:
        return event->ready->id;
    case SKERRY__RUNNER__EVENT__EVENT_EXEC_ENDED:
        return event->exec_ended->id;
    case SKERRY__RUNNER__EVENT__EVENT_ENDED:
        return event->ended->id;
    case SKERRY__RUNNER__EVENT__EVENT_LISTENING:
        return event->listening->id;
    case SKERRY__RUNNER__EVENT__EVENT_HEALTH:
        return event->health->id;
    default:
        return "";
    }
}

const Skerry__Runner__Event *fixture_event(struct runner_fixture *f,
                                           Skerry__Runner__Event__EventCase which, const char *id,
                                           unsigned wait_ms)
{
    uint64_t until = clock_monotonic_ms() + wait_ms;
    for (size_t i = 0;;) {
        for (; i < f->event_count; i++) {
            const Skerry__Runner__Event *event = f->events[i]->event;
            if (event->event_case == which && (id == NULL || strcmp(event_id(event), id) == 0))
                return event;
        }
        uint64_t now = clock_monotonic_ms();
        if (now >= until)
            return NULL;
        int none[64];
        size_t count = 0;
        Skerry__Runner__ToNode *m = receive(f, (unsigned)(until - now), none, &count);
        if (m == NULL)
            return NULL;
        check(m->message_case == SKERRY__RUNNER__TO_NODE__MESSAGE_EVENT, "an answer unasked");
        event_keep(f, m);
    }
}

void fixture_event_forget(struct runner_fixture *f, const Skerry__Runner__Event *event)
{
    for (size_t i = 0; i < f->event_count; i++)
        if (f->events[i]->event == event) {
            skerry__runner__to_node__free_unpacked(f->events[i], NULL);
            f->events[i] = f->events[--f->event_count];
            return;
        }
}

bool fixture_http_get(int fd, uint16_t port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    static const char request[] = "GET / HTTP/1.0\r\n\r\n";
    char text[64] = "";
    struct pollfd wait = {.fd = fd, .events = POLLOUT};
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        return false;
    if (poll(&wait, 1, FIXTURE_WAIT_MS) != 1 ||
        write(fd, request, sizeof request - 1) != (ssize_t)sizeof request - 1)
        return false;
    wait.events = POLLIN;
    if (poll(&wait, 1, FIXTURE_WAIT_MS) != 1 || read(fd, text, sizeof text - 1) <= 0)
        return false;
    return strstr(text, " 200 ") != NULL;
}

/* --- traces ------------------------------------------------------------------------------------ */

/* `with`: only those with that in their names. */
static size_t entries_count(const char *path, const char *with)
{
    DIR *folder = opendir(path);
    size_t count = 0;
    for (struct dirent *e = folder == NULL ? NULL : readdir(folder); e != NULL; e = readdir(folder))
        count += e->d_name[0] != '.' && strstr(e->d_name, with) != NULL;
    if (folder != NULL)
        closedir(folder);
    return count;
}

static size_t lines_count(const char *path)
{
    FILE *file = fopen(path, "r");
    size_t count = 0;
    for (int c = file == NULL ? EOF : getc(file); c != EOF; c = getc(file))
        count += c == '\n';
    if (file != NULL)
        fclose(file);
    return count;
}

/* Groups of this runner: "iN-PID" in any hierarchy. */
static char group_suffix[32];
static size_t group_count, group_processes;
static int count_group(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)ftw;
    size_t length = strlen(path), suffix = strlen(group_suffix);
    if (type != FTW_D || length <= suffix || strcmp(path + length - suffix, group_suffix) != 0)
        return 0;
    char processes[600];
    text_format(processes, sizeof processes, "%s/cgroup.procs", path);
    group_count++;
    group_processes += lines_count(processes);
    return 0;
}

static void groups_count(pid_t runner)
{
    text_format(group_suffix, sizeof group_suffix, "-%d", (int)runner);
    group_count = group_processes = 0;
    (void)nftw("/sys/fs/cgroup", count_group, 32, FTW_PHYS);
}

static size_t children_count(pid_t runner)
{
    size_t count = 0;
    DIR *proc = opendir("/proc");
    for (struct dirent *e = readdir(proc); e != NULL; e = readdir(proc)) {
        char path[300], text[512] = "";
        text_format(path, sizeof path, "/proc/%s/stat", e->d_name);
        FILE *file = atoi(e->d_name) <= 0 ? NULL : fopen(path, "r");
        if (file == NULL)
            continue;
        size_t n = fread(text, 1, sizeof text - 1, file);
        fclose(file);
        char *end = n == 0 ? NULL : strrchr(text, ')');
        count += end != NULL && atoi(end + 4) == runner;
    }
    closedir(proc);
    return count;
}

void fixture_traces_read(const struct runner_fixture *f, struct fixture_traces *out)
{
    char path[160];
    text_format(path, sizeof path, "/proc/%d/fd", (int)f->pid);
    out->descriptors = entries_count(path, "");
    text_format(path, sizeof path, "/proc/%d/mountinfo", (int)f->pid);
    out->mounts = lines_count(path);
    text_format(path, sizeof path, "%s/instances", f->directory);
    out->blanks = entries_count(path, "-"); /* iN-PID */
    out->folders = entries_count(path, "") - out->blanks;
    groups_count(f->pid);
    out->groups = group_count;
    out->children = children_count(f->pid);
}

static bool wait_a_moment(uint64_t until)
{
    (void)poll(NULL, 0, 30);
    return clock_monotonic_ms() < until;
}

bool fixture_settle(const struct runner_fixture *f, struct fixture_traces *out, unsigned wait_ms)
{
    uint64_t until = clock_monotonic_ms() + wait_ms;
    struct fixture_traces last = {0};
    for (int equal = 0; equal < 3;) {
        memset(out, 0, sizeof *out);
        fixture_traces_read(f, out);
        equal = memcmp(out, &last, sizeof last) == 0 && out->folders == 0 ? equal + 1 : 0;
        last = *out;
        if (!wait_a_moment(until))
            return false;
    }
    return true;
}

bool fixture_processes_gone(pid_t runner, unsigned wait_ms)
{
    uint64_t until = clock_monotonic_ms() + wait_ms;
    for (;;) {
        groups_count(runner);
        if (group_processes == 0)
            return true;
        if (!wait_a_moment(until))
            return false;
    }
}

/* --- instances --------------------------------------------------------------------------------- */

void fixture_id(char out[32])
{
    uint8_t random[11];
    check(getrandom(random, sizeof random, 0) == (ssize_t)sizeof random, "random");
    struct instance_id id;
    instance_id_make(&id, 1, random);
    text_copy(out, 32, id.text);
}

void fixture_prepare_init(Skerry__Runner__Prepare *p, const char *id, char **command, size_t words)
{
    skerry__runner__prepare__init(p);
    p->id = (char *)(uintptr_t)id;
    p->epoch = 1;
    p->image = (char *)(uintptr_t) "host";
    p->profile = (char *)(uintptr_t) "default";
    p->hostname = (char *)(uintptr_t) "test";
    p->command = command;
    p->n_command = words;
    p->uid = p->gid = 1000;
    p->cpu_thousandths = 2000;
    p->memory_bytes = 64u * 1024 * 1024;
    p->disk_bytes = 16u * 1024 * 1024;
    p->pids = 32;
    p->ready = SKERRY__RUNNER__READY__READY_NONE;
    p->main_pipes = true;
}

uint32_t fixture_prepare(struct runner_fixture *f, Skerry__Runner__Prepare *p,
                         struct fixture_answer *out)
{
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_PREPARE;
    request.prepare = p;
    fixture_ask(f, &request, out);
    return out->reply == NULL ? UINT32_MAX : out->reply->error;
}

static uint32_t instance_verb(struct runner_fixture *f, Skerry__Runner__Request__VerbCase verb,
                              const char *id)
{
    Skerry__Runner__Instance instance = SKERRY__RUNNER__INSTANCE__INIT;
    instance.id = (char *)(uintptr_t)id;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = verb;
    request.commit = &instance;
    return fixture_code(f, &request);
}

uint32_t fixture_commit(struct runner_fixture *f, const char *id)
{
    return instance_verb(f, SKERRY__RUNNER__REQUEST__VERB_COMMIT, id);
}

uint32_t fixture_discard(struct runner_fixture *f, const char *id)
{
    return instance_verb(f, SKERRY__RUNNER__REQUEST__VERB_DISCARD, id);
}

uint32_t fixture_forget(struct runner_fixture *f, const char *id)
{
    return instance_verb(f, SKERRY__RUNNER__REQUEST__VERB_FORGET, id);
}

uint32_t fixture_stop_instance(struct runner_fixture *f, const char *id, uint32_t grace_ms)
{
    Skerry__Runner__Stop stop = SKERRY__RUNNER__STOP__INIT;
    stop.id = (char *)(uintptr_t)id;
    stop.grace_ms = grace_ms;
    stop.reason = 6; /* END_KILLED */
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_STOP;
    request.stop = &stop;
    return fixture_code(f, &request);
}

/* Reads both to their ends. */
static void gather(const int fds[2], struct fixture_result *out)
{
    char *to[2] = {out->out, out->err};
    size_t size[2] = {sizeof out->out, sizeof out->err}, length[2] = {0, 0};
    struct pollfd wait[2] = {{.fd = fds[0], .events = POLLIN}, {.fd = fds[1], .events = POLLIN}};
    while (wait[0].fd >= 0 || wait[1].fd >= 0) {
        check(poll(wait, 2, FIXTURE_WAIT_MS * 3) > 0, "output of a command");
        for (int i = 0; i < 2; i++) {
            if (wait[i].fd < 0 || wait[i].revents == 0)
                continue;
            char text[4096];
            ssize_t n = read(wait[i].fd, text, sizeof text);
            if (n <= 0) {
                wait[i].fd = -1;
                continue;
            }
            size_t room = size[i] - 1 - length[i];
            size_t take = (size_t)n < room ? (size_t)n : room;
            memcpy(to[i] + length[i], text, take);
            length[i] += take;
        }
    }
}

void fixture_run_command(struct runner_fixture *f, Skerry__Runner__Prepare *p, const char *input,
                         struct fixture_result *out)
{
    struct fixture_answer answer;
    memset(out, 0, sizeof *out);
    out->prepare_error = fixture_prepare(f, p, &answer);
    if (out->prepare_error != 0) {
        if (answer.reply != NULL)
            text_copy(out->message, sizeof out->message, answer.reply->message);
        fixture_answer_free(&answer);
        return;
    }
    check(answer.count == 3, "three pipes");
    out->commit_error = fixture_commit(f, p->id);
    if (out->commit_error == 0 && input != NULL)
        check(write(answer.descriptors[0], input, strlen(input)) == (ssize_t)strlen(input),
              "write input");
    memory_close(&answer.descriptors[0]);
    if (out->commit_error == 0)
        gather(answer.descriptors + 1, out);
    fixture_answer_free(&answer);
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, p->id, FIXTURE_WAIT_MS);
    check(event != NULL, "the end of a command");
    out->reason = event->ended->reason;
    out->exit_code = event->ended->exit_code;
    out->signal = event->ended->signal;
    out->oom = event->ended->oom;
    out->memory_peak_bytes = event->ended->stats->memory_peak_bytes;
    text_copy(out->message, sizeof out->message, event->ended->message);
    check(fixture_forget(f, p->id) == 0, "forget");
}
