#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/address.h"
#include "base/memory.h"
#include "node/config.h"

static char directory[] = "/tmp/skerry-test-config-XXXXXX";
static char path[64];

static int make_directory(void **state)
{
    (void)state;
    if (mkdtemp(directory) == NULL)
        return -1;
    return text_format(path, sizeof path, "%s/skerry.yaml", directory) ? 0 : -1;
}

static int remove_directory(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(directory);
}

static void write_file(const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void taken(struct config *c, const char *text)
{
    struct err e = {0};
    write_file(text);
    if (config_load(c, path, &e) != 0 || config_finish(c, &e) != 0)
        fail_msg("refused: %s", e.msg);
}

static void refused(const char *text, const char *with)
{
    struct config c, empty;
    struct err e = {0};
    memset(&empty, 0, sizeof empty);
    memset(&c, 0x55, sizeof c);
    write_file(text);
    assert_int_equal(config_load(&c, path, &e), -ERR_INVALID);
    assert_memory_equal(&c, &empty, sizeof c);
    if (strstr(e.msg, with) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.msg, with);
}

static void flag(struct config *c, const char *name, const char *value)
{
    struct err e = {0};
    if (config_flag(c, name, value, &e) != 0)
        fail_msg("refused: %s", e.msg);
}

static void flag_refused(struct config *c, const char *name, const char *value, const char *with)
{
    struct err e = {0};
    assert_true(config_flag(c, name, value, &e) < 0);
    if (strstr(e.msg, with) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.msg, with);
}

static void check_defaults(const struct config *c)
{
    assert_string_equal(c->data, "/var/lib/skerry");
    assert_false(c->bootstrap);
    assert_string_equal(c->bind, "127.0.0.1:7600");
    assert_string_equal(c->advertise, "127.0.0.1:7600");
    assert_int_equal(c->http.count, 1);
    assert_string_equal(c->http.items[0], "127.0.0.1:8080");
    assert_string_equal(c->api, "127.0.0.1:8081");
    assert_string_equal(c->api_socket, "/run/skerry/api.sock");
    assert_string_equal(c->runner_socket, "/run/skerry/runner.sock");
    assert_string_equal(c->domain, "localhost");
    assert_int_equal(c->log.level, LOG_LEVEL_INFO);
    assert_int_equal(c->log.format, LOG_FORMAT_TEXT);
    assert_int_equal(c->gateway.header_bytes_max, 65536);
    assert_true(c->gateway.body_bytes_max == 1u << 30);
    assert_int_equal(c->gateway.header_timeout_ms, 10000);
    assert_int_equal(c->gateway.connections_max, 10000);
    assert_false(c->gateway.forwarded);
    assert_false(c->sandbox.allow_unenforced);
    assert_int_equal(c->peers.count, 0);
    assert_string_equal(c->token_file, "");
    assert_string_equal(c->zone, "");
    assert_int_equal(c->labels.count, 0);
    assert_int_equal(c->raft.voters, 3);
    assert_int_equal(c->raft.standbys, 50);
    assert_true(strlen(c->name) > 0);
}

static void no_file_and_an_empty_file_give_the_defaults(void **state)
{
    (void)state;
    struct config c;
    struct err e = {0};
    assert_int_equal(config_defaults(&c, &e), 0);
    assert_int_equal(config_finish(&c, &e), 0);
    check_defaults(&c);
    config_free(&c);
    taken(&c, "# nothing\n");
    check_defaults(&c);
    config_free(&c);
    unlink(path);
    assert_int_equal(config_load(&c, path, &e), -ERR_NOT_FOUND);
    assert_int_equal(config_load(&c, directory, &e), -ERR_IO);
}

static void a_file_is_read_and_addresses_become_canonical(void **state)
{
    (void)state;
    struct config c;
    taken(&c,
          "name: build-7\nbind: 10.0.0.5\nhttp: [\"0.0.0.0\", \"[::]:80\", \"2001:DB8::1\"]\n"
          "api: none\nlog: {level: debug, format: json}\ngateway: {body_max: none, threads: 2}\n"
          "domain: apps.example.org\n");
    assert_string_equal(c.name, "build-7");
    assert_string_equal(c.bind, "10.0.0.5:7600");
    assert_string_equal(c.advertise, "10.0.0.5:7600");
    assert_int_equal(c.http.count, 3);
    assert_string_equal(c.http.items[0], "0.0.0.0:8080");
    assert_string_equal(c.http.items[1], "[::]:80");
    assert_string_equal(c.http.items[2], "[2001:db8::1]:8080");
    assert_string_equal(c.api, "none");
    assert_int_equal(c.log.level, LOG_LEVEL_DEBUG);
    assert_int_equal(c.log.format, LOG_FORMAT_JSON);
    assert_true(c.gateway.body_bytes_max == BYTES_NONE);
    config_free(&c);
}

static void wrong_files_are_refused_with_line_and_remedy(void **state)
{
    (void)state;
    static const struct {
        const char *text, *with;
    } bad[] = {
        {"name: a\nbind: 8.8.8.8:7600\n", "skerry.yaml:2: bind: 8.8.8.8:7600 is public"},
        {"bind: 0.0.0.0\n", "bind: 0.0.0.0:7600 is public"},
        {"bind: \"[2001:db8::1]:7600\"\n", "bind: [2001:db8::1]:7600 is public"},
        {"advertise: 1.2.3.4\n", "advertise: 1.2.3.4:7600 is public"},
        {"bind: example.org:7600\n", "bind: example.org:7600 is no address; names are not"},
        {"bind: 10.0.0.1:70000\n", "bind: 10.0.0.1:70000 is no address"},
        {"http: [\"127.0.0.1:80\", \"127.0.0.1:80\"]\n", "http: 127.0.0.1:80 is given twice"},
        {"http: []\n", "http: fewer items than allowed: 1 to 16"},
        {"api: localhost\n", "api: localhost is no address"},
        {"name: Node_1\n", "name: Node_1 is no name"},
        {"cluster: My_one\n", "cluster: My_one is no name"},
        {"name: -a\n", "name: -a is no name"},
        {"name: a-\n", "name: a- is no name"},
        {"domain: a..b\n", "domain: a..b is no domain"},
        {"domain: Example.org\n", "domain: Example.org is no domain"},
        {"log: {level: loud}\n", "log.level: loud is not possible; debug, info, warn or error"},
        {"gateway: {header_max: 2M}\n", "gateway.header_max: 2M is not possible; 1K to 1M are"},
        {"gateway: {connections_max: 0}\n", "gateway.connections_max: 0 is not possible"},
        {"log_level: debug\n", "skerry.yaml:1: log_level: unknown key. Here: log: {level: info}."},
        {"raft: {voters: 2}\n", "raft.voters: 2 is even"},
        {"raft: {voters: 9}\n", "raft.voters: 9 is not possible; 1 to 7 are"},
        {"peers: [\"8.8.8.8\"]\n", "peers: 8.8.8.8:7600 is public"},
        {"peers: [node1]\n", "peers: node1 is no address"},
        {"zone: \"a b\"\n", "zone: a b is no name"},
        {"labels: {disk: \"\"}\nretry_join: [a]\n", "Nomad's name; here: peers"},
        {"htpp: [a]\n", "Did you mean http?"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        refused(bad[i].text, bad[i].with);
}

static void a_public_peer_address_is_refused_with_all_of_the_remedy(void **state)
{
    (void)state;
    struct config c;
    struct err e = {0};
    write_file("bind: \"[2001:db8:1234:5678:9abc:def0:1234:5678]:7600\"\n");
    assert_int_equal(config_load(&c, path, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "192.168/16, 100.64/10, 127/8, fc00::/7, ::1): use one of"));
}

static void flags_override_the_file(void **state)
{
    (void)state;
    struct config c;
    taken(&c, "name: from-file\nhttp: [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n");
    flag(&c, "--name", "from-flag");
    assert_string_equal(c.name, "from-flag");
    flag(&c, "--http", "127.0.0.2:8080");
    assert_int_equal(c.http.count, 1);
    flag(&c, "--http", "127.0.0.2,[::1]:9,127.0.0.3:9");
    assert_int_equal(c.http.count, 3);
    assert_string_equal(c.http.items[0], "127.0.0.2:8080");
    assert_string_equal(c.http.items[1], "[::1]:9");
    assert_string_equal(c.http.items[2], "127.0.0.3:9");
    flag(&c, "--api", "127.0.0.2");
    assert_string_equal(c.api, "127.0.0.2:8081");
    flag(&c, "--bind", "127.0.0.2");
    flag(&c, "--advertise", "192.168.1.1:99");
    flag(&c, "--data", "/srv/skerry");
    assert_string_equal(c.data, "/srv/skerry");
    flag(&c, "--bootstrap", NULL);
    assert_true(c.bootstrap);
    flag_refused(&c, "--bind", "8.8.8.8", "--bind: 8.8.8.8:7600 is public");
    flag_refused(&c, "--http", "127.0.0.1,", "--http: ");
    flag_refused(&c, "--http", "", "--http: ");
    flag(&c, "--peers", "127.0.0.2,10.0.0.1:99");
    assert_int_equal(c.peers.count, 2);
    assert_string_equal(c.peers.items[0], "127.0.0.2:7600");
    assert_string_equal(c.peers.items[1], "10.0.0.1:99");
    flag_refused(&c, "--peers", "127.0.0.2,8.8.8.8", "--peers: 8.8.8.8:7600 is public");
    flag(&c, "--token-file", "/run/token");
    assert_string_equal(c.token_file, "/run/token");
    flag_refused(&c, "--frob", "x", "--frob: unknown flag");
    config_free(&c);
    bool takes_value;
    assert_true(config_flag_known("--data", &takes_value));
    assert_true(takes_value);
    assert_true(config_flag_known("--bootstrap", &takes_value));
    assert_false(takes_value);
    assert_false(config_flag_known("--frob", &takes_value));
}

static void the_api_does_not_share_an_address_with_the_gateway(void **state)
{
    (void)state;
    struct config c;
    struct err e = {0};
    assert_int_equal(config_defaults(&c, &e), 0);
    flag(&c, "--api", "127.0.0.1:8080");
    assert_int_equal(config_finish(&c, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "http and api are both 127.0.0.1:8080"));
    config_free(&c);
}

static void private_addresses_are_these(void **state)
{
    (void)state;
    static const char *const good[] = {"10.0.0.0",        "10.255.255.255", "172.16.0.1",
                                       "172.31.255.255",  "192.168.0.1",    "100.64.0.1",
                                       "100.127.255.255", "127.0.0.1",      "127.255.255.255",
                                       "fc00::1",         "[fdff::1]",      "::1"};
    static const char *const bad[] = {"9.255.255.255",  "11.0.0.0",    "172.15.255.255",
                                      "172.32.0.0",     "192.167.0.1", "192.169.0.0",
                                      "100.63.255.255", "100.128.0.0", "128.0.0.1",
                                      "0.0.0.0",        "::",          "fe80::1",
                                      "fb00::1",        "fe00::1",     "::ffff:10.0.0.1",
                                      "2001:db8::1",    "169.254.1.1", "::2"};
    struct sockaddr_storage address;
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        assert_int_equal(address_parse(&address, good[i], 1, NULL), 0);
        assert_true(address_private(&address));
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(address_parse(&address, bad[i], 1, NULL), 0);
        assert_false(address_private(&address));
    }
}

static void addresses_are_literal_and_complete(void **state)
{
    (void)state;
    struct sockaddr_storage address;
    char text[ADDRESS_TEXT_SIZE];
    static const char *const good[][2] = {{"127.0.0.1:0", "127.0.0.1:0"},
                                          {"127.0.0.1:65535", "127.0.0.1:65535"},
                                          {"[::1]:80", "[::1]:80"},
                                          {"[0:0::1]", "[::1]:7"},
                                          {"::1", "[::1]:7"},
                                          {"1.2.3.4", "1.2.3.4:7"}};
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        assert_int_equal(address_parse(&address, good[i][0], 7, NULL), 0);
        address_format(&address, text);
        assert_string_equal(text, good[i][1]);
    }
    static const char *const bad[] = {
        "",       ":80",          "127.0.0.1:",  "127.0.0.1:65536", "127.1:80",  "127.0.0.1:8x",
        "[::1",   "[::1]80",      "[1.2.3.4]",   "[::1]:",          "[]:80",     "*:80",
        "a.b:80", "127.0.0.1:-1", "[::1]:80:80", "1.2.3.4 :80",     "fe80::1%lo"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(address_parse(&address, bad[i], 7, NULL), -ERR_INVALID);
    assert_int_equal(address_parse(&address, "127.0.0.1", 0, NULL), -ERR_INVALID);
    char long_host[200];
    memset(long_host, '9', sizeof long_host);
    text_copy(long_host + 150, 4, ":80");
    assert_int_equal(address_parse(&address, long_host, 7, NULL), -ERR_INVALID);
}

static void https_is_whole_or_refused(void **state)
{
    (void)state;
    struct config c;
    taken(&c, "http: 127.0.0.1\n"
              "gateway: {acme_webroot: /srv/acme, tls: {listen: [\"0.0.0.0:443\", \"[::]\"],\n"
              "  certificate: a.pem, key: a.key, redirect: 0.0.0.0, minimum: \"1.3\"}}\n");
    assert_string_equal(c.gateway.tls.listen.items[0], "0.0.0.0:443");
    assert_string_equal(c.gateway.tls.listen.items[1], "[::]:8443");
    assert_string_equal(c.gateway.tls.redirect.items[0], "0.0.0.0:80");
    assert_string_equal(c.gateway.tls.certificate.items[0], "a.pem");
    assert_int_equal(c.gateway.tls.minimum, CONFIG_TLS_13);
    assert_int_equal(c.gateway.tls.handshake_timeout_ms, 10000);
    assert_string_equal(c.gateway.acme_webroot, "/srv/acme");
    config_free(&c);
    refused("gateway: {tls: {listen: 0.0.0.0}}\n", "HTTPS needs a certificate");
    refused("gateway:\n  tls: {listen: 0.0.0.0, certificate: [a, b], key: c}\n",
            "skerry.yaml:2: gateway.tls.certificate: 2 certificates and 1 keys");
    refused("gateway: {tls: {certificate: a, key: b}}\n", "nothing listens for HTTPS");
    refused("gateway: {tls: {redirect: 0.0.0.0}}\n", "nothing listens for HTTPS");
    refused("gateway: {tls: {listen: 0.0.0.0, certificate: a, key: b, minimum: \"1.1\"}}\n", "1.2");
    refused("tls: {}\n", "gateway: {tls:");
    refused("gateway: {tls: {cert: a}}\n", "Here: certificate:");
    struct err e = {0};
    write_file("http: 127.0.0.1:9000\n"
               "gateway: {tls: {listen: \"127.0.0.1:9000\", certificate: a, key: b}}\n");
    assert_int_equal(config_load(&c, path, &e), 0);
    assert_int_equal(config_finish(&c, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "http and gateway.tls.listen are both 127.0.0.1:9000"));
    config_free(&c);
}

static void ports_of_workloads_are_a_range_or_none(void **state)
{
    (void)state;
    struct config c;
    struct err e = {0};
    unsigned first = 1, last = 1;
    taken(&c, "http: \"10.0.0.1:80\"\n");
    assert_false(config_tcp_ports(&c, &first, &last));
    assert_int_equal(config_finish(&c, &e), 0);
    assert_string_equal(c.gateway.tcp.address, "10.0.0.1");
    config_free(&c);
    taken(&c, "gateway: {tcp: {ports: 30000-30999, address: \"::\"}}\n");
    assert_true(config_tcp_ports(&c, &first, &last));
    assert_int_equal(first, 30000);
    assert_int_equal(last, 30999);
    assert_string_equal(c.gateway.tcp.address, "[::]");
    config_free(&c);
    taken(&c, "gateway: {tcp: {ports: 5432}}\n");
    assert_true(config_tcp_ports(&c, &first, &last) && first == 5432 && last == 5432);
    config_free(&c);
    static const char *const bad[] = {"x",           "0",           "0-9", "30000-", "-30000",
                                      "30001-30000", "65535-65536", "1,2", "+1",     "30000 -1"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char text[80];
        (void)text_format(text, sizeof text, "gateway: {tcp: {ports: \"%s\"}}\n", bad[i]);
        refused(text, "skerry.yaml:1: gateway.tcp.ports: ");
        refused(text, "write FIRST-LAST as in 30000-30099");
    }
    refused("gateway: {tcp: {ports: 1-2000}}\n", "2000 ports; at most 1000");
    refused("gateway: {tcp: {address: \"127.0.0.1:80\"}}\n", "has a port; those are gateway.tcp");
    refused("gateway: {tcp: {address: example.org}}\n", "names are not looked up");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_file_and_an_empty_file_give_the_defaults),
        cmocka_unit_test(a_file_is_read_and_addresses_become_canonical),
        cmocka_unit_test(wrong_files_are_refused_with_line_and_remedy),
        cmocka_unit_test(a_public_peer_address_is_refused_with_all_of_the_remedy),
        cmocka_unit_test(flags_override_the_file),
        cmocka_unit_test(the_api_does_not_share_an_address_with_the_gateway),
        cmocka_unit_test(private_addresses_are_these),
        cmocka_unit_test(addresses_are_literal_and_complete),
        cmocka_unit_test(https_is_whole_or_refused),
        cmocka_unit_test(ports_of_workloads_are_a_range_or_none),
    };
    return cmocka_run_group_tests_name("config", tests, make_directory, remove_directory);
}
