/* base/units.h - durations, sizes and shares of a processor as people write them.
 *
 * Thread: any. Whole numbers only, so that what is printed is exactly what was read. */
#ifndef SKERRY_BASE_UNITS_H
#define SKERRY_BASE_UNITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define DURATION_NONE UINT64_MAX /* the word "none" */
/* About 31,000 years, so that sums of two durations and a clock cannot overflow. */
#define DURATION_MS_MAX 1000000000000000ull

/* "250ms" "30s" "5m" "1h" "2d"; "none" when allowed. A bare number and 0 are refused. */
int duration_parse(uint64_t *out_ms, const char *text, bool none_allowed,
                   struct err *e) ERR_CHECKED;
#define BYTES_NONE UINT64_MAX /* the word "none", which field tables may allow */
/* "1000" "64K" "128M" "1G" "1T", also "128Mi" "128MB" "128MiB" in any case: powers of 1024. */
int bytes_parse(uint64_t *out, const char *text, struct err *e) ERR_CHECKED;
/* "2" "0.5" "0.125": at most three digits behind the point. */
int decimal_parse(uint64_t *out_thousandths, const char *text, struct err *e) ERR_CHECKED;

/* Each in the shortest exact form that the parser reads back. */
#define UNIT_TEXT_SIZE 32
void duration_format(uint64_t ms, char out[UNIT_TEXT_SIZE]);         /* "90s", "none" */
void bytes_format(uint64_t bytes, char out[UNIT_TEXT_SIZE]);         /* "128M", "1000", "none" */
void decimal_format(uint64_t thousandths, char out[UNIT_TEXT_SIZE]); /* "0.5" */

#endif
