/* node/late.h - libraries that are loaded when first called, not when the program starts.
 *
 * libcurl, libarchive, libssh and libmicrohttpd bring forty others; to load them all takes four times
 * as long as what most calls of the command line do. deploy/late makes, of what this program calls in
 * them, a table of pointers and a small function for each, which jumps through the table. Until a
 * library is loaded its pointers lead to late_load.
 *
 * Thread: any. Memory: a table is read-only once it is filled. Errors: what cannot be loaded ends the
 * process with 127, as the dynamic linker would have. */
#ifndef SKERRY_NODE_LATE_H
#define SKERRY_NODE_LATE_H

#include <stdint.h>

struct late_library {
    const char *file; /* "libcurl.so.4" */
    void **table;     /* whole pages of its own */
    const char *const *names;
    uint64_t count;
};

/* Made by deploy/late. */
extern const struct late_library late_libraries[];

/* Called by what deploy/late makes. */
void late_load(const struct late_library *library);

#endif
