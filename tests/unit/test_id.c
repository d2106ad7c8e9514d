#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/id.h"

static void made_id_parses_back_to_its_owner(void **state)
{
    (void)state;
    const node_id owners[] = {1, 31, 32, 1024, UINT64_MAX};
    const uint8_t random[11] = {0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    for (size_t i = 0; i < sizeof owners / sizeof owners[0]; i++) {
        struct instance_id id, again;
        instance_id_make(&id, owners[i], random);
        assert_in_range(id.text[0], '0', '7');
        assert_true(instance_id_parse(&again, id.text, strlen(id.text)));
        assert_string_equal(again.text, id.text);
        assert_true(instance_id_owner(&again) == owners[i]);
    }
}

static void foreign_text_is_no_id(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "hello",
        "00000000000000000",              /* no owner */
        "000000000000000000",             /* owner with a leading zero */
        "900000000000000001",             /* first character is not 0-7 */
        "0000000000000000o1",             /* a letter that is left out */
        "0000000000000000A1",             /* upper case */
        "00000000000000000zzzzzzzzzzzzz", /* an owner above 64 bits */
        "000000000000000001111111111111111111111",
    };
    struct instance_id id;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(instance_id_parse(&id, bad[i], strlen(bad[i])));
}

static void workload_names_are_host_labels(void **state)
{
    (void)state;
    assert_true(workload_name_valid("ab", 2));
    assert_true(workload_name_valid("a-9", 3));
    static const char *const bad[] = {"", "a", "9a", "a-", "-a", "Ab", "a_b", "a.b"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(workload_name_valid(bad[i], strlen(bad[i])));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(made_id_parses_back_to_its_owner),
        cmocka_unit_test(foreign_text_is_no_id),
        cmocka_unit_test(workload_names_are_host_labels),
    };
    return cmocka_run_group_tests_name("id", tests, NULL, NULL);
}
