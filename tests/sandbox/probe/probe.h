/* tests/sandbox/probe/probe.h - asserts from within a sandbox what it must not allow, and the
 * little that must work.
 *
 *     probe [--list] [--one-id] [--profile strict|default|relaxed] [GROUP...]
 *     probe --neighbour [--greedy]
 *
 * One line a check, "ok GROUP NAME" or "FAIL GROUP NAME: what was possible", then "N passed, M
 * failed"; exit status 1 if any failed. Every check runs in a child of its own with a time bound,
 * so that being killed is an answer too. No attempt does harm where it succeeds: the same program
 * runs without a sandbox as a control, where most checks must fail. */
#ifndef SKERRY_TESTS_SANDBOX_PROBE_H
#define SKERRY_TESTS_SANDBOX_PROBE_H

#include <stdbool.h>
#include <stddef.h>

#define PROBE_TEXT_SIZE 512

struct probe_text {
    char text[PROBE_TEXT_SIZE];
};

/* True when all is as it must be; else it says what was possible. */
typedef bool (*probe_run)(const void *with, struct probe_text *what);

struct probe_check {
    const char *group;
    const char *name;
    probe_run run;
    const void *with;
    bool killed; /* being killed is what must happen: by SIGSYS, or SIGSEGV without i386 calls */
};

struct probe_list {
    struct probe_check *items;
    size_t count;
    size_t capacity;
};

void probe_add(struct probe_list *list, const char *group, const char *name, probe_run run,
               const void *with, bool killed);
/* For use as `return probe_fail(what, ...)`. */
bool probe_fail(struct probe_text *what, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Must be refused: fails unless rc < 0 and errno says "not allowed" or "no such call". */
bool probe_refused(struct probe_text *what, long rc);
/* A call that must not succeed, whatever the reason. */
bool probe_failed(struct probe_text *what, long rc);

/* A call's refusal is looked for in the profiles that refuse it only. */
enum probe_profile { PROBE_STRICT, PROBE_DEFAULT, PROBE_RELAXED };
enum probe_profile probe_profile(void);
/* --one-id: code and agent have the same user id and there is no other one inside, as where Skerry runs
 * without root. Ids that are not mapped do not exist, and files that are Skerry's are the code's. */
bool probe_one_id(void);
/* True when the root is an image of its own, without the machine's /usr. */
bool probe_root_is_image(void);
int probe_neighbour(bool greedy);

void probe_add_paths(struct probe_list *list);
void probe_add_mounts(struct probe_list *list);
void probe_add_profile(struct probe_list *list);
void probe_add_neighbour(struct probe_list *list);
void probe_add_calls(struct probe_list *list);
void probe_add_privileges(struct probe_list *list);
void probe_add_agent(struct probe_list *list);
void probe_add_network(struct probe_list *list);
void probe_add_limits(struct probe_list *list);

#endif
