/* node/errands/errand_wire.h - what two nodes say to each other about an errand (node/errands/errands.h), on the wire.
 *
 *     frame:    u8 enum errand_frame_type | u32 size, big-endian | size bytes
 *     entry:    QUESTION  then  STDIN* STDIN_END? RESIZE* SIGNAL* CANCEL?
 *     owner:    REFUSED,  or GRANTED  then  TAKEN* STDOUT* STDERR* ENDED
 *
 * QUESTION, GRANTED, REFUSED and ENDED hold a JSON object; members that are not known are passed over, so
 * that N and N+1 run together. An entry has at most ERRAND_WINDOW_BYTES of STDIN under way that TAKEN
 * has not told of: so a command that reads nothing holds up no signal. All of it is checked: sizes,
 * numbers, and that texts are what they should be.
 *
 * Thread: any; pure functions. */
#ifndef SKERRY_NODE_ERRANDS_ERRAND_WIRE_H
#define SKERRY_NODE_ERRANDS_ERRAND_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/err.h"
#include "base/id.h"
#include "base/words.h"
#include "base/workload.h"

#define ERRAND_HEADER_BYTES 5u
#define ERRAND_DATA_BYTES_MAX 32768u                   /* of STDIN, STDOUT and STDERR */
#define ERRAND_TEXT_BYTES_MAX 4096u                    /* of GRANTED, REFUSED and ENDED */
#define ERRAND_QUESTION_BYTES_MAX (4u * 1024u * 1024u) /* a command's words and variables */
#define ERRAND_WINDOW_BYTES (128u * 1024u)

/* Numbers travel. */
enum errand_frame_type {
    ERRAND_QUESTION = 1,
    ERRAND_GRANTED = 2,
    ERRAND_REFUSED = 3,
    ERRAND_STDIN = 4,
    ERRAND_STDIN_END = 5,
    ERRAND_TAKEN = 6, /* u32: so many bytes of STDIN have gone to the command, or nowhere */
    ERRAND_STDOUT = 7,
    ERRAND_STDERR = 8,
    ERRAND_RESIZE = 9,  /* u16 rows, u16 columns */
    ERRAND_SIGNAL = 10, /* u8, 1 to 64 */
    ERRAND_CANCEL = 11, /* u8 enum end_reason: CLIENT_GONE or TIMED_OUT */
    ERRAND_ENDED = 12,
};

struct errand_frame {
    enum errand_frame_type type;
    const char *data; /* in what was read */
    size_t size;
    uint32_t number; /* TAKEN, SIGNAL, CANCEL */
    unsigned rows, columns;
};

enum errand_read { ERRAND_WHOLE, ERRAND_MORE, ERRAND_BAD };
/* The frame at the front of `bytes`; `of_owner`: who sent it is the owner. WHOLE: it has
 * ERRAND_HEADER_BYTES + out->size bytes. */
enum errand_read errand_frame_read(struct errand_frame *out, bool of_owner, const char *bytes,
                                   size_t length);
/* Appends one; false without room. */
bool errand_frame_write(struct buffer *out, enum errand_frame_type type, const void *data,
                        size_t size);
bool errand_number_write(struct buffer *out, enum errand_frame_type type, uint32_t number);
bool errand_resize_write(struct buffer *out, unsigned rows, unsigned columns);

enum errand_kind {
    ERRAND_RUN = 1,     /* spec: one command in a fresh sandbox */
    ERRAND_COMMAND = 2, /* workload, of kind command */
    ERRAND_START = 3,   /* workload and key: an instance of its own, or the key's */
};
#define ERRAND_KIND_LAST ERRAND_START

struct errand_question {
    enum errand_kind kind;
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1];
    char key[129];
    char asked_by[96], request_id[48];
    const struct workload *spec; /* RUN, to write */
    struct workload read_spec;   /* RUN, as read; errand_question_free */
    bool tty, no_stdin;
    unsigned rows, columns;
    uint64_t timeout_ms; /* 0: none */
};
bool errand_question_write(struct buffer *out, const struct errand_question *q);
/* On success *out is to be freed. */
int errand_question_read(struct errand_question *out, const struct errand_frame *frame,
                         struct err *e) ERR_CHECKED;
void errand_question_free(struct errand_question *q);

/* GRANTED (instance alone) and REFUSED. */
struct errand_answer {
    enum problem problem; /* NONE: granted */
    enum ran ran;
    unsigned retry_after_s;
    struct instance_id instance; /* refused: may be "" */
    char detail[512];
};
bool errand_answer_write(struct buffer *out, const struct errand_answer *answer);
bool errand_answer_read(struct errand_answer *out, const struct errand_frame *frame);

bool errand_end_write(struct buffer *out, const struct command_end *end);
bool errand_end_read(struct command_end *out, const struct errand_frame *frame);

#endif
