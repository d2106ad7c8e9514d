#include "sandbox/shared/ids.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/lock.h"
#include "base/memory.h"

static int ids_open(void)
{
    return open(IDS_LOCK_PATH, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
}

int ids_claim(uint64_t first, uint64_t count, int *out_fd, struct err *e)
{
    CLEANUP_FD int fd = ids_open();
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open %s", IDS_LOCK_PATH);
    int sys = lock_process_range(fd, first, count);
    if (sys == EAGAIN)
        return err_set(e, ERR_CONFLICT,
                       "the runner with process id %d has some of the user ids %llu to %llu; give "
                       "this one others with uid_base in runner.yaml",
                       (int)lock_range_holder(fd, first, count), (unsigned long long)first,
                       (unsigned long long)(first + count - 1));
    if (sys != 0)
        return err_sys(e, ERR_IO, sys, "lock user ids in %s", IDS_LOCK_PATH);
    *out_fd = steal_fd(&fd);
    return 0;
}

bool ids_taken(uint64_t first, uint64_t count)
{
    CLEANUP_FD int fd = ids_open();
    return fd >= 0 && lock_range_holder(fd, first, count) != 0;
}

bool ids_alone(int fd)
{
    struct flock any = {.l_type = F_WRLCK, .l_whence = SEEK_SET}; /* to the end */
    return fcntl(fd, F_GETLK, &any) == 0 && any.l_type == F_UNLCK;
}
