/* base/clock.h - the only place, with node/, that reads a clock.
 *
 * Thread: any. Milliseconds unless the name says otherwise. */
#ifndef SKERRY_BASE_CLOCK_H
#define SKERRY_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

/* CLOCK_MONOTONIC; does not count suspension. For timers and durations. */
uint64_t clock_monotonic_ms(void);
uint64_t clock_monotonic_us(void);
/* CLOCK_BOOTTIME; counts suspension and is the same in every process. For deadlines handed over. */
uint64_t clock_boot_ms(void);
/* CLOCK_REALTIME since 1970, UTC. For people and records, never for decisions. */
uint64_t clock_wall_ms(void);

#define CLOCK_RFC3339_SIZE 32
/* "2026-11-22T08:47:00.123Z" into `out`. */
void clock_format_rfc3339(uint64_t wall_ms, char out[CLOCK_RFC3339_SIZE]);

#endif
