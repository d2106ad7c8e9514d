/* sandbox/runner/user_limits.h - what the kernel counts per user, lowered for an instance.
 *
 * Namespaces cannot be made by a filtered program anyhow; here the kernel itself says no, to a process
 * that got around the filter too. Most holes that gave away a machine began with a user namespace of
 * the attacker's own (CVE-2021-3493, 2022-0185, 2023-0386, 2024-1086). Watches are bounded below what
 * a machine gives one user, as each holds an inode in memory.
 *
 * The limits are those of the user namespace that *writes* them, and which one that is, is decided when
 * the file is looked up: so `proc_sys` is opened before and stays writable, while the code sees /proc/sys
 * read-only. */
#ifndef SKERRY_SANDBOX_RUNNER_USER_LIMITS_H
#define SKERRY_SANDBOX_RUNNER_USER_LIMITS_H

#include "base/err.h"

/* As root of the user namespace that shall have them; `proc_sys`: an O_PATH of a /proc/sys that is
 * mounted writable. A limit that this kernel does not have is left out. */
int user_limits_set(int proc_sys, struct err *e) ERR_CHECKED;

#endif
