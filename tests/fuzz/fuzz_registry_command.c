/* Any bytes as commands in the log: each is refused with a text and halts the state machine, or is
 * applied, encodes to the same again, and leaves a state whose counts agree.
 *
 * Input: commands, each a length of two bytes, little endian, and a message. A length of zero takes the
 * rest as it is, frame and all. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state.h"
/* NOLINTNEXTLINE(bugprone-suspicious-include): fuzzers link the library alone */
#include "tests/lib/registry_help.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void encodes_to_the_same(const struct command *command)
{
    uint8_t *bytes;
    size_t length;
    struct err e;
    struct command again;
    assert_always(command_encode(&bytes, &length, &command->session, &command->body, &e) == 0);
    assert_always(command_decode(&again, bytes, length, &e) == 0);
    assert_always(again.body.kind == command->body.kind &&
                  again.body.wall_ms == command->body.wall_ms &&
                  again.session.sequence == command->session.sequence);
    uint8_t *second;
    size_t second_length;
    assert_always(command_encode(&second, &second_length, &again.session, &again.body, &e) == 0);
    assert_always(second_length == length && memcmp(second, bytes, length) == 0);
    command_free(&again);
    free(second);
    free(bytes);
}

/* False once the state has halted. */
static bool feed(struct state *state, uint64_t index, const uint8_t *bytes, size_t length)
{
    struct command command;
    struct state_outcome outcome;
    struct err e = {0};
    int decoded = command_decode(&command, bytes, length, &e);
    assert_always(decoded == 0 || (e.code == ERR_PROTOCOL && e.msg[0] != '\0'));
    if (decoded == 0) {
        encodes_to_the_same(&command);
        command_free(&command);
    }
    int rc = state_apply(state, index, bytes, length, &outcome, &e);
    assert_always(decoded == 0 || rc < 0);
    assert_always(state_halted(state) == (rc < 0));
    assert_always(rc < 0 || (unsigned)outcome.result.problem < PROBLEM_COUNT);
    return rc == 0;
}

static size_t framed(uint8_t out[], const uint8_t *message, size_t length)
{
    size_t whole = (8 + length + 7) / 8 * 8;
    memset(out, 0, whole);
    out[0] = COMMAND_FORMAT;
    out[4] = (uint8_t)length;
    out[5] = (uint8_t)(length >> 8);
    memcpy(out + 8, message, length);
    return whole;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t bytes[8 + UINT16_MAX + 8];
    struct state *state;
    struct err e;
    assert_always(state_new(&state, &e) == 0);
    uint64_t index = 1;
    while (size >= 2) {
        size_t length = (size_t)data[0] | (size_t)data[1] << 8;
        data += 2;
        size -= 2;
        if (length == 0) {
            feed(state, index, data, size);
            break;
        }
        if (length > size)
            length = size;
        if (!feed(state, index++, bytes, framed(bytes, data, length)))
            break;
        data += length;
        size -= length;
    }
    help_state_check(state_content(state));
    state_free(state);
    return 0;
}
