#include "node/control/machine.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"

/* The first lines are enough; a machine of 4096 processors writes more. */
#define TEXT_SIZE 4096

bool machine_take_stat(struct machine *m, const char *text)
{
    /* user nice system idle iowait irq softirq steal; guests are within user and nice */
    unsigned long long t[8];
    if (sscanf(text, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1], &t[2], &t[3],
               &t[4], &t[5], &t[6], &t[7]) != 8)
        return false;
    uint64_t busy = t[0] + t[1] + t[2] + t[5] + t[6] + t[7];
    uint64_t all = busy + t[3] + t[4];
    bool known = m->all_ticks != 0 && all > m->all_ticks && busy >= m->busy_ticks;
    m->cpus_used =
        known ? m->cpus * ((double)(busy - m->busy_ticks) / (double)(all - m->all_ticks)) : 0.0;
    m->busy_ticks = busy;
    m->all_ticks = all;
    return true;
}

static bool find_kib(const char *text, const char *name, uint64_t *out_bytes)
{
    const char *at = strstr(text, name);
    unsigned long long kib;
    if (at == NULL || sscanf(at + strlen(name), " %llu kB", &kib) != 1)
        return false;
    *out_bytes = kib * 1024;
    return true;
}

bool machine_take_meminfo(struct machine *m, const char *text)
{
    uint64_t all, available;
    if (!find_kib(text, "MemTotal:", &all) || !find_kib(text, "MemAvailable:", &available))
        return false;
    m->memory_bytes = all;
    m->memory_used_bytes = all > available ? all - available : 0;
    return true;
}

static bool read_text(const char *path, char out[TEXT_SIZE])
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, out, TEXT_SIZE - 1) : -1;
    if (n < 0)
        return false;
    out[n] = '\0';
    return true;
}

void machine_read(struct machine *m)
{
    char text[TEXT_SIZE];
    m->cpus = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    if (read_text("/proc/stat", text))
        (void)machine_take_stat(m, text);
    if (read_text("/proc/meminfo", text))
        (void)machine_take_meminfo(m, text);
}
