/* gateway/ssh_forward.c - `ssh -L` (and -W, -D): channels to ports of the instance.
 *
 * The client names a host and a port. The host must be the instance itself, as it calls itself; the node
 * connects to its loopback, inside its network namespace, whatever the client wrote. So there is nothing to
 * look up, and no host of a network, least of all the node's own, is reached from here.
 *
 * Libssh asks to be told at once whether a channel opens, before the port could be tried: so a port on which
 * nothing listens opens a channel that closes at once. */
#include <string.h>

#include "base/memory.h"
#include "gateway/ssh_internal.h"

static const char *const hosts[] = {"localhost", "127.0.0.1", "::1"};

void ssh_forward_told(struct ssh_session *s, const char *text)
{
    char line[700];
    (void)text_format(line, sizeof line, "skerry: %s", text);
    (void)ssh_send_debug(s->ssh, line, 1);
}

static const char *host_find(const char *name)
{
    for (size_t i = 0; name != NULL && i < ARRAY_SIZE(hosts); i++)
        if (strcmp(hosts[i], name) == 0)
            return hosts[i];
    return NULL;
}

/* Why it is not opened; NULL: it may be. */
static const char *objection(const struct ssh_session *s, const char *host, int port)
{
    if (s->phase != SSH_PHASE_OPEN && s->blob == NULL)
        return "nobody has signed in";
    if (host == NULL)
        return "only localhost, 127.0.0.1 and ::1 are reached: the instance itself";
    if (port <= 0 || port > UINT16_MAX)
        return "that is no port";
    if (s->forward_count >= SSH_FORWARDS_MAX)
        return "the session has as many connections to ports as it may";
    if (s->front->forward_count >= SSH_FORWARDS_IN_ALL_MAX)
        return "the node has as many connections to ports as it may";
    return NULL;
}

static void refuse(struct ssh_session *s, const char *host, int port, const char *why)
{
    char shown[TEXT_SHOWN_SIZE], text[400];
    (void)text_format(text, sizeof text, "no connection to port %d of \"%s\": %s", port,
                      text_show(host == NULL ? "" : host, shown), why);
    refusals_note(&s->front->refusals, SSH_REFUSED_FORWARD, "%s: %s", s->peer, text);
    ssh_forward_told(s, text);
}

int ssh_forward_message_cb(ssh_session ssh, ssh_message message, void *session)
{
    struct ssh_session *s = session;
    enum { TAKEN = 0, REFUSED = 1 }; /* of libssh */
    (void)ssh;
    if (ssh_message_type(message) != SSH_REQUEST_CHANNEL_OPEN ||
        ssh_message_subtype(message) != SSH_CHANNEL_DIRECT_TCPIP)
        return REFUSED;
    const char *name = ssh_message_channel_request_open_destination(message);
    const char *host = host_find(name);
    int port = ssh_message_channel_request_open_destination_port(message);
    const char *why = objection(s, host, port);
    if (why != NULL) {
        refuse(s, name, port, why);
        return REFUSED;
    }
    ssh_channel channel = ssh_message_channel_request_open_reply_accept(message);
    struct ssh_run *r = channel == NULL ? NULL : ssh_run_new_port(s, channel);
    if (r == NULL) {
        s->cut = true; /* no memory, and it may have been told that the channel is open */
        return TAKEN;
    }
    r->port = (unsigned)port;
    (void)text_copy(r->host, sizeof r->host, host);
    return TAKEN;
}
