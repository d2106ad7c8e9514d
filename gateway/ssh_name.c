/* gateway/ssh_name.c - what the user's name of an SSH client asks for. Hostile bytes: nobody has signed in. */
#include <string.h>

#include "base/memory.h"
#include "gateway/ssh.h"

bool ssh_name_parse(struct ssh_name *out, const char *text)
{
    struct instance_id id;
    *out = (struct ssh_name){0};
    if (instance_id_parse(&id, text, strlen(text)))
        return text_copy(out->instance, sizeof out->instance, id.text);
    const char *plus = strchr(text, '+');
    size_t length = plus == NULL ? strlen(text) : (size_t)(plus - text);
    if (!workload_name_valid(text, length))
        return false;
    memcpy(out->workload, text, length);
    if (plus == NULL)
        return true;
    for (const char *c = plus + 1; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            return false;
    return plus[1] != '\0' && text_copy(out->key, sizeof out->key, plus + 1);
}
