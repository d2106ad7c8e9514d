#include "base/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

/* Length 0: to the end, wherever that is. */
static struct flock range_of(uint64_t start, uint64_t length)
{
    return (struct flock){
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)length};
}

static int try_file(int fd, const struct flock *range)
{
    (void)range;
    return flock(fd, LOCK_EX | LOCK_NB);
}

static int try_process(int fd, const struct flock *range)
{
    return fcntl(fd, F_SETLK, range);
}

static int wait_for(int fd, int (*attempt)(int fd, const struct flock *range), uint64_t start,
                    uint64_t length)
{
    const struct flock range = range_of(start, length);
    uint64_t until_ms = clock_monotonic_ms() + LOCK_WAIT_MS;
    while (attempt(fd, &range) != 0) {
        if (errno != EAGAIN && errno != EACCES && errno != EINTR)
            return errno;
        if (clock_monotonic_ms() >= until_ms)
            return EAGAIN;
        (void)nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    return 0;
}

int lock_file(int fd)
{
    return wait_for(fd, try_file, 0, 0);
}

int lock_process(int fd)
{
    return wait_for(fd, try_process, 0, 0);
}

int lock_process_range(int fd, uint64_t start, uint64_t length)
{
    return wait_for(fd, try_process, start, length);
}

pid_t lock_range_holder(int fd, uint64_t start, uint64_t length)
{
    struct flock range = range_of(start, length);
    if (fcntl(fd, F_GETLK, &range) != 0 || range.l_type == F_UNLCK)
        return 0;
    return range.l_pid;
}
