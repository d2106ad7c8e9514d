#include "base/id.h"

#include <string.h>

#include "base/memory.h"

static const char alphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";

static int digit_value(char c)
{
    const char *at = c == '\0' ? NULL : strchr(alphabet, c);
    return at == NULL ? -1 : (int)(at - alphabet);
}

void instance_id_make(struct instance_id *out, node_id owner, const uint8_t random[11])
{
    assert_always(owner != 0);
    char *p = out->text;
    *p++ = alphabet[random[0] & 7u];
    unsigned bits = 0;
    unsigned held = 0;
    for (size_t i = 1; i < 11; i++) {
        bits = (bits << 8) | random[i];
        held += 8;
        while (held >= 5) {
            held -= 5;
            *p++ = alphabet[(bits >> held) & 31u];
        }
    }
    char reversed[13];
    size_t n = 0;
    for (node_id rest = owner; rest != 0; rest >>= 5)
        reversed[n++] = alphabet[rest & 31u];
    while (n > 0)
        *p++ = reversed[--n];
    *p = '\0';
}

bool instance_id_parse(struct instance_id *out, const char *text, size_t length)
{
    if (length <= INSTANCE_ID_RANDOM_LENGTH || length > INSTANCE_ID_LENGTH_MAX)
        return false;
    if (text[0] < '0' || text[0] > '7')
        return false;
    for (size_t i = 1; i < length; i++)
        if (digit_value(text[i]) < 0)
            return false;
    if (text[INSTANCE_ID_RANDOM_LENGTH] == '0')
        return false;
    /* 13 characters hold 65 bits; the first of them must not carry the 65th. */
    if (length == INSTANCE_ID_LENGTH_MAX && digit_value(text[INSTANCE_ID_RANDOM_LENGTH]) > 15)
        return false;
    memcpy(out->text, text, length);
    out->text[length] = '\0';
    return true;
}

node_id instance_id_owner(const struct instance_id *id)
{
    node_id owner = 0;
    for (const char *p = id->text + INSTANCE_ID_RANDOM_LENGTH; *p != '\0'; p++)
        owner = (owner << 5) | (node_id)digit_value(*p);
    return owner;
}

bool instance_id_prefix_valid(const char *text, size_t length)
{
    if (length == 0 || length > INSTANCE_ID_LENGTH_MAX || text[0] < '0' || text[0] > '7')
        return false;
    for (size_t i = 1; i < length; i++)
        if (digit_value(text[i]) < 0)
            return false;
    return true;
}

bool workload_name_valid(const char *text, size_t length)
{
    if (length < 2 || length > WORKLOAD_NAME_LENGTH_MAX)
        return false;
    if (text[0] < 'a' || text[0] > 'z' || text[length - 1] == '-')
        return false;
    for (size_t i = 1; i < length; i++) {
        char c = text[i];
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'))
            return false;
    }
    return true;
}
