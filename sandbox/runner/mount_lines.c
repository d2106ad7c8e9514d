#include "sandbox/runner/mount_lines.h"

#include <errno.h>
#include <string.h>

static bool parse(char *line, struct mount_line *m)
{
    char *rest = NULL;
    *m = (struct mount_line){0};
    char *word = strtok_r(line, " \n", &rest);
    for (int i = 0; word != NULL && i < 6; i++, word = strtok_r(NULL, " \n", &rest)) {
        if (i == 3)
            m->root = word;
        if (i == 4)
            m->point = word;
    }
    while (word != NULL && strcmp(word, "-") != 0)
        word = strtok_r(NULL, " \n", &rest);
    m->type = strtok_r(NULL, " \n", &rest);
    (void)strtok_r(NULL, " \n", &rest);
    m->options = strtok_r(NULL, " \n", &rest);
    return m->root != NULL && m->point != NULL && m->type != NULL && m->options != NULL;
}

FILE *mount_lines_open(struct err *e)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    if (file == NULL)
        err_sys(e, ERR_IO, errno, "open /proc/self/mountinfo");
    return file;
}

bool mount_lines_next(FILE *file, char **line, size_t *size, struct mount_line *m)
{
    while (getline(line, size, file) >= 0)
        if (parse(*line, m))
            return true;
    return false;
}
