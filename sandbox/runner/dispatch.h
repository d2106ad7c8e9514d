/* sandbox/runner/dispatch.h - from a checked request to the part that answers it. */
#ifndef SKERRY_SANDBOX_RUNNER_DISPATCH_H
#define SKERRY_SANDBOX_RUNNER_DISPATCH_H

#include "sandbox/runner.pb-c.h"
#include "sandbox/runner/server.h"

/* May take the request; then *request is NULL. Answers now or later, once. */
void dispatch_request(struct runner *r, Skerry__Runner__Request **request,
                      const struct asker *asker);

#endif
