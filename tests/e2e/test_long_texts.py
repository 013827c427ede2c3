# SPDX-License-Identifier: MIT
"""Texts far longer than the context, as large as a line, an argument or a body may be: each is refused with its figures, under a cap
of the coordinator that is no more than its plan, and what comes before and after it is answered as if it had not been there."""
import json
import subprocess

import tandem
from tandem import check, config, model, run
from http_client import Server

MIB = 2**20
LINE_BYTES = 2 * MIB  # of a line and its turn, which the plan of a pipe has besides
# What makes the most tokens of a byte, what merges, what is no text, and rows without a place to cut at; of "d" each is a token
UNITS = {"bytes": "é漢字🙂".encode(), "emoji": "🙂".encode(), "letters": b"e", "words": b"Once upon a time ", "malformed": b"\xff",
         "spaces": b" ", "the": b"the", "lines": b"l", "digits": b"1", "d": b"d"}

REASONS = ("tokens; 'context' allows 2048", "tokens; the context has 2048", "more than 16384 bytes in a row")


def text(unit, n):
    return (UNITS[unit] * (n // len(UNITS[unit]) + 1))[:n].decode(errors="surrogateescape").encode(errors="surrogateescape")


def capped(more=0, **keys):
    """Keys with a cap of the coordinator that is what is planned for it, but for the rest of a MiB."""
    plan = tandem.run_json("coordinator", "--config", config(model("demo", "q8_0"), **keys), "plan", "--json")
    return {**keys, "memory__coordinator": f"{-(-(plan['processes']['coordinator']['total'] + more) // MIB)}MiB"}


def need_caps():
    if tandem.SANITIZE:
        tandem.skip("instrumented programs take more memory than is planned for others")


def piped(cfg, lines):
    r = subprocess.run(tandem.command("coordinator", "--config", cfg, "--temperature", "0", "--max-tokens", "3"), input=b"\n".join(lines) + b"\n",
                       capture_output=True, env=tandem.environment(), timeout=tandem.TIMEOUT)
    r.stdout, r.stderr = r.stdout.decode(errors="replace"), r.stderr.decode(errors="replace")
    tandem.judge(r)
    check(not tandem.left_behind(), tandem.left_behind())
    return r


def test_pipe():
    need_caps()
    for keys in ({}, capped(LINE_BYTES)):
        cfg = config(model("demo", "q8_0"), **keys)
        alone = piped(cfg, [b"Once", b"Once"])
        check(alone.returncode == 0 and len(alone.stdout) > 4, alone.stdout, alone.stderr)
        lines = [b"Once"]
        lines += [text(unit, n) for unit in UNITS for n in (16000, 200000, MIB - 1) if unit != "spaces"]  # a blank line is no prompt
        lines += [b"a" + b" " * n + b"a" for n in (6000, 200000)]
        r = piped(cfg, lines + [b"Once"])
        errors = tandem.sentences(r.stderr)
        check(r.returncode == 1, r.returncode, r.stderr[-2000:])
        first = alone.stdout.splitlines()[0]
        check(r.stdout.splitlines()[0] == first and r.stdout.splitlines()[-1] == first, r.stdout, alone.stdout)
        for i, line in enumerate(lines[1:], 2):
            mine = [e for e in errors if f" line {i}:" in e]
            check(len(mine) <= 1 and (mine or len(line) == 16000), i, line[:20], len(line), errors)
            check(not mine or any(why in mine[0] for why in REASONS), mine)
        check(any(REASONS[2] in e for e in errors), "no row was too long", errors)


def test_argument():
    """`generate` under a cap that is its plan."""
    need_caps()
    cfg = config(model("demo", "q8_0"), **capped())
    for unit in UNITS:
        for chat in ([], ["--chat"]):
            prompt = b"a" + text(unit, 100000)
            if unit == "spaces":
                prompt = prompt[:90000] + b"a"
            r = run("coordinator", "--config", cfg, "generate", *chat, "--prompt", prompt.decode(errors="surrogateescape"), "--max-tokens", 1, status=1)
            check(any(why in r.stderr for why in REASONS), unit, r.stderr)
    check(tandem.generate(cfg, "--prompt", "Once", "--max-tokens", 1)["output_ids"], "a short one")


def test_server():
    need_caps()
    for keys in ({}, capped(http__listen="127.0.0.1:0")):
        with Server("q8_0", **keys) as s:
            want = s.complete("Once", max_tokens=3, temperature=0)["choices"][0]["text"]
            for unit in UNITS:
                for n in (200000, 500000, 800000, MIB - 100):
                    if unit == "malformed":  # no JSON
                        continue
                    prompt = text(unit, n).decode(errors="ignore")
                    asked = {"/v1/completions": {"prompt": prompt}, "/tokenize": {"prompt": prompt},
                             "/v1/chat/completions": {"messages": [{"role": "user", "content": f"a{prompt}a"}]}}
                    for path, body in asked.items():
                        status, j = s.post(path, json.dumps(body, ensure_ascii=False).encode())
                        check(status == 400 and j["error"]["code"] == "context_length_exceeded", unit, n, path, status, j)
            check(s.complete("Once", max_tokens=3, temperature=0)["choices"][0]["text"] == want, "the server goes on")
            me = s.stats()["processes"][0]
            print(f"  coordinator: peak {me['peak_bytes'] / MIB:.1f} MiB, cap {me['cap_bytes'] / MIB:.1f}")
            check(me["peak_bytes"] <= me["cap_bytes"] or me["peak_bytes"] == 0, me)


tandem.main(globals())
