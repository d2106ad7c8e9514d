/* node/cli/nodes.h - nodes as a table, for `skerry node list` and `skerry status`. Thread: one. */
#ifndef SKERRY_NODE_CLI_NODES_H
#define SKERRY_NODE_CLI_NODES_H

#include <jansson.h>

void cli_nodes_print(const json_t *nodes);

#endif
