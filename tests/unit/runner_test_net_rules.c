/* Addresses of places, policies, and the rules that are made of them. Whether the kernel takes the rules,
 * and that they bite, is for runner_test_egress. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "sandbox/runner/config.h"
#include "sandbox/runner/net_egress.h"
#include "sandbox/runner/net_host.h"

static struct net_site site_of(uint32_t place_first)
{
    return (struct net_site){.network = 0x0aa60000, .prefix = 16, .place_first = place_first};
}

static void each_place_has_addresses_and_a_name_of_its_own(void **state)
{
    (void)state;
    struct net_site site = site_of(0);
    site.prefix = NET_PREFIX_MAX;
    uint32_t last = net_host_address(&site, 0) - 1;
    for (uint32_t place = 0; place < RUNNER_INSTANCES_MAX; place++) {
        uint32_t host = net_host_address(&site, place), inside = net_instance_address(&site, place);
        assert_int_equal(host, last + 1);
        assert_int_equal(inside, host + 1); /* the same /31 */
        assert_int_equal(host & 1, 0);
        assert_int_equal(inside & destination_mask(NET_PREFIX_MAX), site.network);
        last = inside;
    }
}

static void names_fit_an_interface_and_tell_runners_apart(void **state)
{
    (void)state;
    char name[NET_NAME_SIZE], prefix[NET_NAME_SIZE];
    struct net_site first = site_of(0), last = site_of(RUNNER_INSTANCES_MAX - 1);
    net_link_name(&last, RUNNER_INSTANCES_MAX - 1, name);
    assert_string_equal(name, "skv4079-4079");
    net_link_prefix(&first, prefix);
    assert_string_equal(prefix, "skv0-");
    assert_null(strstr(name, prefix));
    net_table_name(&first, name);
    assert_string_equal(name, "skerry");
    net_table_name(&last, name);
    assert_string_equal(name, "skerry_4079");
}

static void what_must_not_be_reached_is_denied(void **state)
{
    (void)state;
    static const uint32_t no[] = {0xa9fea9fe /* metadata */,
                                  0x0a000001,
                                  0xac1f0001,
                                  0xc0a80101,
                                  0x64400001,
                                  0x7f000001,
                                  0x7fffffff,
                                  0,
                                  0xe0000001,
                                  0xffffffff,
                                  0xc6120001,
                                  0x0aa60001,
                                  0xac10ffff,
                                  0x647fffff};
    static const uint32_t yes[] = {0x08080808, 0xcb007101, 0xc6336401, 0xac0f0001,
                                   0xac200001, 0x643f0001, 0x64800001, 0xdfffffff};
    for (size_t i = 0; i < ARRAY_SIZE(no); i++)
        assert_true(net_always_denied(no[i]));
    for (size_t i = 0; i < ARRAY_SIZE(yes); i++)
        assert_false(net_always_denied(yes[i]));
}

static int parse(struct net_policy *p, const struct net_site *site, const char *allow,
                 const char *deny, struct err *e)
{
    char *allows[] = {(char *)(uintptr_t)allow}, *denies[] = {(char *)(uintptr_t)deny};
    return net_policy_parse(p, site, allows, allow != NULL, denies, deny != NULL, e);
}

static void an_allow_that_cannot_act_is_refused(void **state)
{
    (void)state;
    struct net_policy p;
    struct err e;
    struct net_site site = site_of(0);
    assert_int_equal(parse(&p, &site, "10.1.2.0/24:5432", NULL, &e), -(int)ERR_DENIED);
    assert_non_null(strstr(e.msg, "allow.destinations in runner.yaml"));
    assert_int_equal(parse(&p, &site, "169.254.169.254", NULL, &e), -(int)ERR_DENIED);
    assert_int_equal(parse(&p, &site, "0.0.0.0/0", NULL, &e), 0);
    assert_int_equal(destination_parse(&site.permitted[0], "10.1.0.0/16", &e), 0);
    site.permitted_count = 1;
    assert_int_equal(parse(&p, &site, "10.1.2.0/24:5432", NULL, &e), 0);
    assert_int_equal(parse(&p, &site, "10.2.2.0/24:5432", NULL, &e), -(int)ERR_DENIED);
    assert_int_equal(parse(&p, &site, NULL, "example.org:443", &e), -(int)ERR_INVALID);
    assert_int_equal(parse(&p, &site, "1.2.3.4 drop", NULL, &e), -(int)ERR_INVALID);
}

/* The order of two texts in a third. */
static void in_order(const char *text, const char *first, const char *second)
{
    const char *at = strstr(text, first);
    if (at == NULL || strstr(at, second) == NULL)
        fail_msg("not in this order: %s ... %s in:\n%s", first, second, text);
}

static void denials_stand_before_what_a_workload_allows(void **state)
{
    (void)state;
    struct net_policy p;
    struct err e;
    struct net_site site = site_of(0);
    assert_int_equal(parse(&p, &site, "203.0.113.0/24", "203.0.113.9:80", &e), 0);
    char *text = net_instance_rules(&site, &p);
    assert_non_null(text);
    in_order(text, "chain output", "th dport 80-80 reject");
    in_order(strstr(text, "chain output"), "203.0.113.9/32", "@denied reject");
    in_order(strstr(text, "chain output"), "@denied reject", "goto chosen");
    const char *chosen = strstr(text, "chain chosen {\n");
    in_order(chosen, "@workload_allowed accept", "reject with icmp");
    assert_non_null(strstr(text, "hook output priority 0; policy drop"));
    assert_non_null(strstr(text, "hook input priority 0; policy drop"));
    assert_null(strstr(text, "named"));
    free(text);
    assert_int_equal(parse(&p, &site, "example.org:443", NULL, &e), 0);
    text = net_instance_rules(&site, &p);
    assert_non_null(strstr(text, ". th dport @named accept"));
    free(text);
}

static void root_permits_a_network_but_not_siblings_nor_cluster_ports(void **state)
{
    (void)state;
    struct net_site site = site_of(0);
    struct net_uplinks uplinks = {.count = 0};
    struct err e;
    assert_int_equal(destination_parse(&site.permitted[0], "10.0.0.0/8", &e), 0);
    assert_int_equal(destination_parse(&site.permitted[1], "10.9.9.9:7600", &e), 0);
    site.permitted_count = 2;
    assert_true(net_uplinks_add(&uplinks, "eth0", 4));
    char *text = net_host_rules(&site, &uplinks, &uplinks);
    assert_non_null(text);
    const char *instance = strstr(text, "chain instance {");
    in_order(instance, "ip daddr 10.166.0.0/16 drop", "10.9.9.9/32 th dport 7600-7600 accept");
    in_order(instance, "th dport 7600-7600 accept", "{ 7600-7603, 8081 } drop");
    in_order(instance, "{ 7600-7603, 8081 } drop", "@permitted accept");
    in_order(instance, "@permitted accept", "@denied drop");
    free(text);
}

static void the_table_of_the_machine_does_not_grow(void **state)
{
    (void)state;
    struct net_site site = site_of(1000);
    struct net_uplinks none = {.count = 0};
    char *text = net_host_rules(&site, &none, &none);
    assert_non_null(text);
    assert_true(strlen(text) < 4096);
    in_order(text, "delete table inet skerry_1000", "table inet skerry_1000 {");
    assert_non_null(strstr(text, "iifname \"skv1000-*\" oifname != @uplinks drop"));
    free(text);
    text = net_host_rules_remove(&site);
    assert_string_equal(text, "table inet skerry_1000\ndelete table inet skerry_1000\n");
    free(text);
}

static void only_names_that_can_do_no_harm_become_uplinks(void **state)
{
    (void)state;
    struct net_uplinks list = {.count = 0};
    static const char *const bad[] = {"",   "a b", "a\"b", "..", ".", "a/b", "abcdefghijklmnop",
                                      "x;", "e\n"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(net_uplinks_add(&list, bad[i], strlen(bad[i])));
    assert_true(net_uplinks_add(&list, "eth0.100", 8));
    assert_true(net_uplinks_add(&list, "eth0.100", 8));
    assert_int_equal(list.count, 1);
}

static void default_routes_are_found(void **state)
{
    (void)state;
    struct net_uplinks list;
    net_uplinks_of_routes(&list,
                          "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n"
                          "eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
                          "eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
                          "wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
                          "wlan0\t00000000\t0100A8C0\t0003\t0\t0\t9\t00000000\t0\t0\t0\n");
    assert_int_equal(list.count, 2);
    assert_string_equal(list.names[0], "eth0");
    assert_string_equal(list.names[1], "wlan0");
    net_uplinks_of_routes(&list, "Iface\tDestination\n");
    assert_int_equal(list.count, 0);
}

static void a_set_that_nftables_printed_is_read(void **state)
{
    (void)state;
    struct net_uplinks list;
    net_uplinks_of_set(&list, "table inet skerry {\n\tset switched {\n\t\ttype ifname\n"
                              "\t\telements = { \"eth0\",\n\t\t\t     \"eth1\" }\n\t}\n}\n");
    assert_int_equal(list.count, 2);
    assert_string_equal(list.names[1], "eth1");
    net_uplinks_of_set(&list, "table inet skerry {\n\tset switched {\n\t\ttype ifname\n\t}\n}\n");
    assert_int_equal(list.count, 0);
}

static void a_foreign_chain_that_drops_is_found(void **state)
{
    (void)state;
    char table[64], chain[64];
    static const char docker[] =
        "table inet skerry {\n\tchain forward {\n"
        "\t\ttype filter hook forward priority -310; policy drop;\n\t}\n}\n"
        "table ip nat {\n\tchain DOCKER {\n\t}\n}\n"
        "table ip filter {\n\tchain DOCKER {\n\t}\n\tchain FORWARD {\n"
        "\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n";
    assert_true(net_forward_drop_find(docker, table, sizeof table, chain, sizeof chain));
    assert_string_equal(table, "ip filter");
    assert_string_equal(chain, "FORWARD");
    static const char open[] = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward "
                               "priority filter; policy accept;\n\t}\n\tchain INPUT {\n\t\ttype "
                               "filter hook input priority filter; policy drop;\n\t}\n}\n";
    assert_false(net_forward_drop_find(open, table, sizeof table, chain, sizeof chain));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_place_has_addresses_and_a_name_of_its_own),
        cmocka_unit_test(names_fit_an_interface_and_tell_runners_apart),
        cmocka_unit_test(what_must_not_be_reached_is_denied),
        cmocka_unit_test(an_allow_that_cannot_act_is_refused),
        cmocka_unit_test(denials_stand_before_what_a_workload_allows),
        cmocka_unit_test(root_permits_a_network_but_not_siblings_nor_cluster_ports),
        cmocka_unit_test(the_table_of_the_machine_does_not_grow),
        cmocka_unit_test(only_names_that_can_do_no_harm_become_uplinks),
        cmocka_unit_test(default_routes_are_found),
        cmocka_unit_test(a_set_that_nftables_printed_is_read),
        cmocka_unit_test(a_foreign_chain_that_drops_is_found),
    };
    return cmocka_run_group_tests_name("net rules", tests, NULL, NULL);
}
