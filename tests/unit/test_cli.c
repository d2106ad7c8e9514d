#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "node/cli/cli.h"

static const struct cli_option options[] = {
    {'a', "all", NULL, "a switch"},
    {'i', "interactive", NULL, "a switch"},
    {'t', "tty", NULL, "a switch"},
    {'e', "env", "K=V", "may be repeated"},
    {'n', "tail", "N", "takes a value"},
    {0, "json", NULL, "no letter"},
    {0, NULL, NULL, NULL},
};
static const struct cli_option *const tables[] = {options, NULL};

/* Parses words up to a NULL. */
static int parse(struct cli *c, bool words_last, struct err *e, const char *const *words)
{
    static char copies[16][64];
    char *argv[16];
    int argc = 0;
    for (; words[argc] != NULL; argc++) {
        snprintf(copies[argc], sizeof copies[argc], "%s", words[argc]);
        argv[argc] = copies[argc];
    }
    *c = (struct cli){0};
    return cli_args_parse(&c->args, tables, argc, argv, words_last, e);
}
#define PARSE(c, last, e, ...) parse(c, last, e, (const char *const[]){__VA_ARGS__, NULL})

static void flags_stand_anywhere(void **state)
{
    (void)state;
    struct cli c;
    struct err e;
    assert_int_equal(PARSE(&c, false, &e, "one", "-a", "two", "--tail=5", "--json"), 0);
    assert_int_equal(c.args.word_count, 2);
    assert_string_equal(c.args.words[1], "two");
    assert_true(cli_has(&c, "all"));
    assert_true(cli_has(&c, "json"));
    assert_string_equal(cli_value(&c, "tail"), "5");
    cli_args_free(&c.args);
}

static void letters_stand_together(void **state)
{
    (void)state;
    struct cli c;
    struct err e;
    assert_int_equal(PARSE(&c, false, &e, "-it", "-n20", "-e", "A=1", "-eB=2"), 0);
    assert_true(cli_has(&c, "interactive"));
    assert_true(cli_has(&c, "tty"));
    assert_false(cli_has(&c, "all"));
    assert_string_equal(cli_value(&c, "tail"), "20");
    size_t position = 0;
    assert_string_equal(cli_next(&c, "env", &position), "A=1");
    assert_string_equal(cli_next(&c, "env", &position), "B=2");
    assert_null(cli_next(&c, "env", &position));
    assert_string_equal(cli_value(&c, "env"), "B=2");
    cli_args_free(&c.args);
}

static void what_follows_two_dashes_is_not_ours(void **state)
{
    (void)state;
    struct cli c;
    struct err e;
    assert_int_equal(PARSE(&c, true, &e, "-a", "--", "sh", "-n", "--", "x"), 0);
    assert_int_equal(c.args.word_count, 4);
    assert_string_equal(c.args.words[1], "-n");
    assert_string_equal(c.args.words[2], "--");
    cli_args_free(&c.args);
    /* The first word ends the flags where commands follow, and an id may stand before the dashes. */
    assert_int_equal(PARSE(&c, true, &e, "-i", "7k3q", "--", "ls", "-a"), 0);
    assert_int_equal(c.args.word_count, 3);
    assert_string_equal(c.args.words[1], "ls");
    assert_false(cli_has(&c, "all"));
    cli_args_free(&c.args);
    assert_int_equal(PARSE(&c, true, &e, "ls", "-a"), 0);
    assert_int_equal(c.args.word_count, 2);
    assert_false(cli_has(&c, "all"));
    cli_args_free(&c.args);
    assert_int_equal(PARSE(&c, false, &e, "-"), 0); /* stdin is a word */
    assert_int_equal(c.args.word_count, 1);
    cli_args_free(&c.args);
}

static void mistakes_are_named(void **state)
{
    (void)state;
    struct cli c;
    struct err e;
    assert_int_equal(PARSE(&c, false, &e, "--nope"), -ERR_INVALID);
    assert_string_equal(e.msg, "--nope: unknown flag");
    assert_int_equal(PARSE(&c, false, &e, "-ax"), -ERR_INVALID);
    assert_string_equal(e.msg, "-x: unknown flag");
    assert_int_equal(PARSE(&c, false, &e, "--all=1"), -ERR_INVALID);
    assert_string_equal(e.msg, "--all takes no value");
    assert_int_equal(PARSE(&c, false, &e, "--tail"), -ERR_INVALID);
    assert_string_equal(e.msg, "--tail needs a value: --tail N");
    assert_int_equal(PARSE(&c, false, &e, "-n"), -ERR_INVALID);
    assert_string_equal(e.msg, "-n needs a value: -n N");
    assert_int_equal(PARSE(&c, false, &e, "--tai", "5"), -ERR_INVALID); /* no guessing */
}

static void exit_codes_are_stable(void **state)
{
    (void)state;
    static const struct {
        unsigned status;
        int code;
    } statuses[] = {{200, 0}, {204, 0}, {400, 1}, {401, 5}, {403, 5}, {404, 3}, {409, 1},
                    {410, 3}, {429, 6}, {500, 1}, {502, 1}, {503, 6}, {504, 1}};
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++)
        assert_int_equal(cli_exit_of_status(statuses[i].status), statuses[i].code);
    assert_int_equal(cli_exit_of_err(&(struct err){.code = ERR_UNAVAILABLE}), 4);
    assert_int_equal(cli_exit_of_err(&(struct err){.code = ERR_NOT_FOUND}), 3);
    assert_int_equal(cli_exit_of_err(&(struct err){.code = ERR_IO}), 1);
}

/* --- tables and units --- */

static void tables_align(void **state)
{
    (void)state;
    static const char *const heads[] = {"ID", ">N", "NAME", NULL};
    struct cli_table *t = cli_table_new(heads);
    cli_table_row(t, (const char *const[]){"a", "5", "one"});
    cli_table_row(t, (const char *const[]){"long", "120", "\xc3\xa4\xc3\xb6"});
    cli_table_row(t, (const char *const[]){"\033[31m", "", "evil\nline"});
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    cli_table_print(t, out);
    fclose(out);
    assert_string_equal(text, "ID       N  NAME\n"
                              "a        5  one\n"
                              "long   120  \xc3\xa4\xc3\xb6\n"
                              "?[31m       evil?line\n");
    free(text);
}

static void units_are_short(void **state)
{
    (void)state;
    char text[CLI_UNIT_SIZE];
    static const struct {
        uint64_t bytes;
        const char *text;
    } sizes[] = {{0, "0"},
                 {1023, "1023"},
                 {1024, "1.0K"},
                 {10240, "10K"},
                 {220200960, "210M"},
                 {4294967296, "4.0G"},
                 {1ull << 62, "4.0E"}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        cli_bytes(sizes[i].bytes, text);
        assert_string_equal(text, sizes[i].text);
    }
    static const struct {
        uint64_t us;
        const char *text;
    } times[] = {{400, "0.4 ms"},       {304600, "304.6 ms"},   {12000000, "12.0 s"},
                 {252000000, "4m 12s"}, {11100000000, "3h 5m"}, {180000000000, "2d 2h"}};
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        cli_duration(times[i].us, text);
        assert_string_equal(text, times[i].text);
    }
}

static void ages_are_read_from_times(void **state)
{
    (void)state;
    char text[CLI_UNIT_SIZE];
    assert_true(cli_time("1970-01-01T00:00:01.250Z") == 1250);
    assert_true(cli_time("2026-11-22T08:47:00.123Z") == 1795337220123);
    assert_true(cli_time("yesterday") == 0);
    cli_age("1970-01-01T00:00:01.000Z", 61000, text);
    assert_string_equal(text, "1m");
    cli_age("1970-01-01T00:02:00.000Z", 61000, text); /* of a clock that is ahead */
    assert_string_equal(text, "0s");
    cli_age("", 61000, text);
    assert_string_equal(text, "-");
}

static void prefixes_tell_ids_apart(void **state)
{
    (void)state;
    const char *ids[] = {"1abcdefgh", "1abcdxyz", "2", "3zzzzzz"};
    assert_int_equal(cli_prefix_length(ids, 4), 6);
    assert_int_equal(cli_prefix_length(ids + 2, 2), 4);
    assert_int_equal(cli_prefix_length(NULL, 0), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flags_stand_anywhere),
        cmocka_unit_test(letters_stand_together),
        cmocka_unit_test(what_follows_two_dashes_is_not_ours),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(exit_codes_are_stable),
        cmocka_unit_test(tables_align),
        cmocka_unit_test(units_are_short),
        cmocka_unit_test(ages_are_read_from_times),
        cmocka_unit_test(prefixes_tell_ids_apart),
    };
    return cmocka_run_group_tests_name("cli", tests, NULL, NULL);
}
