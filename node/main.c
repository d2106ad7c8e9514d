/* The one binary: everything is in node/cli/cli.c; here is only what no library holds, the runner that it
 * carries. */
#include "node/cli/cli.h"

extern const unsigned char embedded_runner_begin[], embedded_runner_end[];

int main(int argc, char **argv)
{
    const struct cli_embedded embedded = {embedded_runner_begin, embedded_runner_end};
    return cli_main(argc, argv, &embedded);
}
