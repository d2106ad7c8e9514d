#include "base/words.h"

#include "base/memory.h"

static const char *const states[INSTANCE_STATE_COUNT] = {
    [INSTANCE_STATE_NONE] = "none",   [INSTANCE_STATE_STARTING] = "starting",
    [INSTANCE_STATE_READY] = "ready", [INSTANCE_STATE_DRAINING] = "draining",
    [INSTANCE_STATE_ENDED] = "ended",
};

static const char *const reasons[END_REASON_COUNT] = {
    [END_NONE] = "none",
    [END_EXPIRED] = "expired",
    [END_IDLE] = "idle",
    [END_DRAINED] = "drained",
    [END_EXITED] = "exited",
    [END_OOM] = "oom",
    [END_KILLED] = "killed",
    [END_NODE_LOST] = "node_lost",
    [END_LEASE_LOST] = "lease_lost",
    [END_START_FAILED] = "start_failed",
    [END_START_TIMEOUT] = "start_timeout",
    [END_START_LOST] = "start_lost",
    [END_CLIENT_GONE] = "client_gone",
    [END_TIMED_OUT] = "timed_out",
    [END_UNHEALTHY] = "unhealthy",
    [END_AGENT_LOST] = "agent_lost",
};

static const char *const rans[] = {[RAN_NO] = "no", [RAN_MAYBE] = "maybe", [RAN_YES] = "yes"};

static const struct problem_word problems[PROBLEM_COUNT] = {
    [PROBLEM_NONE] = {"none", 200, false, "No problem."},
    [PROBLEM_BAD_REQUEST] = {"bad_request", 400, false, "The request is malformed."},
    [PROBLEM_URI_TOO_LONG] = {"uri_too_long", 414, false, "The request target is too long."},
    [PROBLEM_HEADER_TOO_LARGE] = {"header_too_large", 431, false, "The header block is too large."},
    [PROBLEM_BODY_TOO_LARGE] = {"body_too_large", 413, false, "The body is too large."},
    [PROBLEM_HEADER_TIMEOUT] = {"header_timeout", 408, true, "The request came too slowly."},
    [PROBLEM_BODY_TIMEOUT] = {"body_timeout", 408, true, "The body came too slowly."},
    [PROBLEM_EXPECTATION_FAILED] = {"expectation_failed", 417, false,
                                    "The expectation is not supported."},
    [PROBLEM_METHOD_NOT_ALLOWED] = {"method_not_allowed", 405, false,
                                    "The method is not allowed here."},
    [PROBLEM_HTTP_VERSION] = {"http_version", 505, false, "The HTTP version is not supported."},
    [PROBLEM_NOT_IMPLEMENTED] = {"not_implemented", 501, false, "This is not supported."},
    [PROBLEM_UNAUTHORIZED] = {"unauthorized", 401, false, "A valid token is required."},
    [PROBLEM_FORBIDDEN] = {"forbidden", 403, false, "The token does not allow this."},
    [PROBLEM_NOT_FOUND] = {"not_found", 404, false, "There is nothing here."},
    [PROBLEM_WORKLOAD_UNKNOWN] = {"workload_unknown", 404, false, "No workload has this name."},
    [PROBLEM_INSTANCE_UNKNOWN] = {"instance_unknown", 404, false,
                                  "No instance has this id, or it ended over 24 h ago."},
    [PROBLEM_INSTANCE_GONE] = {"instance_gone", 410, false, "The instance has ended."},
    [PROBLEM_INSTANCE_FULL] = {"instance_full", 503, true,
                               "The instance has as many joiners as it may have."},
    [PROBLEM_INSTANCE_EXITED] = {"instance_exited", 502, true,
                                 "The instance ended before it answered."},
    [PROBLEM_INSTANCE_OOM] = {"instance_oom", 503, true,
                              "The instance was ended because it used up its memory."},
    [PROBLEM_INSTANCE_BAD_ANSWER] = {"instance_bad_answer", 502, false,
                                     "The code's answer is not valid HTTP."},
    [PROBLEM_INSTANCE_UNREACHABLE] = {"instance_unreachable", 502, true,
                                      "The code does not take connections."},
    [PROBLEM_KEY_MISSING] = {"key_missing", 400, false, "The workload requires a key."},
    [PROBLEM_QUEUE_FULL] = {"queue_full", 503, true, "All instances are full and so is the queue."},
    [PROBLEM_QUEUE_TIMEOUT] = {"queue_timeout", 503, true,
                               "No instance had room within the queue's time."},
    [PROBLEM_NODE_FULL] = {"node_full", 503, true, "No node has room for another instance."},
    [PROBLEM_START_FAILED] = {"start_failed", 502, true, "The instance did not start."},
    [PROBLEM_START_TIMEOUT] = {"start_timeout", 504, true, "The instance was not ready in time."},
    [PROBLEM_FIRST_BYTE_TIMEOUT] = {"first_byte_timeout", 504, false,
                                    "The code did not begin its answer in time."},
    [PROBLEM_REQUEST_TIMEOUT] = {"request_timeout", 504, false,
                                 "The request took longer than it may."},
    [PROBLEM_STREAM_IDLE] = {"stream_idle_timeout", 504, false, "The stream was idle too long."},
    [PROBLEM_OWNER_UNREACHABLE] = {"owner_unreachable", 503, true,
                                   "The node that runs the instance cannot be reached."},
    [PROBLEM_NO_QUORUM] = {"no_quorum", 503, true,
                           "Too few voters are reachable; nothing can start."},
    [PROBLEM_OUTCOME_UNKNOWN] = {"outcome_unknown", 504, true,
                                 "It is not known whether the change was made."},
    [PROBLEM_DRAINING] = {"draining", 503, true, "The node is stopping."},
    [PROBLEM_WORKLOAD_INVALID] = {"workload_invalid", 400, false, "The workload is not valid."},
    [PROBLEM_IMAGE_UNKNOWN] = {"image_unknown", 404, false, "No image has this name."},
    [PROBLEM_IMAGE_INVALID] = {"image_invalid", 400, false, "The image cannot be used."},
    [PROBLEM_IMAGE_IN_USE] = {"image_in_use", 409, false, "A workload or instance uses the image."},
    [PROBLEM_NOT_ENFORCED] = {"not_enforced", 409, false,
                              "The node cannot enforce or allow what the workload asks for."},
    [PROBLEM_CONFLICT] = {"conflict", 409, false, "The state of the thing forbids this."},
    [PROBLEM_LIMIT_REACHED] = {"limit_reached", 429, true, "A bound of the node was reached."},
    [PROBLEM_INTERNAL] = {"internal", 500, true, "Skerry failed; its log says why."},
};

const char *instance_state_name(enum instance_state state)
{
    assert_always((unsigned)state < INSTANCE_STATE_COUNT);
    return states[state];
}

const char *end_reason_name(enum end_reason reason)
{
    assert_always((unsigned)reason < END_REASON_COUNT);
    return reasons[reason];
}

const char *ran_name(enum ran ran)
{
    assert_always((unsigned)ran < ARRAY_SIZE(rans));
    return rans[ran];
}

const struct problem_word *problem_word(enum problem problem)
{
    assert_always((unsigned)problem < PROBLEM_COUNT);
    return &problems[problem];
}
