/* SPDX-License-Identifier: MIT
 * Keeps docs/PROTOCOL.md in step with proto/messages.def. Everything below the marker line of that file is generated.
 *   protocol_doc FILE          fails, with the first line that differs, when the file is stale
 *   protocol_doc --write FILE  writes the generated part anew */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/msg.h"
#include "proto/util.h"

#define MARKER "<!-- Below this line: generated from proto/messages.def by tests/proto/protocol_doc.c. -->\n"

static char *read_text(const char *path)
{
    auto_file f = fopen(path, "r");
    char *text = NULL;
    size_t n = 0;
    if (!f)
        return NULL;
    FILE *out = open_memstream(&text, &n);
    if (!out)
        return NULL;
    for (int c; (c = fgetc(f)) != EOF;)
        fputc(c, out);
    fclose(out); /* only now is text final */
    return text;
}

static char *generate(void)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    fputc('\n', f);
    msg_document(f);
    fclose(f);
    return text;
}

static int compare(const char *path, const char *text, const char *have, const char *want)
{
    if (strcmp(have, want) == 0)
        return 0;
    size_t i = 0;
    int line = 1;
    for (const char *p = text; p < have; p++)
        line += *p == '\n';
    for (; have[i] && have[i] == want[i]; i++)
        line += have[i] == '\n';
    while (i && have[i - 1] != '\n')
        i--;
    fprintf(stderr, "'%s' line %d is '%.*s'; expected '%.*s'; write it anew with protocol_doc --write '%s'\n", path, line,
            (int)strcspn(have + i, "\n"), have + i, (int)strcspn(want + i, "\n"), want + i, path);
    return 1;
}

static int write_anew(const char *path, const char *text, size_t kept, const char *want)
{
    FILE *f = fopen(path, "w");
    if (!f) {
        perror(path);
        return 1;
    }
    fwrite(text, 1, kept, f);
    fputs(want, f);
    return fclose(f) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    int write = argc == 3 && strcmp(argv[1], "--write") == 0;
    if (argc != 2 + write) {
        fprintf(stderr, "usage: protocol_doc [--write] FILE\n");
        return 2;
    }
    const char *path = argv[1 + write];
    auto_free char *text = read_text(path);
    auto_free char *want = generate();
    char *marker = text ? strstr(text, MARKER) : NULL;
    if (!marker || !want) {
        fprintf(stderr, "'%s' cannot be read or has no marker line; expected: %s", path, MARKER);
        return 1;
    }
    char *have = marker + strlen(MARKER);
    return write ? write_anew(path, text, (size_t)(have - text), want) : compare(path, text, have, want);
}
