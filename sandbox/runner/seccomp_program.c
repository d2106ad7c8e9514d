#include "sandbox/runner/seccomp_program.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <stdlib.h>

#include "base/memory.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the lower half of an argument is taken to come first"
#endif

unsigned seccomp_label(struct seccomp_program *p)
{
    if (p->next_label < SECCOMP_OWN)
        p->next_label = SECCOMP_OWN;
    return p->next_label < SECCOMP_LABELS ? p->next_label++ : SECCOMP_LABELS;
}

void seccomp_place(struct seccomp_program *p, unsigned label)
{
    if (label < SECCOMP_LABELS)
        p->at[label] = p->count + 1;
}

static void add(struct seccomp_program *p, unsigned code, uint32_t k, unsigned met,
                unsigned not_met)
{
    if (p->count < SECCOMP_INSTRUCTIONS) {
        p->steps[p->count].filter = (struct sock_filter){.code = (uint16_t)code, .k = k};
        p->steps[p->count].met = (uint8_t)met;
        p->steps[p->count].not_met = (uint8_t)not_met;
    }
    p->count++;
}

static void load(struct seccomp_program *p, size_t offset)
{
    add(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, SECCOMP_NEXT, SECCOMP_NEXT);
}

void seccomp_load_low(struct seccomp_program *p, unsigned argument)
{
    load(p, offsetof(struct seccomp_data, args) + argument * sizeof(uint64_t));
}

void seccomp_load_high(struct seccomp_program *p, unsigned argument)
{
    load(p, offsetof(struct seccomp_data, args) + argument * sizeof(uint64_t) + sizeof(uint32_t));
}

void seccomp_jump(struct seccomp_program *p, unsigned test, uint32_t value, unsigned met,
                  unsigned not_met)
{
    add(p, BPF_JMP | test | BPF_K, value, met, not_met);
}

/* --- from numbers to labels --------------------------------------------------------------------------- */

/* Numbers from `first` up to the next one's are answered alike. */
struct range {
    uint32_t first;
    uint8_t label;
};

/* To whichever of the ranges holds the number: half of them are left after each step. The step that is
 * left out is that to a range alone, whose label the jump takes. */
static void search(struct seccomp_program *p, const struct range *ranges, size_t count)
{
    size_t half = count / 2;
    size_t step = p->count;
    seccomp_jump(p, BPF_JGE, ranges[half].first, ranges[half].label, ranges[0].label);
    if (half > 1)
        search(p, ranges, half);
    if (half > 1 && step < SECCOMP_INSTRUCTIONS)
        p->steps[step].not_met = SECCOMP_NEXT;
    if (count - half == 1)
        return;
    /* Its distance is known already: only labels are found later. */
    if (step < SECCOMP_INSTRUCTIONS) {
        size_t distance = p->count - step - 1;
        p->steps[step].met = SECCOMP_NEXT;
        p->steps[step].filter.jt = (uint8_t)distance;
        if (distance > UINT8_MAX)
            p->count = SECCOMP_INSTRUCTIONS + 1;
    }
    search(p, ranges + half, count - half);
}

void seccomp_dispatch(struct seccomp_program *p, uint32_t machine, bool foreign,
                      const uint8_t labels[SECCOMP_NUMBERS])
{
    struct range ranges[SECCOMP_NUMBERS + 1] = {{.first = 0, .label = labels[0]}};
    size_t count = 1;
    for (uint32_t number = 1; number <= SECCOMP_NUMBERS; number++) {
        uint8_t label = number < SECCOMP_NUMBERS ? labels[number] : SECCOMP_ENOSYS;
        if (label != ranges[count - 1].label)
            ranges[count++] = (struct range){.first = number, .label = label};
    }
    load(p, offsetof(struct seccomp_data, arch));
    seccomp_jump(p, BPF_JEQ, machine, SECCOMP_NEXT, SECCOMP_KILL);
    load(p, offsetof(struct seccomp_data, nr));
    if (foreign) {
        unsigned own = seccomp_label(p);
        seccomp_jump(p, BPF_JGE, SECCOMP_FOREIGN, SECCOMP_NEXT, own);
        seccomp_jump(p, BPF_JEQ, UINT32_MAX, SECCOMP_ENOSYS, SECCOMP_KILL);
        seccomp_place(p, own);
    }
    if (count > 1)
        search(p, ranges, count);
    else
        seccomp_jump(p, BPF_JGE, 0, ranges[0].label, ranges[0].label);
}

/* --- the whole ------------------------------------------------------------------------------------------ */

static const uint32_t answers[SECCOMP_OWN] = {
    [SECCOMP_ALLOW] = SECCOMP_RET_ALLOW,           [SECCOMP_EPERM] = SECCOMP_RET_ERRNO | EPERM,
    [SECCOMP_ENOSYS] = SECCOMP_RET_ERRNO | ENOSYS, [SECCOMP_DONE] = SECCOMP_RET_ERRNO,
    [SECCOMP_KILL] = SECCOMP_RET_KILL_PROCESS,
};

/* False: there is no such label, it stands before the jump or too far behind it. */
static bool resolve(const struct seccomp_program *p, size_t step, unsigned label, uint8_t *out)
{
    if (label == SECCOMP_NEXT)
        return true;
    if (label >= SECCOMP_LABELS || p->at[label] < step + 2 || p->at[label] - step - 2 > UINT8_MAX)
        return false;
    *out = (uint8_t)(p->at[label] - step - 2);
    return true;
}

int seccomp_assemble(struct seccomp_program *p, struct sock_filter **out, size_t *count,
                     struct err *e)
{
    for (unsigned label = SECCOMP_ALLOW; label < SECCOMP_OWN; label++) {
        seccomp_place(p, label);
        add(p, BPF_RET | BPF_K, answers[label], SECCOMP_NEXT, SECCOMP_NEXT);
    }
    if (p->count > SECCOMP_INSTRUCTIONS)
        return err_set(e, ERR_INTERNAL, "a seccomp filter of more than %u instructions",
                       SECCOMP_INSTRUCTIONS);
    CLEANUP_FREE struct sock_filter *program = calloc(p->count, sizeof *program);
    if (program == NULL)
        return err_set(e, ERR_NO_MEMORY, "seccomp filter");
    for (size_t i = 0; i < p->count; i++) {
        program[i] = p->steps[i].filter;
        if (!resolve(p, i, p->steps[i].met, &program[i].jt) ||
            !resolve(p, i, p->steps[i].not_met, &program[i].jf))
            return err_set(e, ERR_INTERNAL, "seccomp filter: step %zu jumps too far", i);
    }
    *out = steal_pointer(&program);
    *count = p->count;
    return 0;
}
