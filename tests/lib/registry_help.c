#include "tests/lib/registry_help.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"

char *help_workload_json(const char *name, const char *more)
{
    char text[1024];
    struct workload w;
    struct err e;
    assert_always(text_format(text, sizeof text,
                              "id: %s\nkind: server\nimage: host\ncommand: [\"true\"]\n"
                              "port: 8080\n%s",
                              name, more));
    if (workload_parse(&w, "test", text, strlen(text), &e) < 0) {
        fprintf(stderr, "%s\n", e.msg);
        abort();
    }
    json_t *json = workload_to_json(&w);
    char *out = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    workload_free(&w);
    assert_always(out != NULL);
    return out;
}

struct instance_id help_instance_id(node_id owner, uint64_t n)
{
    uint8_t random[11] = {0};
    for (unsigned i = 0; i < 8; i++)
        random[10 - i] = (uint8_t)(n >> (8 * i));
    struct instance_id id;
    instance_id_make(&id, owner, random);
    return id;
}

char *help_directory(void)
{
    char path[] = "/tmp/skerry-registry-XXXXXX";
    assert_always(mkdtemp(path) != NULL);
    return text_new("%s", path);
}

void help_directory_remove(char *path)
{
    DIR *directory = opendir(path);
    if (directory != NULL) {
        for (struct dirent *i = readdir(directory); i != NULL; i = readdir(directory))
            unlinkat(dirfd(directory), i->d_name, 0);
        closedir(directory);
    }
    rmdir(path);
    free(path);
}
