#include "sandbox/runner/image_names.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"

void image_names_free(struct image_names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->items[i]);
    free(names->items);
}

static int names_compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool names_add(struct image_names *names, const char *name)
{
    if (names->count == names->capacity) {
        size_t capacity = names->capacity == 0 ? 32 : names->capacity * 2;
        char **items = reallocarray(names->items, capacity, sizeof *items);
        if (items == NULL)
            return false;
        names->items = items;
        names->capacity = capacity;
    }
    names->items[names->count] = strdup(name);
    if (names->items[names->count] == NULL)
        return false;
    names->count++;
    return true;
}

bool image_name_is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* The names of a folder in order; at most `count_max`. */
int image_names_read(struct image_names *names, int folder_fd, uint64_t count_max, struct err *e)
{
    CLEANUP_FD int fd = openat(folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open a folder of the tree");
    DIR *stream = fdopendir(fd);
    if (stream == NULL)
        return err_sys(e, ERR_IO, errno, "read a folder of the tree");
    (void)steal_fd(&fd);
    int rc = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(stream);
        if (entry == NULL) {
            if (errno != 0)
                rc = err_sys(e, ERR_IO, errno, "read a folder of the tree");
            break;
        }
        if (image_name_is_dots(entry->d_name))
            continue;
        if (names->count >= count_max) {
            rc = err_set(e, ERR_LIMIT, "the tree has too many files");
            break;
        }
        if (!names_add(names, entry->d_name)) {
            rc = err_set(e, ERR_NO_MEMORY, "no memory for the names of a folder");
            break;
        }
    }
    closedir(stream);
    if (rc == 0 && names->count > 1)
        qsort(names->items, names->count, sizeof *names->items, names_compare);
    return rc;
}
