#include "base/refusals.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

#define TOLD_EVERY_MS 1000u

uint64_t refusals_count(const struct refusals *r, unsigned reason)
{
    assert_always(reason < REFUSALS_REASONS_MAX);
    return __atomic_load_n(&r->counts[reason], __ATOMIC_RELAXED);
}

void refusals_add(struct refusals *r, unsigned reason)
{
    __atomic_store_n(&r->counts[reason], refusals_count(r, reason) + 1, __ATOMIC_RELAXED);
}

void refusals_note(struct refusals *r, unsigned reason, const char *format, ...)
{
    char text[256];
    uint64_t now_ms = clock_monotonic_ms();
    refusals_add(r, reason);
    if (r->told_ms[reason] != 0 && now_ms - r->told_ms[reason] < TOLD_EVERY_MS) {
        r->untold[reason]++;
        return;
    }
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (r->untold[reason] == 0)
        log_warn(r->subject, "refused (%s): %s", r->names[reason], text);
    else
        log_warn(r->subject, "refused (%s): %s; and %" PRIu64 " more since the last line",
                 r->names[reason], text, r->untold[reason]);
    r->told_ms[reason] = now_ms;
    r->untold[reason] = 0;
}
