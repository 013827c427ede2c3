/* SPDX-License-Identifier: MIT
 * One table; owns nothing. Called by cmd_chat.c and the client. */
#include "coordinator/slash.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"

static const char *const names[SLASH_COMMANDS] = {
    [SLASH_HELP] = "/help",   [SLASH_LOAD] = "/load ", [SLASH_QUIT] = "/quit",
    [SLASH_RESET] = "/reset", [SLASH_SAVE] = "/save ", [SLASH_STATS] = "/stats",
};
static const char *const texts[SLASH_COMMANDS] = {
    [SLASH_HELP] = "this text",
    [SLASH_LOAD] = "go on with a conversation that /save has written",
    [SLASH_QUIT] = "end; so does Ctrl-D",
    [SLASH_RESET] = "begin a new conversation",
    [SLASH_SAVE] = "write the conversation as JSON into a new file",
    [SLASH_STATS] = "length of the conversation, and what each process holds against its cap",
};

static bool takes_file(enum slash s)
{
    return strchr(names[s], ' ') != NULL;
}

int slash_parse(const char *line, enum slash *ret, char ret_file[SLASH_FILE_BYTES], struct err *err)
{
    size_t n = strcspn(line, " \t");
    const char *file = line + n + strspn(line + n, " \t");
    for (int i = 0; i < SLASH_COMMANDS; i++) {
        enum slash s = (enum slash)i;
        size_t length = strcspn(names[s], " ");
        if (length != n || strncmp(line, names[s], n) != 0)
            continue;
        if (takes_file(s) && !*file)
            return err_set(err, -EINVAL, "%.*s needs a file, such as %sstory.json", (int)n, line, names[s]);
        if (!takes_file(s) && *file)
            return err_set(err, -EINVAL, "%.*s takes nothing behind it", (int)n, line);
        if (util_expand_home(file, ret_file, SLASH_FILE_BYTES) < 0)
            return err_set(err, -EINVAL, "the name of the file is too long, or there is no home folder");
        for (size_t end = strlen(ret_file); end && strchr(" \t", ret_file[end - 1]); end--) /* Tab leaves one */
            ret_file[end - 1] = '\0';
        *ret = s;
        return 0;
    }
    return err_set(
        err, -EINVAL,
        "unknown command '%.*s'; there are /help, /load, /quit, /reset, /save and /stats (a space before it makes it a prompt)",
        (int)MIN(n, (size_t)40), line);
}

void slash_help(FILE *f)
{
    for (int i = 0; i < SLASH_COMMANDS; i++)
        fprintf(f, "%s%-*s  %s\n", names[i], (int)(12 - strlen(names[i])), takes_file((enum slash)i) ? "FILE" : "", texts[i]);
    fprintf(
        f,
        "A line that ends in a backslash goes on in the next one, and so does one where Alt-Enter is typed; pasted lines are one "
        "prompt.\n"
        "Ctrl-C stops an answer, at the prompt it clears the line; twice on an empty line it ends. Up and down: earlier prompts;\n"
        "Ctrl-R: search them. A prompt that begins with a space is not kept.\n");
}

const char *const *slash_names(size_t *ret_n)
{
    *ret_n = ARRAY_LEN(names);
    return names;
}
