/* Join tokens: "skn_<token id>_<secret>_<cluster id>_<fingerprint>". The parts have fixed lengths, and
 * only the last may hold a '_' itself. */
#include <sodium.h>
#include <string.h>

#include "base/memory.h"
#include "node/cluster/enroll_wire.h"
#include "node/node.h"

#define PREFIX "skn_"
#define PREFIX_LENGTH 4u
#define PRINT_DIGITS 43u /* ceil(32 * 8 / 6) */
#define ID_AT PREFIX_LENGTH
#define SECRET_AT (ID_AT + ENROLL_ID_SIZE)
#define CLUSTER_AT (SECRET_AT + ENROLL_SECRET_SIZE)
#define PRINT_AT (CLUSTER_AT + MEMBERSHIP_CLUSTER_SIZE)
#define TOKEN_LENGTH (PRINT_AT + PRINT_DIGITS)
#define BASE64 sodium_base64_VARIANT_URLSAFE_NO_PADDING

_Static_assert(TOKEN_LENGTH < ENROLL_TOKEN_TEXT_SIZE, "a token fits");

int enroll_token_make(struct registry_token *out, char text[ENROLL_TOKEN_TEXT_SIZE],
                      const char *cluster_id, const struct identity_fingerprint *member,
                      struct err *e)
{
    char plain[NODE_TOKEN_TEXT_SIZE], print[PRINT_DIGITS + 1];
    int rc = node_token_make(out, plain, e);
    if (rc != 0)
        return rc;
    out->role = TOKEN_ROLE_NODE;
    (void)sodium_bin2base64(print, sizeof print, member->bytes, sizeof member->bytes, BASE64);
    /* The same id and secret behind another prefix. */
    assert_always(text_format(text, ENROLL_TOKEN_TEXT_SIZE, PREFIX "%s_%s_%s",
                              plain + PREFIX_LENGTH, cluster_id, print));
    sodium_memzero(plain, sizeof plain);
    return 0;
}

static bool take(char *out, size_t size, const char *at)
{
    memcpy(out, at, size - 1);
    out[size - 1] = '\0';
    return at[size - 1] == '_';
}

/* Exactly the digits of 32 bytes; one text for each value. */
static bool take_print(struct identity_fingerprint *out, const char *digits)
{
    size_t length = 0;
    char again[PRINT_DIGITS + 1];
    if (sodium_base642bin(out->bytes, sizeof out->bytes, digits, PRINT_DIGITS, NULL, &length, NULL,
                          BASE64) != 0 ||
        length != sizeof out->bytes)
        return false;
    (void)sodium_bin2base64(again, sizeof again, out->bytes, sizeof out->bytes, BASE64);
    return memcmp(again, digits, PRINT_DIGITS) == 0;
}

int enroll_token_parse(struct enroll_token *out, const char *text, struct err *e)
{
    text += strspn(text, " \t\r\n");
    size_t length = strcspn(text, " \t\r\n");
    static const char digits[] = "0123456789abcdefghjkmnpqrstvwxyz";
    if (strncmp(text, "skt_", 4) == 0)
        return err_set(e, ERR_INVALID,
                       "this is a token for the API; a join token begins with " PREFIX
                       ": skerry token create --node");
    if (length != TOKEN_LENGTH || strncmp(text, PREFIX, PREFIX_LENGTH) != 0 ||
        text[length + strspn(text + length, " \t\r\n")] != '\0' ||
        !take(out->id, sizeof out->id, text + ID_AT) ||
        strspn(out->id, digits) != sizeof out->id - 1 ||
        !take(out->secret, sizeof out->secret, text + SECRET_AT) ||
        strspn(out->secret, digits) != sizeof out->secret - 1 ||
        !take(out->cluster_id, sizeof out->cluster_id, text + CLUSTER_AT) ||
        !membership_cluster_valid(out->cluster_id) || !take_print(&out->member, text + PRINT_AT)) {
        sodium_memzero(out, sizeof *out);
        return err_set(e, ERR_INVALID,
                       "this is no join token, or a part of one; make one on a node of the "
                       "cluster: skerry token create --node");
    }
    return 0;
}
