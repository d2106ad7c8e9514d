#include "node/control/metrics.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "gateway/gateway.h"

static const char *const start_names[] = {
    [GATEWAY_START_COLD] = "cold", [GATEWAY_START_POOL] = "pool", [GATEWAY_START_JOIN] = "join"};
static const char *const class_names[] = {"broken", "1xx", "2xx", "3xx", "4xx", "5xx"};

/* --- the process -------------------------------------------------------------------------------- */

static uint64_t count_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    uint64_t count = 0;
    if (dir == NULL)
        return 0;
    const struct dirent *entry;
    while ((entry = readdir(dir)) != NULL)
        count += entry->d_name[0] != '.';
    (void)closedir(dir);
    return count > 0 ? count - 1 : 0; /* not the folder itself */
}

static double read_start_time(void)
{
    char text[1024];
    FILE *file = fopen("/proc/self/stat", "re");
    size_t length = file == NULL ? 0 : fread(text, 1, sizeof(text) - 1, file);
    if (file != NULL)
        (void)fclose(file);
    text[length] = '\0';
    /* The name may hold anything; the 22nd field is the 20th behind its closing parenthesis. */
    const char *at = strrchr(text, ')');
    for (unsigned field = 0; at != NULL && field < 20; field++)
        at = strchr(at + 1, ' ');
    unsigned long long ticks = 0;
    if (at == NULL || sscanf(at, " %llu", &ticks) != 1)
        return 0;
    double since_boot = (double)ticks / (double)sysconf(_SC_CLK_TCK);
    return ((double)clock_wall_ms() - (double)clock_boot_ms()) / 1e3 + since_boot;
}

void metrics_process_read(struct metrics_process *out)
{
    struct rusage usage;
    struct rlimit limit;
    unsigned long pages = 0;
    unsigned long resident = 0;
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    *out = (struct metrics_process){0};
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        out->cpu_seconds = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file != NULL && fscanf(file, "%lu %lu", &pages, &resident) == 2) {
        out->virtual_bytes = pages * page_bytes;
        out->resident_bytes = resident * page_bytes;
    }
    if (file != NULL)
        (void)fclose(file);
    out->open_fds = count_fds();
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        out->max_fds = limit.rlim_cur;
    out->start_time_seconds = read_start_time();
}

/* --- the format --------------------------------------------------------------------------------- */

static bool family(struct buffer *out, const char *name, const char *type, const char *help)
{
    return buffer_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static bool count(struct buffer *out, const char *name, uint64_t value)
{
    return buffer_printf(out, "%s %llu\n", name, (unsigned long long)value);
}

static bool counter(struct buffer *out, const char *name, const char *help, uint64_t value)
{
    return family(out, name, "counter", help) && count(out, name, value);
}

static bool gauge(struct buffer *out, const char *name, const char *help, uint64_t value)
{
    return family(out, name, "gauge", help) && count(out, name, value);
}

static bool gauge_real(struct buffer *out, const char *name, const char *type, const char *help,
                       double value)
{
    return family(out, name, type, help) && buffer_printf(out, "%s %.17g\n", name, value);
}

static bool labeled(struct buffer *out, const char *name, const char *label, const char *word,
                    uint64_t value)
{
    return buffer_printf(out, "%s{%s=\"%s\"} %llu\n", name, label, word, (unsigned long long)value);
}

/* The format wants in each bucket all that is below as well: the gateway's counters come so, those
 * of the node count each bucket alone. */
enum histogram_form { CUMULATIVE, ALONE };

/* `label` "" for none. */
static bool histogram(struct buffer *out, const char *name, const char *label, const char *word,
                      const struct gateway_histogram *h, enum histogram_form form)
{
    char with[64] = "";
    char alone[64] = "";
    uint64_t below = 0;
    if (label[0] != '\0') {
        (void)text_format(with, sizeof(with), "%s=\"%s\",", label, word);
        (void)text_format(alone, sizeof(alone), "{%s=\"%s\"}", label, word);
    }
    for (size_t i = 0; i < GATEWAY_BUCKETS; i++) {
        below = h->buckets[i] + (form == ALONE ? below : 0);
        if (!buffer_printf(out, "%s_bucket{%sle=\"%g\"} %llu\n", name, with,
                           gateway_bucket_bounds[i], (unsigned long long)below))
            return false;
    }
    below = h->buckets[GATEWAY_BUCKETS] + (form == ALONE ? below : 0);
    /* Read while others count: the sum of the buckets is what is consistent. */
    return buffer_printf(out, "%s_bucket{%sle=\"+Inf\"} %llu\n%s_sum%s %.9g\n%s_count%s %llu\n",
                         name, with, (unsigned long long)below, name, alone, h->sum_seconds, name,
                         alone, (unsigned long long)below);
}

/* A label's value: backslash, quote and line feed are escaped. */
static bool label_text(struct buffer *out, const char *text)
{
    for (; *text != '\0'; text++) {
        bool done = *text == '\n'                   ? buffer_append_text(out, "\\n")
                    : *text == '"' || *text == '\\' ? buffer_printf(out, "\\%c", *text)
                                                    : buffer_append(out, text, 1);
        if (!done)
            return false;
    }
    return true;
}

/* --- the families ------------------------------------------------------------------------------- */

static bool write_requests(struct buffer *out, const struct metrics_input *in)
{
    const struct gateway_counters *g = in->gateway;
    bool ok = family(out, "skerry_requests_total", "counter", "Joins answered, by status class.");
    for (size_t i = 0; i < ARRAY_SIZE(class_names); i++)
        ok = ok && labeled(out, "skerry_requests_total", "code", class_names[i], g->requests[i]);
    ok =
        ok && family(out, "skerry_api_requests_total", "counter", "API requests, by status class.");
    for (size_t i = 0; i < ARRAY_SIZE(class_names); i++)
        ok = ok &&
             labeled(out, "skerry_api_requests_total", "code", class_names[i], in->api_requests[i]);
    ok = ok && family(out, "skerry_problems_total", "counter",
                      "Joins that got an answer of Skerry's own, by its code.");
    for (int i = PROBLEM_NONE + 1; i < PROBLEM_COUNT; i++)
        ok = ok && labeled(out, "skerry_problems_total", "code",
                           problem_word((enum problem)i)->code, g->problems[i]);
    ok = ok && family(out, "skerry_request_seconds", "histogram",
                      "From a join's first byte to the last of its answer.");
    for (size_t i = 0; i < ARRAY_SIZE(start_names); i++)
        ok = ok && histogram(out, "skerry_request_seconds", "start", start_names[i],
                             &g->by_start[i], CUMULATIVE);
    return ok;
}

static bool write_gateway(struct buffer *out, const struct metrics_input *in)
{
    const struct gateway_counters *g = in->gateway;
    return gauge(out, "skerry_gateway_connections", "Open connections of clients.",
                 in->gateway_connections) &&
           counter(out, "skerry_gateway_connections_accepted_total", "Connections taken.",
                   g->connections_accepted) &&
           counter(out, "skerry_gateway_connections_refused_total",
                   "Connections closed at once, at the bound.", g->connections_refused) &&
           counter(out, "skerry_gateway_received_bytes_total", "Bytes from clients.",
                   g->bytes_in) &&
           counter(out, "skerry_gateway_sent_bytes_total", "Bytes to clients.", g->bytes_out) &&
           counter(out, "skerry_gateway_upstream_connects_total", "Connections made to instances.",
                   g->upstream_connects) &&
           counter(out, "skerry_gateway_upstream_reuses_total",
                   "Joins that used a connection again.", g->upstream_reuses) &&
           counter(out, "skerry_gateway_forwarded_total", "Joins sent to other nodes.",
                   g->forwarded) &&
           counter(out, "skerry_gateway_forward_refused_total",
                   "Joins that the other node refused.", g->forward_refused) &&
           counter(out, "skerry_gateway_streams_connects_total",
                   "Streams made to other nodes for joins.", g->streams_connects) &&
           counter(out, "skerry_gateway_streams_reuses_total", "Joins that used a stream again.",
                   g->streams_reuses) &&
           counter(out, "skerry_gateway_arrivals_total", "Joins that other nodes sent here.",
                   g->arrivals) &&
           counter(out, "skerry_gateway_tls_handshakes_total", "Clients that came by HTTPS.",
                   g->tls_handshakes) &&
           counter(out, "skerry_gateway_tls_resumed_total", "Of those, with a ticket of before.",
                   g->tls_resumed) &&
           counter(out, "skerry_gateway_tls_failures_total",
                   "Connections to the port of HTTPS that came to no request.", g->tls_failures) &&
           counter(out, "skerry_gateway_tcp_accepted_total",
                   "Connections to ports that workloads have opened.", g->tcp_accepted) &&
           counter(out, "skerry_gateway_tcp_refused_total",
                   "Of those, closed without having joined; the reasons are among the problems.",
                   g->tcp_refused) &&
           counter(out, "skerry_gateway_tcp_broken_total",
                   "Of those, broken off before both sides had ended.", g->tcp_broken) &&
           (g->certificate_expires_s == 0 ||
            gauge(out, "skerry_gateway_certificate_expires_timestamp_seconds",
                  "When the first certificate of HTTPS ends, since 1970.",
                  (uint64_t)g->certificate_expires_s));
}

static bool write_instances(struct buffer *out, const struct metrics_input *in)
{
    const struct node_metrics *n = in->node;
    bool ok = family(out, "skerry_instances", "gauge", "Instances of this node, by state.");
    for (int i = INSTANCE_STATE_STARTING; i < INSTANCE_STATE_ENDED; i++)
        ok = ok && labeled(out, "skerry_instances", "state",
                           instance_state_name((enum instance_state)i), in->instances_by_state[i]);
    ok = ok && family(out, "skerry_instances_ended_total", "counter",
                      "Instances that ended here, by reason.");
    for (int i = END_NONE + 1; i < END_REASON_COUNT; i++)
        ok = ok && labeled(out, "skerry_instances_ended_total", "reason",
                           end_reason_name((enum end_reason)i), n->ended_total[i]);
    ok = ok &&
         family(out, "skerry_start_seconds", "histogram", "From asking for an instance to ready.");
    /* A join starts nothing. */
    for (size_t i = GATEWAY_START_COLD; i <= GATEWAY_START_POOL; i++)
        ok = ok && histogram(out, "skerry_start_seconds", "start", start_names[i],
                             &n->start_seconds[i], ALONE);
    return ok &&
           counter(out, "skerry_starts_total", "Instances asked to start.", n->starts_total) &&
           counter(out, "skerry_start_failures_total", "Instances that never became ready.",
                   n->start_failures_total) &&
           counter(out, "skerry_oom_total", "Instances that used up their memory.", n->oom_total) &&
           gauge(out, "skerry_waiters", "Joins that wait for an instance.", n->waiters);
}

static bool write_node(struct buffer *out, const struct metrics_input *in)
{
    const struct node_metrics *n = in->node;
    const struct registry_status *r = &n->registry;
    return family(out, "skerry_loop_lag_seconds", "histogram",
                  "How late the control loop runs its timers.") &&
           histogram(out, "skerry_loop_lag_seconds", "", "", &n->loop_lag_seconds, ALONE) &&
           gauge(out, "skerry_runner_connected", "1 while the runner answers.",
                 n->runner_connected) &&
           gauge_real(out, "skerry_node_cpus_used", "gauge", "Busy processors of the machine.",
                      n->cpus_used) &&
           gauge(out, "skerry_node_memory_used_bytes",
                 "Memory of the machine that programs cannot have any more.",
                 n->memory_used_bytes) &&
           gauge(out, "skerry_node_memory_bytes", "Memory of the machine.", n->memory_bytes) &&
           gauge(out, "skerry_registry_leader", "1 on the leader.", r->leader) &&
           gauge(out, "skerry_registry_term", "Raft's term.", r->term) &&
           gauge(out, "skerry_registry_voters", "Voters in the configuration.", r->voters) &&
           gauge(out, "skerry_registry_spares", "Spares that this node feeds.", r->spares) &&
           gauge(out, "skerry_registry_fed_by",
                 "The node that feeds this one, which is a spare; 0: none does.", r->fed_by) &&
           gauge(out, "skerry_registry_commit_index", "Index of the last committed entry.",
                 r->commit_index) &&
           gauge(out, "skerry_registry_applied_index", "Index of the last applied entry.",
                 r->applied_index) &&
           gauge(out, "skerry_registry_snapshot_index", "Index of the last snapshot.",
                 r->snapshot_index) &&
           gauge(out, "skerry_registry_waiting", "Proposals not yet committed.", r->waiting) &&
           counter(out, "skerry_registry_proposals_total", "Commands proposed.",
                   r->proposals_total) &&
           counter(out, "skerry_registry_batches_total", "Batches of commands proposed.",
                   r->batches_total) &&
           counter(out, "skerry_registry_refusals_total", "Commands that the registry refused.",
                   r->refusals_total) &&
           counter(out, "skerry_refused_questions_total",
                   "Messages of other nodes, or of who says so, that were not believed.",
                   n->refused_questions) &&
           counter(out, "skerry_refused_streams_total",
                   "Streams of other nodes, or of who says so, that were not let in.",
                   n->refused_streams) &&
           counter(out, "skerry_refused_gossip_total", "Packets of gossip that were not believed.",
                   n->refused_gossip) &&
           counter(out, "skerry_refused_joins_total",
                   "Machines that asked to become a node and were refused.", n->refused_joins);
}

static bool write_ssh(struct buffer *out, const struct ssh_front_counters *s)
{
    return gauge(out, "skerry_ssh_sessions", "Connections of SSH.", s->sessions) &&
           counter(out, "skerry_ssh_accepted_total", "Connections of SSH taken.", s->accepted) &&
           counter(out, "skerry_ssh_refused_total", "Connections of SSH refused for a bound.",
                   s->refused) &&
           counter(out, "skerry_ssh_signed_in_total", "Sessions whose key was known.",
                   s->signed_in) &&
           counter(out, "skerry_ssh_denied_total", "Keys and passwords that opened nothing.",
                   s->denied) &&
           counter(out, "skerry_ssh_late_total", "Connections of SSH cut before they signed in.",
                   s->too_late);
}

static bool write_process(struct buffer *out, const struct metrics_process *p)
{
    return gauge_real(out, "process_cpu_seconds_total", "counter",
                      "User and system time of this process.", p->cpu_seconds) &&
           gauge(out, "process_resident_memory_bytes", "Resident memory of this process.",
                 p->resident_bytes) &&
           gauge(out, "process_virtual_memory_bytes", "Virtual memory of this process.",
                 p->virtual_bytes) &&
           gauge(out, "process_open_fds", "Open descriptors of this process.", p->open_fds) &&
           gauge(out, "process_max_fds", "How many it may open.", p->max_fds) &&
           gauge_real(out, "process_start_time_seconds", "gauge",
                      "When this process started, since 1970.", p->start_time_seconds);
}

bool metrics_write(struct buffer *out, const struct metrics_input *in)
{
    return family(out, "skerry_build_info", "gauge", "Which Skerry this is; always 1.") &&
           buffer_printf(out, "skerry_build_info{version=\"%s\",node=\"", in->version) &&
           label_text(out, in->node_name) && buffer_append_text(out, "\"} 1\n") &&
           write_requests(out, in) && write_gateway(out, in) && write_instances(out, in) &&
           write_node(out, in) && write_ssh(out, &in->ssh) && write_process(out, &in->process);
}
