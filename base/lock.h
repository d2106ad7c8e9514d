/* base/lock.h - one process at a time: exclusive locks on an open file.
 *
 * A holder that was killed keeps its locks for the moment that its end takes, so they are asked for
 * again and again for LOCK_WAIT_MS before they are refused. Blocks as long: for start-up only. */
#ifndef SKERRY_BASE_LOCK_H
#define SKERRY_BASE_LOCK_H

#include <stdint.h>
#include <sys/types.h>

#define LOCK_WAIT_MS 2000

/* 0, or an errno: EAGAIN while another holds it. */
int lock_file(int fd);    /* flock(2): of the open file, which a child shares */
int lock_process(int fd); /* fcntl(2): of this process alone */
/* As lock_process, of a part: `length` numbers from `start` on, which need not be bytes of the file. */
int lock_process_range(int fd, uint64_t start, uint64_t length);
/* The process that holds some of them, as seen from here; 0: nobody else. */
pid_t lock_range_holder(int fd, uint64_t start, uint64_t length);

#endif
