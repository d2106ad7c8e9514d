/* tests/lib/runner_import.h - a folder into the store of a fixture's runner, as the command line sends it. */
#ifndef SKERRY_TESTS_LIB_RUNNER_IMPORT_H
#define SKERRY_TESTS_LIB_RUNNER_IMPORT_H

#include "node/cli/pack.h"
#include "sandbox/runner/image.h"
#include "tests/lib/runner_fixture.h"

#define RUNNER_IMPORT_MS 60000

/* Waits for its end. What fails fails the test. */
void runner_import(struct runner_fixture *f, const char *folder, enum pack_kind kind,
                   char digest[IMAGE_DIGEST_SIZE]);

#endif
