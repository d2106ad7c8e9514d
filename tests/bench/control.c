/* tests/bench/control.c - what the control plane computes, without processes around it:
 *
 *     control placement NODES        decisions a second among so many nodes
 *     control registry INSTANCES     the registry's state with so many: its snapshot and its memory
 *
 * Prints NAME=VALUE pairs. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/workload.h"
#include "raft/snapshot.h"
#include "scheduler/placement.h"
#include "tests/lib/registry_help.h"

enum { NODES_MAX = 10000, INSTANCES_MAX = 1000000, EACH = 10000 };

static double ms_since(uint64_t begun_us)
{
    return (double)(clock_monotonic_us() - begun_us) / 1e3;
}

static int placement(uint32_t count)
{
    static const char text[] = "id: bench\ncommand: [\"x\"]\nport: 8080\n";
    struct placement_node *nodes = calloc(count, sizeof *nodes);
    struct gossip_meta *metas = calloc(count, sizeof *metas);
    struct gossip_load *loads = calloc(count, sizeof *loads);
    struct workload w;
    struct placement_lacks lacks;
    struct err e;
    assert_always(nodes != NULL && metas != NULL && loads != NULL);
    assert_always(workload_parse(&w, "bench", text, strlen(text), &e) == 0);
    for (uint32_t i = 0; i < count; i++) {
        metas[i].instances_max = 1000;
        metas[i].cpu_millis = 64000;
        metas[i].memory_bytes = 1ull << 36;
        loads[i].instances = i * 7919 % 900;
        nodes[i] = (struct placement_node){.id = i + 1,
                                           .self = i == 0,
                                           .alive = true,
                                           .leased = true,
                                           .meta = &metas[i],
                                           .load = &loads[i]};
    }
    uint64_t begun_us = clock_monotonic_us(), decisions = 0, random = 1;
    while (clock_monotonic_us() - begun_us < 1000000) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        assert_always(placement_choose(&w, nodes, count, random, &lacks) != 0);
        decisions++;
    }
    printf("per_second=%.0f\n", (double)decisions * 1e3 / ms_since(begun_us));
    workload_free(&w);
    free(nodes);
    free(metas);
    free(loads);
    return 0;
}

static int registry(uint64_t count)
{
    struct help_state h;
    struct buffer snapshot;
    struct state_content decoded;
    struct err e;
    char name[32] = "";
    size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    help_state_open(&h);
    help_lease(&h, 1);
    uint64_t begun_us = clock_monotonic_us();
    for (uint64_t i = 0; i < count; i++) {
        if (i % EACH == 0) {
            assert_always(text_format(name, sizeof name, "bench-%u", (unsigned)(i / EACH)));
            assert_always(help_deploy(&h, name, "scale: {max: 10000}\n").problem == PROBLEM_NONE);
        }
        /* Ids are random in life, and do not compress; an odd factor repeats none. */
        uint64_t n = (i + 1) * 0x9e3779b97f4a7c15u;
        assert_always(help_reserve(&h, name, 1, n, "").problem == PROBLEM_NONE);
    }
    double applied_ms = ms_since(begun_us);
    size_t bytes = mallinfo2().uordblks + mallinfo2().hblkhd - before;
    buffer_init(&snapshot, SNAPSHOT_BYTES_MAX);
    begun_us = clock_monotonic_us();
    assert_always(snapshot_encode(state_content(h.state), &snapshot, &e) == 0);
    double encode_ms = ms_since(begun_us);
    begun_us = clock_monotonic_us();
    assert_always(snapshot_decode(&decoded, snapshot.data, snapshot.length, &e) == 0);
    printf("reserve_us=%.2f memory_bytes=%.0f snapshot_bytes=%.1f encode_ms=%.1f decode_ms=%.1f\n",
           applied_ms * 1e3 / (double)count, (double)bytes / (double)count,
           (double)snapshot.length / (double)count, encode_ms, ms_since(begun_us));
    state_content_release(&decoded);
    buffer_free(&snapshot);
    state_free(h.state);
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t count = argc == 3 ? strtoull(argv[2], NULL, 10) : 0;
    if (argc == 3 && strcmp(argv[1], "placement") == 0 && count > 0 && count <= NODES_MAX)
        return placement((uint32_t)count);
    if (argc == 3 && strcmp(argv[1], "registry") == 0 && count > 0 && count <= INSTANCES_MAX)
        return registry(count);
    fprintf(stderr, "usage: control placement NODES | registry INSTANCES; at most %d and %d\n",
            NODES_MAX, INSTANCES_MAX);
    return 2;
}
