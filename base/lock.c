#include "base/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

static int try_file(int fd)
{
    return flock(fd, LOCK_EX | LOCK_NB);
}

static int try_process(int fd)
{
    const struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_SETLK, &whole);
}

static int wait_for(int fd, int (*attempt)(int fd))
{
    uint64_t until_ms = clock_monotonic_ms() + LOCK_WAIT_MS;
    while (attempt(fd) != 0) {
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
    return wait_for(fd, try_file);
}

int lock_process(int fd)
{
    return wait_for(fd, try_process);
}
