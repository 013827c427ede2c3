# SPDX-License-Identifier: MIT
"""Completion offers every option that the programs take and no other. What they take is read from the tables in their sources, not
from --help, of which completion is made: so an option that --help forgets is found as well."""
import os
import re
import shutil
import subprocess

import tandem
from tandem import check, run

FOLDER = os.path.join(tandem.SOURCE, "packaging", "completion")


def source(*path):
    with open(os.path.join(tandem.SOURCE, *path), encoding="utf-8") as f:
        return f.read()


def coordinator_options():
    """{command: options}, "" for those of the chat, from the table and the masks of options.c."""
    header, code = source("coordinator", "options.h"), source("coordinator", "options.c")
    names = re.findall(r"OPTIONS_[A-Z_]+", header.partition("enum options_command {")[2].partition("}")[0])
    names = list(dict.fromkeys(names))
    bits = {name: i for i, name in enumerate(names)}
    space = {"BIT": lambda i: 1 << i, **bits}
    for macro in ("ALL", "CONFIGURED", "RUNS", "PIPELINE", "ANSWERS"):
        body = re.search(rf"#define {macro}\b((?:.*\\\n)*.*)", code).group(1)
        body = re.sub(r"/\*.*?(\*/|$)", "", body, flags=re.S).replace("\\\n", " ").replace("1u", "1")
        space[macro] = eval(body.strip(), {}, space)  # C's operators are Python's here
    words = {m.group(1): m.group(2) for m in re.finditer(r'\[(OPTIONS_\w+)\] = \{"([a-z-]+)"', code)}
    found = {("" if name == "OPTIONS_CHAT" else words[name]): set() for name in names[:-1]}
    for option, mask in re.findall(r'^    OPTION\("([a-z0-9-]+)", (?:NULL|"[^"]*"), KIND_\w+, ([^,]+), \w', code, re.M):
        value = eval(mask, {}, space)
        for name in names[:-1]:
            if value >> bits[name] & 1:
                found["" if name == "OPTIONS_CHAT" else words[name]].add("--" + option)
    return found


def quantizer_options():
    return {"--" + n for n in re.findall(r'\{"([a-z-]+)", (?:required|no)_argument', source("quantizer", "cmd_convert.c"))} | {
        "--help", "--version"}


def stage_options():
    return {"--" + n for n in re.findall(r'\{\{"([a-z-]+)", (?:required|no)_argument', source("stage", "single.c"))}


def bash(*words):
    """What bash offers for the last of the words; the first is a program."""
    line = [os.path.join(tandem.BIN, words[0]), *words[1:]]
    script = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tandem "$1"; printf "%s\\n" "${COMPREPLY[@]}"'
    r = subprocess.run(["bash", "--norc", "-c", script, "bash", os.path.join(FOLDER, "tandem.bash"), *line], cwd=tandem.WORK,
                       env=tandem.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    check(r.returncode == 0 and not r.stderr, words, r.stderr)
    return r.stdout.split()


def zsh(*words):
    """Likewise; zsh's own functions only print what they are given."""
    if not shutil.which("zsh"):
        tandem.skip("zsh is not installed")
    line = [os.path.join(tandem.BIN, words[0]), *words[1:]]
    script = """compadd() { shift; print -l -- "$@" }; _files() { print FILES }
_describe() { local a=$argv[-1]; print -l -- ${${(P)a}%%:*} }
file=$1; shift; words=("$@"); CURRENT=$#; PREFIX=$words[-1]
complete() { source $file }; complete"""
    r = subprocess.run(["zsh", "-f", "-c", script, "zsh", os.path.join(FOLDER, "_tandem"), *line], cwd=tandem.WORK,
                       env=tandem.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    check(r.returncode == 0 and not r.stderr, words, r.stderr)
    return r.stdout.split()


def all_options(complete):
    table = coordinator_options()
    check(len(table) >= 13 and all(len(o) >= 3 for o in table.values()) and "--prompt" in table["generate"], table)
    offered = complete("coordinator", "")
    check(set(offered) - {"FILES"} == set(table) - {""}, "commands:", offered)
    for command, options in table.items():
        words = ("--config", "F", command) if command else ()
        offered = complete("coordinator", *words, "--")
        check(set(offered) == options, command, "lacks", options - set(offered), "and has besides", set(offered) - options)
    offered = complete("quantizer", "--")
    check(set(offered) == quantizer_options() and len(offered) > 20, set(offered) ^ quantizer_options())
    check(set(complete("quantizer", "")) - {"FILES"} == {"verify", "info", "compare"}, complete("quantizer", ""))


def test_bash_offers_every_option():
    all_options(bash)


def test_zsh_offers_every_option():
    all_options(zsh)


def test_stages_list_every_option():
    """Stages are not on the path of a shell; their --help, of which their man pages are made, is complete all the same."""
    helps = "\n".join(run(s, "--help").stdout for s in tandem.STAGES)
    listed = set(re.findall(r"^  (--[a-z-]+)", helps, re.M))
    check(listed == stage_options() and len(listed) > 12, listed ^ stage_options())


def test_bash_values():
    keys = set(bash("coordinator", "--config", "F", "bench", "--set", ""))
    sample = run("coordinator", "sample-config").stdout
    check({"model=", "context=", "npu.threads=", "gpu.backend=", "gpu.many=", "loader.spawn=", "http.listen=", "http.max_queue="} <= keys, keys)
    for key in keys:  # each of them is taken by the programs
        check(re.search(rf"\b{key[:-1].rpartition('.')[2]}: ", sample), key)
    table = set(re.findall(r"^\| (`[a-z_.`, ]+`) \|", source("docs", "OPERATIONS.md").partition("## Config")[2].partition("## The GPU")[0], re.M))
    documented = {k + "=" for names in table for k in re.findall(r"`([a-z_.]+)`", names)}
    check(len(documented) > 25 and documented <= keys | {"http.*="}, documented - keys)
    check(bash("coordinator", "--set", "npu.thr") == ["npu.threads="], bash("coordinator", "--set", "npu.thr"))
    with open(tandem.scratch("weights.gguf"), "w", encoding="utf-8"):
        pass
    for words in (("quantizer", "--in", "weig"), ("quantizer", "verify", "weig"), ("coordinator", "--config", "weig"),
                  ("coordinator", "--config", "F", "perplexity", "--file", "weig"), ("quantizer", "--imatrix", "weig")):
        check(bash(*words) == ["weights.gguf"], words, bash(*words))
    types = bash("quantizer", "--type", "")
    check(len(types) == 11 and {"f32", "q8_0", "q4_k_m", "q4_0"} <= set(types), types)
    check(bash("coordinator", "perplexity", "--method", "w") == ["window"], bash("coordinator", "perplexity", "--method", "w"))
    check(bash("coordinator", "generate", "--max-tokens", "") == [], "a number")
    # bash cuts --type=q4_ into three words
    check(bash("quantizer", "--type", "=", "q5_k") == ["q5_k_m"], bash("quantizer", "--type", "=", "q5_k"))
    # a value that is called as a command is
    check("--prompt" in bash("coordinator", "--config", "plan", "generate", "--"), "a file named plan")


def test_found_by_bash_completion():
    library = "/usr/share/bash-completion/bash_completion"
    if not os.path.exists(library):
        tandem.skip("bash-completion is not installed")
    prefix = tandem.scratch("prefix")
    subprocess.run(["cmake", "--install", os.path.dirname(tandem.BIN), "--prefix", prefix], check=True, stdout=subprocess.DEVNULL)
    for program in ("coordinator", "quantizer"):
        r = subprocess.run(["bash", "--norc", "-c", f"source {library}; _completion_loader {program}; complete -p {program}"],
                           env={**tandem.environment(), "XDG_DATA_DIRS": os.path.join(prefix, "share"), "HOME": tandem.WORK},
                           stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        check("-F _tandem " + program in r.stdout, program, r.stdout, r.stderr)


if __name__ == "__main__":
    tandem.main(globals())
