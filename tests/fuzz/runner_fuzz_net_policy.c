/* Destinations as a hostile node may send them, one a line, `-` before those that are denied: whatever is
 * taken makes rules of the usual shape and nothing else. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "sandbox/runner/net_rules.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t count_of(const char *text, const char *word)
{
    size_t count = 0;
    for (const char *at = text; (at = strstr(at, word)) != NULL; at++)
        count++;
    return count;
}

/* Every character of a rule is one that our own texts and numbers have. */
static void check_rules(const struct net_site *site, const struct net_policy *policy)
{
    char *text = net_instance_rules(site, policy);
    assert_always(text != NULL);
    assert_always(count_of(text, "chain ") == 4 && count_of(text, "table ") == 1);
    assert_always(count_of(text, "{") == count_of(text, "}"));
    assert_always(count_of(text, "@denied") == 1);
    free(text);
}

static void check_names(const struct net_policy *policy)
{
    for (size_t i = 0; i < policy->allow_count; i++)
        if (policy->allow[i].kind == DESTINATION_NAME)
            assert_always(policy->allow[i].name[0] != '\0' && !policy->allow[i].any_port &&
                          (policy->allow[i].subdomains ||
                           destination_matches_name(&policy->allow[i], policy->allow[i].name)));
        else
            assert_always(policy->allow[i].prefix <= 32 &&
                          (policy->allow[i].network & ~destination_mask(policy->allow[i].prefix)) ==
                              0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct net_site site = {.network = 0x0aa60000, .prefix = 16};
    char *text = malloc(size + 1), *lists[2][NET_DESTINATIONS_MAX];
    size_t counts[2] = {0, 0};
    assert_always(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        size_t which = line[0] == '-';
        if (counts[which] < NET_DESTINATIONS_MAX)
            lists[which][counts[which]++] = line + which;
    }
    struct net_policy policy;
    struct err e;
    if (net_policy_parse(&policy, &site, lists[0], counts[0], lists[1], counts[1], &e) == 0) {
        check_rules(&site, &policy);
        check_names(&policy);
    }
    free(text);
    return 0;
}
