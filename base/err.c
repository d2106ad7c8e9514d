#include "base/err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const names[ERR_CODE_COUNT] = {
    [ERR_OK] = "ok",
    [ERR_INTERNAL] = "internal",
    [ERR_INVALID] = "invalid",
    [ERR_NOT_FOUND] = "not_found",
    [ERR_EXISTS] = "exists",
    [ERR_CONFLICT] = "conflict",
    [ERR_LIMIT] = "limit",
    [ERR_NO_MEMORY] = "no_memory",
    [ERR_IO] = "io",
    [ERR_DENIED] = "denied",
    [ERR_TIMEOUT] = "timeout",
    [ERR_CANCELED] = "canceled",
    [ERR_UNAVAILABLE] = "unavailable",
    [ERR_UNSUPPORTED] = "unsupported",
    [ERR_PROTOCOL] = "protocol",
};

const char *err_code_name(enum err_code code)
{
    if ((unsigned)code >= ERR_CODE_COUNT)
        return "unknown";
    return names[code];
}

int err_vset(struct err *e, enum err_code code, int sys, const char *format, va_list args)
{
    if (sys == ENOMEM)
        code = ERR_NO_MEMORY;
    if (e == NULL)
        return -(int)code;
    e->code = code;
    e->sys = sys;
    int n = vsnprintf(e->msg, sizeof e->msg, format, args);
    if (sys != 0 && n >= 0 && (size_t)n < sizeof e->msg) {
        char text[96];
        snprintf(e->msg + n, sizeof e->msg - (size_t)n, ": %s", strerror_r(sys, text, sizeof text));
    }
    return -(int)code;
}

int(err_set)(struct err *e, enum err_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int rc = err_vset(e, code, 0, format, args);
    va_end(args);
    return rc;
}

int(err_sys)(struct err *e, enum err_code code, int sys, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int rc = err_vset(e, code, sys, format, args);
    va_end(args);
    return rc;
}

int(err_wrap)(struct err *e, const char *format, ...)
{
    if (e == NULL)
        return -(int)ERR_INTERNAL;
    char inner[sizeof e->msg];
    memcpy(inner, e->msg, sizeof inner);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(e->msg, sizeof e->msg, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof e->msg)
        snprintf(e->msg + n, sizeof e->msg - (size_t)n, ": %.*s", (int)sizeof inner - n, inner);
    return -(int)e->code;
}
