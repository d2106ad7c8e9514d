/* sandbox/runner/image_names.h - the names of a folder in order of their bytes: how digest and export walk
 * a tree, so that both are the same wherever the tree lies.
 *
 * Thread: any. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_NAMES_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct image_names {
    char **items;
    size_t count;
    size_t capacity;
};

/* Fills a zeroed one; at most `count_max`. To be freed also when it fails. */
int image_names_read(struct image_names *names, int folder_fd, uint64_t count_max,
                     struct err *e) ERR_CHECKED;
void image_names_free(struct image_names *names);
/* "." and "..". */
bool image_name_is_dots(const char *name);

#endif
