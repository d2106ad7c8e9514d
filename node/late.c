#include "node/late.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

/* As deploy/late aligns tables. */
#define PAGE_BYTES 4096u

static void fail(const char *file) __attribute__((noreturn));
static void fail(const char *file)
{
    const char *why = dlerror();
    fprintf(stderr, "skerry: %s\n", why != NULL ? why : file);
    exit(127);
}

static void fill(const struct late_library *library)
{
    void *handle = dlopen(library->file, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        fail(library->file);
    for (uint64_t i = 0; i < library->count; i++) {
        void *function = dlsym(handle, library->names[i]);
        if (function == NULL)
            fail(library->file);
        /* Others may jump through it meanwhile: to us or to the function. */
        __atomic_store_n(&library->table[i], function, __ATOMIC_RELEASE);
    }
    size_t bytes = library->count * sizeof(void *);
    (void)mprotect((void *)library->table, (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES,
                   PROT_READ);
}

void late_load(const struct late_library *library)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static const struct late_library *loaded[16];
    (void)pthread_mutex_lock(&lock);
    size_t i = 0;
    while (i < sizeof loaded / sizeof *loaded && loaded[i] != NULL && loaded[i] != library)
        i++;
    if (i == sizeof loaded / sizeof *loaded)
        abort(); /* deploy/late knows fewer */
    if (loaded[i] == NULL) {
        fill(library);
        loaded[i] = library;
    }
    (void)pthread_mutex_unlock(&lock);
}
