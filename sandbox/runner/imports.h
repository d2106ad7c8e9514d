/* sandbox/runner/imports.h - the verbs about images and sources, and imports and exports that are under
 * way. */
#ifndef SKERRY_SANDBOX_RUNNER_IMPORTS_H
#define SKERRY_SANDBOX_RUNNER_IMPORTS_H

#include "base/err.h"
#include "sandbox/runner.pb-c.h"
#include "sandbox/runner/image.h"
#include "sandbox/runner/server.h"

struct runner;
struct imports;

int imports_open(struct imports **out, struct runner *r, struct err *e) ERR_CHECKED;
void imports_close(struct imports *m);

void imports_start(struct imports *m, const Skerry__Runner__Import *i, const struct asker *asker);
void imports_export(struct imports *m, const Skerry__Runner__Export *x, const struct asker *asker);
void imports_list(struct imports *m, const struct asker *asker);
void imports_remove(struct imports *m, const char *digest, const struct asker *asker);

/* Holds the layer for an instance; *out_fd is the caller's. */
int imports_layer_use(struct imports *m, const char *digest, enum image_kind kind, int *out_fd,
                      struct err *e) ERR_CHECKED;
/* For one that has its root already. */
int imports_layer_hold(struct imports *m, const char *digest, enum image_kind kind,
                       struct err *e) ERR_CHECKED;
void imports_layer_release(struct imports *m, const char *digest);

#endif
