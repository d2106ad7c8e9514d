#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fields.h"
#include "base/memory.h"

struct target {
    char *name;
    bool flag;
    uint64_t number, size, time, cpus;
    int word;
    struct field_list list, map;
    uint64_t deep;
};

#define AT(member) offsetof(struct target, member)
static const char *const words[] = {"red", "green", "blue", NULL};
static const struct field fields[] = {
    {.path = "name",
     .type = FIELD_TEXT,
     .offset = AT(name),
     .min = 1,
     .max = 5,
     .meaning = "what it is called"},
    {.path = "flag", .type = FIELD_BOOL, .offset = AT(flag), .fallback = "true"},
    {.path = "number", .type = FIELD_UINT, .offset = AT(number), .fallback = "7", .max = 100},
    {.path = "size",
     .type = FIELD_BYTES,
     .offset = AT(size),
     .fallback = "1K",
     .min = 10,
     .none_allowed = true},
    {.path = "time",
     .type = FIELD_DURATION,
     .offset = AT(time),
     .fallback = "none",
     .min = 10,
     .max = 60000,
     .none_allowed = true},
    {.path = "cpus",
     .type = FIELD_DECIMAL,
     .offset = AT(cpus),
     .fallback = "0.5",
     .min = 1,
     .max = 4000},
    {.path = "word", .type = FIELD_WORD, .offset = AT(word), .fallback = "green", .words = words},
    {.path = "list", .type = FIELD_TEXT_LIST, .offset = AT(list), .fallback = "", .max = 3},
    {.path = "map", .type = FIELD_TEXT_MAP, .offset = AT(map), .fallback = "A=1"},
    {.path = "one.two.deep", .type = FIELD_UINT, .offset = AT(deep), .fallback = "1"},
};
static const struct field_hint hints[] = {
    {"colour", "Another's name; here: word."},
    {"one.three", "Here: one: {two: ...}."},
    {NULL, NULL},
};
static const struct field_table table = {
    .fields = fields, .count = ARRAY_SIZE(fields), .hints = hints};

static int parse(struct target *t, const char *text, struct err *e)
{
    struct document *d;
    assert_int_equal(document_parse(&d, "t.yaml", text, strlen(text), e), 0);
    int rc = fields_parse(&table, d, t, e);
    document_free(d);
    return rc;
}

static void taken(struct target *t, const char *text)
{
    struct err e = {0};
    if (parse(t, text, &e) != 0)
        fail_msg("refused: %s", e.msg);
}

static void refused(const char *text, const char *with)
{
    struct target t, empty = {0};
    struct err e = {0};
    memset(&t, 0, sizeof t);
    assert_int_equal(parse(&t, text, &e), -ERR_INVALID);
    assert_memory_equal(&t, &empty, sizeof t);
    if (strstr(e.msg, with) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.msg, with);
}

static void what_is_not_written_gets_its_default(void **state)
{
    (void)state;
    struct target t;
    taken(&t, "name: x\n");
    assert_string_equal(t.name, "x");
    assert_true(t.flag);
    assert_int_equal(t.number, 7);
    assert_int_equal(t.size, 1024);
    assert_true(t.time == DURATION_NONE);
    assert_int_equal(t.cpus, 500);
    assert_int_equal(t.word, 1);
    assert_int_equal(t.list.count, 0);
    assert_int_equal(t.map.count, 1);
    assert_string_equal(t.map.items[0], "A=1");
    assert_int_equal(t.deep, 1);
    fields_free(&table, &t);
}

static void every_type_is_read(void **state)
{
    (void)state;
    struct target t;
    taken(&t, "name: \"12\"\nflag: false\nnumber: 100\nsize: \"2MiB\"\ntime: 1m\ncpus: 4\n"
              "word: blue\nlist: [a, 5, true]\nmap: {X: 1, Y: \"\", Z: a=b}\n"
              "one:\n  two:\n    deep: 9\n");
    assert_string_equal(t.name, "12");
    assert_false(t.flag);
    assert_int_equal(t.number, 100);
    assert_int_equal(t.size, 2 * 1024 * 1024);
    assert_int_equal(t.time, 60000);
    assert_int_equal(t.cpus, 4000);
    assert_int_equal(t.word, 2);
    assert_int_equal(t.list.count, 3);
    assert_string_equal(t.list.items[1], "5");
    assert_int_equal(t.map.count, 3);
    assert_string_equal(t.map.items[1], "Y=");
    assert_string_equal(t.map.items[2], "Z=a=b");
    assert_int_equal(t.deep, 9);
    fields_free(&table, &t);
    taken(&t, "name: x\nlist: alone\nmap: [A=1, B=]\none:\nsize: none\n");
    assert_int_equal(t.list.count, 1);
    assert_int_equal(t.map.count, 2);
    assert_true(t.size == BYTES_NONE);
    fields_free(&table, &t);
}

static void wrong_values_are_refused_with_what_is_allowed(void **state)
{
    (void)state;
    static const struct {
        const char *text, *with;
    } bad[] = {
        {"flag: true\n", "t.yaml:1: name: missing; what it is called"},
        {"name: x\nflag: yes\n", "t.yaml:2: flag: yes is neither true nor false"},
        {"name: x\nflag: \"true\"\n", "flag: \"true\" in quotes is a text; write true"},
        {"name: x\n\nnumber: 101\n", "t.yaml:3: number: 101 is not possible; 0 to 100 are"},
        {"name: x\nnumber: -1\n", "number: -1 is no whole number; 0 to 100 are allowed"},
        {"name: x\nnumber: 1.5\n", "number: 1.5 is no whole number"},
        {"name: x\nnumber: 010\n", "number: 010 is no whole number"},
        {"name: x\nnumber: 0x10\n", "number: 0x10 is no whole number"},
        {"name: x\nnumber: \"5\"\n", "number: \"5\" in quotes is a text; write 5"},
        {"name: x\nnumber: 99999999999999999999\n", "is no whole number"},
        {"name: x\nnumber: [1]\n", "number: a list stands here; a whole number is expected"},
        {"name: x\nnumber: {a: 1}\n", "number: a map stands here"},
        {"name: x\nnumber:\n", "number: it has no value; a whole number is expected"},
        {"name: x\nnumber: null\n", "number: it has no value"},
        {"name: ~\n", "name: it has no value"},
        {"name: \"\"\n", "name: it is empty"},
        {"name: toolong\n", "name: 7 bytes; 1 to 5 are allowed"},
        {"name: \"a\\nb\"\n", "name: a control character"},
        {"name: x\nsize: big\n", "size: big is no size"},
        {"name: x\nsize: 9\n", "size: 9 is too small; at least 10, or none"},
        {"name: x\ntime: 0s\n", "time: 0s is refused"},
        {"name: x\ntime: 5m\n", "time: 5m is not possible; 10ms to 1m, or none, are allowed"},
        {"name: x\ncpus: 5\n", "cpus: 5 is not possible; 0.001 to 4 are allowed"},
        {"name: x\nword: Red\n", "word: Red is not possible; red, green or blue are allowed"},
        {"name: x\nlist: [a, b, c, d]\n", "list: more items than allowed: 0 to 3"},
        {"name: x\nlist:\n - a\n - [b]\n", "t.yaml:4: list: a list or map stands"},
        {"name: x\nlist: [a, null]\n", "list: an item has no value"},
        {"name: x\nlist: {a: b}\n", "list: a map stands here; a list of texts is expected"},
        {"name: x\nmap: [A]\n", "map: A has no value; write NAME=value"},
        {"name: x\nmap: [=1]\n", "map: =1 has no value"},
        {"name: x\nmap: [A=1, A=2]\n", "map: A=2 is given twice"},
        {"name: x\nmap:\n  A: 1\n  B:\n", "t.yaml:4: map: B has no value; nothing is taken"},
        {"name: x\nmap: {A: [1]}\n", "map: A: a list or map stands"},
        {"name: x\nmap: {\"A=B\": 1}\n", "map: \"A=B\" is no name"},
        {"name: x\nmap: {\"\": 1}\n", "map: \"\" is no name"},
        {"name: x\none: 5\n", "t.yaml:2: one: a map is expected here, with: two"},
        {"name: x\none: {two: [deep]}\n", "one.two: a map is expected here, with: deep"},
        {"- name\n", "t.yaml:1: keys and values are expected: name, flag"},
        {"just words\n", "keys and values are expected"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        refused(bad[i].text, bad[i].with);
}

static void unknown_keys_are_refused_with_the_remedy(void **state)
{
    (void)state;
    static const struct {
        const char *text, *with;
    } bad[] = {
        {"name: x\ncolour: red\n", "t.yaml:2: colour: unknown key. Another's name; here: word."},
        {"name: x\none: {three: 1}\n", "one.three: unknown key. Here: one: {two: ...}."},
        {"nmae: x\n", "t.yaml:1: nmae: unknown key. Did you mean name?"},
        {"name: x\nnumbr: 1\n", "Did you mean number?"},
        {"name: x\none: {tow: {}}\n", "one.tow: unknown key. Did you mean one.two?"},
        {"name: x\none: {two: {deeper: 1}}\n", "Did you mean one.two.deep?"},
        {"name: x\ndeep: 1\n", "deep: unknown key here; it stands at one.two.deep"},
        {"name: x\nzzzzzz: 1\n", "Allowed here: name, flag, number, size, time, cpus, word, list"},
        {"name: x\none: {zzzzzz: 1}\n", "Allowed below one.: two"},
        {"name: x\n\"\": 1\n", "t.yaml:2: : unknown key"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        refused(bad[i].text, bad[i].with);
    /* A very long key is shown cut, and compared with nothing. */
    char text[400] = "name: x\n";
    memset(text + 8, 'n', 300);
    memcpy(text + 308, ": 1\n", 5);
    refused(text, "nnn...: unknown key");
}

static void a_dotted_key_is_no_path(void **state)
{
    (void)state;
    refused("name: x\none.two.deep: 3\n", "unknown key. Write one: {two: {deep: ...}}");
    refused("name: x\none: {\"two.deep\": 3}\n", "unknown key. Write one: {two: {deep: ...}}");
    refused("name: x\none.two.zzzzzzz: 3\n", "unknown key. Allowed here");
}

static void values_survive_json_exactly(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "name: x\n",
        "name: \"7\"\nflag: false\nnumber: 0\nsize: 1000\ntime: 59999ms\ncpus: 0.125\nword: red\n"
        "list: [\"\", \"a b\", \"\xc3\xa9\\n\"]\nmap: {A: \"\", B: \"x=\\\"y\\\"\"}\n"
        "one: {two: {deep: 9223372036854775807}}\n",
        "name: \"yes\"\nsize: none\ntime: none\n",
    };
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        struct target t, again;
        taken(&t, texts[i]);
        json_t *json = fields_to_json(&table, &t);
        char *text = json_dumps(json, 0);
        taken(&again, text);
        json_t *json_again = fields_to_json(&table, &again);
        assert_true(json_equal(json, json_again));
        char *text_again = json_dumps(json_again, 0);
        assert_string_equal(text, text_again);
        free(text);
        free(text_again);
        json_decref(json);
        json_decref(json_again);
        fields_free(&table, &t);
        fields_free(&table, &again);
    }
}

static void a_copy_shares_nothing(void **state)
{
    (void)state;
    struct target t, copy;
    struct err e;
    taken(&t, "name: x\nlist: [a, b]\nnumber: 3\n");
    assert_int_equal(fields_copy(&table, &copy, &t, &e), 0);
    fields_free(&table, &t);
    assert_null(t.name);
    assert_string_equal(copy.name, "x");
    assert_int_equal(copy.list.count, 2);
    assert_string_equal(copy.list.items[1], "b");
    assert_int_equal(copy.number, 3);
    fields_free(&table, &copy);
}

static void a_flag_replaces_one_value_or_nothing(void **state)
{
    (void)state;
    struct target t;
    struct err e = {0};
    taken(&t, "name: x\nlist: [a, b]\n");
    assert_int_equal(fields_set(&table, &t, "name", "y", "--name", &e), 0);
    assert_string_equal(t.name, "y");
    assert_int_equal(fields_set(&table, &t, "name", "toolong", "--name", &e), -ERR_INVALID);
    assert_string_equal(e.msg, "--name: 7 bytes; 1 to 5 are allowed");
    assert_string_equal(t.name, "y");
    assert_int_equal(fields_set(&table, &t, "name", "\xff", "--name", &e), -ERR_INVALID);
    assert_int_equal(fields_set(&table, &t, "list", "c", "--list", &e), 0);
    assert_int_equal(t.list.count, 1);
    assert_int_equal(fields_set(&table, &t, "time", "30s", "--time", &e), 0);
    assert_int_equal(t.time, 30000);
    fields_free(&table, &t);
    assert_int_equal(fields_defaults(&table, &t, &e), 0);
    assert_null(t.name);
    assert_int_equal(t.number, 7);
    fields_free(&table, &t);
}

static void durations_have_one_unit_and_are_never_zero(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t ms;
        const char *shown;
    } good[] = {
        {"250ms", 250, "250ms"}, {"30s", 30000, "30s"},      {"60s", 60000, "1m"},
        {"90s", 90000, "90s"},   {"5m", 300000, "5m"},       {"1h", 3600000, "1h"},
        {"24h", 86400000, "1d"}, {"1500ms", 1500, "1500ms"}, {"none", DURATION_NONE, "none"},
        {"036s", 36000, "36s"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        uint64_t ms;
        char shown[UNIT_TEXT_SIZE];
        assert_int_equal(duration_parse(&ms, good[i].text, true, NULL), 0);
        assert_true(ms == good[i].ms);
        duration_format(ms, shown);
        assert_string_equal(shown, good[i].shown);
    }
    static const char *const bad[] = {"",
                                      "0",
                                      "0s",
                                      "5",
                                      "s",
                                      "-1s",
                                      "1.5h",
                                      "1h5m",
                                      "1 s",
                                      " 1s",
                                      "1S",
                                      "1y",
                                      "None",
                                      "0ms",
                                      "1s ",
                                      "1e3ms",
                                      "99999999999999999999s",
                                      "99999999999999999d",
                                      "31710y",
                                      "1000000000001000s"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        uint64_t ms = 5;
        struct err e = {0};
        assert_int_equal(duration_parse(&ms, bad[i], true, &e), -ERR_INVALID);
        assert_int_equal(ms, 5);
        assert_true(e.msg[0] != '\0');
    }
    struct err e = {0};
    uint64_t ms;
    assert_int_equal(duration_parse(&ms, "0s", true, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "write none to disable it"));
    assert_int_equal(duration_parse(&ms, "0s", false, &e), -ERR_INVALID);
    assert_null(strstr(e.msg, "none"));
    assert_int_equal(duration_parse(&ms, "none", false, &e), -ERR_INVALID);
}

static void sizes_are_powers_of_1024(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
        const char *shown;
    } good[] = {
        {"0", 0, "0"},
        {"1000", 1000, "1000"},
        {"1024", 1024, "1K"},
        {"64k", 65536, "64K"},
        {"128M", 134217728, "128M"},
        {"128Mi", 134217728, "128M"},
        {"128MB", 134217728, "128M"},
        {"128mib", 134217728, "128M"},
        {"1536M", 1610612736, "1536M"},
        {"1G", 1073741824, "1G"},
        {"2T", 2199023255552, "2T"},
        {"100b", 100, "100"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        uint64_t bytes;
        char shown[UNIT_TEXT_SIZE];
        assert_int_equal(bytes_parse(&bytes, good[i].text, NULL), 0);
        assert_true(bytes == good[i].bytes);
        bytes_format(bytes, shown);
        assert_string_equal(shown, good[i].shown);
    }
    static const char *const bad[] = {"",     "M",   "-1M",      "1.5G", "1P",
                                      "1 M",  "1MM", "1iB",      "1Kb ", "18446744073709551615",
                                      "none", "1i",  "16777216T"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        uint64_t bytes;
        assert_int_equal(bytes_parse(&bytes, bad[i], NULL), -ERR_INVALID);
    }
}

static void cpus_have_three_digits_behind_the_point(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t thousandths;
        const char *shown;
    } good[] = {
        {"2", 2000, "2"},      {"0.5", 500, "0.5"}, {"0.125", 125, "0.125"},
        {"1.50", 1500, "1.5"}, {"0", 0, "0"},       {"10", 10000, "10"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        uint64_t thousandths;
        char shown[UNIT_TEXT_SIZE];
        assert_int_equal(decimal_parse(&thousandths, good[i].text, NULL), 0);
        assert_int_equal(thousandths, good[i].thousandths);
        decimal_format(thousandths, shown);
        assert_string_equal(shown, good[i].shown);
    }
    static const char *const bad[] = {"",    ".5",  "1.",   "0.1234", "-1",
                                      "1,5", "all", "1.5m", "1e3",    "99999999999"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        uint64_t thousandths;
        assert_int_equal(decimal_parse(&thousandths, bad[i], NULL), -ERR_INVALID);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_written_gets_its_default),
        cmocka_unit_test(every_type_is_read),
        cmocka_unit_test(wrong_values_are_refused_with_what_is_allowed),
        cmocka_unit_test(unknown_keys_are_refused_with_the_remedy),
        cmocka_unit_test(a_dotted_key_is_no_path),
        cmocka_unit_test(values_survive_json_exactly),
        cmocka_unit_test(a_copy_shares_nothing),
        cmocka_unit_test(a_flag_replaces_one_value_or_nothing),
        cmocka_unit_test(durations_have_one_unit_and_are_never_zero),
        cmocka_unit_test(sizes_are_powers_of_1024),
        cmocka_unit_test(cpus_have_three_digits_behind_the_point),
    };
    return cmocka_run_group_tests_name("fields", tests, NULL, NULL);
}
