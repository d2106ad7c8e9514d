/* sandbox/runner/seccomp_program.h - putting a filter together: labels instead of distances, and the way from
 * a call's number to what answers it, as a search among ranges of numbers.
 *
 * The kernel translates a filter each time one is loaded, which is at every start: few instructions count
 * (Linux: Documentation/userspace-api/seccomp_filter.rst; McCanne & Jacobson, "The BSD Packet Filter"). */
#ifndef SKERRY_SANDBOX_RUNNER_SECCOMP_PROGRAM_H
#define SKERRY_SANDBOX_RUNNER_SECCOMP_PROGRAM_H

#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define SECCOMP_NUMBERS 1024u       /* no kernel has a call beyond */
#define SECCOMP_INSTRUCTIONS 512u   /* of one program */
#define SECCOMP_FOREIGN 0x40000000u /* x32's numbers begin here */

/* Where a jump goes. The five answers stand at the end of each program. */
enum seccomp_label {
    SECCOMP_NEXT, /* the instruction that follows */
    SECCOMP_ALLOW,
    SECCOMP_EPERM,
    SECCOMP_ENOSYS,
    SECCOMP_DONE, /* as if it had succeeded: nothing is done */
    SECCOMP_KILL,
    SECCOMP_OWN, /* the first of the caller's */
    SECCOMP_LABELS = SECCOMP_OWN + 32
};

struct seccomp_program {
    struct {
        struct sock_filter filter; /* jt and jf: not yet known */
        uint8_t met, not_met;      /* labels */
    } steps[SECCOMP_INSTRUCTIONS];
    size_t count;              /* one that is too many is not kept, and found at the end */
    size_t at[SECCOMP_LABELS]; /* 1 + where the label stands; 0: nowhere */
    unsigned next_label;       /* of SECCOMP_LABELS */
};

/* A label of one's own; more than there are: SECCOMP_LABELS, which is found at the end. */
unsigned seccomp_label(struct seccomp_program *p);
/* What is added next is what the label stands for. */
void seccomp_place(struct seccomp_program *p, unsigned label);
/* The lower or upper half of an argument. The kernel takes most of them for 32 bits and looks at the
 * lower half only. */
void seccomp_load_low(struct seccomp_program *p, unsigned argument);
void seccomp_load_high(struct seccomp_program *p, unsigned argument);
/* `test`: BPF_JEQ, BPF_JGE, BPF_JSET. */
void seccomp_jump(struct seccomp_program *p, unsigned test, uint32_t value, unsigned met,
                  unsigned not_met);

/* Another machine's calls kill; the others go on to the label of their number, those beyond
 * SECCOMP_NUMBERS to SECCOMP_ENOSYS. `foreign`: numbers from SECCOMP_FOREIGN on kill as well, but for -1:
 * that is a call which a debugger has taken away. */
void seccomp_dispatch(struct seccomp_program *p, uint32_t machine, bool foreign,
                      const uint8_t labels[SECCOMP_NUMBERS]);
/* The whole program, the caller's to free. */
int seccomp_assemble(struct seccomp_program *p, struct sock_filter **out, size_t *count,
                     struct err *e) ERR_CHECKED;

#endif
