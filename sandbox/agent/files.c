#include "sandbox/agent/agent.h"

int files_run(uint32_t verb, const char *path, struct err *e)
{
    (void)verb;
    err_set(e, ERR_UNSUPPORTED, "%s: files", path);
    return 1;
}
