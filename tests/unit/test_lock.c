#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/lock.h"

static const char *path_of(void)
{
    static char path[] = "/tmp/skerry-lock-XXXXXX";
    static int made;
    if (!made++) {
        int fd = mkstemp(path);
        assert_true(fd >= 0);
        close(fd);
    }
    return path;
}

/* A child that holds the lock until it is killed, or leaves by itself after `lives_ms`. */
static pid_t holder(int (*take)(int fd), unsigned lives_ms)
{
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(path_of(), O_RDWR | O_CLOEXEC);
        char word = take(fd) == 0 ? 'y' : 'n';
        (void)!write(ready[1], &word, 1);
        if (lives_ms == 0)
            for (;;)
                pause();
        uint64_t until_ms = clock_monotonic_ms() + lives_ms;
        while (clock_monotonic_ms() < until_ms)
            ;
        _exit(0);
    }
    char word = 0;
    assert_int_equal(read(ready[0], &word, 1), 1);
    assert_int_equal(word, 'y');
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static void check(int (*take)(int fd))
{
    int fd = open(path_of(), O_RDWR | O_CLOEXEC);
    pid_t pid = holder(take, 200);
    assert_int_equal(take(fd), 0); /* it was on its way out */
    waitpid(pid, NULL, 0);
    close(fd);
    pid = holder(take, 0);
    fd = open(path_of(), O_RDWR | O_CLOEXEC);
    uint64_t begun_ms = clock_monotonic_ms();
    assert_int_equal(take(fd), EAGAIN);
    assert_true(clock_monotonic_ms() - begun_ms >= LOCK_WAIT_MS);
    kill(pid, SIGKILL);
    assert_int_equal(take(fd), 0);
    waitpid(pid, NULL, 0);
    close(fd);
}

static void a_holder_on_its_way_out_is_waited_for(void **state)
{
    (void)state;
    check(lock_file);
    check(lock_process);
    unlink(path_of());
}

static int take_numbers(int fd)
{
    return lock_process_range(fd, 2000000000u, 1000);
}

static void a_range_is_locked_apart_from_others(void **state)
{
    (void)state;
    int fd = open(path_of(), O_RDWR | O_CLOEXEC); /* made here, before the child opens it */
    pid_t pid = holder(take_numbers, 0);
    assert_int_equal(lock_range_holder(fd, 2000000999u, 5), pid);
    assert_int_equal(lock_range_holder(fd, 2000001000u, 5), 0);
    assert_int_equal(lock_process_range(fd, 1999999000u, 1000), 0);
    assert_int_equal(lock_process_range(fd, 1999999999u, 2), EAGAIN);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(lock_range_holder(fd, 2000000000u, 1000), 0);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_range_is_locked_apart_from_others),
        cmocka_unit_test(a_holder_on_its_way_out_is_waited_for),
    };
    return cmocka_run_group_tests_name("lock", tests, NULL, NULL);
}
