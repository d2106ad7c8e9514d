/* Replays a fuzzer's corpus without libFuzzer, so that regressions are tested with every compiler:
 * each file of the folders given goes through LLVMFuzzerTestOneInput in a child of its own, which
 * must end well and within SECONDS_MAX. Ends with a line that counts. */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SECONDS_MAX = 60, INPUT_BYTES_MAX = 16 * 1024 * 1024 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* 0, or 1 if the file cannot be read. */
static int run_file(int fd)
{
    struct stat info;
    if (fstat(fd, &info) != 0 || info.st_size > INPUT_BYTES_MAX)
        return 1;
    size_t size = (size_t)info.st_size;
    /* Exactly as large as the input, so that a sanitizer sees a read behind it. */
    uint8_t *data = malloc(size == 0 ? 1 : size);
    if (data == NULL || read(fd, data, size) != (ssize_t)size)
        return 1;
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    return 0;
}

/* 0: passed. The child's own output says why it failed. */
static int replay(DIR *folder, const char *name)
{
    pid_t child = fork();
    if (child == 0) {
        alarm(SECONDS_MAX);
        int fd = openat(dirfd(folder), name, O_RDONLY | O_CLOEXEC);
        closedir(folder); /* so that a leak checker finds nothing of ours */
        exit(fd < 0 ? 1 : run_file(fd));
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 1;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFSIGNALED(status))
        fprintf(stderr, "%s: ended by signal %d\n", name, WTERMSIG(status));
    else
        fprintf(stderr, "%s: failed\n", name);
    return 1;
}

int main(int argc, char **argv)
{
    unsigned passed = 0, failed = 0;
    for (int i = 1; i < argc; i++) {
        DIR *folder = opendir(argv[i]);
        if (folder == NULL) {
            perror(argv[i]);
            return 1;
        }
        for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
            if (entry->d_name[0] == '.')
                continue;
            if (replay(folder, entry->d_name) == 0)
                passed++;
            else
                failed++;
        }
        closedir(folder);
    }
    const char *name = strrchr(argv[0], '/');
    printf("%s: %u passed, %u failed\n", name == NULL ? argv[0] : name + 1, passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}
