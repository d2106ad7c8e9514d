#include "node/cli/home.h"

#include <pwd.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/memory.h"

/* Relative paths are to be ignored, says the specification. */
static const char *folder_of(const char *variable)
{
    const char *path = getenv(variable);
    return path != NULL && path[0] == '/' ? path : NULL;
}

bool home_state(char *out, size_t size)
{
    const char *state = folder_of("XDG_STATE_HOME"), *home = folder_of("HOME");
    if (state != NULL)
        return text_format(out, size, "%s/skerry", state);
    const struct passwd *user = home == NULL ? getpwuid(geteuid()) : NULL;
    if (user != NULL && user->pw_dir[0] == '/')
        home = user->pw_dir;
    return home != NULL && text_format(out, size, "%s/.local/state/skerry", home);
}

bool home_socket(enum home_link link, char *out, size_t size)
{
    char state[512];
    const char *run = folder_of("XDG_RUNTIME_DIR");
    if (link == HOME_LINK_RUNTIME)
        return run != NULL && access(run, W_OK) == 0 &&
               text_format(out, size, "%s/skerry/api.sock", run);
    return home_state(state, sizeof state) && text_format(out, size, "%s/api.sock", state);
}
