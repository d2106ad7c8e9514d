/* What the agent takes from its socket: decoding, and the checks before it acts. The first byte is
 * the number of descriptors that came with the message. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/memory.h"
#include "sandbox/shared/agent_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect_command(const Skerry__Agent__Command *command, size_t descriptors)
{
    assert_always(command->exec_id != 0 || command->file_verb == 0);
    assert_always(!command->set_user || (command->uid < AGENT_UID && command->gid < AGENT_UID));
    assert_always(command->pipes == (descriptors > 0));
    for (size_t i = 0; i < command->n_environment; i++)
        assert_always(strchr(command->environment[i], '=') != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > AGENT_MESSAGE_BYTES_MAX)
        return 0;
    size_t descriptors = data[0] % (AGENT_DESCRIPTORS_MAX + 1);
    Skerry__Agent__ToAgent *message = skerry__agent__to_agent__unpack(NULL, size - 1, data + 1);
    if (message == NULL)
        return 0;
    struct err e = {0};
    int rc = agent_check(message, descriptors, &e);
    assert_always(rc == 0 || (rc == -ERR_INVALID && e.code == ERR_INVALID && e.msg[0] != '\0'));
    if (rc == 0 && message->verb_case == SKERRY__AGENT__TO_AGENT__VERB_START)
        expect_command(message->start, descriptors);
    if (rc == 0 && message->verb_case == SKERRY__AGENT__TO_AGENT__VERB_EXEC)
        expect_command(message->exec, descriptors);
    if (rc == 0 && message->verb_case == SKERRY__AGENT__TO_AGENT__VERB_SETUP)
        assert_always(message->setup->uid < AGENT_UID && message->setup->port <= 65535);
    skerry__agent__to_agent__free_unpacked(message, NULL);
    return 0;
}
