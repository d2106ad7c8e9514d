#include "sandbox/runner/net_nft.h"

#include <errno.h>
#include <linux/netlink.h>
#include <nftables/libnftables.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/memory.h"

/* Where the kernel has no netfilter libnftables ends the process. */
static int kernel_check(struct err *e)
{
    CLEANUP_FD int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    return fd >= 0 ? 0 : err_sys(e, ERR_UNSUPPORTED, errno, "nftables: open netfilter");
}

static int run(const char *text, char **out, struct err *e)
{
    int supported = kernel_check(e);
    if (supported < 0)
        return supported;
    struct nft_ctx *nft = text == NULL ? NULL : nft_ctx_new(NFT_CTX_DEFAULT);
    if (nft == NULL)
        return err_set(e, ERR_NO_MEMORY, "nftables");
    int rc = 0;
    if (nft_ctx_buffer_error(nft) != 0 || nft_ctx_buffer_output(nft) != 0)
        rc = err_set(e, ERR_NO_MEMORY, "nftables");
    if (rc == 0 && nft_run_cmd_from_buffer(nft, text) != 0) {
        const char *said = nft_ctx_get_error_buffer(nft);
        rc = err_set(e, ERR_IO, "nftables: %.*s", (int)strcspn(said, "\n"), said);
    }
    if (rc == 0 && out != NULL) {
        *out = strdup(nft_ctx_get_output_buffer(nft));
        rc = *out == NULL ? err_set(e, ERR_NO_MEMORY, "nftables") : 0;
    }
    nft_ctx_free(nft);
    return rc;
}

int net_nft_run(const char *text, struct err *e)
{
    return run(text, NULL, e);
}

int net_nft_read(const char *command, char **out, struct err *e)
{
    return run(command, out, e);
}
