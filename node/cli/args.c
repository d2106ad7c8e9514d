/* Arguments: flags in any place up to "--", long and short, switches of one letter together. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "node/cli/cli.h"

static const struct cli_option *find_long(const struct cli_option *const *tables, const char *name,
                                          size_t length)
{
    for (; *tables != NULL; tables++) {
        for (const struct cli_option *o = *tables; o->name != NULL; o++) {
            if (strlen(o->name) == length && memcmp(o->name, name, length) == 0)
                return o;
        }
    }
    return NULL;
}

static const struct cli_option *find_short(const struct cli_option *const *tables, char letter)
{
    for (; *tables != NULL; tables++) {
        for (const struct cli_option *o = *tables; o->name != NULL; o++) {
            if (o->letter != 0 && o->letter == letter)
                return o;
        }
    }
    return NULL;
}

static int give(struct cli_args *a, const struct cli_option *option, const char *value,
                struct err *e)
{
    if (a->given_count == CLI_GIVEN_MAX)
        return err_set(e, ERR_INVALID, "more than %d flags", CLI_GIVEN_MAX);
    a->given[a->given_count].option = option;
    a->given[a->given_count++].value = value;
    return 0;
}

/* Takes argv[*i], and the word behind it when that is its value. */
static int take_long(struct cli_args *a, const struct cli_option *const *tables, int argc,
                     char **argv, int *i, struct err *e)
{
    const char *name = argv[*i] + 2;
    const char *equals = strchr(name, '=');
    size_t length = equals != NULL ? (size_t)(equals - name) : strlen(name);
    const struct cli_option *o = find_long(tables, name, length);
    if (o == NULL)
        return err_set(e, ERR_INVALID, "--%.*s: unknown flag", (int)length, name);
    if (o->value == NULL)
        return equals != NULL ? err_set(e, ERR_INVALID, "--%s takes no value", o->name)
                              : give(a, o, NULL, e);
    if (equals != NULL)
        return give(a, o, equals + 1, e);
    if (*i + 1 >= argc)
        return err_set(e, ERR_INVALID, "--%s needs a value: --%s %s", o->name, o->name, o->value);
    return give(a, o, argv[++*i], e);
}

static int take_short(struct cli_args *a, const struct cli_option *const *tables, int argc,
                      char **argv, int *i, struct err *e)
{
    for (const char *p = argv[*i] + 1; *p != '\0'; p++) {
        const struct cli_option *o = find_short(tables, *p);
        if (o == NULL)
            return err_set(e, ERR_INVALID, "-%c: unknown flag", *p);
        if (o->value == NULL) {
            int rc = give(a, o, NULL, e);
            if (rc != 0)
                return rc;
            continue;
        }
        if (p[1] != '\0')
            return give(a, o, p + 1, e);
        if (*i + 1 >= argc)
            return err_set(e, ERR_INVALID, "-%c needs a value: -%c %s", *p, *p, o->value);
        return give(a, o, argv[++*i], e);
    }
    return 0;
}

int cli_args_parse(struct cli_args *a, const struct cli_option *const *tables, int argc,
                   char **argv, bool words_last, struct err *e)
{
    *a = (struct cli_args){0};
    a->words = calloc((size_t)argc + 1, sizeof *a->words);
    if (a->words == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    bool flags = true;
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        int rc = 0;
        if (flags && strcmp(word, "--") == 0) {
            flags = false;
        } else if (flags && word[0] == '-' && word[1] == '-') {
            rc = take_long(a, tables, argc, argv, &i, e);
        } else if (flags && word[0] == '-' && word[1] != '\0') {
            rc = take_short(a, tables, argc, argv, &i, e);
        } else {
            a->words[a->word_count++] = word;
            flags = flags && !words_last;
            /* "exec ID -- CMD": the word before "--" does not make it a part of the command. */
            if (words_last && i + 1 < argc && a->word_count == 1 && strcmp(argv[i + 1], "--") == 0)
                i++;
        }
        if (rc != 0) {
            cli_args_free(a);
            return rc;
        }
    }
    return 0;
}

void cli_args_free(struct cli_args *a)
{
    free(a->words);
    a->words = NULL;
    a->word_count = 0;
}

bool cli_has(const struct cli *c, const char *name)
{
    size_t position = 0;
    for (; position < c->args.given_count; position++) {
        if (strcmp(c->args.given[position].option->name, name) == 0)
            return true;
    }
    return false;
}

const char *cli_next(const struct cli *c, const char *name, size_t *position)
{
    while (*position < c->args.given_count) {
        size_t i = (*position)++;
        if (strcmp(c->args.given[i].option->name, name) == 0)
            return c->args.given[i].value;
    }
    return NULL;
}

const char *cli_value(const struct cli *c, const char *name)
{
    const char *last = NULL, *next;
    size_t position = 0;
    while ((next = cli_next(c, name, &position)) != NULL)
        last = next;
    return last;
}
