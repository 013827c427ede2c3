#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What --trace costs: `coordinator bench` with it and without, in turn and each first in turn, so that what else the machine does falls on both alike.
As root it runs everything at the highest priority. Prints tokens/s of each, the ratio of the medians and the spread of the ratios of neighbours, processor time, and the size of the file.
usage: overhead.py MODEL.gguf [--pairs 10] [--bin build/release/bin] [--prompt-tokens 512] [--gen-tokens 128] [--threads 1]"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile


def run(args, folder, traced):
    config, trace = os.path.join(folder, "config.yaml"), os.path.join(folder, "trace.json")
    with open(config, "w", encoding="utf-8") as f:
        f.write(f"model: {os.path.abspath(args.model)}\ncontext: 1024\nsequences: 1\n"
                f"npu: {{threads: {args.threads}}}\ngpu: {{threads: {args.threads}, backend: cpu}}\n")
    command = [os.path.join(args.bin, "coordinator"), "--config", config, "bench", "--prompt-tokens", str(args.prompt_tokens),
               "--gen-tokens", str(args.gen_tokens), "--repetitions", str(args.repetitions), "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command + (["--trace", trace] if traced else []), capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        sys.exit(result.stderr)
    rates = {t["test"]: t["tokens_per_s"] for t in json.loads(result.stdout)["tests"]}
    rates["cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if traced:
        rates["bytes"] = os.path.getsize(trace)
        with open(trace, encoding="utf-8") as f:
            rates["lost"] = sum(e["args"]["events"] for e in json.load(f) if e["name"] == "events lost")
        os.unlink(trace)
    return rates


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--bin", default="build/release/bin")
    for name, default in (("pairs", 10), ("prompt-tokens", 512), ("gen-tokens", 128), ("repetitions", 5), ("threads", 1)):
        p.add_argument("--" + name, type=int, default=default)
    args = p.parse_args()
    if os.geteuid() == 0:
        os.nice(-20)
    with tempfile.TemporaryDirectory() as folder:
        run(args, folder, False)  # files and caches are warm
        runs = []
        for i in range(args.pairs):
            first = run(args, folder, i % 2 == 1)
            second = run(args, folder, i % 2 == 0)
            runs.append((second, first) if i % 2 else (first, second))
    for name in runs[0][0]:
        off, on = [a[name] for a, _ in runs], [b[name] for _, b in runs]
        ratios = sorted(b / a for a, b in zip(off, on))
        quarter = len(ratios) // 4
        print(f"{name:8} without {statistics.median(off):10.2f} ({min(off):.2f} to {max(off):.2f}), with {statistics.median(on):10.2f} "
              f"({min(on):.2f} to {max(on):.2f}); with/without: medians {statistics.median(on) / statistics.median(off):.3f}, "
              f"pairs {statistics.median(ratios):.3f}, middle half {ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}")
    print(f"file: {statistics.median(b['bytes'] for _, b in runs) / 1e6:.1f} MB; events lost: {sum(b['lost'] for _, b in runs)}")


if __name__ == "__main__":
    main()
