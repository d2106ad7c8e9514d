#include "base/private_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

#define TEMPORARY_SIZE 64u

int private_folder_open(const char *directory, struct err *e)
{
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 ? fd : err_sys(e, ERR_IO, errno, "open %s", directory);
}

/* --- reading -------------------------------------------------------------------------------------- */

static int open_ours(int folder, const char *name, struct stat *s, struct err *e)
{
    CLEANUP_FD int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s", name);
    if (fstat(fd, s) != 0)
        return err_sys(e, ERR_IO, errno, "look at %s", name);
    if (!S_ISREG(s->st_mode) || s->st_uid != geteuid() || (s->st_mode & 077) != 0)
        return err_set(e, ERR_DENIED,
                       "%s has mode %04o and owner %u; it must be a plain file of ours that nobody "
                       "else can read: chown it to %u and chmod 600",
                       name, (unsigned)(s->st_mode & 07777), (unsigned)s->st_uid,
                       (unsigned)geteuid());
    return steal_fd(&fd);
}

static int read_up_to(int fd, const char *name, char *out, size_t size, size_t *length,
                      struct err *e)
{
    *length = 0;
    while (*length < size) {
        ssize_t count = read(fd, out + *length, size - *length);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return err_sys(e, ERR_IO, errno, "read %s", name);
        if (count == 0)
            break;
        *length += (size_t)count;
    }
    return 0;
}

int private_file_read(int folder, const char *name, char *out, size_t size, size_t *length,
                      struct err *e)
{
    struct stat s;
    CLEANUP_FD int fd = open_ours(folder, name, &s, e);
    return fd < 0 ? fd : read_up_to(fd, name, out, size, length, e);
}

int private_file_load(int folder, const char *name, size_t length_max, char **out, size_t *length,
                      struct err *e)
{
    struct stat s;
    CLEANUP_FD int fd = open_ours(folder, name, &s, e);
    if (fd < 0)
        return fd;
    /* One byte more than is taken tells that it is too long. */
    CLEANUP_FREE char *text = malloc(length_max + 1);
    if (text == NULL)
        return err_set(e, ERR_NO_MEMORY, "read %s: no memory", name);
    int rc = read_up_to(fd, name, text, length_max + 1, length, e);
    if (rc != 0)
        return rc;
    if (*length > length_max)
        return err_set(e, ERR_LIMIT, "%s has more than %zu bytes", name, length_max);
    text[*length] = '\0';
    *out = steal_pointer(&text);
    return 0;
}

/* --- writing -------------------------------------------------------------------------------------- */

static int write_all(int fd, const char *name, const char *text, size_t length, struct err *e)
{
    while (length > 0) {
        ssize_t count = write(fd, text, length);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return err_sys(e, ERR_IO, errno, "write %s", name);
        text += count;
        length -= (size_t)count;
    }
    return 0;
}

/* Puts `text` into a new file of `folder`; its name comes in `temporary`. */
static int write_temporary(int folder, const char *name, char temporary[TEMPORARY_SIZE],
                           const char *text, size_t length, struct err *e)
{
    uint32_t random = randombytes_random();
    if (!text_format(temporary, TEMPORARY_SIZE, ".%s.%08" PRIx32, name, random))
        return err_set(e, ERR_INVALID, "%s: too long a name", name);
    CLEANUP_FD int fd =
        openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "make %s", temporary);
    int rc = write_all(fd, temporary, text, length, e);
    if (rc == 0 && (fchmod(fd, 0600) != 0 || fsync(fd) != 0))
        rc = err_sys(e, ERR_IO, errno, "store %s", temporary);
    if (rc != 0)
        (void)unlinkat(folder, temporary, 0);
    return rc;
}

int private_file_store(int folder, const char *name, const char *text, size_t length, bool replace,
                       struct err *e)
{
    char temporary[TEMPORARY_SIZE];
    if (sodium_init() < 0)
        return err_set(e, ERR_INTERNAL, "store %s: libsodium has no randomness", name);
    int rc = write_temporary(folder, name, temporary, text, length, e);
    if (rc != 0)
        return rc;
    /* link() instead of rename() leaves what is there. */
    int sys = 0;
    if (replace ? renameat(folder, temporary, folder, name) != 0
                : linkat(folder, temporary, folder, name, 0) != 0)
        sys = errno;
    if (!replace || sys != 0)
        (void)unlinkat(folder, temporary, 0);
    if (sys != 0 && (replace || sys != EEXIST))
        return err_sys(e, ERR_IO, sys, "store %s", name);
    if (fsync(folder) != 0)
        return err_sys(e, ERR_IO, errno, "store %s", name);
    return 0;
}
