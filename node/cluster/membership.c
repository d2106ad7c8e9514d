#include "node/cluster/membership.h"

#include <jansson.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/private_file.h"

#define TEXT_MAX 4096u /* eight keys of 64 digits and the words between */
#define CLUSTER_DIGITS (MEMBERSHIP_CLUSTER_SIZE - 1)

void membership_make(struct membership *out)
{
    uint8_t random[CLUSTER_DIGITS / 2];
    *out = (struct membership){.id = 1, .gossip_key_count = 1};
    randombytes_buf(random, sizeof random);
    sodium_bin2hex(out->cluster_id, sizeof out->cluster_id, random, sizeof random);
    randombytes_buf(out->gossip_keys[0], sizeof out->gossip_keys[0]);
}

bool membership_cluster_valid(const char *cluster_id)
{
    return strlen(cluster_id) == CLUSTER_DIGITS &&
           strspn(cluster_id, "0123456789abcdef") == CLUSTER_DIGITS;
}

void membership_wipe(struct membership *m)
{
    sodium_memzero(m, sizeof *m);
}

char *membership_text(const struct membership *m)
{
    char *text = malloc(TEXT_MAX);
    if (text == NULL)
        return NULL;
    (void)text_format(text, TEXT_MAX, "{\"id\": %llu, \"cluster\": \"%s\", \"gossip_keys\": [",
                      (unsigned long long)m->id, m->cluster_id);
    for (size_t i = 0; i < m->gossip_key_count; i++) {
        char digits[65];
        size_t used = strlen(text);
        sodium_bin2hex(digits, sizeof digits, m->gossip_keys[i], sizeof m->gossip_keys[i]);
        (void)text_format(text + used, TEXT_MAX - used, "%s\"%s\"", i == 0 ? "" : ", ", digits);
        sodium_memzero(digits, sizeof digits);
    }
    size_t used = strlen(text);
    assert_always(text_format(text + used, TEXT_MAX - used, "]}\n"));
    return text;
}

static bool parse_keys(struct membership *out, const json_t *keys)
{
    size_t i;
    json_t *key;
    if (!json_is_array(keys) || json_array_size(keys) > REGISTRY_KEYRING_MAX)
        return false;
    json_array_foreach(keys, i, key)
    {
        size_t length = 0;
        const char *digits = json_string_value(key);
        const char *end = NULL;
        if (digits == NULL || strlen(digits) != 64 ||
            sodium_hex2bin(out->gossip_keys[i], 32, digits, 64, NULL, &length, &end) != 0 ||
            length != 32 || end != digits + 64)
            return false;
    }
    out->gossip_key_count = json_array_size(keys);
    return true;
}

int membership_parse(struct membership *out, const char *text, size_t length, struct err *e)
{
    json_int_t id = 0;
    const char *cluster = NULL;
    json_t *keys = NULL;
    *out = (struct membership){0};
    json_t *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, NULL);
    bool ok = json != NULL &&
              json_unpack(json, "{s:I, s:s, s:o !}", "id", &id, "cluster", &cluster, "gossip_keys",
                          &keys) == 0 &&
              id > 0 && membership_cluster_valid(cluster) &&
              text_copy(out->cluster_id, sizeof out->cluster_id, cluster) && parse_keys(out, keys);
    json_decref(json);
    out->id = (node_id)id;
    if (ok)
        return 0;
    membership_wipe(out);
    return err_set(e, ERR_INVALID,
                   "it is damaged; restore it from a backup, or remove the data folder and join "
                   "anew with a new token");
}

int membership_load(struct membership *out, const char *data, struct err *e)
{
    char *text = NULL;
    size_t length = 0;
    struct err cause = {0};
    CLEANUP_FD int folder = private_folder_open(data, &cause);
    int rc = folder < 0
                 ? folder
                 : private_file_load(folder, MEMBERSHIP_FILE, TEXT_MAX, &text, &length, &cause);
    if (rc == 0) {
        rc = membership_parse(out, text, length, &cause);
        sodium_memzero(text, length);
        free(text);
    }
    if (rc == 0)
        return 0;
    if (e != NULL)
        *e = cause;
    return err_wrap(e, "%s/" MEMBERSHIP_FILE, data);
}

int membership_save(const struct membership *m, const char *data, struct err *e)
{
    char *text = membership_text(m);
    if (text == NULL)
        return err_set(e, ERR_NO_MEMORY, "store %s/" MEMBERSHIP_FILE ": no memory", data);
    CLEANUP_FD int folder = private_folder_open(data, e);
    int rc = folder < 0 ? folder
                        : private_file_store(folder, MEMBERSHIP_FILE, text, strlen(text), true, e);
    sodium_memzero(text, strlen(text));
    free(text);
    return rc == 0 ? 0 : err_wrap(e, "%s", data);
}
