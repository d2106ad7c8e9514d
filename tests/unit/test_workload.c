#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "base/memory.h"
#include "base/workload.h"

/* The shortest right server and command; what is appended stands in line 4. */
#define SERVER "id: chat\ncommand: [sh]\nport: 8080\n"
#define COMMAND "id: job\nkind: command\ncommand: [sh]\n"

static void taken(struct workload *w, const char *text)
{
    struct err e = {0};
    if (workload_parse(w, "chat.yaml", text, strlen(text), &e) != 0)
        fail_msg("refused: %s\n%s", e.msg, text);
}

static void refused(const char *text, const char *with)
{
    struct workload w, empty;
    struct err e = {0};
    memset(&w, 0x55, sizeof w);
    memset(&empty, 0, sizeof empty);
    if (workload_parse(&w, "chat.yaml", text, strlen(text), &e) != -ERR_INVALID)
        fail_msg("not refused: %s", text);
    assert_memory_equal(&w, &empty, sizeof w);
    if (strstr(e.msg, with) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.msg, with);
}

static char *json_of(const struct workload *w)
{
    json_t *json = workload_to_json(w);
    assert_non_null(json);
    char *text = json_dumps(json, 0);
    assert_non_null(text);
    json_decref(json);
    return text;
}

static const char design_example[] =
    "id: chat                          # ^[a-z][a-z0-9-]{0,61}[a-z0-9]$\n"
    "kind: server\n"
    "image: host\n"
    "source: ./app\n"
    "command: [\"python3\", \"-m\", \"http.server\", \"8080\"]\n"
    "port: 8080\n"
    "ready: listen\n"
    "environment: {LOG_LEVEL: info}\n"
    "user: \"1000\"\n"
    "read_only: false\n"
    "access: private                   # or public\n"
    "join:     {max_joiners: 10, window: 5m, key: \"header:X-Room\"}\n"
    "timeouts: {start: 10s, first_byte: 30s, request: 60s, stream_idle: 5m, drain: 30s}\n"
    "life:     {idle: 1m, max: 10m}    # idle: no joiner and no exec\n"
    "scale:    {idle_min: 0, max: 20, queue: 100, queue_timeout: 10s}\n"
    "healthcheck: {test: [\"CMD\", \"true\"], interval: 30s, timeout: 5s, retries: 3, "
    "start_period: 10s}\n"
    "deploy:   {resources: {limits: {cpus: \"0.5\", memory: 128M, pids: 64, disk: 64M}}}\n"
    "network:  {mode: none}            # none or egress\n";

static void the_file_of_the_design_is_read(void **state)
{
    (void)state;
    struct workload w;
    const char *key;
    taken(&w, design_example);
    assert_string_equal(w.id, "chat");
    assert_int_equal(w.kind, WORKLOAD_SERVER);
    assert_string_equal(w.source, "./app");
    assert_int_equal(w.command.count, 4);
    assert_int_equal(w.port, 8080);
    assert_int_equal(w.ready, READY_LISTEN);
    assert_string_equal(w.environment.items[0], "LOG_LEVEL=info");
    assert_int_equal(w.access, ACCESS_PRIVATE);
    assert_int_equal(w.join.max_joiners, 10);
    assert_int_equal(w.join.window_ms, 300000);
    assert_int_equal(workload_key_source(&w, &key), JOIN_KEY_HEADER);
    assert_string_equal(key, "X-Room");
    assert_int_equal(w.timeouts.start_ms, 10000);
    assert_int_equal(w.timeouts.first_byte_ms, 30000);
    assert_int_equal(w.timeouts.request_ms, 60000);
    assert_int_equal(w.timeouts.stream_idle_ms, 300000);
    assert_int_equal(w.timeouts.drain_ms, 30000);
    assert_int_equal(w.life.idle_ms, 60000);
    assert_int_equal(w.life.max_ms, 600000);
    assert_int_equal(w.scale.max, 20);
    assert_int_equal(w.healthcheck.test.count, 2);
    assert_int_equal(w.limits.cpus_thousandths, 500);
    assert_int_equal(w.limits.memory_bytes, 128 << 20);
    assert_int_equal(w.limits.pids, 64);
    assert_int_equal(w.limits.disk_bytes, 64 << 20);
    assert_true(w.limits.io_bytes == BYTES_NONE);
    assert_int_equal(w.network.mode, NETWORK_NONE);
    workload_free(&w);
}

static void placement_is_read(void **state)
{
    (void)state;
    struct workload w;
    taken(&w, SERVER "placement: {zone: eu-1, labels: {disk: ssd, gpu: \"\"}, spread: zone}\n");
    assert_string_equal(w.placement.zone, "eu-1");
    assert_int_equal(w.placement.labels.count, 2);
    assert_string_equal(w.placement.labels.items[0], "disk=ssd");
    assert_string_equal(w.placement.labels.items[1], "gpu=");
    assert_int_equal(w.placement.spread, SPREAD_ZONE);
    workload_free(&w);
    taken(&w, SERVER);
    assert_string_equal(w.placement.zone, "");
    assert_int_equal(w.placement.labels.count, 0);
    assert_int_equal(w.placement.spread, SPREAD_NONE);
    workload_free(&w);
}

static void profile_is_read(void **state)
{
    (void)state;
    struct workload w;
    taken(&w, SERVER "sandbox: {profile: strict}\n");
    assert_int_equal(w.sandbox.profile, PROFILE_STRICT);
    assert_string_equal(workload_profile_name(&w), "strict");
    workload_free(&w);
    taken(&w, SERVER);
    assert_string_equal(workload_profile_name(&w), "default");
    workload_free(&w);
    refused(SERVER "sandbox: {profile: none}\n", "strict");
}

static void defaults_are_as_documented(void **state)
{
    (void)state;
    struct workload w;
    taken(&w, SERVER);
    assert_string_equal(w.image, "host");
    assert_string_equal(w.source, "");
    assert_int_equal(w.ready, READY_LISTEN);
    assert_string_equal(w.user, "1000");
    assert_false(w.read_only);
    assert_int_equal(w.access, ACCESS_PRIVATE);
    assert_int_equal(w.join.max_joiners, 100);
    assert_true(w.join.window_ms == DURATION_NONE);
    assert_int_equal(w.timeouts.request_ms, 60000);
    assert_int_equal(w.life.idle_ms, 300000);
    assert_true(w.life.max_ms == DURATION_NONE);
    assert_int_equal(w.scale.idle_min, 0);
    assert_int_equal(w.scale.max, 20);
    assert_int_equal(w.limits.cpus_thousandths, 1000);
    assert_int_equal(w.limits.memory_bytes, 256 << 20);
    workload_free(&w);
}

static void a_command_joins_nobody_and_waits_for_nothing(void **state)
{
    (void)state;
    struct workload w;
    taken(&w, COMMAND);
    assert_int_equal(w.ready, READY_NONE);
    assert_int_equal(w.join.max_joiners, 1);
    assert_true(w.life.idle_ms == DURATION_NONE);
    workload_free(&w);
    static const char *const bad[] = {
        "port: 80\n",
        "protocol: tcp\n",
        "listen: {tcp: 30000}\n",
        "ready: listen\n",
        "join: {max_joiners: 2}\n",
        "join: {window: 5m}\n",
        "join: {key: \"path:1\"}\n",
        "life: {idle: 5m}\n",
        "scale: {idle_min: 1}\n",
        "healthcheck: {test: [CMD, \"true\"]}\n",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char text[200];
        assert_true(text_format(text, sizeof text, COMMAND "%s", bad[i]));
        refused(text, "chat.yaml:4: ");
        refused(text, "kind: command runs once per request");
    }
    refused("id: job\nkind: command\n", "command: missing");
}

static void defaults_give_way_to_what_is_written(void **state)
{
    (void)state;
    struct workload w;
    taken(&w, SERVER "life: {max: 1m}\ntimeouts: {request: 5s}\n");
    assert_int_equal(w.life.idle_ms, 60000);
    assert_int_equal(w.timeouts.first_byte_ms, 5000);
    workload_free(&w);
    taken(&w, SERVER "join: {window: none}\nlife: {idle: none, max: 1m}\n"
                     "timeouts: {first_byte: none, request: 5s}\n");
    assert_true(w.life.idle_ms == DURATION_NONE);
    workload_free(&w);
}

static void what_could_never_act_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *with;
    } bad[] = {
        {"id: chat\ncommand: [sh]\n", "chat.yaml:1: port: a server needs one"},
        {"id: chat\ncommand: [sh]\nport: 0\n", "chat.yaml:3: port: a server needs one"},
        {"id: chat\nport: 80\n", "chat.yaml:1: command: missing"},
        {"id: chat\nready: none\nprotocol: tcp\n",
         "chat.yaml:3: protocol: tcp needs the port that the code listens on: port: 5432"},
        {SERVER "listen: {tcp: 30000}\n", "chat.yaml:4: listen.tcp: only with protocol: tcp"},
        {SERVER "protocol: tcp\nlisten: {tcp: 30000}\n", "say access: public, or leave it out"},
        {SERVER "protocol: tcp\naccess: public\njoin: {key: \"path:1\"}\nlisten: {tcp: 30000}\n",
         "chat.yaml:7: listen.tcp: a connection brings no key"},
        {SERVER "listen: {port: 80}\n", "listen: {tcp: 30001} where nodes do"},
        {SERVER "protocol: udp\n", "chat.yaml:4: protocol: udp is not possible"},
        {SERVER "ready: healthcheck\n", "chat.yaml:4: ready: healthcheck needs one"},
        {SERVER "ready: healthcheck\nhealthcheck: {test: [NONE]}\n", "ready: healthcheck needs"},
        {SERVER "life: {max: 1m}\njoin: {window: 5m}\n",
         "chat.yaml:5: join.window: 5m is longer than life.max: 1m"},
        {SERVER "life: {max: 1m, idle: 2m}\n", "life.idle: 2m is longer than life.max: 1m"},
        {SERVER "timeouts: {first_byte: 61s}\n", "first_byte: 61s is longer than timeouts.request"},
        {SERVER "scale: {idle_min: 3, max: 2}\n", "scale.idle_min: more instances ahead"},
        {SERVER "scale: {max: 0}\n", "scale.max: 0 is not possible; 1 to 100000 are allowed"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        refused(bad[i].text, bad[i].with);
    struct workload w;
    taken(&w, "id: shell\nready: none\n");
    workload_free(&w);
}

static void impossible_values_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *with;
    } bad[] = {
        {"command: [sh]\nport: 1\n", "chat.yaml:1: id: missing"},
        {"", "chat.yaml:1: id: missing"},
        {"id: Chat\n", "id: Chat is no name"},
        {"id: 7up\n", "id: 7up is no name"},
        {"id: a\n", "id: a is no name"},
        {"id: chat-\n", "id: chat- is no name"},
        {SERVER "user: 65535\n", "chat.yaml:4: user: 65535 is not possible"},
        {SERVER "user: \"0:65535\"\n", "user: 0:65535 is not possible"},
        {SERVER "user: root\n", "user: root is not possible; UID or UID:GID, numbers"},
        {SERVER "user: \"1:2:3\"\n", "user: "},
        {SERVER "user: -1\n", "user: "},
        {SERVER "image: ../etc\n", "image: ../etc is no image"},
        {SERVER "image: Alpine\n", "image: Alpine is no image"},
        {SERVER "image: sha256:abc\n", "image: sha256:abc is no image"},
        {SERVER "deploy: {resources: {limits: {memory: 1M}}}\n",
         "chat.yaml:4: deploy.resources.limits.memory: 1M is not possible; 8M to 16T are allowed"},
        {SERVER "deploy: {resources: {limits: {memory: 128 MB}}}\n", "128 MB is no size"},
        {SERVER "deploy: {resources: {limits: {pids: 1}}}\n", "limits.pids: 1 is not possible"},
        {SERVER "deploy: {resources: {limits: {cpus: 0}}}\n", "limits.cpus: 0 is not possible"},
        {SERVER "deploy: {resources: {limits: {cpus: half}}}\n", "half is no decimal number"},
        {SERVER "deploy: {resources: {limits: {disk: 0}}}\n", "limits.disk: 0 is not possible"},
        {SERVER "deploy: {resources: {limits: {io: 64K}}}\n",
         "limits.io: 64K is not possible; 1M to 1T, or none, are allowed"},
        {SERVER "scale: {target: 0}\n", "scale.target: 0 is not possible; 0.01 to 1 are allowed"},
        {SERVER "scale: {target: 80%}\n", "80% is no decimal number"},
        {SERVER "scale: {target: 0.5}\njoin: {max_joiners: 0}\n",
         "scale.target: join.max_joiners: 0"},
        {SERVER "scale: {target: 0.5}\njoin: {key: \"header:X-Room\"}\n",
         "scale.target: each key has one instance"},
        {SERVER "timeouts: {start: none}\n", "timeouts.start: none is not allowed here"},
        {SERVER "timeouts: {request: 0s}\n", "write none to disable it"},
        {SERVER "timeouts: {request: 30}\n", "timeouts.request: 30 has no unit"},
        {SERVER "network: {bandwidth: 1M}\n", "network.bandwidth: network.mode is none"},
        {SERVER "network: {mode: egress, bandwidth: 1K}\n",
         "network.bandwidth: 1K is not possible; 16K to 1G, or none, are allowed"},
        {SERVER "network: {mode: host}\n", "network.mode: host is not possible; none or egress"},
        {SERVER "join: {key: room}\n", "join.key: room is no key"},
        {SERVER "join: {key: \"header:\"}\n", "join.key: header: is no key"},
        {SERVER "join: {key: \"header:X Room\"}\n", "is no key"},
        {SERVER "join: {key: \"path:0\"}\n", "is no key"},
        {SERVER "join: {key: \"path:17\"}\n", "is no key"},
        {SERVER "join: {key: \"path:x\"}\n", "is no key"},
        {SERVER "join: {key: \"query:a&b\"}\n", "is no key"},
        {SERVER "join: {key: \"cookie:a;b\"}\n", "is no key"},
        {SERVER "join: {max_joiners: -1}\n", "join.max_joiners: -1 is no whole number"},
        {SERVER "environment: {SKERRY_KEY: x}\n", "SKERRY_KEY is set by Skerry itself"},
        {SERVER "environment: {PORT: 1}\n", "PORT is set by Skerry itself"},
        {SERVER "environment: {A-B: 1}\n", "A-B is no name of a variable"},
        {SERVER "environment: {1A: 1}\n", "1A is no name of a variable"},
        {SERVER "healthcheck: {test: [\"true\"]}\n", "healthcheck.test: write [\"CMD\""},
        {SERVER "healthcheck: {test: [CMD]}\n", "healthcheck.test: write"},
        {SERVER "healthcheck: {test: [CMD-SHELL, a, b]}\n", "healthcheck.test: write"},
        {"id: chat\nport: 1\ncommand: python3 app.py\n", "chat.yaml:3: command: one text with"},
        {"id: chat\nport: 1\ncommand: [\"\"]\n", "command: the program is empty"},
        {SERVER "placement: {spread: host}\n", "placement.spread: host is not possible; none, "},
        {SERVER "placement: {labels: {\"\": ssd}}\n", "\"\" is no name"},
        {SERVER "placement: {labels: {a: "
                "0123456789012345678901234567890123456789012345678901234567890123}}\n",
         "both of at most 63 characters"},
        {SERVER "placement: {zone: "
                "0123456789012345678901234567890123456789012345678901234567890123}\n",
         "chat.yaml:4: placement.zone"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        refused(bad[i].text, bad[i].with);
}

static void words_from_elsewhere_get_ours(void **state)
{
    (void)state;
    static const struct {
        const char *text, *with;
    } bad[] = {
        {"network_mode: host\n", "chat.yaml:4: network_mode: unknown key. Compose's name; here: "
                                 "network: {mode: egress}."},
        {"ports: [\"80:80\"]\n", "Compose's name; here: port: 8080"},
        {"mem_limit: 1G\n", "here: deploy: {resources: {limits: {memory: 128M}}}."},
        {"cpus: 0.5\n", "here: deploy: {resources: {limits: {cpus: \"0.5\"}}}."},
        {"deploy: {replicas: 3}\n", "chat.yaml:4: deploy.replicas: unknown key. Instances start"},
        {"replicas: 3\n", "scale: {idle_min: 1, max: 20}"},
        {"volumes: [a]\n", "source: FOLDER"},
        {"restart: always\n", "nothing is restarted"},
        {"depends_on: [db]\n", "leave it out"},
        {"entrypoint: [a]\n", "command:"},
        {"env: {A: 1}\n", "environment: {NAME: value}"},
        {"env_file: .env\n", "environment: {NAME: value}"},
        {"build: .\n", "skerry image import"},
        {"expose: [80]\n", "port: 8080"},
        {"working_dir: /x\n", "/app"},
        {"container_name: x\n", "id:"},
        {"services: {web: {image: x}}\n", "one file is one workload"},
        {"timeout: 5s\n", "timeouts: {request: 60s}"},
        {"kidn: server\n", "Did you mean kind?"},
        {"healtcheck: {}\n", "Did you mean healthcheck?"},
        {"join: {max_joiner: 1}\n", "Did you mean join.max_joiners?"},
        {"window: 5m\n", "it stands at join.window"},
        {"spread: zone\n", "it stands at placement.spread"},
        {"deploy: {placement: {constraints: [x]}}\n", "here: placement: {zone: a, labels:"},
        {"placement: {constraints: [x]}\n", "here: placement: {zone: a, labels:"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char text[200];
        assert_true(text_format(text, sizeof text, SERVER "%s", bad[i].text));
        refused(text, "chat.yaml:4: ");
        refused(text, bad[i].with);
    }
}

/* A hint for a key that the table knows, or that names none of ours, would never be shown or lead
 * nowhere; one that does not fit into an error would be cut. */
static void hints_are_about_foreign_keys_and_fit(void **state)
{
    (void)state;
    const struct field_table *table = workload_fields();
    for (const struct field_hint *h = table->hints; h->path != NULL; h++) {
        for (size_t i = 0; i < table->count; i++)
            assert_string_not_equal(table->fields[i].path, h->path);
        for (const struct field_hint *other = table->hints; other != h; other++)
            assert_string_not_equal(other->path, h->path);
        assert_true(strlen(h->path) + strlen(h->remedy) < 200);
        assert_int_equal(h->remedy[strlen(h->remedy) - 1], '.');
    }
}

static void the_registrys_json_reads_back_the_same(void **state)
{
    (void)state;
    static const char *const texts[] = {
        design_example,
        SERVER,
        COMMAND,
        "id: shell\nready: none\n",
        SERVER "join: {max_joiners: 0, key: \"path:3\"}\nlife: {idle: none}\nscale: {queue: 0}\n",
        SERVER "environment: {A: \"\", B: \"x=\\\"y\\\"\\n\", C: \"\xc3\xa9\"}\nlife: {max: 7ms}\n",
        SERVER "deploy: {resources: {limits: {cpus: 0.01, memory: 9999999}}}\n",
        COMMAND "timeouts: {request: none, first_byte: none, stream_idle: none}\nuser: \"0:0\"\n",
        SERVER "source: sha256:"
               "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n",
        SERVER "healthcheck: {test: [NONE]}\nnetwork: {mode: egress}\naccess: public\n",
        SERVER "placement: {zone: z, labels: [a=b, \"c=d=e\"], spread: node}\n",
    };
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        struct workload w, again, copy;
        taken(&w, texts[i]);
        char *text = json_of(&w);
        taken(&again, text);
        char *text_again = json_of(&again);
        assert_string_equal(text, text_again);
        assert_int_equal(workload_copy(&copy, &w, NULL), 0);
        workload_free(&w);
        char *text_copy = json_of(&copy);
        assert_string_equal(text, text_copy);
        free(text);
        free(text_again);
        free(text_copy);
        workload_free(&again);
        workload_free(&copy);
    }
}

static void keys_name_their_source(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        enum join_key_source source;
        const char *name;
    } keys[] = {
        {"", JOIN_KEY_NONE, ""},
        {"header:X-Room", JOIN_KEY_HEADER, "X-Room"},
        {"query:room", JOIN_KEY_QUERY, "room"},
        {"cookie:room", JOIN_KEY_COOKIE, "room"},
        {"path:16", JOIN_KEY_PATH, "16"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
        struct workload w = {.join = {.key = (char *)(uintptr_t)keys[i].key}};
        const char *name;
        assert_int_equal(workload_key_source(&w, &name), keys[i].source);
        assert_string_equal(name, keys[i].name);
    }
}

static void users_are_numbers_below_the_agents(void **state)
{
    (void)state;
    uint32_t uid, gid;
    assert_true(workload_user_parse("0", &uid, &gid));
    assert_int_equal(uid + gid, 0);
    assert_true(workload_user_parse("1000", &uid, &gid));
    assert_int_equal(gid, 1000);
    assert_true(workload_user_parse("65534:12", &uid, &gid));
    assert_int_equal(uid, 65534);
    assert_int_equal(gid, 12);
    static const char *const bad[] = {"",        "65535", "1:",    ":1",
                                      "1:65535", "a",     "1:2:3", "01",
                                      "999999",  "1 ",    "+1",    "99999999999999999999"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(workload_user_parse(bad[i], &uid, &gid));
}

static void too_much_text_is_refused(void **state)
{
    (void)state;
    struct buffer b;
    buffer_init(&b, 1 << 20);
    assert_true(buffer_append_text(&b, SERVER "environment:\n"));
    for (int i = 0; i < 250; i++)
        assert_true(buffer_printf(&b, "  V%d: \"%0500d\"\n", i, i));
    assert_true(buffer_append(&b, "", 1));
    refused(b.data, "chat.yaml:4: environment: command, environment and healthcheck hold");
    b.length = 0;
    assert_true(buffer_append_text(&b, SERVER "environment:\n"));
    for (int i = 0; i < 300; i++)
        assert_true(buffer_printf(&b, "  V%d: x\n", i));
    assert_true(buffer_append(&b, "", 1));
    refused(b.data, "environment: more items than allowed: 0 to 256");
    buffer_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_file_of_the_design_is_read),
        cmocka_unit_test(placement_is_read),
        cmocka_unit_test(profile_is_read),
        cmocka_unit_test(defaults_are_as_documented),
        cmocka_unit_test(a_command_joins_nobody_and_waits_for_nothing),
        cmocka_unit_test(defaults_give_way_to_what_is_written),
        cmocka_unit_test(what_could_never_act_is_refused),
        cmocka_unit_test(impossible_values_are_refused),
        cmocka_unit_test(words_from_elsewhere_get_ours),
        cmocka_unit_test(hints_are_about_foreign_keys_and_fit),
        cmocka_unit_test(the_registrys_json_reads_back_the_same),
        cmocka_unit_test(keys_name_their_source),
        cmocka_unit_test(users_are_numbers_below_the_agents),
        cmocka_unit_test(too_much_text_is_refused),
    };
    return cmocka_run_group_tests_name("workload", tests, NULL, NULL);
}
