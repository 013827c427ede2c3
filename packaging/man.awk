# SPDX-License-Identifier: MIT
# The text of --help -> man(7). What the text is made of, and what becomes of it:
#   "Usage: ..." and lines below it with 7 spaces     SYNOPSIS
#   the first paragraph                               DESCRIPTION; its first sentence is the one-line description
#   "Heading:" or "Heading (remark):" at the margin   a section
#   two spaces, a term, two spaces or more, a text    an entry, which goes on in lines with ten spaces or more
#   "Exit status: ..."                                a section
# A form feed begins the help of one command, of which usage, description and its own options are taken.
# Lines of the page have at most 79 bytes, as mandoc -Tlint wants them.

function escape(s)
{
    gsub(/\\/, "\\e", s)
    gsub(/-/, "\\-", s)
    gsub(/'/, "\\(aq", s)
    gsub(/~/, "\\(ti", s)
    gsub(/\^/, "\\(ha", s)
    return s
}

# As it will stand in the page: a ` becomes \fB or \fR.
function width(s,    copy) { copy = s; return length(s) + 2 * gsub(/`/, "", copy) }

# `code` in bold, everything escaped, folded.
function flow(s,    words, n, i, line, out, w)
{
    n = split(s, words, " ")
    line = ""
    out = ""
    for (i = 1; i <= n; i++) {
        w = escape(words[i])
        if (line != "" && width(line) + 1 + width(w) > 78) {
            out = out guard(line) "\n"
            line = w
        } else
            line = line (line == "" ? "" : " ") w
        if (w ~ /[^.][.]$/ && i < n) { # a sentence ends with its line
            out = out guard(line) "\n"
            line = ""
        }
    }
    out = out guard(line)
    while (match(out, /`[^`]*`/))
        out = substr(out, 1, RSTART - 1) "\\fB" substr(out, RSTART + 1, RLENGTH - 2) "\\fR" substr(out, RSTART + RLENGTH)
    return out
}

function guard(line) { return line ~ /^[.]/ ? "\\&" line : line }

function put(s) { text[part] = text[part] s "\n" }

function end_entry()
{
    if (entry != "")
        put(flow(entry))
    entry = ""
}

function end_paragraph()
{
    end_entry()
    if (paragraph != "") {
        if (part == 1 && whatis == "") {
            whatis = paragraph
            sub(/[.]( .*)?$/, "", whatis)
            whatis = tolower(substr(whatis, 1, 1)) substr(whatis, 2)
        }
        if (told[part]++)
            put(".PP")
        put(flow(command != "" || part == 1 ? toupper(substr(paragraph, 1, 1)) substr(paragraph, 2) : paragraph))
    }
    paragraph = ""
}

function begin(macro, title)
{
    end_paragraph()
    part++
    heading[part] = macro " " title
    told[part] = 0
}

function quote(s) { return "\"" escape(s) "\"" }

BEGIN {
    part = 1
    heading[1] = ".SH DESCRIPTION"
}

/^\f/ {
    end_paragraph()
    command = substr($0, 2)
    skip = 0
    if (!first_command)
        first_command = part + 1
    next
}

/^Usage: / || (usage && /^       [^ ]/) {
    usage = 1
    line = $0
    sub(/^(Usage:)? +/, "", line)
    if (command != "")
        begin(".SS", quote(line))
    else
        synopsis = synopsis (synopsis == "" ? "" : ".br\n") flow(line) "\n"
    next
}
{ usage = 0 }

/^[A-Z][a-z ]*( [(].*[)])?:$/ {
    skip = command != "" && $0 != "Options:"
    end_paragraph()
    if (command != "") { # its own options stay below its own heading
        if (!skip)
            told[part] = 1
        next
    }
    title = $0
    remark = ""
    if (match(title, /[(].*[)]/))
        remark = substr(title, RSTART + 1, RLENGTH - 2) "."
    sub(/ *([(].*[)])?:$/, "", title)
    begin(".SH", quote(toupper(title)))
    if (remark != "") {
        put(flow(toupper(substr(remark, 1, 1)) substr(remark, 2)))
        told[part] = 1
    }
    next
}
skip { next }

/^Exit status: / {
    begin(".SH", quote("EXIT STATUS"))
    sub(/^Exit status: /, "")
    paragraph = toupper(substr($0, 1, 1)) substr($0, 2)
    next
}

/^$/ { end_paragraph(); next }

/^          / && entry != "" {
    sub(/^ +/, "")
    entry = entry " " $0
    next
}

/^  [^ ]/ {
    end_paragraph()
    line = substr($0, 3)
    at = match(line, /  +/)
    term = at ? substr(line, 1, at - 1) : line
    if (!at && (at = match(line, /[A-Z] [^A-Z]/))) # a term that fills its column
        term = substr(line, 1, at)
    entry = substr(line, length(term) + 1)
    sub(/^ +/, "", entry)
    put(".TP\n.B " guard(escape(term)))
    told[part] = 1
    next
}

{
    end_entry()
    paragraph = paragraph (paragraph == "" ? "" : " ") $0
}

END {
    end_paragraph()
    print ".\\\" Made by packaging/man from the program's --help; not to be edited."
    print ".TH " toupper(name) " " section " " date " \"Tandem " version "\" \"" (section == 1 ? "User commands" : "Programs that coordinator starts") "\""
    print ".SH NAME"
    print flow(name " ") " \\- \\"
    print flow(whatis)
    print ".SH SYNOPSIS"
    printf "%s", synopsis
    last = first_command ? first_command - 1 : part
    for (i = 1; i <= last; i++)
        if (heading[i] !~ /FAULTS|ENVIRONMENT|EXIT STATUS/)
            printf "%s\n%s", heading[i], text[i]
    if (first_command)
        print ".SH \"OPTIONS OF EACH COMMAND\""
    for (i = last + 1; i <= part; i++)
        printf "%s\n%s", heading[i], text[i]
    for (i = 1; i <= last; i++)
        if (heading[i] ~ /FAULTS|ENVIRONMENT|EXIT STATUS/)
            printf "%s\n%s", heading[i], text[i]
    print ".SH \"SEE ALSO\""
    n = split(also, pages, " ")
    for (i = 1; i <= n; i++) {
        match(pages[i], /[(].*[)]/)
        print ".BR " escape(substr(pages[i], 1, RSTART - 1)) " " substr(pages[i], RSTART) (i < n ? " ," : "")
    }
}
