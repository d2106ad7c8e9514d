/* What the user's name of an SSH client asks for (gateway/ssh.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "gateway/ssh.h"

static void a_name_alone_is_a_workload(void **state)
{
    struct ssh_name name;
    (void)state;
    assert_true(ssh_name_parse(&name, "chat"));
    assert_string_equal(name.workload, "chat");
    assert_string_equal(name.key, "");
    assert_string_equal(name.instance, "");
}

static void behind_a_plus_is_a_key_as_it_is(void **state)
{
    struct ssh_name name;
    (void)state;
    assert_true(ssh_name_parse(&name, "rooms+blue"));
    assert_string_equal(name.workload, "rooms");
    assert_string_equal(name.key, "blue");
    assert_true(ssh_name_parse(&name, "rooms+a+b c/\xc3\xa4"));
    assert_string_equal(name.workload, "rooms");
    assert_string_equal(name.key, "a+b c/\xc3\xa4");
}

static void a_whole_id_is_an_instance(void **state)
{
    struct ssh_name name;
    (void)state;
    assert_true(ssh_name_parse(&name, "15xb1ybs8gatrvn2m1"));
    assert_string_equal(name.instance, "15xb1ybs8gatrvn2m1");
    assert_string_equal(name.workload, "");
}

static void anything_else_is_refused(void **state)
{
    static const char *const bad[] = {"",       "+",     "+blue",   "rooms+",  "Ro oms",
                                      "../etc", "ab\nc", "ab+b\nc", "ab+\x7f", "ab+\x1b[2J",
                                      "ab%00",  "-",     "ab/c",    "\xff",    "root@host"};
    struct ssh_name name;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (ssh_name_parse(&name, bad[i]))
            fail_msg("\"%s\" was taken", bad[i]);
}

static void lengths_are_bounded(void **state)
{
    char text[600];
    struct ssh_name name;
    (void)state;
    memset(text, 'a', sizeof text);
    text[WORKLOAD_NAME_LENGTH_MAX] = '\0';
    assert_true(ssh_name_parse(&name, text));
    assert_int_equal(strlen(name.workload), WORKLOAD_NAME_LENGTH_MAX);
    text[WORKLOAD_NAME_LENGTH_MAX] = 'a';
    text[WORKLOAD_NAME_LENGTH_MAX + 1] = '\0';
    assert_false(ssh_name_parse(&name, text));

    memset(text, 'a', sizeof text);
    text[2] = '+';
    text[3 + SSH_JOIN_KEY_MAX] = '\0';
    assert_true(ssh_name_parse(&name, text));
    assert_int_equal(strlen(name.key), SSH_JOIN_KEY_MAX);
    text[3 + SSH_JOIN_KEY_MAX] = 'a';
    text[4 + SSH_JOIN_KEY_MAX] = '\0';
    assert_false(ssh_name_parse(&name, text));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_name_alone_is_a_workload),
        cmocka_unit_test(behind_a_plus_is_a_key_as_it_is),
        cmocka_unit_test(a_whole_id_is_an_instance),
        cmocka_unit_test(anything_else_is_refused),
        cmocka_unit_test(lengths_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
