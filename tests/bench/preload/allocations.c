/* tests/bench/preload/allocations.c - counts what a program allocates, loaded by LD_PRELOAD: calls of malloc,
 * calloc and realloc, in 8 bytes of the file $ALLOCATIONS/PID. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

static uint64_t unseen, *count = &unseen;

void *malloc(size_t size)
{
    __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
    return __libc_realloc(p, size);
}

__attribute__((constructor)) static void begin(void)
{
    char path[256];
    const char *folder = getenv("ALLOCATIONS");
    if (folder == NULL)
        return;
    snprintf(path, sizeof path, "%s/%d", folder, (int)getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    void *shared = fd < 0 || ftruncate(fd, sizeof *count) != 0
                       ? MAP_FAILED
                       : mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared != MAP_FAILED)
        count = shared;
    if (fd >= 0)
        close(fd);
}
