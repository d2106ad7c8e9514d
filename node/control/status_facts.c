#include "node/control/status_facts.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"

enum { TEXT_SIZE = 400 };

static const char *const role_names[] = {[REGISTRY_ROLE_NONE] = "none",
                                         [REGISTRY_ROLE_VOTER] = "voter",
                                         [REGISTRY_ROLE_STANDBY] = "standby",
                                         [REGISTRY_ROLE_SPARE] = "spare"};

/* One that is being suspected answers nobody either, but most often comes back. */
static bool is_there(const struct status_fact *n)
{
    return n->state == GOSSIP_ALIVE || n->state == GOSSIP_SUSPECT;
}

struct status_verdict status_judge(const struct status_facts *f)
{
    struct status_verdict v = {.well = f->has_leader};
    for (size_t i = 0; i < f->count; i++) {
        const struct status_fact *n = &f->nodes[i];
        bool voter = n->role == REGISTRY_ROLE_VOTER;
        v.voters += voter;
        v.voters_alive += voter && n->state == GOSSIP_ALIVE;
        v.well = v.well && (n->state == GOSSIP_ALIVE || (n->state == GOSSIP_LEFT && !voter));
    }
    unsigned needed = v.voters / 2 + 1;
    v.can_lose = v.voters_alive > needed ? v.voters_alive - needed : 0;
    return v;
}

json_t *status_node_json(const struct status_fact *n)
{
    char id[24];
    (void)text_format(id, sizeof id, "%llu", (unsigned long long)n->id);
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:I, s:s, s:f, s:f, s:I, "
                     "s:I, s:o, s:o}",
                     "id", id, "name", n->name, "address", n->address, "http", n->http, "api",
                     n->api, "zone", n->zone, "state", gossip_state_name(n->state), "role",
                     role_names[n->role], "leader", (int)n->leader, "draining", (int)n->draining,
                     "instances", (json_int_t)n->instances, "version", n->version, "cpus", n->cpus,
                     "cpus_used", n->cpus_used, "memory_bytes", (json_int_t)n->memory_bytes,
                     "memory_used_bytes", (json_int_t)n->memory_used_bytes, "lease_seconds",
                     n->lease_known ? json_real(n->lease_s) : json_null(), "clock_ahead_seconds",
                     n->clock_known ? json_real((double)n->ahead_ms / 1000.0) : json_null());
}

/* --- warnings ----------------------------------------------------------------------------------- */

void status_warn(json_t *warnings, const char *format, ...)
{
    char text[TEXT_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    json_array_append_new(warnings, json_string(text));
}

/* "14:02:11", in UTC as all times of Skerry; "" if it is not known. */
static void clock_text(uint64_t wall_ms, char out[32])
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm;
    out[0] = '\0';
    if (wall_ms != 0 && gmtime_r(&seconds, &tm) != NULL)
        (void)strftime(out, 32, " since %H:%M:%SZ", &tm);
}

static void append(char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(char *text, const char *format, ...)
{
    size_t length = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + length, TEXT_SIZE - length, format, args);
    va_end(args);
}

static void warn_quorum(json_t *warnings, const struct status_facts *f,
                        const struct status_verdict *v)
{
    char lost[TEXT_SIZE] = "";
    uint32_t instances = 0;
    for (size_t i = 0; i < f->count; i++) {
        const struct status_fact *n = &f->nodes[i];
        char since[32];
        if (is_there(n)) {
            instances += n->instances;
            continue;
        }
        clock_text(n->since_wall_ms, since);
        append(lost, "%s%s%s", lost[0] == '\0' ? " Lost: " : ", ", n->name, since);
    }
    if (v->voters_alive >= v->voters / 2 + 1)
        status_warn(warnings,
                    "registry  no leader: an election is under way; nothing can start until "
                    "it is over");
    else
        status_warn(warnings,
                    "registry  no_quorum: %u of %u voters reachable; nothing can start. %u running "
                    "instances can still be joined.%s",
                    v->voters_alive, v->voters, (unsigned)instances, lost);
}

static void warn_node(json_t *warnings, const struct status_fact *n)
{
    char since[32];
    clock_text(n->since_wall_ms, since);
    if (n->state == GOSSIP_SUSPECT)
        status_warn(warnings, "%s  does not answer%s; others are asking it", n->name, since);
    if (n->state == GOSSIP_DEAD)
        status_warn(warnings,
                    "%s  dead%s; its instances are lost once its lease has ended. Start it "
                    "again, or take it out: skerry node rm %s",
                    n->name, since, n->name);
    if (n->state == GOSSIP_LEFT && n->role == REGISTRY_ROLE_VOTER)
        status_warn(warnings, "%s  stopped%s; it still counts as a voter", n->name, since);
    if (n->draining)
        status_warn(warnings, "%s  drains: nothing starts there, %u instances are left", n->name,
                    (unsigned)n->instances);
}

static void warn_voters(json_t *warnings, const struct status_facts *f,
                        const struct status_verdict *v)
{
    unsigned there = 0;
    for (size_t i = 0; i < f->count; i++)
        there += is_there(&f->nodes[i]);
    unsigned wanted = f->voters_wanted < there ? f->voters_wanted : there;
    wanted -= wanted > 0 && wanted % 2 == 0;
    if (v->voters < wanted)
        status_warn(warnings, "registry  %u of %u voters; more are being made", v->voters, wanted);
    else if (v->voters > 1 && v->can_lose == 0)
        status_warn(warnings,
                    "registry  the loss of one more voter stops all starts; bring %s back",
                    v->voters - v->voters_alive > 1 ? "those that are missing" : "the missing one");
    else if (v->voters == 1 && f->count > 1)
        status_warn(warnings,
                    "registry  a single voter: its loss stops all starts. Three nodes survive "
                    "the loss of one");
}

static void warn_versions(json_t *warnings, const struct status_facts *f)
{
    char text[TEXT_SIZE] = "";
    const char *first = NULL;
    bool apart = false;
    for (size_t i = 0; i < f->count; i++) {
        const struct status_fact *n = &f->nodes[i];
        if (!is_there(n) || n->version[0] == '\0')
            continue;
        first = first == NULL ? n->version : first;
        apart = apart || strcmp(first, n->version) != 0;
        append(text, "%s%s %s", text[0] == '\0' ? "" : ", ", n->name, n->version);
    }
    if (apart)
        status_warn(warnings, "versions  apart: %s. Bring all nodes to one", text);
}

static int by_size(const void *a, const void *b)
{
    int64_t one = *(const int64_t *)a, other = *(const int64_t *)b;
    return one < other ? -1 : one > other;
}

/* Beside the clock in the middle of all: so the one that is off is named, also when it is the one that is
 * asked. Of two it cannot be known, and the one ahead is named. */
static void warn_clocks(json_t *warnings, const struct status_facts *f)
{
    CLEANUP_FREE int64_t *ahead = calloc(f->count + 1, sizeof *ahead);
    size_t count = 0;
    if (ahead == NULL)
        return;
    for (size_t i = 0; i < f->count; i++)
        if (f->nodes[i].clock_known)
            ahead[count++] = f->nodes[i].ahead_ms;
    qsort(ahead, count, sizeof *ahead, by_size);
    int64_t middle = count == 0 ? 0 : ahead[(count - 1) / 2];
    for (size_t i = 0; i < f->count; i++) {
        const struct status_fact *n = &f->nodes[i];
        int64_t off = n->ahead_ms - middle;
        if (!n->clock_known || (off <= STATUS_CLOCK_OFF_MS && off >= -STATUS_CLOCK_OFF_MS))
            continue;
        status_warn(warnings,
                    "%s  its clock is %.1f s %s that of %s; times, logs and the ends of tokens are "
                    "wrong there. Let chrony or systemd-timesyncd set it",
                    n->name, (double)(off < 0 ? -off : off) / 1000.0,
                    off < 0 ? "behind" : "ahead of", count > 2 ? "the others" : "the other node");
    }
}

void status_warnings(json_t *warnings, const struct status_facts *f)
{
    struct status_verdict v = status_judge(f);
    if (!f->has_leader)
        warn_quorum(warnings, f, &v);
    for (size_t i = 0; i < f->count; i++)
        warn_node(warnings, &f->nodes[i]);
    if (f->has_leader)
        warn_voters(warnings, f, &v);
    warn_versions(warnings, f);
    warn_clocks(warnings, f);
    if (f->strangers > 0)
        status_warn(warnings,
                    "strangers  %llu packets or streams without a key of this cluster were refused "
                    "lately; the log tells from where",
                    (unsigned long long)f->strangers);
}
