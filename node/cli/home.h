/* node/cli/home.h - where an ordinary user's nodes are, as the XDG base directory specification has it.
 *
 * Root has /var/lib/skerry/up and /run/skerry instead. Thread: any; reads the environment. */
#ifndef SKERRY_NODE_CLI_HOME_H
#define SKERRY_NODE_CLI_HOME_H

#include <stdbool.h>
#include <stddef.h>

/* $XDG_STATE_HOME/skerry, else ~/.local/state/skerry. False: this user has no home, or it does not fit. */
bool home_state(char *out, size_t size);

/* The socket that a node of the user is linked at: in $XDG_RUNTIME_DIR/skerry, which goes with the session,
 * or else in home_state. */
enum home_link { HOME_LINK_RUNTIME, HOME_LINK_STATE, HOME_LINK_COUNT };
bool home_socket(enum home_link link, char *out, size_t size);

#endif
