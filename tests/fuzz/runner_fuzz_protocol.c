/* What the runner takes from the node: decoding, and the checks before anything is done. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/id.h"
#include "base/memory.h"
#include "sandbox/runner/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const profiles[] = {"default"};

/* What the rest of the runner relies on. */
static void expect_prepare(const Skerry__Runner__Prepare *p, const struct request_bounds *b)
{
    struct instance_id id;
    assert_always(instance_id_parse(&id, p->id, strlen(p->id)));
    assert_always(strcmp(p->profile, "relaxed") != 0 && p->network <= (b->egress ? 1u : 0u));
    assert_always(p->uid < 65535 && p->gid < 65535 && p->port <= 65535);
    assert_always(p->memory_bytes <= b->memory_bytes && p->disk_bytes <= b->disk_bytes);
    assert_always(p->pids <= b->pids && p->cpu_thousandths <= b->cpu_thousandths);
    assert_always(p->network_bandwidth <= b->bandwidth_bytes);
    assert_always(p->io_bytes <= (b->io ? b->io_bytes : 0));
    assert_always(strlen(p->hostname) < 64 && strchr(p->hostname, '/') == NULL);
    assert_always(strcmp(p->image, "host") == 0 || strlen(p->image) == 71);
    assert_always(strchr(p->image, '/') == NULL && strchr(p->source, '/') == NULL);
    for (size_t i = 0; i < p->n_environment; i++)
        assert_always(strchr(p->environment[i], '=') != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct request_bounds bounds = {.profiles = profiles,
                                          .profile_count = 1,
                                          .egress = size % 2 == 0,
                                          .io = size % 4 < 2,
                                          .cpu_thousandths = 4000,
                                          .memory_bytes = 1u << 30,
                                          .pids = 1000,
                                          .disk_bytes = 1u << 28,
                                          .bandwidth_bytes = 1u << 26,
                                          .io_bytes = 1u << 27,
                                          .log_bytes = 1u << 20};
    Skerry__Runner__Request *request = NULL;
    struct err e = {0};
    int rc = request_parse(&request, data, size, &bounds, &e);
    assert_always(rc == 0 || (e.code == (enum err_code) - rc && e.msg[0] != '\0'));
    assert_always(request != NULL || rc == -ERR_PROTOCOL);
    if (rc == 0 && request->verb_case == SKERRY__RUNNER__REQUEST__VERB_PREPARE)
        expect_prepare(request->prepare, &bounds);
    if (rc == 0 && request->verb_case == SKERRY__RUNNER__REQUEST__VERB_EXEC)
        assert_always(request->exec->exec_id != 0 &&
                      (request->exec->n_command > 0) == (request->exec->file_verb == 0));
    if (rc == 0 && request->verb_case == SKERRY__RUNNER__REQUEST__VERB_SOCKETS)
        assert_always(request->sockets->count >= 1 && request->sockets->count <= 64);
    if (request != NULL)
        skerry__runner__request__free_unpacked(request, NULL);
    return 0;
}
