/* base/err.h - one error object, passed last, wrapped outward with context.
 *
 * Functions that can fail return 0 or a negative `enum err_code` and fill `*e` (which may be NULL).
 * On success `*e` is untouched. The text names the thing, the value and the remedy; the outermost
 * context stands first. A struct err needs no release and works when malloc does not. */
#ifndef SKERRY_BASE_ERR_H
#define SKERRY_BASE_ERR_H

#include <stdarg.h>
#include <stddef.h>

enum err_code {
    ERR_OK = 0,
    ERR_INTERNAL,    /* a broken invariant of ours */
    ERR_INVALID,     /* the caller's input is wrong */
    ERR_NOT_FOUND,   /* the named thing does not exist */
    ERR_EXISTS,      /* it exists already */
    ERR_CONFLICT,    /* it is in a state that forbids this */
    ERR_LIMIT,       /* a bound was reached */
    ERR_NO_MEMORY,   /* malloc failed */
    ERR_IO,          /* a system call failed; err.sys holds errno */
    ERR_DENIED,      /* not allowed */
    ERR_TIMEOUT,     /* a deadline passed */
    ERR_CANCELED,    /* given up by its owner */
    ERR_UNAVAILABLE, /* the other side is away; trying again may help */
    ERR_UNSUPPORTED, /* this kernel or build cannot do it */
    ERR_PROTOCOL,    /* the other side broke the protocol */
    ERR_CODE_COUNT
};

struct err {
    enum err_code code;
    int sys;       /* errno, or 0 */
    char msg[256]; /* NUL-terminated, cut if longer */
};

#define ERR_CHECKED __attribute__((warn_unused_result))

/* Sets code and text; returns -code. */
int err_set(struct err *e, enum err_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int err_vset(struct err *e, enum err_code code, int sys, const char *format, va_list args)
    __attribute__((format(printf, 4, 0)));
/* As err_set, with ": strerror(sys)" behind the text. ENOMEM becomes ERR_NO_MEMORY. */
int err_sys(struct err *e, enum err_code code, int sys, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Puts context before the text that is there: "context: text". Returns -e->code. */
int err_wrap(struct err *e, const char *format, ...) __attribute__((format(printf, 2, 3)));
#ifdef __clang_analyzer__
/* Static analysis cannot see into err.c that these never return 0. */
#define err_set(e, code, ...) ((err_set)(e, code, __VA_ARGS__), -(int)(code))
#define err_sys(e, code, sys, ...) ((err_sys)(e, code, sys, __VA_ARGS__), -(int)(code))
#define err_wrap(e, ...) ((err_wrap)(e, __VA_ARGS__), -(int)ERR_INTERNAL)
#endif
/* A stable lower-case word for a code: "not_found". */
const char *err_code_name(enum err_code code);

#endif
