/* SPDX-License-Identifier: MIT
 * Two layouts, told apart by whether the folder of the first is there:
 *   installation   bin/coordinator, libexec/tandem/<stages>, lib/<architecture>/tandem/<modules>
 *   build folder   bin/<everything>, lib/tandem/<modules>
 * Once the folder is chosen a file that it lacks is an error, and not looked for elsewhere: the bin of a system is shared, and a
 * program that somebody else calls `loader` must not be taken for ours. Called by the coordinator and the stages when they start
 * something or load a module; keeps nothing. */
#include "proto/place.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/err.h"

/* From the folder of the program that asks; the first one as CMake's install names it. */
static const struct {
    const char *installed, *built, *what;
} places[] = {
    [PLACE_STAGES] = {TANDEM_STAGES_FROM_PROGRAM, ".", "stages"},
    [PLACE_MODULES] = {TANDEM_MODULES_FROM_STAGE, "../lib/tandem", "modules"},
};

static int program_folder(char *buf, size_t size, struct err *err)
{
    ssize_t n = readlink("/proc/self/exe", buf, size);
    if (n < 0)
        return err_set_errno(err, -errno, "'/proc/self/exe': cannot find this program's folder");
    if ((size_t)n >= size)
        return err_set(err, -ENAMETOOLONG, "'%.*s...': the path of this program is longer than %zu bytes", 60, buf, size - 1);
    buf[n] = '\0';
    char *slash = strrchr(buf, '/');
    if (slash)
        slash[slash == buf] = '\0';
    return 0;
}

/* `folder`/`relative` without "." and ".." in front of the latter, so that messages show a path as one would type it. The folder
 * has no symbolic links in it: the kernel resolved them. */
static int join(const char *folder, const char *relative, char *buf, size_t size, struct err *err)
{
    size_t keep = strlen(folder);
    while (relative[0] == '.') {
        bool up = relative[1] == '.';
        while (up && keep && folder[keep - 1] != '/')
            keep--;
        while (up && keep && folder[keep - 1] == '/')
            keep--;
        relative += 1 + up;
        relative += *relative == '/';
    }
    int n = snprintf(buf, size, "%.*s%s%s", (int)keep, folder, *relative || keep == 0 ? "/" : "", relative);
    return (size_t)n < size ? 0 : err_set(err, -ENAMETOOLONG, "'%s': the path of this program is too long", folder);
}

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int place_folder(enum place what, char *buf, size_t size, struct err *err)
{
    char here[PATH_MAX];
    int r = program_folder(here, sizeof(here), err);
    if (r == 0)
        r = join(here, places[what].installed, buf, size, err);
    if (r == 0 && !is_folder(buf))
        r = join(here, places[what].built, buf, size, err);
    return r;
}

int place_file(enum place what, const char *name, char *buf, size_t size, struct err *err)
{
    char here[PATH_MAX], installed[PATH_MAX];
    int r = place_folder(what, buf, size, err);
    if (r < 0)
        return r;
    size_t n = strlen(buf);
    if ((size_t)snprintf(buf + n, size - n, "/%s", name) >= size - n)
        return err_set(err, -ENAMETOOLONG, "'%s': the path is too long", name);
    if (access(buf, F_OK) == 0)
        return 0;
    r = program_folder(here, sizeof(here), err);
    if (r == 0)
        r = join(here, places[what].installed, installed, sizeof(installed), err);
    if (r < 0)
        return r;
    if (strncmp(buf, installed, n) == 0 && installed[n] == '\0')
        return err_set(err, -ENOENT, "'%s' is not there; expected it in '%s', where an installation has its %s alone", buf,
                       installed, places[what].what);
    return err_set(err, -ENOENT, "'%s' is not there, and neither is '%s', where an installation has its %s", buf, installed,
                   places[what].what);
}
