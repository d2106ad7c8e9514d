/* tests/bench/gateway.c - a gateway alone, before a backend that is given, for wrk beside nginx:
 *
 *     gateway LISTEN_PORT BACKEND_PORT [THREADS]
 *     wrk -t1 -c64 -d5s http://127.0.0.1:LISTEN_PORT/w/web/
 *
 * Runs until its standard input ends, then prints its counters. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/lib/gateway_fixture.h"

int main(int argc, char **argv)
{
    static struct gateway_fixture f;
    char listen[32];
    if (argc < 3) {
        fprintf(stderr, "usage: %s LISTEN_PORT BACKEND_PORT [THREADS]\n", argv[0]);
        return 2;
    }
    snprintf(listen, sizeof listen, "127.0.0.1:%s", argv[1]);
    struct gateway_fixture_options options = {
        .threads = argc > 3 ? (unsigned)atoi(argv[3]) : 1,
        .listen = listen,
        .backend_port = (unsigned)atoi(argv[2]),
        .first_byte_ms = 30000,
        .request_ms = 60000,
        .stream_idle_ms = 300000,
    };
    gateway_fixture_start(&f, &options);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    struct gateway_counters counters;
    gateway_counters(f.gateway, &counters);
    printf("requests %llu, upstream connects %llu, reuses %llu\n",
           (unsigned long long)counters.requests[2], (unsigned long long)counters.upstream_connects,
           (unsigned long long)counters.upstream_reuses);
    gateway_fixture_stop(&f);
    return 0;
}
