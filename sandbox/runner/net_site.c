/* What root's file says of egress. See net_egress.h. */
#include <string.h>

#include "base/memory.h"
#include "sandbox/runner/config.h"
#include "sandbox/runner/net_egress.h"

static int network_read(struct net_site *site, const char *text, struct err *e)
{
    int rc = destination_parse_network(&site->network, &site->prefix, text, e);
    if (rc == 0 && (site->prefix < NET_PREFIX_MIN || site->prefix > NET_PREFIX_MAX))
        return err_set(e, ERR_INVALID,
                       "%s: a prefix of %u to %u is needed, for two addresses for each of the "
                       "places that a machine can have",
                       text, NET_PREFIX_MIN, NET_PREFIX_MAX);
    return rc;
}

static int uplinks_read(struct net_uplinks *out, const struct field_list *list, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    out->count = 0;
    for (size_t i = 0; i < list->count; i++)
        if (!net_uplinks_add(out, list->items[i], strlen(list->items[i])))
            return err_set(e, ERR_INVALID, "%s is no name of an interface, like eth0",
                           text_show(list->items[i], shown));
    return 0;
}

static int permitted_read(struct net_site *site, const struct field_list *list, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    site->permitted_count = 0;
    for (size_t i = 0; i < list->count; i++) {
        struct destination *d = &site->permitted[site->permitted_count];
        int rc = destination_parse(d, list->items[i], e);
        if (rc < 0)
            return rc;
        if (d->kind == DESTINATION_NAME)
            return err_set(e, ERR_INVALID, "%s is a name; write the network that is permitted",
                           text_show(list->items[i], shown));
        site->permitted_count++;
    }
    return 0;
}

int net_site_read(struct net_site *site, struct net_uplinks *uplinks, const struct runner_config *c,
                  const char **out_key, struct err *e)
{
    memset(site, 0, sizeof *site);
    site->place_first = (uint32_t)((c->uid_base - RUNNER_UID_BASE) / RUNNER_UIDS_PER_INSTANCE);
    *out_key = "sandbox.network";
    int rc = network_read(site, c->sandbox.network, e);
    if (rc == 0) {
        *out_key = "sandbox.uplinks";
        rc = uplinks_read(uplinks, &c->sandbox.uplinks, e);
    }
    if (rc == 0) {
        *out_key = "allow.destinations";
        rc = permitted_read(site, &c->destinations, e);
    }
    return rc;
}
