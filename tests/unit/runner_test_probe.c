/* A whole runner, and in its sandboxes the probe and the bombs of tests/sandbox; and the probe
 * without a sandbox, where it must complain. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/runner/runner.h"
#include "tests/lib/runner_import.h"

#define CONTROL_FAILURES_MIN 250
#define CHECKS_MIN 400
#define ARGUMENTS_MAX 4

extern const uint8_t embedded_agent_begin[], embedded_agent_end[];

struct host {
    struct runner_fixture fixture;
    char source[IMAGE_DIGEST_SIZE];
    char image[IMAGE_DIGEST_SIZE];
    struct fixture_answer neighbour; /* another instance, which takes all it can get */
    char neighbour_id[32];
};

struct inside {
    const char *image; /* NULL: the host */
    const char *program;
    const char *arguments[ARGUMENTS_MAX];
    const char *profile; /* NULL: default */
    unsigned uid;
    bool read_only;
};

/* --- a runner with the probes in its store ---------------------------------------------------- */

/* Ids and groups are not those of another runner on this machine. */
static int run(const char *directory, const char *socket, int ready_fd)
{
    char limits[96];
    struct err e;
    (void)text_format(limits, sizeof limits, "%s/runner.yaml", directory);
    FILE *file = fopen(limits, "we");
    if (file == NULL)
        return 1;
    fprintf(file,
            "uid_base: %u\nmax: {instances: 50}\ncgroup: skerry-probe-%d\nblanks: 0\n"
            "allow: {profiles: [default, relaxed]}\n",
            RUNNER_UID_BASE + 3900u * RUNNER_UIDS_PER_INSTANCE, (int)getpid());
    fclose(file);
    const struct runner_options options = {
        .config_path = limits,
        .directory = directory,
        .socket = socket,
        .node_uid = 0,
        .node_gid = 0,
        .blanks = 0,
        .ready_fd = ready_fd,
        .agent = embedded_agent_begin,
        .agent_size = (size_t)(embedded_agent_end - embedded_agent_begin),
    };
    if (runner_run(&options, &e) == 0)
        return 0;
    fprintf(stderr, "runner: %s\n", e.msg);
    return 1;
}

static const char *probe_folder(void)
{
    static char path[256];
    const char *build = getenv("B");
    (void)text_format(path, sizeof path, "%s/probe", build != NULL ? build : "build");
    return path;
}

/* The smallest image: the probe and a folder for what it writes. */
static void import_image(struct host *h)
{
    char path[128];
    char from[300];
    struct stat st;
    (void)text_format(path, sizeof path, "%s/image", h->fixture.directory);
    (void)text_format(from, sizeof from, "%s/probe", probe_folder());
    assert_int_equal(mkdir(path, 0755), 0);
    CLEANUP_FD int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CLEANUP_FD int in = open(from, O_RDONLY | O_CLOEXEC);
    assert_int_equal(fstat(in, &st), 0);
    assert_int_equal(mkdirat(root, "bin", 0755), 0);
    assert_int_equal(mkdirat(root, "tmp", 0755), 0);
    assert_int_equal(fchmodat(root, "tmp", 01777, 0), 0);
    CLEANUP_FD int out = openat(root, "bin/probe", O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    for (off_t left = st.st_size; left > 0;) {
        ssize_t n = sendfile(out, in, NULL, (size_t)left);
        assert_true(n > 0);
        left -= n;
    }
    memory_close(&out);
    runner_import(&h->fixture, path, PACK_IMAGE, h->image);
}

static void neighbour_start(struct host *h)
{
    char *command[] = {(char *)(uintptr_t) "/app/probe", (char *)(uintptr_t) "--neighbour",
                       (char *)(uintptr_t) "--greedy"};
    char text[16] = "";
    Skerry__Runner__Prepare prepare;
    fixture_id(h->neighbour_id);
    fixture_prepare_init(&prepare, h->neighbour_id, command, ARRAY_SIZE(command));
    prepare.source = h->source;
    assert_int_equal(fixture_prepare(&h->fixture, &prepare, &h->neighbour), 0);
    assert_int_equal(h->neighbour.count, 3);
    assert_int_equal(fixture_commit(&h->fixture, h->neighbour_id), 0);
    struct pollfd wait = {.fd = h->neighbour.descriptors[1], .events = POLLIN};
    assert_int_equal(poll(&wait, 1, RUNNER_IMPORT_MS), 1);
    assert_true(read(wait.fd, text, sizeof text - 1) > 0);
    assert_string_equal(text, "ready\n");
}

static int setup(void **state)
{
    struct host *h = calloc(1, sizeof *h);
    signal(SIGPIPE, SIG_IGN);
    fixture_open(&h->fixture, run);
    *state = h;
    import_image(h);
    fixture_stop(&h->fixture, SIGTERM);
    fixture_start(&h->fixture); /* the image is there after a restart of the runner */
    runner_import(&h->fixture, probe_folder(), PACK_SOURCE, h->source);
    neighbour_start(h);
    return 0;
}

static int teardown(void **state)
{
    struct host *h = *state;
    fixture_answer_free(&h->neighbour);
    fixture_close(&h->fixture);
    free(h);
    return 0;
}

static void run_inside(struct host *h, const struct inside *what, struct fixture_result *out)
{
    char id[32];
    char program[64];
    char variable[64];
    char *environment[] = {variable};
    char *command[1 + ARGUMENTS_MAX] = {program};
    size_t words = 1;
    while (words <= ARGUMENTS_MAX && what->arguments[words - 1] != NULL) {
        command[words] = (char *)(uintptr_t)what->arguments[words - 1];
        words++;
    }
    Skerry__Runner__Prepare prepare;
    fixture_id(id);
    (void)text_format(program, sizeof program, "%s/%s", what->image != NULL ? "/bin" : "/app",
                      what->program);
    (void)text_format(variable, sizeof variable, "SKERRY_INSTANCE=%s", id);
    fixture_prepare_init(&prepare, id, command, words);
    if (what->profile != NULL)
        prepare.profile = (char *)(uintptr_t)what->profile;
    prepare.source = h->source;
    if (what->image != NULL)
        prepare.image = (char *)(uintptr_t)what->image;
    prepare.n_environment = 1;
    prepare.environment = environment;
    prepare.uid = what->uid;
    prepare.gid = what->uid;
    prepare.read_only = what->read_only;
    fixture_run_command(&h->fixture, &prepare, NULL, out);
    if (out->prepare_error != 0 || out->commit_error != 0)
        fail_msg("%s: %s", what->program, out->message);
}

/* --- the probe -------------------------------------------------------------------------------- */
static void count_checks(const char *text, int *passed, int *failed)
{
    const char *last = strstr(text, " passed, ");
    *passed = 0;
    *failed = 0;
    while (last != NULL && last > text && last[-1] != '\n')
        last--;
    if (last == NULL || sscanf(last, "%d passed, %d failed", passed, failed) != 2)
        fail_msg("the probe did not count: %s", text);
}

static void print_failures(const char *text)
{
    for (const char *line = text; *line != '\0';) {
        size_t length = strcspn(line, "\n");
        if (strncmp(line, "FAIL", 4) == 0)
            print_message("%.*s\n", (int)length, line);
        line += length + (line[length] == '\n');
    }
}

static void assert_probe_passes(struct host *h, const struct inside *inside)
{
    static struct fixture_result result;
    int passed, failed;
    run_inside(h, inside, &result);
    count_checks(result.out, &passed, &failed);
    if (failed > 0 || result.exit_code != 0 || result.signal != 0) {
        print_failures(result.out);
        fail_msg("%d of %d checks failed", failed, passed + failed);
    }
    assert_true(passed >= CHECKS_MIN);
}

static void probe_passes_as_a_user(void **state)
{
    assert_probe_passes(*state, &(struct inside){.program = "probe", .uid = 1000});
}

static void probe_passes_as_root_inside(void **state)
{
    assert_probe_passes(*state, &(struct inside){.program = "probe", .uid = 0});
}

static void probe_passes_with_a_read_only_root(void **state)
{
    assert_probe_passes(*state,
                        &(struct inside){.program = "probe", .uid = 1000, .read_only = true});
}

static void probe_passes_in_an_image(void **state)
{
    struct host *h = *state;
    assert_probe_passes(h, &(struct inside){.image = h->image, .program = "probe", .uid = 1000});
}

static void probe_passes_as_root_of_an_image(void **state)
{
    struct host *h = *state;
    assert_probe_passes(h, &(struct inside){.image = h->image, .program = "probe", .uid = 0});
}

static void probe_passes_in_the_strict_profile(void **state)
{
    struct inside inside = {
        .program = "probe", .arguments = {"--profile", "strict"}, .profile = "strict", .uid = 1000};
    assert_probe_passes(*state, &inside);
    inside.uid = 0;
    assert_probe_passes(*state, &inside);
}

static void probe_passes_in_the_relaxed_profile(void **state)
{
    assert_probe_passes(*state, &(struct inside){.program = "probe",
                                                 .arguments = {"--profile", "relaxed"},
                                                 .profile = "relaxed",
                                                 .uid = 1000});
}

/* In the default profile many of the strict one's checks must fail. */
static void probe_tells_profiles_apart(void **state)
{
    static struct fixture_result result;
    int passed, failed;
    run_inside(*state,
               &(struct inside){.program = "probe",
                                .arguments = {"--profile", "strict", "profile"},
                                .uid = 1000},
               &result);
    count_checks(result.out, &passed, &failed);
    assert_true(failed >= 15);
}

/* A neighbour as in the sandbox, but for its greed, in the same place as the control. */
static pid_t control_neighbour_start(const char *path, int *hold)
{
    int ends[2], says[2];
    char text[16];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    assert_int_equal(pipe2(says, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        (void)dup2(ends[0], STDIN_FILENO);
        (void)dup2(says[1], STDOUT_FILENO);
        (void)execl(path, path, "--neighbour", (char *)NULL);
        _exit(127);
    }
    memory_close(&ends[0]);
    memory_close(&says[1]);
    assert_true(read(says[0], text, sizeof text) > 0);
    memory_close(&says[0]);
    *hold = ends[1];
    return pid;
}

/* Without a sandbox most checks must fail, or they assert nothing. */
static void probe_complains_without_a_sandbox(void **state)
{
    (void)state;
    static char text[65536];
    size_t length = 0;
    int ends[2];
    int passed, failed;
    char path[300];
    (void)text_format(path, sizeof path, "%s/probe", probe_folder());
    int hold;
    pid_t neighbour = control_neighbour_start(path, &hold);
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        (void)setsid();
        (void)dup2(ends[1], STDOUT_FILENO);
        (void)execlp("bwrap", "bwrap", "--bind", "/", "/", "--dev-bind", "/dev", "/dev", path,
                     (char *)NULL);
        _exit(127);
    }
    memory_close(&ends[1]);
    ssize_t n;
    while ((n = read(ends[0], text + length, sizeof text - 1 - length)) > 0)
        length += (size_t)n;
    memory_close(&ends[0]);
    waitpid(pid, NULL, 0);
    memory_close(&hold);
    waitpid(neighbour, NULL, 0);
    count_checks(text, &passed, &failed);
    print_message("without a sandbox: %d passed, %d failed\n", passed, failed);
    assert_true(failed >= CONTROL_FAILURES_MIN && failed > passed);
}

/* --- what is started beside ------------------------------------------------------------------- */

#define SNOOP_MS "1500"
#define EXECS 60

static void run_beside(struct host *h, char *id, uint32_t exec_id)
{
    char *command[] = {(char *)(uintptr_t) "/app/true"};
    struct fixture_answer answer;
    Skerry__Runner__Exec exec = SKERRY__RUNNER__EXEC__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    exec.id = id;
    exec.exec_id = exec_id;
    exec.command = command;
    exec.n_command = 1;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_EXEC;
    request.exec = &exec;
    fixture_ask(&h->fixture, &request, &answer);
    assert_non_null(answer.reply);
    assert_int_equal(answer.reply->error, 0);
    fixture_answer_free(&answer);
    const Skerry__Runner__Event *event =
        fixture_event(&h->fixture, SKERRY__RUNNER__EVENT__EVENT_EXEC_ENDED, id, RUNNER_IMPORT_MS);
    assert_non_null(event);
    fixture_event_forget(&h->fixture, event);
}

/* Who lies in wait for what the agent starts gets hold of it after its exec only. */
static void a_command_cannot_be_held_before_it_runs(void **state)
{
    struct host *h = *state;
    char id[32], text[256] = "";
    char *command[] = {(char *)(uintptr_t) "/app/snoop", (char *)(uintptr_t)SNOOP_MS};
    struct fixture_answer answer;
    Skerry__Runner__Prepare prepare;
    fixture_id(id);
    fixture_prepare_init(&prepare, id, command, ARRAY_SIZE(command));
    prepare.source = h->source;
    assert_int_equal(fixture_prepare(&h->fixture, &prepare, &answer), 0);
    assert_int_equal(fixture_commit(&h->fixture, id), 0);
    uint64_t until = clock_monotonic_ms() + 1200;
    for (uint32_t i = 1; i <= EXECS && clock_monotonic_ms() < until; i++)
        run_beside(h, id, i);
    const Skerry__Runner__Event *event =
        fixture_event(&h->fixture, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, RUNNER_IMPORT_MS);
    assert_non_null(event);
    assert_true(read(answer.descriptors[1], text, sizeof text - 1) > 0);
    print_message("%s", text);
    assert_non_null(strstr(text, " tries, "));
    assert_non_null(strstr(text, " 0 caught"));
    assert_int_equal(event->ended->exit_code, 0);
    fixture_event_forget(&h->fixture, event);
    fixture_answer_free(&answer);
    (void)fixture_forget(&h->fixture, id);
}

/* --- bombs ------------------------------------------------------------------------------------ */

struct bomb {
    const char *mode;
    const char *told; /* what it says where it met its limit; NULL: it may be ended instead */
};

/* Each meets a limit and says so, or is ended; it never comes to its own end unbounded, and then
 * the runner starts the next instance as if nothing had been. */
static void bombs_harm_nobody(void **state)
{
    struct host *h = *state;
    static struct fixture_result result;
    static const struct bomb bombs[] = {
        {"fork", "Resource temporarily unavailable"},
        {"memory", NULL},
        {"shm", NULL},
        {"disk", "No space left on device"},
        {"inode", "No space left on device"},
        {"files", "Too many open files"},
        {"tcp", NULL},
        {"symlink", "No space left on device"},
        {"depth", "No space left on device"},
        {"processes", "10000: done"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bombs); i++) {
        uint64_t begin = clock_monotonic_ms();
        run_inside(h,
                   &(struct inside){.program = "bomb", .arguments = {bombs[i].mode}, .uid = 1000},
                   &result);
        print_message("bomb %s: exit %u, signal %u%s after %llu ms, peak %llu MiB: %s",
                      bombs[i].mode, result.exit_code, result.signal,
                      result.oom ? ", out of memory" : "",
                      (unsigned long long)(clock_monotonic_ms() - begin),
                      (unsigned long long)(result.memory_peak_bytes >> 20),
                      result.out[0] != '\0' ? result.out : "\n");
        assert_null(strstr(result.out, "no limit was met"));
        if (bombs[i].told != NULL)
            assert_non_null(strstr(result.out, bombs[i].told));
        run_inside(h, &(struct inside){.program = "true", .uid = 1000}, &result);
        assert_int_equal(result.exit_code, 0);
        assert_int_equal(result.signal, 0);
    }
}

/* --- with all capabilities inside --------------------------------------------------------------- */

/* Process 1 of the neighbour: the runner's child that is an agent. */
static pid_t agent_find(pid_t runner)
{
    pid_t found = 0;
    DIR *folder = opendir("/proc");
    assert_non_null(folder);
    for (struct dirent *entry; found == 0 && (entry = readdir(folder)) != NULL;) {
        char path[300], name[32];
        int pid = 0, parent = 0;
        text_format(path, sizeof path, "/proc/%s/stat", entry->d_name);
        FILE *f = entry->d_name[0] >= '1' && entry->d_name[0] <= '9' ? fopen(path, "re") : NULL;
        if (f == NULL)
            continue;
        if (fscanf(f, "%d (%31[^)]) %*c %d", &pid, name, &parent) == 3 && parent == runner &&
            strcmp(name, "skerry-agent") == 0)
            found = pid;
        (void)fclose(f);
    }
    (void)closedir(folder);
    return found;
}

static bool has_capability(unsigned capability)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    return syscall(SYS_capget, &header, data) == 0 && (data[0].effective >> capability & 1) != 0;
}

/* 0, or which of them the kernel let happen; above 100: the test is not where it should be. */
static int mounts_tried(int mounts, int user)
{
    struct mount_attr writable = {.attr_clr = MOUNT_ATTR_RDONLY};
    if (setns(mounts, CLONE_NEWNS) != 0 || setns(user, CLONE_NEWUSER) != 0)
        return 101;
    if (!has_capability(CAP_SYS_ADMIN) || access("/app/probe", F_OK) != 0)
        return 102;
    if (mount("none", "/tmp", "tmpfs", 0, NULL) == 0 || errno != EPERM)
        return 1;
    if (mount("/usr", "/tmp", NULL, MS_BIND, NULL) == 0 || errno != EPERM)
        return 2;
    if (mount(NULL, "/usr", NULL, MS_REMOUNT | MS_BIND, NULL) == 0 || errno != EPERM)
        return 3;
    if (umount2("/proc/sys", MNT_DETACH) == 0 || errno != EPERM)
        return 4;
    if (umount2("/tmp", MNT_DETACH) == 0 || errno != EPERM)
        return 5;
    if (open_tree(AT_FDCWD, "/usr", OPEN_TREE_CLONE) >= 0 || errno != EPERM)
        return 6;
    if (fsopen("tmpfs", 0) >= 0 || errno != EPERM)
        return 7;
    if (mount_setattr(AT_FDCWD, "/usr", 0, &writable, sizeof writable) == 0 || errno != EPERM)
        return 8;
    if (unshare(CLONE_NEWNS) == 0 || errno != ENOSPC)
        return 9;
    if (unshare(CLONE_NEWUSER) == 0 || errno != ENOSPC)
        return 10;
    return 0;
}

static void all_capabilities_inside_are_good_for_no_mount(void **state)
{
    struct host *h = *state;
    char path[48];
    pid_t agent = agent_find(h->fixture.pid);
    assert_true(agent > 0);
    text_format(path, sizeof path, "/proc/%d/ns/mnt", (int)agent);
    CLEANUP_FD int mounts = open(path, O_RDONLY | O_CLOEXEC);
    text_format(path, sizeof path, "/proc/%d/ns/user", (int)agent);
    CLEANUP_FD int user = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(mounts >= 0 && user >= 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(mounts_tried(mounts, user));
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], IMAGE_IMPORT_ARGUMENT) == 0)
        return image_import_main();
    if (geteuid() != 0) {
        printf("skipped: a sandbox needs root\n");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probe_passes_as_a_user),
        cmocka_unit_test(probe_passes_as_root_inside),
        cmocka_unit_test(probe_passes_with_a_read_only_root),
        cmocka_unit_test(probe_passes_in_an_image),
        cmocka_unit_test(probe_passes_as_root_of_an_image),
        cmocka_unit_test(probe_passes_in_the_strict_profile),
        cmocka_unit_test(probe_passes_in_the_relaxed_profile),
        cmocka_unit_test(probe_tells_profiles_apart),
        cmocka_unit_test(probe_complains_without_a_sandbox),
        cmocka_unit_test(all_capabilities_inside_are_good_for_no_mount),
        cmocka_unit_test(a_command_cannot_be_held_before_it_runs),
        cmocka_unit_test(bombs_harm_nobody),
    };
    /* tests/sandbox/v2 has no time for all of them. */
    if (getenv("SKERRY_PROBE") != NULL)
        cmocka_set_test_filter(getenv("SKERRY_PROBE"));
    return cmocka_run_group_tests_name("probe", tests, setup, teardown);
}
