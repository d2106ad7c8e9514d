/* base/memory.h - what the stack owns is released when it goes out of scope; invariants stay on.
 *
 *     CLEANUP_FREE char *path = ...;      freed at the end of the scope
 *     CLEANUP_FD int fd = open(...);      closed there, unless -1
 *     return steal_fd(&fd);               hands it out instead
 */
#ifndef SKERRY_BASE_MEMORY_H
#define SKERRY_BASE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void memory_free_cleanup(void *pointer_to_pointer);
void memory_fd_cleanup(int *fd);
#define CLEANUP_FREE __attribute__((cleanup(memory_free_cleanup)))
#define CLEANUP_FD __attribute__((cleanup(memory_fd_cleanup)))

static inline int steal_fd(int *fd)
{
    int stolen = *fd;
    *fd = -1;
    return stolen;
}

#define steal_pointer(pp)                                                                          \
    __extension__({                                                                                \
        __typeof__(*(pp)) stolen_ = *(pp);                                                         \
        *(pp) = NULL;                                                                              \
        stolen_;                                                                                   \
    })

/* Closes *fd if it is not -1, and sets it to -1. Keeps errno. */
void memory_close(int *fd);

/* Copies `text` into `out[size]`; false if it did not fit (then `out` holds the cut text). */
bool text_copy(char *out, size_t size, const char *text);
/* printf into `out[size]`; false if it did not fit. */
bool text_format(char *out, size_t size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A new string by printf, or NULL. The caller frees. */
char *text_new(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* `text` for an error or a log: cut to 40 bytes, what could move a terminal's cursor as '?'. */
#define TEXT_SHOWN_SIZE 48
const char *text_show(const char *text, char out[TEXT_SHOWN_SIZE]);

/* Compares secrets without telling by time where they differ; lengths are no secret. */
bool memory_equal_constant_time(const void *a, const void *b, size_t size);

void assert_failed(const char *expression, const char *file, int line) __attribute__((noreturn));
/* An invariant, checked in every build. */
#define assert_always(expression)                                                                  \
    ((expression) ? (void)0 : assert_failed(#expression, __FILE__, __LINE__))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(pointer, type, member)                                                        \
    ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

/* As many files may be open from now on as root allows this process (RLIMIT_NOFILE). */
void memory_descriptors_raise(void);

#endif
