/* Archives from clients: whatever comes out of the decoder is bounded, and can be written again. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/memory.h"
#include "sandbox/shared/tar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An entry that we would unpack, encoded and decoded, is the same. */
static void expect_round_trip(const struct tar_entry *entry)
{
    static uint8_t blocks[TAR_ENCODED_BYTES_MAX];
    static struct tar_entry clean;
    clean = *entry;
    if (!tar_path_clean(clean.path) || clean.path[0] == '\0' || clean.type == TAR_OTHER)
        return;
    assert_always(clean.path[0] != '/' && strncmp(clean.path, "../", 3) != 0);
    if (clean.mtime_s < 0)
        clean.mtime_s = 0;
    size_t length = tar_encode(&clean, blocks);
    if (length == 0)
        return; /* one byte too long with its slash */
    assert_always(length <= sizeof blocks && length % TAR_BLOCK_BYTES == 0);
    struct tar_reader r;
    enum tar_step step = TAR_STEP_MORE;
    struct err e = {0};
    tar_reader_init(&r);
    for (size_t at = 0; at < length; at += TAR_BLOCK_BYTES)
        assert_always(tar_reader_block(&r, blocks + at, &step, &e) == 0);
    assert_always(step == TAR_STEP_ENTRY && r.entry.type == clean.type);
    assert_always(tar_path_clean(r.entry.path) && strcmp(r.entry.path, clean.path) == 0);
    assert_always(strcmp(r.entry.link, clean.link) == 0 && r.entry.size == clean.size);
    tar_reader_free(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tar_reader r;
    tar_reader_init(&r);
    while (size >= TAR_BLOCK_BYTES) {
        /* The check sum would stop nearly every change: it is mended, except when it says so. */
        uint8_t block[TAR_BLOCK_BYTES];
        memcpy(block, data, sizeof block);
        if (r.extended_kind == 0 && block[155] != '!') {
            uint32_t sum = 0;
            for (size_t i = 0; i < sizeof block; i++)
                sum += i >= 148 && i < 156 ? ' ' : block[i];
            for (size_t i = 6; i-- > 0; sum >>= 3)
                block[148 + i] = (uint8_t)('0' + (sum & 7));
            block[154] = '\0';
            block[155] = ' ';
        }
        data += TAR_BLOCK_BYTES;
        size -= TAR_BLOCK_BYTES;
        enum tar_step step;
        struct err e = {0};
        if (tar_reader_block(&r, block, &step, &e) != 0 || step == TAR_STEP_END)
            break;
        if (step != TAR_STEP_ENTRY)
            continue;
        expect_round_trip(&r.entry);
        uint64_t padded = r.entry.size + tar_padding(r.entry.size);
        size_t skip = padded < size ? (size_t)padded : size;
        data += skip;
        size -= skip;
    }
    tar_reader_free(&r);
    return 0;
}
