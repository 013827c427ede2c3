# SPDX-License-Identifier: MIT
"""The plan keeps to every limit or refuses, and what a refusal proposes is the smallest change that works."""
import json
import os
import re

import tandem
from tandem import check, config, generate, model


def plan(cfg, *sets, json_too=True):
    words = [w for s in sets for w in ("--set", s)]
    return tandem.run("coordinator", "--config", cfg, *words, "plan", *(("--json",) if json_too else ()), status=None)


def planned(cfg, *sets):
    r = plan(cfg, *sets)
    check(r.returncode == 0, sets, r.stderr)
    return json.loads(r.stdout)


def bytes_of(mib):
    return mib * 2**20


def proposals(text):
    """{key: MiB} of limits that must be raised, all of them; and a list of single changes, each of which is enough."""
    raise_all = {k: int(n) for k, n in re.findall(r"'([a-z_.]+)' is [0-9.]+ \w+; raise it to at least (\d+) MiB", text)}
    others = [f"{k}={n}" for k, n in re.findall(r"lower '(memory\.[a-z_]+)' to at most (\d+MiB)", text)]
    others += [f"context={n}" for n in re.findall(r"lower 'context' to at most (\d+)", text)]
    others += ["kv_type=q8_0"] if "set 'kv_type' to q8_0" in text else []
    others += ["chunk_tokens=auto"] if "set 'chunk_tokens' to auto" in text else []
    others += ["sequences=1"] if "lower 'sequences' to at most 1" in text else []
    others += ["stream_slots=auto"] if "set 'stream_slots' to auto" in text else []
    return raise_all, others


def refused(cfg, *sets):
    r = plan(cfg, *sets, json_too=False)
    check(r.returncode == 1, sets, r.stdout)
    tandem.check(len(tandem.sentences(r.stderr)) == 1, r.stderr)
    raise_all, others = proposals(r.stderr)
    check(raise_all or others, "nothing is proposed:", r.stderr)
    j = json.loads(plan(cfg, *sets).stdout)
    check(j["fits"] is False and j["refusal"] in r.stderr, j["refusal"], r.stderr)
    check(j["raise"] == {k: f"{n}MiB" for k, n in raise_all.items()}, j["raise"], r.stderr)
    check([f"{k}={v}" for change in j["or_set"] for k, v in change.items()] == others, j["or_set"], r.stderr)
    if raise_all:
        good = [f"{k}={n}MiB" for k, n in raise_all.items()]
        made = planned(cfg, *sets, *good)
        for k in raise_all:
            less = [g if not g.startswith(k + "=") else f"{k}={raise_all[k] - 1}MiB" for g in good]
            check(plan(cfg, *sets, *less).returncode == 1, "a MiB less is enough:", k, r.stderr)
    for change in others:
        made = planned(cfg, *sets, change)
        if change.startswith("context="):
            more = f"context={int(change[8:]) + 1}"
            check(plan(cfg, *sets, more).returncode == 1, "a longer context fits as well:", r.stderr)
    return r.stderr, made


def test_small_group():
    """In a group with little memory the plan takes what is there: it is not killed for its measurements, and its caps fit."""
    if tandem.SANITIZE:
        tandem.skip("sanitizers need more than such a group has")
    v1, v2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"
    root, limit = (v1, "memory.limit_in_bytes") if os.path.exists(f"{v1}/memory.limit_in_bytes") else (v2, "memory.max")
    group = f"{root}/plan-in-{os.getpid()}"

    def write(path, text):
        with open(path, "w", encoding="ascii") as f:
            f.write(text)
    try:
        os.mkdir(group)
    except OSError:
        tandem.skip("no cgroup can be made here")
    try:
        if not os.path.exists(f"{group}/{limit}"):
            tandem.skip("this group has no memory controller for its children")
        cfg = config(model("demo", "q8_0"), gpu__backend="cpu", http__listen="none")
        for mib in (120, 400):
            write(f"{group}/{limit}", str(bytes_of(mib)))
            write(f"{group}/cgroup.procs", str(os.getpid()))
            try:
                r = plan(cfg)
            finally:
                write(f"{root}/cgroup.procs", str(os.getpid()))
            check(r.returncode == 0, mib, r.returncode, r.stderr)
            p = json.loads(r.stdout)
            check(p["machine_free_bytes"] <= p["machine_bytes"] <= bytes_of(mib), p)
            check((p["read_rate"] > 0) == (p["machine_free_bytes"] >= bytes_of(256)), p)
            check(sum(q["cap"] for q in p["processes"].values()) <= bytes_of(mib), p["processes"])
    finally:
        os.rmdir(group)


def test_refusals():
    cfg = config(model("demo", "q8_0"))
    for sets in (["memory.npu_worker=8MiB"], ["memory.gpu_worker=4MiB"], ["memory.loader=4MiB"],
                 ["memory.coordinator=3MiB"], ["npu.memory=2MiB"], ["gpu.memory=1MiB"], ["memory.total=50MiB"],
                 ["memory.loader=4MiB", "memory.npu_worker=6MiB", "memory.total=40MiB"], ["memory.npu_worker=9MiB", "kv_type=f32"],
                 ["memory.npu_worker=15MiB", "chunk_tokens=512", "npu.streamed=0"],
                 ["memory.npu_worker=900MiB", "memory.gpu_worker=900MiB", "memory.total=1GiB"],
                 ["memory.total=60MiB", "npu.streamed=0", "gpu.streamed=0", "chunk_tokens=256"],
                 ["gpu.memory=4MiB", "sequences=1", "stream_slots=6"],
                 ["memory.npu_worker=2MiB", "memory.gpu_worker=2MiB", "memory.coordinator=2MiB", "memory.loader=2MiB",
                  "npu.memory=2MiB", "gpu.memory=2MiB", "memory.total=13MiB"]):
        text, _ = refused(cfg, *sets)
        check("stream_slots=6" not in sets or "set 'stream_slots' to auto" in text, sets, text)
        print("  ", sets, text.strip()[:200])
    start = tandem.run("coordinator", "--config", cfg, "--set", "memory.total=40MiB", "generate", "--prompt", "a", status=None)
    tandem.one_line_error(start, "'memory.total' is 40.0 MiB; raise it to at least")


def test_total():
    """A total is divided: no cap beyond it, and the less there is, the more is streamed; the text never differs."""
    path = model("demo", "f32")  # 52 MiB of weights
    words = ("--prompt", "Once upon a time", "--temperature", 0, "--max-tokens", 12)
    whole = planned(config(path))
    check(whole["streamed_bytes"] == 0 and whole["memory_total"] == 0, whole)
    want, last = generate(config(path), *words)["text"], -1
    need = sum(p["total"] for p in whole["processes"].values()) // 2**20 + 33
    for mib in (need + 40, need, need - 8, need - 20, need - 32):
        cfg = config(path, memory__total=f"{mib}MiB", sequences=1)
        p = planned(cfg)
        caps = sum(q["cap"] for q in p["processes"].values())
        check(caps <= bytes_of(mib) and all(q["total"] <= q["cap"] for q in p["processes"].values()), mib, p)
        check(p["streamed_bytes"] >= last and p["memory_total"] == bytes_of(mib), mib, p)
        last = p["streamed_bytes"]
        got = generate(cfg, *words)
        check(got["text"] == want, mib, got["text"])
        for q in got["processes"]:
            check(q["peak_bytes"] <= q["cap_bytes"], mib, q)
    check(last > 0, "nothing was streamed")


def test_caps():
    """One worker's cap makes that worker stream, and the other not."""
    path = model("demo", "f32")
    for worker, other in (("npu_worker", "gpu_worker"), ("gpu_worker", "npu_worker")):
        whole = planned(config(path, sequences=1))["processes"][worker]
        less = (whole["total"] - whole["weights"] // 3) // 2**20 - (8 if worker == "npu_worker" else 0)
        p = planned(config(path, sequences=1, context=256, **{f"memory__{worker}": f"{less}MiB"}))
        layers = {w: p["processes"][w]["layers"] for w in (worker, other)}
        check(layers[worker]["streamed"] > 0 and layers[other]["streamed"] == 0, less, layers)
        check(layers[worker]["pinned"] + layers[worker]["streamed"] == 12, layers)


def test_keys_are_documented():
    """Every key of `plan --json` is in the tables of docs/OPERATIONS.md, and they name no other."""
    with open(os.path.join(tandem.SOURCE, "docs", "OPERATIONS.md"), encoding="utf-8") as f:
        section = f.read().partition("### What plan --json says")[2].partition("\n## ")[0]
    tables = [set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| ([^|]*) \|", part, re.M))))
              for part in section.split("Of a process")]
    cfg = config(model("demo", "q8_0"))
    keys, of_process = set(), set()
    for sets in ([], ["memory.total=50MiB"]):
        j = json.loads(plan(cfg, *sets).stdout)
        keys |= set(j)
        for p in j["processes"].values():
            of_process |= set(p) | set(p.get("layers", ()))
    check(tables == [keys, of_process], tables[0] ^ keys, tables[1] ^ of_process)


def test_what_is_printed():
    """The table says what is pinned and streamed, what that costs, and how much the KV cache holds."""
    cfg = config(model("demo", "f32"), npu__streamed=4, gpu__streamed=6, stream_slots=3)
    text = plan(cfg, json_too=False).stdout
    check("npu_worker: 6 layers pinned, 6 streamed through 3 slots; gpu_worker: 6 layers pinned, 6 streamed" in text, text)
    check(re.search(r"streaming   [0-9.]+ MiB of the file are read for a token; .*prompts in passes of \d+ tokens", text), text)
    check(re.search(r"for 4.0 sequences of 2048 \(8192 tokens\)", text), text)
    wide = planned(cfg, "stream_slots=8", "gpu.streamed=12")["processes"]["gpu_worker"]["layers"]
    check(wide == {"pinned": 0, "streamed": 12, "slots": 6}, "12 layers pass through 6 slots at most:", wide)
    p = planned(cfg)
    check(p["kv_tokens"] == 8192 and p["processes"]["gpu_worker"]["layers"] == {"pinned": 6, "streamed": 6, "slots": 3}, p)
    if p["disk_rate"] > 0:
        check(abs(p["disk_tokens_per_second"] * p["streamed_bytes"] / p["disk_rate"] - 1) < 1e-6, p)
        check(0 < p["most_tokens_per_second"] <= p["disk_tokens_per_second"], p)


tandem.main(globals())
