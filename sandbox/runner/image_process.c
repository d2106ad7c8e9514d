#include "sandbox/runner/image_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"

#define STAGE_FD 16              /* above the descriptors that the process starts with */
#define PIPE_BYTES (1024 * 1024) /* fewer wake-ups than with the usual 64 KiB */

/* In the child, up to exec: only calls that are safe after fork. */
__attribute__((noreturn)) static void become(const char *argument, int control, int archive,
                                             int folder)
{
    const int from[3] = {control, archive, folder};
    int staged[3];
    for (int i = 0; i < 3; i++)
        staged[i] = fcntl(from[i], F_DUPFD_CLOEXEC, STAGE_FD);
    for (int i = 0; i < 3; i++)
        if (staged[i] < 0 || dup2(staged[i], IMAGE_PROCESS_CONTROL_FD + i) < 0)
            _exit(127);
    if (close_range(IMAGE_PROCESS_FOLDER_FD + 1, ~0u, 0) != 0)
        _exit(127);
    /* The runner blocks signals to take them by descriptor; its child starts with none blocked. */
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    char name[] = "skerry-runner";
    char *const argv[] = {name, (char *)(uintptr_t)argument, NULL};
    char *const envp[] = {NULL};
    execve("/proc/self/exe", argv, envp);
    _exit(127);
}

int image_process_start(pid_t *out_pid, int *out_control_fd, int *out_archive_fd,
                        const struct image_process *process, struct err *e)
{
    int archive[2];
    int control[2];
    if (pipe2(archive, O_CLOEXEC) != 0)
        return err_sys(e, ERR_IO, errno, "make a pipe");
    CLEANUP_FD int read_end = archive[0];
    CLEANUP_FD int write_end = archive[1];
    (void)fcntl(write_end, F_SETPIPE_SZ, PIPE_BYTES);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) != 0)
        return err_sys(e, ERR_IO, errno, "make a socket pair");
    CLEANUP_FD int ours = control[0];
    CLEANUP_FD int theirs = control[1];
    if (send(ours, process->order, process->order_size, MSG_NOSIGNAL) !=
        (ssize_t)process->order_size)
        return err_sys(e, ERR_IO, errno, "order: %s", process->argument);
    pid_t pid = fork();
    if (pid < 0)
        return err_sys(e, ERR_IO, errno, "start a process: %s", process->argument);
    if (pid == 0)
        become(process->argument, theirs, process->writes ? write_end : read_end,
               process->folder_fd);
    *out_pid = pid;
    *out_control_fd = steal_fd(&ours);
    *out_archive_fd = process->writes ? steal_fd(&read_end) : steal_fd(&write_end);
    return 0;
}
