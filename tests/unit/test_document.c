#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "base/document.h"
#include "base/memory.h"

static struct document *parse(const char *text)
{
    struct document *d;
    struct err e = {0};
    if (document_parse(&d, "t.yaml", text, strlen(text), &e) != 0)
        fail_msg("refused: %s", e.msg);
    return d;
}

static void refused(const char *text, size_t length, const char *with)
{
    struct document *d = NULL;
    struct err e = {0};
    assert_int_equal(document_parse(&d, "t.yaml", text, length, &e), -ERR_INVALID);
    assert_int_equal(e.code, ERR_INVALID);
    if (strstr(e.msg, with) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.msg, with);
}

static void yaml_becomes_a_tree_that_knows_its_lines(void **state)
{
    (void)state;
    struct document *d = parse("# a comment\n"
                               "id: chat\n"
                               "join: {max_joiners: 10,\n"
                               "       window: \"5m\"}\n"
                               "command:\n"
                               "  - sh\n"
                               "  - -c\n"
                               "note: |\n"
                               "  two\n"
                               "  lines\n");
    const struct document_node *root = document_root(d);
    assert_int_equal(root->kind, DOCUMENT_MAP);
    const struct document_node *id = document_find(root, "id");
    assert_string_equal(id->text, "chat");
    assert_int_equal(id->line, 2);
    assert_false(id->quoted);
    const struct document_node *window = document_find(document_find(root, "join"), "window");
    assert_string_equal(window->text, "5m");
    assert_int_equal(window->line, 4);
    assert_true(window->quoted);
    const struct document_node *command = document_find(root, "command");
    assert_int_equal(command->kind, DOCUMENT_LIST);
    assert_int_equal(command->line, 5);
    assert_string_equal(command->first->next->text, "-c");
    assert_int_equal(command->first->next->line, 7);
    assert_null(command->first->next->next);
    assert_string_equal(document_find(root, "note")->text, "two\nlines\n");
    assert_null(document_find(root, "no"));
    assert_null(document_find(id, "no"));
    document_free(d);
}

static void json_is_read_as_yaml(void **state)
{
    (void)state;
    struct document *d = parse("{\"a\":1,\n\t\"b\":[true,null,\"x\"],\"c\":{},\n"
                               "\"d\":\"tab\\t quote\\\" slash\\/ \\u00e9 \\ud83d\\ude00 "
                               "\\\\ud83d\"}");
    const struct document_node *root = document_root(d);
    assert_string_equal(document_find(root, "a")->text, "1");
    assert_false(document_find(root, "a")->quoted);
    const struct document_node *b = document_find(root, "b");
    assert_int_equal(b->line, 2);
    assert_string_equal(b->first->text, "true");
    assert_string_equal(b->first->next->text, "null");
    assert_true(b->first->next->next->quoted);
    assert_int_equal(document_find(root, "c")->kind, DOCUMENT_MAP);
    assert_string_equal(document_find(root, "d")->text,
                        "tab\t quote\" slash/ \xc3\xa9 \xf0\x9f\x98\x80 \\ud83d");
    assert_int_equal(document_find(root, "d")->line, 3);
    document_free(d);
}

static void an_empty_text_is_an_empty_map(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "\n\n", "# nothing\n", "---\n...\n", "\xef\xbb\xbf"};
    for (size_t i = 0; i < 3; i++) {
        struct document *d = parse(texts[i]);
        assert_int_equal(document_root(d)->kind, DOCUMENT_MAP);
        assert_null(document_root(d)->first);
        document_free(d);
    }
    struct document *d = parse("\xef\xbb\xbfid: with-a-mark\n");
    assert_string_equal(document_find(document_root(d), "id")->text, "with-a-mark");
    document_free(d);
}

static void what_points_elsewhere_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *with;
    } bad[] = {
        {"a: 1\nb: &x 2\n", "t.yaml:2: &x: anchors"},
        {"a: &x {b: 1}\n", "t.yaml:1: &x: anchors"},
        {"a: 1\nb: *a\n", "t.yaml:2: aliases"},
        {"a: !!str 1\n", "tags are not taken"},
        {"a: !secret 1\n", "!secret: tags are not taken"},
        {"a: !!map {b: 1}\n", "tags are not taken"},
        {"a: 1\n<<: {b: 2}\n", "t.yaml:2: <<: merge keys"},
        {"a: 1\n---\nb: 2\n", "t.yaml:2: a second document"},
        {"a: 1\nb: 2\na: 3\n", "t.yaml:3: a: written twice, first in line 1"},
        {"a: {b: 1, \"b\": 2}\n", "b: written twice"},
        {"? [a, b]\n: 1\n", "a list or map stands where a key"},
        {"? {a: b}\n: 1\n", "a list or map stands where a key"},
        {"a: \"x\\0y\"\n", "t.yaml:1: a NUL byte"},
        {"a: 1\n\"b\\0c\": 2\n", "t.yaml:2: a NUL byte"},
        {"{\"a\": \"\\u0000\"}", "a NUL byte"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        refused(bad[i].text, strlen(bad[i].text), bad[i].with);
}

static void broken_text_is_refused_with_its_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *with;
    } bad[] = {
        {"a: 1\nb: [1, 2\n", "t.yaml:2: not YAML: "},
        {"a: 1\n\tb: 2\n", "t.yaml:2: not YAML: "},
        {"a: 1\nb: \xff\n", "t.yaml:2: not YAML: "},
        {"a: 1\n\nb: \x01\n", "t.yaml:3: not YAML: "},
        {"{\"a\": 1", "t.yaml:1: not YAML: "},
        {"a: \"open\n", "not YAML: "},
        {"a: 'it''s\n", "not YAML: "},
        {"{\"a\": \"\\ud83d\"}", "not YAML: "},
        {"a: b: c\n", "not YAML: "},
        {"%FOO bar\n%TAG ! x\n--- a\n", "not YAML: "},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        refused(bad[i].text, strlen(bad[i].text), bad[i].with);
    refused("a: 1\nb: \0\n", 10, "not YAML: ");
    refused("a\0b", 3, "not YAML: ");
}

static void a_key_in_an_error_cannot_move_the_cursor(void **state)
{
    (void)state;
    static const char text[] = "\"\\e[2J\\n\": 1\n\"\\e[2J\\n\": 2\n";
    refused(text, strlen(text), "t.yaml:2: ?[2J?: written twice");
}

static void append(struct buffer *b, const char *text)
{
    assert_true(buffer_append_text(b, text));
}

static void every_bound_refuses(void **state)
{
    (void)state;
    struct buffer b;
    buffer_init(&b, 4 * DOCUMENT_BYTES_MAX);
    append(&b, "a: ");
    while (b.length <= DOCUMENT_BYTES_MAX)
        append(&b, "xxxxxxxxxxxxxxxx");
    refused(b.data, b.length, "at most 1048576 are taken");
    struct document *d;
    assert_int_equal(document_parse(&d, "t", b.data, DOCUMENT_BYTES_MAX, NULL), 0);
    document_free(d);

    b.length = 0;
    for (int i = 0; i < DOCUMENT_NODES_MAX; i++)
        append(&b, "- x\n");
    refused(b.data, b.length, "t.yaml:20000: more than 20000 values");
    b.length -= 4;
    assert_int_equal(document_parse(&d, "t", b.data, b.length, NULL), 0);
    document_free(d);

    b.length = 0;
    for (int i = 0; i <= DOCUMENT_KEYS_MAX; i++)
        assert_true(buffer_printf(&b, "k%d: x\n", i));
    refused(b.data, b.length, "t.yaml:1001: more than 1000 keys");

    b.length = 0;
    for (int i = 0; i < DOCUMENT_DEPTH_MAX; i++)
        append(&b, "[");
    for (int i = 0; i < DOCUMENT_DEPTH_MAX; i++)
        append(&b, "]");
    assert_int_equal(document_parse(&d, "t", b.data, b.length, NULL), 0);
    document_free(d);
    b.data[DOCUMENT_DEPTH_MAX] = '[';
    refused(b.data, b.length, "more than 16 levels");
    b.length = 0;
    for (int i = 0; i < 500000; i++)
        append(&b, "[");
    refused(b.data, b.length, "more than 16 levels");
    buffer_free(&b);
}

static void a_long_name_is_shown_by_its_end(void **state)
{
    (void)state;
    char name[300];
    memset(name, 'd', sizeof name);
    memcpy(name + sizeof name - 11, "/chat.yaml", 11);
    struct document *d;
    struct err e = {0};
    assert_int_equal(document_parse(&d, name, "a: [", 4, &e), -ERR_INVALID);
    assert_memory_equal(e.msg, "...dd", 5);
    assert_non_null(strstr(e.msg, "d/chat.yaml:1: not YAML"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(yaml_becomes_a_tree_that_knows_its_lines),
        cmocka_unit_test(json_is_read_as_yaml),
        cmocka_unit_test(an_empty_text_is_an_empty_map),
        cmocka_unit_test(what_points_elsewhere_is_refused),
        cmocka_unit_test(broken_text_is_refused_with_its_line),
        cmocka_unit_test(a_key_in_an_error_cannot_move_the_cursor),
        cmocka_unit_test(every_bound_refuses),
        cmocka_unit_test(a_long_name_is_shown_by_its_end),
    };
    return cmocka_run_group_tests_name("document", tests, NULL, NULL);
}
