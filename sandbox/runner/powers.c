#include "sandbox/runner/powers.h"

#include <string.h>

#include "base/memory.h"
#include "sandbox/runner/config.h"
#include "sandbox/runner/image.h"

static const struct powers all = {
    .own_ids = true,
    .agent_id = true,
    .map_layers = true,
    .mount_erofs = true,
    .make_devices = true,
    .trusted_attributes = true,
    .egress = true,
    .every_group = true,
    .layers = {IMAGE_UID_BASE, RUNNER_UIDS_PER_INSTANCE},
};

void powers_ask(struct powers *p, const char *lack)
{
    switch (userns_ids()) {
    case USERNS_MACHINE:
        *p = all;
        return;
    case USERNS_RANGE:
        /* 0 is the user; the subordinate ids begin at 1. */
        *p = (struct powers){.agent_id = true, .layers = {1, USERNS_RANGE_IDS}};
        text_format(p->note, sizeof p->note,
                    "runs without root: no egress; all instances share one range of user ids");
        return;
    case USERNS_ONE:
        *p = (struct powers){.layers = {0, 1}};
        text_format(p->note, sizeof p->note,
                    "runs without root: no egress; instances and their agents share the user id of "
                    "who started it, and images with other owners are refused (%s)",
                    lack == NULL || lack[0] == '\0' ? "no subordinate ids" : lack);
        return;
    }
}

void powers_note_limits(struct powers *p, bool any_missing)
{
    size_t length = strlen(p->note);
    if (length > 0 && any_missing)
        text_format(p->note + length, sizeof p->note - length,
                    "; limits need a delegated control group of version 2, and there is none");
}

struct id_range powers_ids(const struct powers *p, uint64_t uid_base, uint32_t slot)
{
    if (!p->own_ids)
        return p->layers;
    return (struct id_range){(uint32_t)uid_base + slot * RUNNER_UIDS_PER_INSTANCE,
                             RUNNER_UIDS_PER_INSTANCE};
}

uint32_t id_range_outside(struct id_range ids, uint32_t inside)
{
    return ids.count == 1 ? ids.first : ids.first + inside;
}
