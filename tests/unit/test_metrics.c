/* /metrics is valid exposition format, checked by a strict little parser of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "node/control/metrics.h"

#define FAMILIES_MAX 200
#define SAMPLES_MAX 2000

struct sample {
    char name[96];    /* with its suffix */
    char labels[200]; /* without `le` */
    double le;        /* NAN: none */
    double value;
};

struct exposition {
    char families[FAMILIES_MAX][96];
    char types[FAMILIES_MAX][16];
    size_t family_count;
    struct sample samples[SAMPLES_MAX];
    size_t sample_count;
};

static size_t name_length(const char *at)
{
    size_t length = 0;
    if (!isalpha((unsigned char)at[0]) && at[0] != '_' && at[0] != ':')
        return 0;
    while (isalnum((unsigned char)at[length]) || at[length] == '_' || at[length] == ':')
        length++;
    return length;
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text);
    size_t end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

/* NULL, or what is wrong with the line behind "# ". */
static const char *read_comment(struct exposition *x, const char *line, char pending[96])
{
    bool help = strncmp(line, "HELP ", 5) == 0;
    if (!help && strncmp(line, "TYPE ", 5) != 0)
        return "a comment that is neither HELP nor TYPE";
    const char *name = line + 5;
    size_t length = name_length(name);
    if (length == 0 || length >= 96 || name[length] != ' ')
        return "no name";
    if (help) {
        if (pending[0] != '\0')
            return "HELP without TYPE";
        if (name[length + 1] == '\0')
            return "an empty HELP";
        memcpy(pending, name, length);
        pending[length] = '\0';
        return NULL;
    }
    if (strncmp(pending, name, length) != 0 || pending[length] != '\0')
        return "TYPE without its HELP";
    for (size_t i = 0; i < x->family_count; i++)
        if (strcmp(x->families[i], pending) == 0)
            return "a family twice";
    const char *type = name + length + 1;
    if (strcmp(type, "counter") != 0 && strcmp(type, "gauge") != 0 &&
        strcmp(type, "histogram") != 0)
        return "an unknown type";
    if (strcmp(type, "counter") == 0 && !ends_with(pending, "_total"))
        return "a counter that does not end in _total";
    assert_true(x->family_count < FAMILIES_MAX);
    (void)text_copy(x->families[x->family_count], 96, pending);
    (void)text_copy(x->types[x->family_count++], 16, type);
    pending[0] = '\0';
    return NULL;
}

/* `{name="value",...}`; the part behind it, NULL if it is none. */
static const char *read_labels(struct sample *s, const char *at)
{
    if (*at++ != '{')
        return NULL;
    while (*at != '}') {
        size_t length = name_length(at);
        const char *value = at + length + 2;
        if (length == 0 || strncmp(at + length, "=\"", 2) != 0)
            return NULL;
        const char *end = value;
        while (*end != '"' && *end != '\0')
            end += end[0] == '\\' && end[1] != '\0' ? 2 : 1;
        if (*end != '"')
            return NULL;
        if (length == 2 && strncmp(at, "le", 2) == 0) {
            s->le = strncmp(value, "+Inf\"", 5) == 0 ? INFINITY : strtod(value, NULL);
        } else {
            size_t used = strlen(s->labels);
            (void)text_format(s->labels + used, sizeof(s->labels) - used, "%.*s;",
                              (int)(end + 1 - at), at);
        }
        at = end + 1;
        if (*at == ',')
            at++;
        else if (*at != '}')
            return NULL;
    }
    return at + 1;
}

static const char *read_sample(struct exposition *x, const char *line)
{
    struct sample s = {.le = NAN};
    size_t length = name_length(line);
    if (length == 0 || length >= sizeof(s.name))
        return "no name";
    memcpy(s.name, line, length);
    const char *at = line + length;
    if (*at == '{' && (at = read_labels(&s, at)) == NULL)
        return "bad labels";
    char *end;
    if (*at != ' ')
        return "no space before the value";
    s.value = strtod(at + 1, &end);
    if (end == at + 1 || *end != '\0')
        return "no value";
    if (x->family_count == 0)
        return "a sample without a family";
    const char *family = x->families[x->family_count - 1];
    const char *type = x->types[x->family_count - 1];
    const char *suffix = s.name + strlen(family);
    if (strncmp(s.name, family, strlen(family)) != 0)
        return "not of the family above";
    bool histogram = strcmp(type, "histogram") == 0;
    if (!histogram && suffix[0] != '\0')
        return "not of the family above";
    if (histogram && strcmp(suffix, "_bucket") != 0 && strcmp(suffix, "_sum") != 0 &&
        strcmp(suffix, "_count") != 0)
        return "no part of a histogram";
    if (isnan(s.le) == (histogram && strcmp(suffix, "_bucket") == 0))
        return "le, and only buckets have it";
    if (strcmp(type, "counter") == 0 && s.value < 0)
        return "a counter below zero";
    for (size_t i = 0; i < x->sample_count; i++)
        if (strcmp(x->samples[i].name, s.name) == 0 &&
            strcmp(x->samples[i].labels, s.labels) == 0 &&
            (isnan(s.le) || x->samples[i].le == s.le))
            return "a sample twice";
    assert_true(x->sample_count < SAMPLES_MAX);
    x->samples[x->sample_count++] = s;
    return NULL;
}

static const struct sample *find(const struct exposition *x, const char *name, const char *labels,
                                 double le)
{
    for (size_t i = 0; i < x->sample_count; i++)
        if (strcmp(x->samples[i].name, name) == 0 && strcmp(x->samples[i].labels, labels) == 0 &&
            (isnan(le) || x->samples[i].le == le))
            return &x->samples[i];
    return NULL;
}

/* Buckets grow in order to +Inf, which is the count. */
static const char *check_histograms(const struct exposition *x)
{
    for (size_t i = 0; i < x->sample_count; i++) {
        const struct sample *s = &x->samples[i];
        char count[96];
        if (isnan(s->le))
            continue;
        const struct sample *next = i + 1 < x->sample_count ? &x->samples[i + 1] : NULL;
        if (isinf(s->le)) {
            (void)text_format(count, sizeof(count), "%.*s_count", (int)(strlen(s->name) - 7),
                              s->name);
            const struct sample *c = find(x, count, s->labels, NAN);
            if (c == NULL || c->value != s->value)
                return "the count is not that of +Inf";
        } else if (next == NULL || strcmp(next->name, s->name) != 0 ||
                   strcmp(next->labels, s->labels) != 0 || !(next->le > s->le) ||
                   next->value < s->value) {
            return "buckets do not grow to +Inf";
        }
    }
    return NULL;
}

/* NULL, or what is wrong. */
static const char *parse(struct exposition *x, const char *text)
{
    char pending[96] = "";
    char line[1024];
    *x = (struct exposition){0};
    while (*text != '\0') {
        const char *end = strchr(text, '\n');
        if (end == NULL)
            return "the last line does not end";
        if (!text_format(line, sizeof(line), "%.*s", (int)(end - text), text))
            return "a line is too long";
        const char *wrong = strncmp(line, "# ", 2) == 0 ? read_comment(x, line + 2, pending)
                            : pending[0] != '\0'        ? "HELP without TYPE"
                                                        : read_sample(x, line);
        if (wrong != NULL)
            return wrong;
        text = end + 1;
    }
    return check_histograms(x);
}

static void the_parser_refuses_what_is_wrong(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "a 1\n",
        "# TYPE a gauge\na 1\n",
        "# HELP a b\na 1\n",
        "# HELP a b\n# TYPE a gauge\na 1",
        "# HELP a b\n# TYPE a gauge\na one\n",
        "# HELP a b\n# TYPE a gauge\nb 1\n",
        "# HELP a b\n# TYPE a gauge\na 1\na 2\n",
        "# HELP a b\n# TYPE a counter\na 1\n",
        "# HELP a b\n# TYPE a gauge\na{b=c} 1\n",
        "# HELP a b\n# TYPE a gauge\na{b=\"c} 1\n",
        ("# HELP a b\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\n"
         "a_sum 1\na_count 1\n"),
        "# HELP a b\n# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 2\n",
    };
    struct exposition *x = malloc(sizeof(*x));
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        if (parse(x, bad[i]) == NULL)
            fail_msg("taken: %s", bad[i]);
    assert_null(parse(x, "# HELP a b\n# TYPE a gauge\na{b=\"c\\\"d\",e=\"f\"} 1.5e3\n"));
    assert_true(x->samples[0].value == 1500);
    free(x);
}

static void metrics_are_valid_and_say_what_was_counted(void **state)
{
    (void)state;
    struct node_metrics node = {.starts_total = 5, .runner_connected = true, .waiters = 3};
    struct gateway_counters gateway = {.requests = {1, 0, 20, 3, 4, 5}, .bytes_out = 1ull << 60};
    uint64_t api[6] = {0, 1, 7, 0, 2, 0};
    node.start_seconds[0].buckets[3] = 2;
    node.start_seconds[0].buckets[GATEWAY_BUCKETS] = 1;
    node.start_seconds[0].sum_seconds = 31.25;
    node.ended_total[END_OOM] = 4;
    for (size_t i = 5; i <= GATEWAY_BUCKETS; i++)
        gateway.by_start[2].buckets[i] = i < 9 ? 1 : 2; /* cumulative, as the gateway counts */
    gateway.problems[PROBLEM_QUEUE_FULL] = 6;
    gateway.tls_handshakes = 11;
    gateway.certificate_expires_s = 1893456000;
    struct metrics_input in = {.version = "1.2.3",
                               .node_name = "a \"quoted\\ name\n",
                               .node = &node,
                               .gateway = &gateway,
                               .gateway_connections = 9,
                               .api_requests = api};
    in.instances_by_state[INSTANCE_STATE_READY] = 8;
    metrics_process_read(&in.process);
    struct buffer text;
    buffer_init(&text, METRICS_BYTES_MAX);
    assert_true(metrics_write(&text, &in));
    assert_true(buffer_append(&text, "", 1));
    struct exposition *x = malloc(sizeof(*x));
    const char *wrong = parse(x, text.data);
    if (wrong != NULL)
        fail_msg("%s, behind %zu samples", wrong, x->sample_count);
    const struct {
        const char *name, *labels;
        double le, value;
    } wanted[] = {
        {"skerry_requests_total", "code=\"2xx\";", NAN, 20},
        {"skerry_requests_total", "code=\"broken\";", NAN, 1},
        {"skerry_api_requests_total", "code=\"2xx\";", NAN, 7},
        {"skerry_problems_total", "code=\"queue_full\";", NAN, 6},
        {"skerry_instances", "state=\"ready\";", NAN, 8},
        {"skerry_instances_ended_total", "reason=\"oom\";", NAN, 4},
        {"skerry_start_seconds_bucket", "start=\"cold\";", INFINITY, 3},
        {"skerry_start_seconds_count", "start=\"cold\";", NAN, 3},
        {"skerry_start_seconds_sum", "start=\"cold\";", NAN, 31.25},
        {"skerry_gateway_connections", "", NAN, 9},
        {"skerry_gateway_sent_bytes_total", "", NAN, 1152921504606846976.0},
        {"skerry_runner_connected", "", NAN, 1},
        {"skerry_gateway_tls_handshakes_total", "", NAN, 11},
        {"skerry_gateway_certificate_expires_timestamp_seconds", "", NAN, 1893456000},
        {"skerry_waiters", "", NAN, 3},
        {"skerry_loop_lag_seconds_count", "", NAN, 0},
        {"skerry_request_seconds_count", "start=\"join\";", NAN, 2},
        {"skerry_request_seconds_bucket", "start=\"join\";", gateway_bucket_bounds[8], 1},
        {"skerry_request_seconds_bucket", "start=\"join\";", gateway_bucket_bounds[9], 2},
        {"skerry_build_info", "version=\"1.2.3\";node=\"a \\\"quoted\\\\ name\\n\";", NAN, 1},
    };
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
        const struct sample *s = find(x, wanted[i].name, wanted[i].labels, wanted[i].le);
        if (s == NULL || s->value != wanted[i].value)
            fail_msg("%s{%s} is %g", wanted[i].name, wanted[i].labels, s == NULL ? NAN : s->value);
    }
    const struct sample *fds = find(x, "process_open_fds", "", NAN);
    assert_true(fds != NULL && fds->value >= 3 && fds->value < 1000);
    const struct sample *start = find(x, "process_start_time_seconds", "", NAN);
    assert_true(start != NULL && start->value > 1e9);
    assert_true(find(x, "process_resident_memory_bytes", "", NAN)->value > 1e5);
    free(x);
    buffer_free(&text);
}

static void a_full_buffer_is_told(void **state)
{
    (void)state;
    struct node_metrics node = {0};
    struct gateway_counters gateway = {0};
    uint64_t api[6] = {0};
    struct metrics_input in = {
        .version = "1", .node_name = "n", .node = &node, .gateway = &gateway, .api_requests = api};
    for (size_t bound = 0; bound < 8000; bound += 97) {
        struct buffer text;
        buffer_init(&text, bound);
        assert_false(metrics_write(&text, &in));
        buffer_free(&text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_parser_refuses_what_is_wrong),
        cmocka_unit_test(metrics_are_valid_and_say_what_was_counted),
        cmocka_unit_test(a_full_buffer_is_told),
    };
    return cmocka_run_group_tests_name("metrics", tests, NULL, NULL);
}
