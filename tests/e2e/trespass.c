/* SPDX-License-Identifier: MIT
 * Preloaded into a stage by test_sandbox.py: a thread, older than the sandbox, that does what no stage does.
 *   TRESPASS=gpu_worker        in which program
 *   TRESPASS_AFTER_MS=1000     when
 *   TRESPASS_DOES=socket       or open, whose result is written to standard error */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static void *trespass(void *after)
{
    long ms = atol(after);
    const char *what = getenv("TRESPASS_DOES");
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
    errno = 0;
    int fd = what && strcmp(what, "open") == 0 ? open("/etc/passwd", O_RDONLY | O_CLOEXEC) : socket(AF_INET, SOCK_STREAM, 0);
    fprintf(stderr, "trespass: %d, errno %d\n", fd, errno);
    return NULL;
}

__attribute__((constructor)) static void begin(void)
{
    const char *who = getenv("TRESPASS");
    char *after = getenv("TRESPASS_AFTER_MS");
    pthread_t t;
    if (who && after && strcmp(who, program_invocation_short_name) == 0)
        pthread_create(&t, NULL, trespass, after);
}
