/* SPDX-License-Identifier: MIT
 * Helpers of the unit tests. Owns the temporary folder of the running test; one thread. A failure here fails the test. */
#include "tests/unit/unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/tandem-unit-XXXXXX";

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

int unit_setup(void **state)
{
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    assert_non_null(mkdtemp(folder));
    return fds_setup(state);
}

int unit_teardown(void **state)
{
    int r = nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return fds_teardown(state) || r;
}

static const char *join(const char *a, const char *b)
{
    static char buffers[16][PATH_MAX];
    static unsigned next;
    char *s = buffers[next++ % 16];
    snprintf(s, PATH_MAX, "%s/%s", a, b);
    return s;
}

const char *unit_path(const char *name)
{
    return join(folder, name);
}

const char *unit_source(const char *path)
{
    return join(TANDEM_SOURCE_DIR, path);
}

unsigned unit_count_files(void)
{
    unsigned n = 0;
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(d);
    return n;
}

void unit_write(const char *path, const void *data, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    for (size_t done = 0; done < n;) {
        ssize_t w = write(fd, (const char *)data + done, n - done);
        assert_true(w > 0);
        done += (size_t)w;
    }
    close(fd);
}

struct bytes unit_read(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    struct bytes b = {.data = malloc((size_t)st.st_size + 1), .n = (size_t)st.st_size};
    assert_non_null(b.data);
    for (size_t done = 0; done < b.n;) {
        ssize_t r = read(fd, b.data + done, b.n - done);
        assert_true(r > 0);
        done += (size_t)r;
    }
    b.data[b.n] = 0;
    close(fd);
    return b;
}

void unit_copy(const char *from, const char *to)
{
    struct bytes b = unit_read(from);
    unit_write(to, b.data, b.n);
    unit_free(&b);
}

void unit_put(struct bytes *b, const void *data, size_t n)
{
    b->data = realloc(b->data, b->n + n + 1);
    assert_non_null(b->data);
    if (n)
        memcpy(b->data + b->n, data, n);
    b->n += n;
}

void unit_put_u32(struct bytes *b, uint32_t v)
{
    unit_put(b, &v, sizeof(v));
}

void unit_put_u64(struct bytes *b, uint64_t v)
{
    unit_put(b, &v, sizeof(v));
}

void unit_put_string(struct bytes *b, const char *s)
{
    unit_put_u64(b, strlen(s));
    unit_put(b, s, strlen(s));
}

void unit_free(struct bytes *b)
{
    free(b->data);
    *b = (struct bytes){0};
}
