/* node/cli/pack_walk.h - the entries of a tree, depth first, names in order of their bytes.
 *
 * Follows no link and holds one descriptor a level. */
#ifndef SKERRY_NODE_CLI_PACK_WALK_H
#define SKERRY_NODE_CLI_PACK_WALK_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "base/err.h"

#define PACK_DEPTH_MAX 128

struct pack_level {
    int fd;
    char **names;
    size_t count;
    size_t next;
    size_t path_length; /* of the folder's own path */
};

struct pack_walk {
    struct pack_level levels[PACK_DEPTH_MAX];
    size_t depth;
    size_t names_max; /* of one folder */
    /* The current entry. */
    char path[PATH_MAX]; /* below the root */
    const char *name;    /* the last part of it, in its folder... */
    int folder_fd;       /* ...which is the walk's */
    struct stat st;
};

/* Takes a copy of `root_fd`. */
int pack_walk_open(struct pack_walk *walk, int root_fd, size_t names_max,
                   struct err *e) ERR_CHECKED;
/* The next entry, or *out_end. A folder comes before what it holds. */
int pack_walk_next(struct pack_walk *walk, bool *out_end, struct err *e) ERR_CHECKED;
void pack_walk_close(struct pack_walk *walk);

#endif
