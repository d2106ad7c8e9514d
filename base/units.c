#include "base/units.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/memory.h"

/* Reads the digits at the front; false without any or above UINT64_MAX. */
static bool read_number(const char **text, uint64_t *out)
{
    const char *at = *text;
    uint64_t value = 0;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (__builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
            return false;
    }
    if (at == *text)
        return false;
    *text = at;
    *out = value;
    return true;
}

static const struct duration_unit {
    const char *name;
    uint64_t ms;
} duration_units[] = {
    /* The largest first: duration_format takes the first that divides. */
    {"d", 86400000}, {"h", 3600000}, {"m", 60000}, {"s", 1000}, {"ms", 1},
};

int duration_parse(uint64_t *out_ms, const char *text, bool none_allowed, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    const char *allowed = none_allowed ? "; write 250ms, 30s, 5m, 1h, 2d or none"
                                       : "; write 250ms, 30s, 5m, 1h or 2d";
    text_show(text, shown);
    if (strcmp(text, "none") == 0) {
        if (!none_allowed)
            return err_set(e, ERR_INVALID, "none is not allowed here%s", allowed);
        *out_ms = DURATION_NONE;
        return 0;
    }
    const char *unit = text;
    uint64_t number, ms = 0;
    if (!read_number(&unit, &number))
        return err_set(e, ERR_INVALID, "%s is no duration%s", shown, allowed);
    if (*unit == '\0' && number != 0)
        return err_set(e, ERR_INVALID, "%s has no unit%s", shown, allowed);
    if (number == 0)
        return err_set(e, ERR_INVALID,
                       "%s is refused, since 0 is forever to some and never to "
                       "others%s",
                       shown, none_allowed ? "; write none to disable it" : allowed);
    for (size_t i = 0; i < ARRAY_SIZE(duration_units); i++) {
        if (strcmp(unit, duration_units[i].name) != 0)
            continue;
        if (__builtin_mul_overflow(number, duration_units[i].ms, &ms) || ms > DURATION_MS_MAX)
            return err_set(e, ERR_INVALID, "%s is too long", shown);
        *out_ms = ms;
        return 0;
    }
    return err_set(e, ERR_INVALID, "%s is no duration: one whole number and one unit%s", shown,
                   allowed);
}

int bytes_parse(uint64_t *out, const char *text, struct err *e)
{
    static const char units[] = "KMGT";
    char shown[TEXT_SHOWN_SIZE];
    const char *unit = text;
    uint64_t number;
    unsigned shift = 0;
    text_show(text, shown);
    if (!read_number(&unit, &number))
        return err_set(e, ERR_INVALID, "%s is no size; write 1000, 64K, 128M, 1G or 1T", shown);
    for (unsigned i = 0; i < 4 && shift == 0; i++) {
        if (*unit == units[i] || *unit == (units[i] | 0x20))
            shift = 10 * (i + 1);
    }
    if (shift != 0)
        unit++;
    if (shift != 0 && strncasecmp(unit, "ib", 2) == 0)
        unit += 2;
    else if (strcasecmp(unit, "b") == 0 || (shift != 0 && strcasecmp(unit, "i") == 0))
        unit++;
    if (*unit != '\0')
        return err_set(e, ERR_INVALID,
                       "%s is no size: one whole number and one unit; write 1000, 64K, 128M, 1G "
                       "or 1T",
                       shown);
    if (number > UINT64_MAX >> shift || number << shift == BYTES_NONE)
        return err_set(e, ERR_INVALID, "%s is too large", shown);
    *out = number << shift;
    return 0;
}

int decimal_parse(uint64_t *out_thousandths, const char *text, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    const char *at = text;
    uint64_t whole, rest = 0;
    bool good = read_number(&at, &whole) && whole <= UINT32_MAX;
    if (good && *at == '.') {
        at++;
        unsigned weight = 100;
        good = *at != '\0';
        for (; weight > 0 && *at >= '0' && *at <= '9'; at++, weight /= 10)
            rest += (uint64_t)(*at - '0') * weight;
    }
    if (!good || *at != '\0')
        return err_set(e, ERR_INVALID,
                       "%s is no decimal number; write 2, 0.5 or 0.125 (at most three digits "
                       "behind the point)",
                       text_show(text, shown));
    *out_thousandths = whole * 1000 + rest;
    return 0;
}

void duration_format(uint64_t ms, char out[UNIT_TEXT_SIZE])
{
    const struct duration_unit *unit = duration_units;
    if (ms == DURATION_NONE) {
        text_copy(out, UNIT_TEXT_SIZE, "none");
        return;
    }
    while (unit->ms > 1 && (ms == 0 || ms % unit->ms != 0))
        unit++;
    text_format(out, UNIT_TEXT_SIZE, "%" PRIu64 "%s", ms / unit->ms, unit->name);
}

void bytes_format(uint64_t bytes, char out[UNIT_TEXT_SIZE])
{
    static const char *const units[] = {"", "K", "M", "G", "T"};
    size_t unit = 0;
    if (bytes == BYTES_NONE) {
        text_copy(out, UNIT_TEXT_SIZE, "none");
        return;
    }
    while (unit + 1 < ARRAY_SIZE(units) && bytes != 0 && bytes % 1024 == 0) {
        bytes /= 1024;
        unit++;
    }
    text_format(out, UNIT_TEXT_SIZE, "%" PRIu64 "%s", bytes, units[unit]);
}

void decimal_format(uint64_t thousandths, char out[UNIT_TEXT_SIZE])
{
    text_format(out, UNIT_TEXT_SIZE, "%" PRIu64 ".%03u", thousandths / 1000,
                (unsigned)(thousandths % 1000));
    size_t length = strlen(out);
    while (out[length - 1] == '0')
        out[--length] = '\0';
    if (out[length - 1] == '.')
        out[length - 1] = '\0';
}
