/* np_sends.h: several sends in one system call.
 *
 * A peer on this machine that is woken by a send takes the CPU from the sender
 * as soon as that is back in user space, has one answer to read, and sleeps
 * again.  Many sends in one call wake it once, for all of them.
 *
 * A set of sends belongs to the thread that has made it.  It holds no file
 * descriptor, so nobody can close one behind our back.
 */
#ifndef NP_SENDS_H
#define NP_SENDS_H

#include <stddef.h>
#include <sys/types.h>

struct np_sends;

#define NP_SENDS_MAX 32
#define NP_SENDS_NONE (-4096) /* a result: it was not tried */

/* NULL: this kernel doesn't offer it, or not to this process; or out of memory. */
struct np_sends *np_sends_new(void);
void np_sends_free(struct np_sends *s);

/* Room of NP_SEND_JOINED bytes for the next send, until it has run. */
char *np_sends_room(struct np_sends *s);

/* One more, at most NP_SENDS_MAX: size < 2^32 bytes, which stay where they are until it has run. */
void np_sends_add(struct np_sends *s, int fd, const void *buf, size_t size);

/* Runs them, without waiting, and forgets them.  results, for each in the order
 * of adding: the bytes that were sent, -errno, or NP_SENDS_NONE.  The number of
 * system calls. */
unsigned np_sends_run(struct np_sends *s, ssize_t *results);

#endif
