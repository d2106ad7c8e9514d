#include "node/cli/pack_walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"

static int names_compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void level_free(struct pack_level *level)
{
    for (size_t i = 0; i < level->count; i++)
        free(level->names[i]);
    free(level->names);
    memory_close(&level->fd);
}

static int level_add(struct pack_level *level, size_t *capacity, size_t names_max, const char *name,
                     struct err *e)
{
    if (level->count >= names_max)
        return err_set(e, ERR_LIMIT, "a folder holds more than %zu files", names_max);
    if (level->count == *capacity) {
        size_t larger = *capacity == 0 ? 32 : *capacity * 2;
        char **names = reallocarray(level->names, larger, sizeof(char *));
        if (names == NULL)
            return err_set(e, ERR_NO_MEMORY, "no memory for the names of a folder");
        level->names = names;
        *capacity = larger;
    }
    level->names[level->count] = strdup(name);
    if (level->names[level->count] == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for the names of a folder");
    level->count++;
    return 0;
}

static int level_read(struct pack_level *level, size_t names_max, struct err *e)
{
    int fd = openat(level->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = fd >= 0 ? fdopendir(fd) : NULL;
    if (stream == NULL) {
        int sys = errno;
        memory_close(&fd);
        return err_sys(e, ERR_IO, sys, "read the folder");
    }
    size_t capacity = 0;
    int rc = 0;
    while (rc == 0) {
        errno = 0;
        const struct dirent *entry = readdir(stream);
        if (entry == NULL) {
            if (errno != 0)
                rc = err_sys(e, ERR_IO, errno, "read the folder");
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            rc = level_add(level, &capacity, names_max, entry->d_name, e);
    }
    closedir(stream);
    if (rc == 0 && level->count > 1)
        qsort(level->names, level->count, sizeof(char *), names_compare);
    return rc;
}

/* Takes `fd`. */
static int walk_enter(struct pack_walk *walk, int fd, struct err *e)
{
    if (walk->depth == PACK_DEPTH_MAX) {
        memory_close(&fd);
        return err_set(e, ERR_LIMIT, "folders are deeper than %d", PACK_DEPTH_MAX);
    }
    struct pack_level *level = &walk->levels[walk->depth++];
    *level = (struct pack_level){.fd = fd, .path_length = strlen(walk->path)};
    return level_read(level, walk->names_max, e);
}

int pack_walk_open(struct pack_walk *walk, int root_fd, size_t names_max, struct err *e)
{
    walk->depth = 0;
    walk->names_max = names_max;
    walk->path[0] = '\0';
    walk->name = NULL;
    walk->folder_fd = -1;
    memset(&walk->st, 0, sizeof walk->st);
    int fd = openat(root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open the folder");
    return walk_enter(walk, fd, e);
}

int pack_walk_next(struct pack_walk *walk, bool *out_end, struct err *e)
{
    *out_end = false;
    if (walk->name != NULL && S_ISDIR(walk->st.st_mode)) {
        int fd =
            openat(walk->folder_fd, walk->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            return err_sys(e, ERR_IO, errno, "open %s", walk->path);
        int rc = walk_enter(walk, fd, e);
        if (rc != 0)
            return err_wrap(e, "%s", walk->path);
    }
    while (walk->depth > 0 &&
           walk->levels[walk->depth - 1].next == walk->levels[walk->depth - 1].count)
        level_free(&walk->levels[--walk->depth]);
    if (walk->depth == 0) {
        walk->name = NULL;
        *out_end = true;
        return 0;
    }
    struct pack_level *level = &walk->levels[walk->depth - 1];
    walk->name = level->names[level->next++];
    walk->folder_fd = level->fd;
    if (!text_format(walk->path + level->path_length, sizeof walk->path - level->path_length,
                     "%s%s", level->path_length > 0 ? "/" : "", walk->name))
        return err_set(e, ERR_LIMIT, "a path is longer than %d bytes", PATH_MAX - 1);
    if (fstatat(walk->folder_fd, walk->name, &walk->st, AT_SYMLINK_NOFOLLOW) != 0)
        return err_sys(e, ERR_IO, errno, "look at %s", walk->path);
    return 0;
}

void pack_walk_close(struct pack_walk *walk)
{
    while (walk->depth > 0)
        level_free(&walk->levels[--walk->depth]);
}
