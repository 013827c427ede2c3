/* SPDX-License-Identifier: MIT
 * Replays files through a fuzz target where libFuzzer is not linked, so that every build runs every corpus. Arguments: files and
 * folders. A folder without a file is an error: a corpus that has gone would otherwise pass. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) < 0) {
        perror(path);
        if (f)
            fclose(f);
        return -1;
    }
    size_t n = (size_t)st.st_size;
    uint8_t *data = malloc(n ? n : 1); /* its own allocation, so that a sanitizer sees its end */
    int r = data && fread(data, 1, n, f) == n ? 0 : -1;
    fclose(f);
    if (r == 0)
        LLVMFuzzerTestOneInput(data, n);
    else
        fprintf(stderr, "'%s' cannot be read\n", path);
    free(data);
    return r;
}

static int replay(const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return replay_file(path);
    struct dirent *e;
    int n = 0, r = 0;
    while (r == 0 && (e = readdir(d))) {
        char file[4096];
        if (e->d_name[0] == '.')
            continue;
        snprintf(file, sizeof(file), "%s/%s", path, e->d_name);
        r = replay_file(file);
        n++;
    }
    closedir(d);
    if (r == 0 && n == 0) {
        fprintf(stderr, "'%s' holds no files\n", path);
        r = -1;
    }
    printf("%s: %d files\n", path, n);
    return r;
}

int main(int argc, char **argv)
{
    int r = argc < 2 ? -1 : 0;
    for (int i = 1; r == 0 && i < argc; i++)
        r = replay(argv[i]);
    return r < 0;
}
