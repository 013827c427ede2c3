/* SPDX-License-Identifier: MIT
 * Preloaded into a pipeline (LD_PRELOAD), it makes the stage that HUNGRY names take memory without end, a piece every few
 * milliseconds, from HUNGRY_AFTER_MS on; with HUNGRY_SHARED such as others could map. What caps do about it is test_lifecycle.py's.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PIECE (4u << 20)

extern char *program_invocation_short_name;

static void wait_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static void *eat(void *after)
{
    int shared = getenv("HUNGRY_SHARED") != NULL;
    wait_ms(atol(after));
    for (;;) {
        void *p = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
        if (p != MAP_FAILED)
            memset(p, 1, PIECE);
        wait_ms(5);
    }
    return NULL;
}

__attribute__((constructor)) static void begin(void)
{
    const char *who = getenv("HUNGRY");
    char *after = getenv("HUNGRY_AFTER_MS");
    pthread_t t;
    if (who && strcmp(who, program_invocation_short_name) == 0)
        pthread_create(&t, NULL, eat, after ? after : "0");
}
