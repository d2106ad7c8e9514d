/* The agent's first acts: from inside root with all capabilities to a uid of its own with three. Where
 * there is one id only (struct bind_skeleton) it keeps that, and the code has it too.
 *
 * What each buys:
 *   bounding set empty   nothing started from here can ever gain a capability by exec
 *   NOROOT, locked       inside uid 0 is a plain user for exec
 *   NO_SETUID_FIXUP      changing uids moves no capability, so the three survive; children clear
 *                        theirs themselves
 *   not dumpable         nobody inside may trace us or open our /proc/1/fd, mem, environ; with one id
 *                        for both, the three capabilities forbid the same a second time
 *   Landlock             nothing inside can mount, or make a device node, were it to get the
 *                        capability. One domain for all, made here: were it made per command,
 *                        an exec could not look at main's /proc or trace it. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/securebits.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/agent/agent.h"

#define KEPT ((1u << CAP_SETUID) | (1u << CAP_SETGID) | (1u << CAP_KILL))

static int drop_bounding(struct err *e)
{
    for (unsigned long capability = 0; capability < 64; capability++) {
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0)
            continue;
        if (errno == EINVAL && capability > CAP_KILL)
            return 0; /* beyond the last one of this kernel */
        return err_sys(e, ERR_DENIED, errno, "drop capability %lu", capability);
    }
    return 0;
}

static int keep_capabilities(struct err *e)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{.effective = KEPT, .permitted = KEPT}};
    if (syscall(SYS_capset, &header, data) != 0)
        return err_sys(e, ERR_DENIED, errno, "set capabilities");
    return 0;
}

/* Renames across folders must keep working, so kernels whose Landlock cannot allow them (ABI 1) do
 * without. A kernel without Landlock is no error: the layers above stand by themselves. */
static void landlock(void)
{
    if (syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) < 2)
        return;
    const struct landlock_ruleset_attr attributes = {
        .handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_BLOCK |
                             LANDLOCK_ACCESS_FS_REFER};
    CLEANUP_FD int ruleset = (int)syscall(SYS_landlock_create_ruleset, &attributes,
                                          sizeof attributes.handled_access_fs, 0);
    CLEANUP_FD int root = open("/", O_PATH | O_CLOEXEC);
    if (ruleset < 0 || root < 0)
        return;
    const struct landlock_path_beneath_attr rule = {.allowed_access = LANDLOCK_ACCESS_FS_REFER,
                                                    .parent_fd = root};
    if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) != 0)
        return;
    (void)syscall(SYS_landlock_restrict_self, ruleset, 0);
}

/* The runner, or whoever started it, may ignore or block signals; what we start must not inherit
 * that. By the system call itself: libc hides the two signals that it keeps for its threads. */
void privilege_signals_reset(void)
{
    static const unsigned long by_default[4]; /* the kernel's struct sigaction, all zero: SIG_DFL */
    for (int signal = 1; signal < NSIG; signal++)
        (void)syscall(SYS_rt_sigaction, signal, by_default, NULL, NSIG / 8);
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

int privilege_drop(bool one_id, struct err *e)
{
    const unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |
                               SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
                               SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    umask(022);
    (void)prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        return err_sys(e, ERR_DENIED, errno, "become undumpable");
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    int rc = drop_bounding(e);
    if (rc != 0)
        return rc;
    if (prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) != 0)
        return err_sys(e, ERR_DENIED, errno, "set securebits");
    if (!one_id && (setgroups(0, NULL) != 0 || setresgid(AGENT_UID, AGENT_UID, AGENT_UID) != 0 ||
                    setresuid(AGENT_UID, AGENT_UID, AGENT_UID) != 0))
        return err_sys(e, ERR_DENIED, errno, "become uid %u", AGENT_UID);
    rc = keep_capabilities(e);
    if (rc != 0)
        return rc;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return err_sys(e, ERR_DENIED, errno, "set no_new_privs");
    /* The change of uid made us what fs.suid_dumpable says. */
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        return err_sys(e, ERR_DENIED, errno, "become undumpable");
    landlock();
    return 0;
}

void privilege_files_as(uint32_t uid, uint32_t gid)
{
    (void)setfsgid(gid);
    (void)setfsuid(uid);
}

void privilege_files_own(void)
{
    (void)setfsuid(AGENT_UID);
    (void)setfsgid(AGENT_UID);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}
