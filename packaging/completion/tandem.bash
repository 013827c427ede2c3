# SPDX-License-Identifier: MIT
# bash completion for coordinator and quantizer. Options, commands and types come from the --help of the program that is on the
# command line, keys of the configuration from its sample-config: what the program does not have is not offered, and nothing here
# has to follow it. What kind of value an option takes is told by the argument in --help (FILE, FOLDER, OUT.npy).
# The one list that is written out is _tandem_values below.

# The help of the program, or of the command if one stands before the word.
_tandem_help()
{
    "$1" ${2:+"$2"} --help 2>/dev/null </dev/null
}

_tandem_options()
{
    _tandem_help "$@" | sed -n 's/^  \(--[^ ].*\)/\1/p' | sed 's/   *.*//' | grep -oE -e '--[a-z][a-z0-9-]*'
}

_tandem_commands()
{
    _tandem_help "$1" | awk '/^Commands:/ { on = 1; next } /^$/ { on = 0 } on && /^  [a-z]/ { print $1 }'
}

# The word that stands for the argument of an option, such as FILE.
_tandem_argument()
{
    _tandem_help "$1" "$2" | sed -n "s/^  \(.*, \)\{0,1\}$3 \([A-Za-z0-9][^ ]*\).*/\2/p" | head -n 1
}

# groups of the sample: `npu: {spawn: true, ...}`, and plain keys
_tandem_keys()
{
    "$1" sample-config 2>/dev/null </dev/null | awk '
        /^#/ { next }
        { sub(/ #.*/, "") }
        /^[a-z_]+: *[{]/ { group = $1; sub(/:.*/, ".", group) }
        /^[a-z_]+:/ && !/[{]/ { print substr($0, 1, index($0, ":") - 1) "="; group = "" }
        group != "" {
            line = $0
            sub(/^[a-z_]+: *[{]/, "", line)
            while (match(line, /[a-z_]+: /)) {
                print group substr(line, RSTART, RLENGTH - 2) "="
                line = substr(line, RSTART + RLENGTH)
            }
            if (/[}]/) group = ""
        }'
}

_tandem_values()
{
    case $2 in
    --type) # "f32, f16 or q4_0 (default: ...)"
        _tandem_help "$1" | sed -n 's/^  --type T *\(.*\) (default.*/\1/p' | sed 's/, / /g; s/ or / /' ;;
    --method) echo window llama.cpp ;;
    --alignment) echo 32 4096 ;;
    esac
}

_tandem_files()
{
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$1")
}

_tandem()
{
    local program=$1 word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command='' commands values i
    COMPREPLY=()
    # bash cuts words at '=' and ':', see COMP_WORDBREAKS
    if [ "$word" = = ]; then
        word=''
    elif [ "$before" = = ] && [ "$COMP_CWORD" -gt 2 ]; then
        before=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    commands=$(_tandem_commands "$program")
    for ((i = 1; i < COMP_CWORD; i++)); do
        # shellcheck disable=SC2076 # the word itself, not a pattern
        if [[ ${COMP_WORDS[i - 1]} != --* && " ${commands//$'\n'/ } " =~ " ${COMP_WORDS[i]} " ]] ||
            [[ $i -gt 2 && ${COMP_WORDS[i - 2]} == --* && " ${commands//$'\n'/ } " =~ " ${COMP_WORDS[i]} " ]]; then
            command=${COMP_WORDS[i]}
            break
        fi
    done
    if [ "${program##*/}" = quantizer ] && [ -n "$command" ]; then # verify, info, compare: files
        _tandem_files "$word"
        return
    fi
    if [[ $before == --* ]]; then
        values=$(_tandem_values "$program" "$before")
        if [ -n "$values" ]; then
            mapfile -t COMPREPLY < <(compgen -W "$values" -- "$word")
            return
        fi
        case $(_tandem_argument "$program" "$command" "$before") in
        '') ;; # a flag: what follows is the next option
        KEY=VALUE)
            compopt -o nospace 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -W "$(_tandem_keys "$program")" -- "$word")
            return
            ;;
        FILE* | FOLDER* | OUT*)
            _tandem_files "$word"
            return
            ;;
        *) return ;; # a number or a text
        esac
    fi
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_tandem_options "$program" "$command")" -- "$word")
    elif [ -z "$command" ]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$word")
    fi
}

complete -F _tandem coordinator quantizer
