# SPDX-License-Identifier: MIT
"""--help and --version of every program, refusals of what is unknown, and that the README speaks of options that exist."""
import os
import re

import tandem
from tandem import check, config, model, run

PROGRAMS = ("coordinator", "loader", "npu_worker", "gpu_worker", "quantizer", "client")


def test_help_and_version():
    for program in PROGRAMS:
        text = run(program, "--help").stdout
        check(program in text and "--version" in text and len(text.splitlines()) > 5, f"{program} --help:", text)
        version = run(program, "--version").stdout
        check(re.search(r"\d+\.\d+\.\d+", version), f"{program} --version:", version)


def test_unknown_options():
    for program in PROGRAMS:
        for args in (("--no-such-option",), ("no-such-command",)):
            r = run(program, *args, status=None)
            check(r.returncode == 2 and r.stdout == "", f"{program} {args}: status {r.returncode}", r.stdout, r.stderr)
            check(args[0] in r.stderr, f"{program} does not name '{args[0]}':", r.stderr)
    for option, value in (("--type", "q9_9"), ("--tensor-type", "ffn=q9_9"), ("--tensor-type", "ffn"), ("--memory", "much")):
        r = run("quantizer", "--in", "a", "--out", "b", option, value, status=None)
        check(r.returncode == 2 and r.stdout == "" and option in r.stderr and "expected" in r.stderr, option, value, r.stderr)
    cfg = config(model("demo", "f32"))
    for args in (("generate", "--no-such-option"), ("no-such-command",), ("generate", "--prompt"), ("generate",), ("eval",),
                 ("perplexity",), ("generate", "--prompt", "a", "--ids", "2")):
        r = run("coordinator", "--config", cfg, *args, status=None)
        check(r.returncode == 2 and r.stdout == "", f"{args}: status {r.returncode}", r.stdout, r.stderr)


def test_without_arguments():
    for program in PROGRAMS:
        r = run(program, status=None)
        check(r.returncode == 2 and r.stdout == "" and r.stderr.strip(), f"{program}: status {r.returncode}", r.stderr)


def test_readme():
    """Each command line in README and docs uses only commands and options that --help of the program knows."""
    helps = {p: run(p, "--help").stdout for p in PROGRAMS}
    commands = re.findall(r"^  ([a-z][a-z-]+) ", helps["coordinator"].partition("Commands:")[2].partition("\n\n")[0], re.M)
    check({"generate", "eval", "perplexity", "bench", "plan", "tokenize", "detokenize"} <= set(commands), "commands:", commands)
    helps.update({f"coordinator {c}": run("coordinator", c, "--help").stdout for c in commands})
    seen = 0
    docs = os.path.join(tandem.SOURCE, "docs")
    files = [os.path.join(tandem.SOURCE, "README.md")] + [os.path.join(docs, f) for f in sorted(os.listdir(docs)) if f.endswith(".md")]
    for path in files:
        with open(path, encoding="utf-8") as f:
            text = f.read()
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.S | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                bare = re.sub(r'"[^"]*"', "TEXT", line.partition(" #")[0])
                program = next((p for p in PROGRAMS if re.match(rf"\s*(\S*/)?{p} +(--|sample-config|client)", bare)), None)
                if not program:
                    continue
                seen += 1
                words = bare.split()[1:]
                command = next((w for w in words if re.fullmatch("[a-z][a-z-]+", w) and w in commands), None)
                help_text = helps[f"{program} {command}" if command else program]
                for option in re.findall(r"--[a-z][a-z0-9-]*", bare):
                    check(option in help_text, path, f"'{option}' is not in {program} {command or ''} --help", line)
    check(seen >= 8, f"only {seen} command lines found")


def test_guarantees_name_their_tests():
    """The table of what is kept apart: each file of tests that it names is there, and has the functions that follow it."""
    with open(os.path.join(tandem.SOURCE, "docs", "OPERATIONS.md"), encoding="utf-8") as f:
        table = f.read().split("### What is kept apart")[1].split("\n## ")[0]
    files = {name: os.path.join(folder, name) for folder, _, names in os.walk(os.path.join(tandem.SOURCE, "tests")) for name in names}
    seen = 0
    for row in re.findall(r"^\| .* \| (.*) \|$", table, re.M):
        text = None
        for name in re.findall(r"`([^`]+)`", row):
            if name.endswith((".py", ".c")):
                check(os.path.basename(name) in files, f"'{name}' is not there:", row)
                with open(files[os.path.basename(name)], encoding="utf-8") as f:
                    text = f.read()
            elif name.startswith("test_"):
                check(text and re.search(rf"^(def|static void) {name}\(", text, re.M), f"no test '{name}':", row)
                seen += 1
    check(seen > 30, "functions named:", seen)


def test_environment_is_documented():
    text = run("coordinator", "--help").stdout
    with open(os.path.join(tandem.SOURCE, "docs", "OPERATIONS.md"), encoding="utf-8") as f:
        operations = f.read()
    names = set(re.findall(r"TANDEM_[A-Z]+(?:_[A-Z]+)*", text))
    check(names, "--help lists no environment variables")
    for name in names:
        check(name in operations, f"docs/OPERATIONS.md does not speak of {name}")


if __name__ == "__main__":
    tandem.main(globals())
