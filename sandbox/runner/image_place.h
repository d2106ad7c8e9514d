/* sandbox/runner/image_place.h - a sink (image_entry.h) that makes files below one folder.
 *
 * Every path is looked up with openat2 beneath the root and without following any link, so that an
 * archive cannot first make a link and then write through it. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_PLACE_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_PLACE_H

#include "sandbox/runner/image_entry.h"

struct image_place {
    int root_fd;             /* the caller's */
    uint64_t folders_max;    /* that are made without an entry of their own */
    uint64_t free_bytes_min; /* of the file system: below, unpacking ends */
    /* private */
    int file_fd;
    int parent_fd; /* of the last entry: archives come in order, mostly */
    char parent[PATH_MAX];
    char shown[128];
    uint64_t folders_made;
    uint64_t bytes_unchecked;
    mode_t file_mode;
    uint32_t file_changed_s;
    uid_t file_uid;
    gid_t file_gid;
};

/* `place->root_fd` and the bounds are filled by the caller, the rest here. */
void image_place_open(struct image_place *place, struct image_sink *out);
void image_place_close(struct image_place *place);

#endif
