/* sandbox/agent/files.h - inside the built-in commands: files.c and unpack.c. */
#ifndef SKERRY_SANDBOX_AGENT_FILES_H
#define SKERRY_SANDBOX_AGENT_FILES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

#define COPY_BYTES (64 * 1024)
#define DEPTH_MAX 128

struct copy {
    uint8_t bytes[COPY_BYTES];
};

int file_write_all(const void *data, size_t length, int fd, struct err *e) ERR_CHECKED;
/* Fills `data` unless the stream ends before; how much came, or -1. */
ssize_t file_read_full(int fd, void *data, size_t length);
const char *file_base_name(const char *path);

/* unpack.c: from stdin. */
int unpack_tree(const char *path, struct err *e) ERR_CHECKED;
int unpack_plain(const char *path, struct copy *copy, struct err *e) ERR_CHECKED;

#endif
