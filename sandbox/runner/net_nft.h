/* sandbox/runner/net_nft.h - commands of nftables in the network namespace that the thread is in.
 *
 * A context holds a netlink socket of that namespace and caches nothing that outlives a call, so one
 * is made for each. 0.3 ms with the rules of an instance. */
#ifndef SKERRY_SANDBOX_RUNNER_NET_NFT_H
#define SKERRY_SANDBOX_RUNNER_NET_NFT_H

#include "base/err.h"

/* All of `text` in one transaction, or nothing. NULL: there was no memory for it. The error holds the
 * first line of what nftables said. */
int net_nft_run(const char *text, struct err *e) ERR_CHECKED;
/* What it prints; *out is the caller's to free. */
int net_nft_read(const char *command, char **out, struct err *e) ERR_CHECKED;

#endif
