/* Texts of an API request: encoded, split, listed. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "node/api/target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    char *copy = malloc(size + 1);
    struct api_query *query = NULL;
    size_t count = 0;
    struct err e = {0};
    char name[16];
    if (text == NULL || copy == NULL) {
        free(text);
        free(copy);
        return 0;
    }
    memcpy(text, data, size);
    text[size] = '\0';
    memcpy(copy, text, size + 1);
    if (api_text_decode(copy, false))
        assert_always(strlen(copy) <= strlen(text));
    memcpy(copy, text, size + 1);
    if (api_query_split(copy, &query, &count, &e) == 0)
        assert_always(count <= API_QUERY_MAX);
    for (size_t i = 0; i < count; i++) {
        assert_always(query[i].name >= copy && query[i].name <= copy + size);
        assert_always(strlen(query[i].name) + strlen(query[i].value) <= size);
    }
    free(query);
    (void)api_list_has(text, "skerry-exec/1");
    (void)api_word_among(text, "path");
    if (api_host_name(text, name, sizeof(name)))
        assert_always(name[0] != '\0' && strlen(name) < sizeof(name));
    free(copy);
    free(text);
    return 0;
}
