/* What is read from a disk, limited: by a group alone, and of instances of a whole runner. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/blkpg.h>
#include <linux/loop.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/words.h"
#include "sandbox/runner/runner.h"
#include "tests/lib/runner_import.h"
#include "tests/lib/runner_in_process.h"

#define MiB (1u << 20)
#define RATE_MIB 1
#define RATE (RATE_MIB * MiB)
#define BYTES (3 * MiB)
#define MOST_MIB 4 /* max.io */
/* What the kernel lets through at once, and what a busy machine adds. */
#define LIMITED_MS_MIN 2000
#define LIMITED_MS_MAX 12000

#define WORDS(...)                                                                                 \
    (char *[]){__VA_ARGS__}, sizeof((const char *[]){__VA_ARGS__}) / sizeof(const char *)

/* --- files that are not in memory ---------------------------------------------------------------- */

static void file_make(const char *path, size_t bytes)
{
    CLEANUP_FREE char *data = malloc(bytes);
    assert_non_null(data);
    for (size_t done = 0; done < bytes;) {
        ssize_t n = getrandom(data + done, bytes - done, 0);
        assert_true(n > 0);
        done += (size_t)n;
    }
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, bytes), bytes);
}

/* From now on it is read from the disk again. */
static void file_forget(const char *path)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
}

/* --- a group --------------------------------------------------------------------------------------- */

struct world {
    struct cgroup_host host;
    struct cgroup group;
    struct disks disks;
    char path[64];
    int entry;
};

static void enter(const struct world *w)
{
    if (w->entry >= 0) {
        if (write(w->entry, "0", 1) != 1)
            _exit(2);
        return;
    }
    for (size_t i = 0; i < w->group.group_count; i++)
        if ((w->group.groups[i].controllers & CGROUP_IO) != 0 &&
            cgroup_write(w->group.groups[i].path, "cgroup.procs", "0", NULL) != 0)
            _exit(3);
}

/* A child in the group, or not in it, that reads the whole file. `greedy`: it asks for all of it first. */
static pid_t reader_start(const struct world *w, bool limited, bool greedy)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    static char data[64 * 1024];
    if (limited)
        enter(w);
    int fd = open(w->path, O_RDONLY | O_CLOEXEC);
    if (greedy && posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED) != 0)
        _exit(4);
    ssize_t n;
    size_t bytes = 0;
    while ((n = read(fd, data, sizeof data)) > 0)
        bytes += (size_t)n;
    _exit(bytes == BYTES ? 0 : 1);
}

static uint64_t read_ms(const struct world *w, bool limited)
{
    uint64_t begin = clock_monotonic_ms();
    int status;
    file_forget(w->path);
    pid_t pid = reader_start(w, limited, false);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    return clock_monotonic_ms() - begin;
}

static const char *world_open(struct world *w)
{
    char name[64];
    struct err e;
    const struct cgroup_host_options options = {.name = name, .io = true, .loud = true};
    *w = (struct world){.entry = -1};
    (void)text_format(w->path, sizeof w->path, "/tmp/skerry-io-%d", (int)getpid());
    (void)text_format(name, sizeof name, "io-test-%d", (int)getpid());
    assert_int_equal(cgroup_host_open(&w->host, &options, &e), 0);
    if ((w->host.enforced & CGROUP_LIMIT_IO) == 0)
        return "no control group of this machine limits what is read";
    file_make(w->path, BYTES);
    if (disks_add(&w->disks, w->path, &e) != 0 || w->disks.count == 0)
        return "/tmp lies on no disk";
    const struct cgroup_limits limits = {.io_bytes = RATE, .disks = &w->disks};
    if (cgroup_name(&w->host, &w->group, "i0", &e) != 0 || cgroup_make(&w->group, &e) != 0 ||
        cgroup_demand(&w->host, &w->group, CGROUP_IO, &w->entry, &e) != 0 ||
        cgroup_limit(&w->group, &limits, &e) != 0)
        fail_msg("%s", e.msg);
    return NULL;
}

static void world_close(struct world *w)
{
    struct err e;
    memory_close(&w->entry);
    assert_int_equal(cgroup_remove(&w->group, 5000, &e), 0);
    cgroup_host_close(&w->host, 1000);
    (void)unlink(w->path);
}

static void a_group_reads_as_fast_as_it_may(void **state)
{
    struct world w;
    (void)state;
    const char *lack = world_open(&w);
    if (lack == NULL) {
        uint64_t free_ms = read_ms(&w, false), limited_ms = read_ms(&w, true);
        print_message("%d MiB at %d MiB a second: %llu ms, without a limit %llu ms\n", BYTES / MiB,
                      RATE_MIB, (unsigned long long)limited_ms, (unsigned long long)free_ms);
        assert_in_range(limited_ms, LIMITED_MS_MIN, LIMITED_MS_MAX);
        assert_true(free_ms < limited_ms / 2);
    }
    world_close(&w);
    if (lack != NULL) {
        print_message("skipped: %s\n", lack);
        skip();
    }
}

/* One that has asked for the whole file is killed: how long others take for it then. */
static uint64_t left_ms(struct world *w, bool removed)
{
    struct err e;
    int status;
    const struct timespec pause = {.tv_nsec = 300000000};
    file_forget(w->path);
    pid_t pid = reader_start(w, true, true);
    nanosleep(&pause, NULL);
    assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
    if (!removed)
        cgroup_kill(&w->group);
    (void)kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (removed)
        assert_int_equal(cgroup_remove(&w->group, 5000, &e), 0);
    uint64_t begin = clock_monotonic_ms();
    pid = reader_start(w, false, false);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    return clock_monotonic_ms() - begin;
}

/* What waits would else be waited for by everybody, for as long as the limit says. */
static void expect_let_go(bool removed)
{
    struct world w;
    const char *lack = world_open(&w);
    uint64_t ms = lack == NULL ? left_ms(&w, removed) : 0;
    world_close(&w);
    if (lack != NULL) {
        print_message("skipped: %s\n", lack);
        skip();
    }
    print_message("others read it in %llu ms\n", (unsigned long long)ms);
    assert_true(ms < LIMITED_MS_MIN / 2);
}

static void a_group_that_is_killed_holds_no_page(void **state)
{
    (void)state;
    expect_let_go(false);
}

/* That is the kernel's doing. */
static void a_group_that_is_removed_holds_no_page(void **state)
{
    (void)state;
    expect_let_go(true);
}

/* --- disks ----------------------------------------------------------------------------------------- */

static int loop_device_open(const char *file, int *out_number)
{
    CLEANUP_FD int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    CLEANUP_FD int backing = open(file, O_RDWR | O_CLOEXEC);
    *out_number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
    if (*out_number < 0 || backing < 0)
        return -1;
    char path[32];
    (void)text_format(path, sizeof path, "/dev/loop%d", *out_number);
    CLEANUP_FD int fd = open(path, O_RDWR | O_CLOEXEC);
    const struct loop_config config = {
        .fd = (uint32_t)backing,
        .info = {.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN},
    };
    return fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &config) == 0 ? steal_fd(&fd) : -1;
}

static bool partition_make(int loop, int number, dev_t *out)
{
    struct blkpg_partition partition = {.start = MiB, .length = MiB, .pno = 1};
    struct blkpg_ioctl_arg add = {
        .op = BLKPG_ADD_PARTITION, .datalen = sizeof partition, .data = &partition};
    char path[64];
    unsigned numbers[2];
    (void)text_format(path, sizeof path, "/sys/block/loop%d/loop%dp1/dev", number, number);
    FILE *file = ioctl(loop, BLKPG, &add) == 0 ? fopen(path, "re") : NULL;
    bool made = file != NULL && fscanf(file, "%u:%u", &numbers[0], &numbers[1]) == 2;
    if (file != NULL)
        (void)fclose(file);
    *out = made ? makedev(numbers[0], numbers[1]) : 0;
    return made;
}

static void a_partition_counts_as_its_disk(void **state)
{
    struct disks disks = {0};
    struct err e;
    struct stat st;
    char path[64];
    int number;
    dev_t partition;
    (void)state;
    (void)text_format(path, sizeof path, "/tmp/skerry-io-disk-%d", (int)getpid());
    file_make(path, BYTES);
    CLEANUP_FD int loop = loop_device_open(path, &number);
    bool made = loop >= 0 && partition_make(loop, number, &partition);
    (void)unlink(path);
    if (!made) {
        print_message("skipped: no loop device with a partition can be made here: %s\n",
                      strerror(errno));
        skip();
    }
    assert_int_equal(fstat(loop, &st), 0);
    assert_int_equal(disks_add_device(&disks, partition, &e), 0);
    assert_int_equal(disks.count, 1);
    assert_true(makedev(disks.list[0].major, disks.list[0].minor) == st.st_rdev);
    assert_true(partition != st.st_rdev);
    assert_int_equal(disks_add_device(&disks, st.st_rdev, &e), 0);
    assert_int_equal(disks.count, 1);
    struct blkpg_partition gone = {.pno = 1};
    struct blkpg_ioctl_arg remove = {
        .op = BLKPG_DEL_PARTITION, .datalen = sizeof gone, .data = &gone};
    assert_int_equal(ioctl(loop, BLKPG, &remove), 0);
}

static void what_lies_on_no_disk_is_named(void **state)
{
    struct disks disks = {0};
    struct err e;
    (void)state;
    assert_int_equal(disks_add(&disks, "/proc", &e), -ERR_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "/proc lies on no disk"));
    /* A tmpfs is none either, but nothing is read from it. */
    assert_int_equal(disks_add(&disks, "/dev/shm", &e), 0);
    assert_int_equal(disks_add(&disks, "/there/is/none", &e), 0);
    assert_int_equal(disks.count, 0);
}

/* --- a runner whose nodes may ask for it ------------------------------------------------------------- */

static int run(const char *directory, const char *socket, int ready_fd)
{
    char path[96];
    (void)text_format(path, sizeof path, "%s/runner.yaml", directory);
    FILE *file = fopen(path, "we");
    if (file == NULL)
        return 1;
    fprintf(file, "uid_base: %u\nmax: {instances: 50, io: %dM}\nallow: {io: true}\nblanks: 0\n",
            RUNNER_UID_BASE + 3800u * RUNNER_UIDS_PER_INSTANCE, MOST_MIB);
    (void)fclose(file);
    const struct runner_options options = {
        .config_path = path,
        .directory = directory,
        .socket = socket,
        .blanks = -1,
        .ready_fd = ready_fd,
    };
    return runner_in_process_run(options);
}

/* --- instances -------------------------------------------------------------------------------------- */

struct store {
    struct runner_fixture fixture;
    char source[IMAGE_DIGEST_SIZE];
    char path[256]; /* of its file in the store */
};

static int setup(void **state)
{
    static struct store s;
    char folder[128], name[IMAGE_DIGEST_SIZE];
    fixture_open(&s.fixture, run);
    (void)text_format(folder, sizeof folder, "%s/source", s.fixture.directory);
    (void)text_format(s.path, sizeof s.path, "%s/big", folder);
    assert_int_equal(mkdir(folder, 0755), 0);
    file_make(s.path, BYTES);
    runner_import(&s.fixture, folder, PACK_SOURCE, s.source);
    (void)text_copy(name, sizeof name, s.source);
    name[6] = '-'; /* as image_layer_name */
    (void)text_format(s.path, sizeof s.path, "%s/images/%s/tree/big", s.fixture.directory, name);
    *state = &s;
    return 0;
}

static int teardown(void **state)
{
    struct store *s = *state;
    fixture_close(&s->fixture);
    return 0;
}

/* How long an instance takes that reads the file, which is in memory or not. */
static uint64_t instance_ms(struct store *s, uint64_t io_bytes, bool cold,
                            struct fixture_result *result)
{
    char id[32];
    Skerry__Runner__Prepare p;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("sh", "-c", "cat /app/big | wc -c"));
    p.source = s->source;
    p.io_bytes = io_bytes;
    if (cold)
        file_forget(s->path);
    uint64_t begin = clock_monotonic_ms();
    fixture_run_command(&s->fixture, &p, NULL, result);
    if (result->prepare_error == 0)
        assert_string_equal(result->out, "3145728\n");
    return clock_monotonic_ms() - begin;
}

/* False: it cannot be here, and an instance that asks for it was refused with the reason. */
static bool instances_can_be_limited(struct store *s, struct fixture_result *result)
{
    (void)instance_ms(s, RATE, false, result);
    if (result->prepare_error == 0)
        return true;
    assert_int_equal(result->prepare_error, ERR_UNSUPPORTED);
    assert_non_null(strstr(result->message, "limit io cannot be enforced here: "));
    print_message("skipped: %s\n", result->message);
    return false;
}

static void an_instance_reads_as_fast_as_it_may(void **state)
{
    struct store *s = *state;
    static struct fixture_result result;
    if (!instances_can_be_limited(s, &result))
        skip();
    /* Without a word of its own it gets what max.io gives; the kernel counts in tenths of a second. */
    uint64_t most_ms = instance_ms(s, 0, true, &result),
             limited_ms = instance_ms(s, RATE, true, &result),
             warm_ms = instance_ms(s, RATE, false, &result);
    print_message("%d MiB at %d MiB a second: %llu ms, at %d: %llu ms, from memory %llu ms\n",
                  BYTES / MiB, RATE_MIB, (unsigned long long)limited_ms, MOST_MIB,
                  (unsigned long long)most_ms, (unsigned long long)warm_ms);
    assert_in_range(limited_ms, LIMITED_MS_MIN, LIMITED_MS_MAX);
    assert_in_range(most_ms, 1000 * BYTES / MiB / MOST_MIB / 2, limited_ms / 2);
    assert_true(warm_ms < limited_ms / 2);
}

static void an_instance_sees_no_group_of_the_machine(void **state)
{
    struct store *s = *state;
    static struct fixture_result result;
    char id[32];
    Skerry__Runner__Prepare p;
    if (!instances_can_be_limited(s, &result))
        skip();
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("grep", "-E", "blkio|^0:", "/proc/self/cgroup"));
    p.io_bytes = RATE;
    fixture_run_command(&s->fixture, &p, NULL, &result);
    assert_int_equal(result.exit_code, 0);
    assert_null(strstr(result.out, "skerry"));
    assert_null(strstr(result.out, ".."));
}

/* Nothing runs and no blank waits, so that none is to stay. */
static bool groups_go(const struct runner_fixture *f)
{
    struct fixture_traces traces = {.groups = 1};
    uint64_t deadline = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    while (traces.groups > 0 && clock_monotonic_ms() < deadline)
        (void)fixture_settle(f, &traces, FIXTURE_WAIT_MS);
    return traces.groups == 0;
}

static void an_instance_that_waits_for_the_disk_ends_at_once(void **state)
{
    struct store *s = *state;
    static struct fixture_result result;
    char id[32], byte;
    Skerry__Runner__Prepare p;
    struct fixture_answer answer;
    if (!instances_can_be_limited(s, &result))
        skip();
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("sh", "-c", "head -c 100 /app/big; cat /app/big"));
    p.source = s->source;
    p.io_bytes = RATE;
    file_forget(s->path);
    assert_int_equal(fixture_prepare(&s->fixture, &p, &answer), 0);
    assert_int_equal(fixture_commit(&s->fixture, id), 0);
    struct pollfd wait = {.fd = answer.descriptors[1], .events = POLLIN};
    assert_int_equal(poll(&wait, 1, FIXTURE_WAIT_MS), 1);
    assert_int_equal(read(answer.descriptors[1], &byte, 1), 1);
    uint64_t begin = clock_monotonic_ms();
    assert_int_equal(fixture_stop_instance(&s->fixture, id, 0), 0);
    assert_non_null(
        fixture_event(&s->fixture, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, FIXTURE_WAIT_MS));
    uint64_t ended_ms = clock_monotonic_ms() - begin;
    print_message("ended after %llu ms\n", (unsigned long long)ended_ms);
    assert_true(ended_ms < 1000);
    fixture_answer_free(&answer);
    assert_int_equal(fixture_forget(&s->fixture, id), 0);
    assert_true(groups_go(&s->fixture));
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
        cmocka_unit_test(a_group_reads_as_fast_as_it_may),
        cmocka_unit_test(a_group_that_is_killed_holds_no_page),
        cmocka_unit_test(a_group_that_is_removed_holds_no_page),
        cmocka_unit_test(a_partition_counts_as_its_disk),
        cmocka_unit_test(what_lies_on_no_disk_is_named),
        cmocka_unit_test(an_instance_reads_as_fast_as_it_may),
        cmocka_unit_test(an_instance_sees_no_group_of_the_machine),
        cmocka_unit_test(an_instance_that_waits_for_the_disk_ends_at_once),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
