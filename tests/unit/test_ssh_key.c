/* Public keys of SSH, as ssh-keygen writes them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/memory.h"
#include "node/control/ssh_key.h"

#define BLOB "AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g"
#define KEY "ssh-ed25519 " BLOB " me@home"

static int parse(struct registry_ssh_key *key, const char *text, struct err *e)
{
    *e = (struct err){0};
    return ssh_key_parse(key, text, strlen(text), e);
}

static void refused(const char *text, const char *why)
{
    struct registry_ssh_key key;
    struct err e;
    assert_int_equal(parse(&key, text, &e), -ERR_INVALID);
    if (strstr(e.msg, why) == NULL)
        fail_msg("%s: %s", text, e.msg);
}

static void line_of_ssh_keygen_is_read(void **state)
{
    (void)state;
    struct registry_ssh_key key;
    struct err e;
    char type[SSH_KEY_TYPE_SIZE];
    assert_int_equal(parse(&key, "# mine\n\n" KEY "\r\n", &e), 0);
    assert_string_equal(key.name, "me@home");
    assert_int_equal(key.blob_length, 51);
    ssh_key_kind(&key, type);
    assert_string_equal(type, "ssh-ed25519");
    assert_int_equal(parse(&key, "ssh-ed25519 " BLOB, &e), 0);
    assert_string_equal(key.name, "");
}

static void comment_moves_no_cursor(void **state)
{
    (void)state;
    struct registry_ssh_key key;
    struct err e;
    assert_int_equal(parse(&key, "ssh-ed25519 " BLOB " a\x1b[2Jb", &e), 0);
    assert_string_equal(key.name, "a?[2Jb");
}

static void what_is_no_key_is_refused_with_a_reason(void **state)
{
    (void)state;
    refused("", "no public key");
    refused("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n", "private key");
    refused(KEY "\n" KEY "\n", "several keys");
    refused("command=\"x\" " KEY, "options");
    refused("ssh-rsa " BLOB, "options stand before it");
    refused("ssh-ed25519", "TYPE BASE64");
    refused("ssh-ed25519 !!!!", "TYPE BASE64");
    /* Cut by some bytes, and a type that nobody takes. */
    refused("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQF", "Ed25519, ECDSA");
    refused("ssh-dss AAAAB3NzaC1kc3M=", "Ed25519, ECDSA");
}

static void small_rsa_is_refused(void **state)
{
    (void)state;
    /* "ssh-rsa", e 65537, n of 16 bytes */
    refused("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAEQD//////////////////////w==", "RSA of 2048");
}

static void id_is_of_key_and_workload(void **state)
{
    (void)state;
    struct registry_ssh_key one, other;
    struct err e;
    assert_int_equal(parse(&one, KEY, &e), 0);
    other = one;
    assert_true(ssh_key_name(&one, "chat"));
    assert_true(ssh_key_name(&other, NULL));
    assert_int_equal(strlen(one.id), 16);
    assert_string_not_equal(one.id, other.id);
    assert_false(ssh_key_name(&other, "No Name"));
}

static void fingerprint_is_that_of_ssh_keygen(void **state)
{
    (void)state;
    struct registry_ssh_key key;
    struct err e;
    char text[SSH_KEY_FINGERPRINT_SIZE];
    assert_int_equal(parse(&key, KEY, &e), 0);
    ssh_key_fingerprint(&key, text);
    assert_string_equal(text, "SHA256:mKqU+0K8OhKmA8bBQi9Rz0Q5l7/g160hIP+rJYSTNj4");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(line_of_ssh_keygen_is_read),
        cmocka_unit_test(comment_moves_no_cursor),
        cmocka_unit_test(what_is_no_key_is_refused_with_a_reason),
        cmocka_unit_test(small_rsa_is_refused),
        cmocka_unit_test(id_is_of_key_and_workload),
        cmocka_unit_test(fingerprint_is_that_of_ssh_keygen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
