#include "sandbox/runner/request.h"

#include <string.h>

#include "base/id.h"
#include "base/memory.h"
#include "base/units.h"
#include "base/words.h"
#include "sandbox/runner/net_rules.h"
#include "sandbox/runner/seccomp.h"

#define UID_MAX_INSIDE 65534u /* 65535 is the agent */
#define HEALTH_MS_MAX (24u * 3600 * 1000)

static int check_id(const char *id, struct err *e)
{
    struct instance_id parsed;
    size_t length = strnlen(id, INSTANCE_ID_LENGTH_MAX + 1);
    if (!instance_id_parse(&parsed, id, length))
        return err_set(e, ERR_INVALID, "id: not an instance id");
    return 0;
}

/* A non-empty list of texts within bounds. */
static int check_texts(const char *what, char **texts, size_t count, struct err *e)
{
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += strlen(texts[i]) + 1;
    if (count > REQUEST_ARGUMENTS_MAX || bytes > REQUEST_ARGUMENTS_BYTES_MAX)
        return err_set(e, ERR_LIMIT, "%s: at most %d texts of %d bytes together", what,
                       REQUEST_ARGUMENTS_MAX, REQUEST_ARGUMENTS_BYTES_MAX);
    return 0;
}

static int check_command(char **command, size_t count, struct err *e)
{
    if (count > 0 && command[0][0] == '\0')
        return err_set(e, ERR_INVALID, "command: its first word is empty");
    return check_texts("command", command, count, e);
}

static int check_environment(char **environment, size_t count, struct err *e)
{
    for (size_t i = 0; i < count; i++) {
        const char *equals = strchr(environment[i], '=');
        if (equals == NULL || equals == environment[i])
            return err_set(e, ERR_INVALID, "environment: entry %zu is not NAME=value", i + 1);
    }
    return check_texts("environment", environment, count, e);
}

static int check_user(uint32_t uid, uint32_t gid, struct err *e)
{
    if (uid > UID_MAX_INSIDE || gid > UID_MAX_INSIDE)
        return err_set(e, ERR_INVALID, "user %u:%u: ids go from 0 to %u", uid, gid, UID_MAX_INSIDE);
    return 0;
}

static int check_terminal(uint32_t rows, uint32_t columns, struct err *e)
{
    if (rows > UINT16_MAX || columns > UINT16_MAX)
        return err_set(e, ERR_INVALID, "terminal of %u rows and %u columns", rows, columns);
    return 0;
}

static bool digest_valid(const char *text)
{
    if (strncmp(text, "sha256:", 7) != 0)
        return false;
    return strspn(text + 7, "0123456789abcdef") == 64 && text[7 + 64] == '\0';
}

static bool hostname_valid(const char *name)
{
    size_t length = strnlen(name, 65);
    if (length > 63 || name[0] == '-')
        return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") ==
           length;
}

static int check_maximum(const char *what, uint64_t value, uint64_t max,
                         void (*format)(uint64_t value, char out[UNIT_TEXT_SIZE]), struct err *e)
{
    char asked[UNIT_TEXT_SIZE], most[UNIT_TEXT_SIZE];
    if (value <= max)
        return 0;
    format(value, asked);
    format(max, most);
    return err_set(e, ERR_DENIED, "%s: %s is above %s, the most that runner.yaml allows", what,
                   asked, most);
}

static void count_format(uint64_t value, char out[UNIT_TEXT_SIZE])
{
    text_format(out, UNIT_TEXT_SIZE, "%llu", (unsigned long long)value);
}

static int check_limits(const Skerry__Runner__Prepare *p, const struct request_bounds *b,
                        struct err *e)
{
    int rc = check_maximum("cpus", p->cpu_thousandths, b->cpu_thousandths, decimal_format, e);
    if (rc == 0)
        rc = check_maximum("memory", p->memory_bytes, b->memory_bytes, bytes_format, e);
    if (rc == 0)
        rc = check_maximum("pids", p->pids, b->pids, count_format, e);
    if (rc == 0)
        rc = check_maximum("disk", p->disk_bytes, b->disk_bytes, bytes_format, e);
    if (rc == 0)
        rc = check_maximum("io", p->io_bytes, b->io_bytes, bytes_format, e);
    if (rc == 0)
        rc = check_maximum("network.bandwidth", p->network_bandwidth, b->bandwidth_bytes,
                           bytes_format, e);
    if (rc == 0)
        rc = check_maximum("logs.bytes_max", p->log_bytes_max, b->log_bytes, bytes_format, e);
    return rc;
}

static int check_permissions(const Skerry__Runner__Prepare *p, const struct request_bounds *b,
                             struct err *e)
{
    enum seccomp_profile profile;
    if (!seccomp_profile_find(p->profile, &profile))
        return err_set(e, ERR_INVALID, "profile: strict, default or relaxed");
    /* Nobody gains by fewer calls. */
    bool may = profile == SECCOMP_STRICT;
    for (size_t i = 0; i < b->profile_count; i++)
        may = may || strcmp(b->profiles[i], p->profile) == 0;
    if (!may)
        return err_set(e, ERR_DENIED,
                       "profile: %s is not one that runner.yaml of this machine allows; it goes "
                       "into allow.profiles there",
                       p->profile);
    if (p->network > 1)
        return err_set(e, ERR_INVALID, "network: %u is no mode", p->network);
    if (p->network == 1 && !b->egress)
        return err_set(e, ERR_DENIED,
                       "network: egress is not allowed here; set allow.egress in runner.yaml");
    if (p->io_bytes > 0 && !b->io)
        return err_set(e, ERR_DENIED,
                       "io: a limit of it is not allowed here; set allow.io in runner.yaml");
    return 0;
}

static int check_network(const Skerry__Runner__Prepare *p, struct err *e)
{
    const struct {
        const char *key;
        char **texts;
        size_t count;
    } lists[] = {{"network.allow", p->network_allow, p->n_network_allow},
                 {"network.deny", p->network_deny, p->n_network_deny}};
    for (size_t i = 0; i < ARRAY_SIZE(lists); i++) {
        if (lists[i].count > 0 && p->network == 0)
            return err_set(e, ERR_INVALID, "%s: without egress it cannot act", lists[i].key);
        if (lists[i].count > NET_DESTINATIONS_MAX)
            return err_set(e, ERR_INVALID, "%s: more than %d destinations", lists[i].key,
                           NET_DESTINATIONS_MAX);
        for (size_t n = 0; n < lists[i].count; n++) {
            struct destination d;
            if (destination_parse(&d, lists[i].texts[n], e) < 0)
                return err_wrap(e, "%s", lists[i].key);
        }
    }
    return 0;
}

static int check_health(const Skerry__Runner__Healthcheck *h, struct err *e)
{
    if (h == NULL || h->n_test == 0)
        return 0;
    if (h->interval_ms == 0 || h->timeout_ms == 0 || h->interval_ms > HEALTH_MS_MAX ||
        h->timeout_ms > HEALTH_MS_MAX || h->start_period_ms > HEALTH_MS_MAX || h->retries > 1000)
        return err_set(e, ERR_INVALID, "healthcheck: interval, timeout or retries out of range");
    return check_command(h->test, h->n_test, e);
}

static int check_prepare(const Skerry__Runner__Prepare *p, const struct request_bounds *b,
                         struct err *e)
{
    int rc = check_id(p->id, e);
    if (rc == 0 && strcmp(p->image, "host") != 0 && !digest_valid(p->image))
        rc = err_set(e, ERR_INVALID, "image: neither host nor sha256:<64 hex digits>");
    if (rc == 0 && p->source[0] != '\0' && !digest_valid(p->source))
        rc = err_set(e, ERR_INVALID, "source: not sha256:<64 hex digits>");
    if (rc == 0)
        rc = check_command(p->command, p->n_command, e);
    if (rc == 0)
        rc = check_environment(p->environment, p->n_environment, e);
    if (rc == 0)
        rc = check_user(p->uid, p->gid, e);
    if (rc == 0)
        rc = check_permissions(p, b, e);
    if (rc == 0)
        rc = check_network(p, e);
    if (rc == 0)
        rc = check_limits(p, b, e);
    if (rc == 0)
        rc = check_health(p->healthcheck, e);
    if (rc == 0)
        rc = check_terminal(p->rows, p->columns, e);
    if (rc == 0 && (p->port > UINT16_MAX || p->drain_ms > REQUEST_GRACE_MS_MAX ||
                    (unsigned)p->ready > SKERRY__RUNNER__READY__READY_NONE))
        rc = err_set(e, ERR_INVALID, "port, drain_ms or ready out of range");
    if (rc == 0 && !hostname_valid(p->hostname))
        rc = err_set(e, ERR_INVALID, "hostname: letters, digits and hyphens, at most 63");
    return rc;
}

static int check_exec(const Skerry__Runner__Exec *x, struct err *e)
{
    int rc = check_id(x->id, e);
    if (rc == 0 && x->exec_id == 0)
        rc = err_set(e, ERR_INVALID, "exec_id: 0 is the main command");
    if (rc == 0 && (unsigned)x->file_verb > SKERRY__RUNNER__FILE_VERB__FILE_WRITE_PLAIN)
        rc = err_set(e, ERR_INVALID, "file_verb: unknown");
    if (rc == 0 && (x->file_verb == 0) != (x->n_command > 0))
        rc = err_set(e, ERR_INVALID, "exec: needs either a command or a file verb");
    if (rc == 0 && strlen(x->path) > 4095)
        rc = err_set(e, ERR_INVALID, "path: longer than 4095 bytes");
    if (rc == 0)
        rc = check_command(x->command, x->n_command, e);
    if (rc == 0)
        rc = check_environment(x->environment, x->n_environment, e);
    if (rc == 0)
        rc = check_user(x->uid, x->gid, e);
    if (rc == 0)
        rc = check_terminal(x->rows, x->columns, e);
    return rc;
}

static int check_signal(const Skerry__Runner__Signal *s, struct err *e)
{
    if (s->signal < 1 || s->signal > 64)
        return err_set(e, ERR_INVALID, "signal: %u is none", s->signal);
    return check_id(s->id, e);
}

static int check_stop(const Skerry__Runner__Stop *s, struct err *e)
{
    if (s->grace_ms > REQUEST_GRACE_MS_MAX)
        return err_set(e, ERR_INVALID, "grace_ms: above an hour");
    if (s->reason == END_NONE || s->reason >= END_REASON_COUNT)
        return err_set(e, ERR_INVALID, "reason: %u is none", s->reason);
    return check_id(s->id, e);
}

static int check_sockets(const Skerry__Runner__Sockets *s, struct err *e)
{
    if (s->count < 1 || s->count > REQUEST_SOCKETS_MAX)
        return err_set(e, ERR_INVALID, "count: from 1 to %d", REQUEST_SOCKETS_MAX);
    return check_id(s->id, e);
}

static int check_resize(const Skerry__Runner__Resize *r, struct err *e)
{
    int rc = check_id(r->id, e);
    return rc == 0 ? check_terminal(r->rows, r->columns, e) : rc;
}

static int check_import(const Skerry__Runner__Import *i, struct err *e)
{
    if ((unsigned)i->kind > SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE)
        return err_set(e, ERR_INVALID, "kind: unknown");
    if (i->want_digest[0] != '\0' && !digest_valid(i->want_digest))
        return err_set(e, ERR_INVALID, "want_digest: not sha256:<64 hex digits>");
    if (strlen(i->name) > 255)
        return err_set(e, ERR_INVALID, "name: longer than 255 bytes");
    return 0;
}

static int check_export(const Skerry__Runner__Export *x, struct err *e)
{
    if ((unsigned)x->kind > SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE)
        return err_set(e, ERR_INVALID, "kind: unknown");
    return digest_valid(x->digest) ? 0
                                   : err_set(e, ERR_INVALID, "digest: not sha256:<64 hex digits>");
}

static int check_verb(const Skerry__Runner__Request *r, const struct request_bounds *b,
                      struct err *e)
{
    switch (r->verb_case) {
    case SKERRY__RUNNER__REQUEST__VERB_HELLO:
    case SKERRY__RUNNER__REQUEST__VERB_IMAGE_LIST:
        return 0;
    case SKERRY__RUNNER__REQUEST__VERB_LIST:
        return r->list_after[0] == '\0' ? 0 : check_id(r->list_after, e);
    case SKERRY__RUNNER__REQUEST__VERB_PREPARE:
        return check_prepare(r->prepare, b, e);
    case SKERRY__RUNNER__REQUEST__VERB_COMMIT:
        return check_id(r->commit->id, e);
    case SKERRY__RUNNER__REQUEST__VERB_DISCARD:
        return check_id(r->discard->id, e);
    case SKERRY__RUNNER__REQUEST__VERB_EXEC:
        return check_exec(r->exec, e);
    case SKERRY__RUNNER__REQUEST__VERB_SIGNAL:
        return check_signal(r->signal, e);
    case SKERRY__RUNNER__REQUEST__VERB_STOP:
        return check_stop(r->stop, e);
    case SKERRY__RUNNER__REQUEST__VERB_SOCKETS:
        return check_sockets(r->sockets, e);
    case SKERRY__RUNNER__REQUEST__VERB_STATS:
        return check_id(r->stats->id, e);
    case SKERRY__RUNNER__REQUEST__VERB_DEADLINE:
        return check_id(r->deadline->id, e);
    case SKERRY__RUNNER__REQUEST__VERB_IMPORT_STREAM:
        return check_import(r->import_stream, e);
    case SKERRY__RUNNER__REQUEST__VERB_EXPORT_STREAM:
        return check_export(r->export_stream, e);
    case SKERRY__RUNNER__REQUEST__VERB_IMAGE_REMOVE:
        return digest_valid(r->image_remove->digest)
                   ? 0
                   : err_set(e, ERR_INVALID, "digest: not sha256:<64 hex digits>");
    case SKERRY__RUNNER__REQUEST__VERB_RESIZE:
        return check_resize(r->resize, e);
    case SKERRY__RUNNER__REQUEST__VERB_LIFE:
        return check_id(r->life->id, e);
    case SKERRY__RUNNER__REQUEST__VERB_FORGET:
        return check_id(r->forget->id, e);
    default:
        return err_set(e, ERR_UNSUPPORTED, "a verb that this runner does not know");
    }
}

int request_parse(Skerry__Runner__Request **out, const void *data, size_t length,
                  const struct request_bounds *bounds, struct err *e)
{
    *out = NULL;
    if (length > REQUEST_BYTES_MAX)
        return err_set(e, ERR_PROTOCOL, "request above %d bytes", REQUEST_BYTES_MAX);
    Skerry__Runner__Request *r = skerry__runner__request__unpack(NULL, length, data);
    if (r == NULL)
        return err_set(e, ERR_PROTOCOL, "not a request");
    *out = r;
    return check_verb(r, bounds, e);
}
