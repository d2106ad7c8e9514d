/* Tickets: whatever the text, nothing is read that was not written under the secret; and what was written,
 * from the same bytes as fields, comes back. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/memory.h"
#include "node/control/ticket.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void take(char *out, size_t out_size, const uint8_t *data, size_t size)
{
    size_t length = size < out_size - 1 ? size : out_size - 1;
    for (size_t i = 0; i < length; i++)
        out[i] = data[i] == '\0' ? 'x' : (char)data[i];
    out[length] = '\0';
}

static bool same(const struct ticket *a, const struct ticket *b)
{
    return a->kind == b->kind && a->expires_wall_ms == b->expires_wall_ms &&
           a->session_s == b->session_s && memcmp(a->nonce, b->nonce, sizeof a->nonce) == 0 &&
           memcmp(a->host, b->host, sizeof a->host) == 0 && strcmp(a->token, b->token) == 0 &&
           strcmp(a->subject, b->subject) == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t secret[REGISTRY_SSH_SEED_BYTES] = {1};
    struct ticket t = {0}, out;
    char text[TICKET_TEXT_SIZE];
    assert_always(!ticket_read(&out, secret, (const char *)data, size));
    if (size < 4)
        return 0;
    t.kind = (enum ticket_kind)(1 + data[0] % 4);
    t.expires_wall_ms = (uint64_t)data[1] << 40 | data[2];
    t.session_s = data[3];
    if (data[0] & 0x80)
        take(t.token, sizeof t.token, data + 4, size - 4);
    take(t.subject, sizeof t.subject, data + 4, size - 4);
    ticket_write(&t, secret, text);
    size_t length = strlen(text);
    assert_always(ticket_read(&out, secret, text, length) && same(&out, &t));
    /* One bit of one character, of those that mean something. */
    text[4 + data[1] % (length - 4)] ^= 1;
    assert_always(!ticket_read(&out, secret, text, length));
    return 0;
}
