/* Any bytes: workload_parse refuses them and leaves nothing, or gives a workload whose JSON reads
 * back as the same. The node's configuration goes through the same engine and is tried too. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/id.h"
#include "base/memory.h"
#include "base/workload.h"
#include "node/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_refusal(const void *target, const void *empty, size_t size, int rc,
                          const struct err *e)
{
    assert_always(memcmp(target, empty, size) == 0);
    assert_always(e->code != ERR_OK && rc == -(int)e->code);
    for (const char *at = e->msg; *at != '\0'; at++)
        assert_always((unsigned char)*at >= 0x20);
}

static void try_workload(const char *text, size_t size)
{
    static const struct workload empty;
    struct workload w, again, copy;
    struct err e = {0};
    int rc = workload_parse(&w, "fuzz.yaml", text, size, &e);
    if (rc != 0) {
        check_refusal(&w, &empty, sizeof w, rc, &e);
        return;
    }
    assert_always(workload_name_valid(w.id, strlen(w.id)));
    assert_always(w.kind == WORKLOAD_COMMAND || w.ready == READY_NONE || w.port > 0);
    assert_always(w.scale.max > 0 && w.limits.memory_bytes > 0);
    json_t *json = workload_to_json(&w);
    char *first = json_dumps(json, 0);
    assert_always(first != NULL);
    if (workload_parse(&again, "sha256", first, strlen(first), &e) != 0)
        assert_failed(e.msg, __FILE__, __LINE__);
    json_t *json_again = workload_to_json(&again);
    assert_always(json_equal(json, json_again));
    assert_always(workload_copy(&copy, &again, &e) == 0);
    json_decref(json);
    json_decref(json_again);
    free(first);
    workload_free(&w);
    workload_free(&again);
    workload_free(&copy);
}

static void try_config(const char *text, size_t size)
{
    static const struct config empty;
    struct document *d;
    struct config c = {0};
    struct err e = {0};
    if (document_parse(&d, "fuzz.yaml", text, size, NULL) != 0)
        return;
    int rc = fields_parse(config_fields(), d, &c, &e);
    if (rc != 0) {
        check_refusal(&c, &empty, sizeof c, rc, &e);
    } else {
        json_t *json = fields_to_json(config_fields(), &c);
        assert_always(json != NULL);
        json_decref(json);
        fields_free(config_fields(), &c);
    }
    document_free(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_workload((const char *)data, size);
    try_config((const char *)data, size);
    return 0;
}
