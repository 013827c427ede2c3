#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Weights larger than the caps: tokens/s against what the disk allows, in turns with plain reads of the same file.

    run.py MODEL.gguf [--total 4GiB] [--resident 18GiB] [--gen 8] [--rounds 3] [--context 512] [--peer]

Each round reads the file plainly (bench_fill: O_DIRECT into huge pages), the same and looks at what was read, fills segments from it, and
generates tokens under the total;
the shares are the bytes that the generation streams a second, of what either kind of reads gave in the same round. --resident generates under a
total that holds everything, and says how many bytes of the file a token then costs. --peer runs llama.cpp on the file (mmap, without
repacking, which would copy all of it) in a memory cgroup of each total; for that it needs root and cgroup v1 or v2. As root it runs
everything at the highest priority. TANDEM_BIN: folder of the programs (default build/release/bin)."""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BIN = os.environ.get("TANDEM_BIN", os.path.join(ROOT, "build", "release", "bin"))
UNITS = {"MiB": 2**20, "GiB": 2**30}


def size(text):
    m = re.fullmatch(r"(\d+)(MiB|GiB)", text)
    if not m:
        sys.exit(f"run.py: '{text}' is no size such as 4GiB")
    return int(m[1]) * UNITS[m[2]]


def run(*words, env=None):
    r = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=env)
    if r.returncode:
        sys.exit(f"run.py: {' '.join(map(str, words))}: {r.stderr.strip()}")
    return r.stdout


def coordinator(args, total, *words):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
        f.write(f"model: {os.path.abspath(args.model)}\ncontext: {args.context}\nsequences: 1\nmemory: {{total: {total}}}\n")
        f.flush()
        return json.loads(run(os.path.join(BIN, "coordinator"), "--config", f.name, *words, "--json"))


def bench(args, total, gen):
    out = coordinator(args, total, "bench", "--prompt-tokens", 8, "--gen-tokens", gen, "--repetitions", 1)
    test = next(t for t in out["tests"] if t["test"].startswith("tg"))
    return test["tokens_per_s_best"], {p["name"]: p for p in out["processes"]}


def peaks(processes):
    return ", ".join(f"{n} {p['peak_bytes'] / 2**20:.0f} of {p['cap_bytes'] / 2**20:.0f}" for n, p in processes.items())


def forget(path):
    """No page of the file stays in the cache, where it would be somebody else's memory."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def peer(args, total):
    base, limit = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
    if not os.path.isdir(base):
        base, limit = "/sys/fs/cgroup", "memory.max"
    group = os.path.join(base, f"tandem-bench-{os.getpid()}")
    library, driver = run(os.path.join(ROOT, "bench", "peer", "get.sh")).split()
    os.mkdir(group)
    try:
        with open(os.path.join(group, limit), "w", encoding="ascii") as f:
            f.write(str(size(total)))
        forget(args.model)
        command = [driver, library, args.model, "2", "1", "bench", "8", str(args.peer_gen), "1"]
        shell = f'echo $$ > "{group}/cgroup.procs" && exec "$@"'
        r = subprocess.run(["sh", "-c", shell, "sh", *command], capture_output=True, text=True,
                           env={**os.environ, "TANDEM_PEER_NO_REPACK": "1"})
        print(f"llama.cpp under {total}: {r.stdout.strip() or r.stderr.strip()[-300:]}", flush=True)
    finally:
        os.rmdir(group)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--total", default="4GiB")
    a.add_argument("--resident")
    a.add_argument("--gen", type=int, default=8)
    a.add_argument("--peer-gen", type=int, default=4)
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--context", type=int, default=512)
    a.add_argument("--peer", action="store_true")
    args = a.parse_args()
    if os.geteuid() == 0:
        os.nice(-20)
    plan = coordinator(args, args.total, "plan")
    print(f"{args.total}: " + ", ".join(f"{w} {plan['processes'][w]['layers']}" for w in ("npu_worker", "gpu_worker")) +
          f", {plan['streamed_bytes'] / 1e9:.2f} GB a token", flush=True)
    for i in range(args.rounds):
        line = run(os.path.join(BIN, "bench_fill"), args.model, 1).splitlines()[0]
        plain, looked_at, filled = (float(n) for n in re.search(r"reads (\d+) MB/s, looked at (\d+), segments filled (\d+)", line).groups())
        rate, processes = bench(args, args.total, args.gen)
        got = rate * plan["streamed_bytes"] / 1e6
        print(f"round {i}: plain reads {plain:.0f} MB/s, looked at {looked_at:.0f}, segments filled {filled:.0f}; {rate:.3f} tokens/s stream "
              f"{got:.0f} MB/s, {100 * got / plain:.0f}% of plain reads, {100 * got / looked_at:.0f}% of those looked at "
              f"(load {os.getloadavg()[0]:.1f}); peaks, MiB: {peaks(processes)}", flush=True)
    if args.resident:
        reads = []
        for gen in (args.gen, 3 * args.gen):
            rate, processes = bench(args, args.resident, gen)
            reads.append(processes["loader"]["bytes_read"])
            print(f"resident under {args.resident}: {rate:.3f} tokens/s, {reads[-1] / 1e9:.3f} GB read; peaks, MiB: {peaks(processes)}",
                  flush=True)
        print(f"a token more costs {(reads[1] - reads[0]) / (2 * args.gen):.0f} bytes of the file", flush=True)
    if args.peer:
        for total in [args.total] + ([args.resident] if args.resident else []):
            peer(args, total)


if __name__ == "__main__":
    main()
