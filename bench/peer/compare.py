#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Puts Tandem beside llama.cpp's prebuilt library: the same GGUF files, tokens, logits and speed.

    compare.py check MODEL.gguf...            greedy continuations and logits agree
    compare.py speed MODEL.gguf [options]     alternating runs; prints tokens/s of both and their ratio

The peer is installed on demand by get.sh into a cache outside the tree. Needs numpy for `check`. TANDEM_BIN names the folder of
the programs (default: build/release/bin).
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BIN = os.environ.get("TANDEM_BIN", os.path.join(ROOT, "build", "release", "bin"))

# Largest logit difference that the peer's ways explain, by file type. Its GELU reads a table of f16 values, whatever the type; it
# rounds activations to the weights' type for f16 and bf16, and their block scales to f16 for the integer types; for the K types it
# rounds activations to 8 bits in blocks of 256, we in blocks of 32. K and V are f32 in these comparisons on both sides. Seen on the
# demo model and on random weights: 0.006, 0.012, 0.10, 0.29, 0.33; K types 0.37.
LOGIT_BOUND = {"f32": 0.02, "f16": 0.05, "bf16": 0.25, "q8_0": 0.6, "q4_0": 0.6, "q4_1": 0.6, "q5_0": 0.6, "q5_1": 0.6,
               "q4_k": 0.6, "q5_k": 0.6, "q6_k": 0.6}


class Unavailable(Exception):
    pass


def peer(installed_only=False):
    """(folder of the library, driver)"""
    command = [os.path.join(HERE, "get.sh")] + (["--installed-only"] if installed_only else [])
    r = subprocess.run(command, capture_output=True, text=True)
    if r.returncode == 77:
        raise Unavailable(r.stderr.strip().splitlines()[-1])
    r.check_returncode()
    return r.stdout.split()


class Peer:
    def __init__(self, model, threads=2, kv="f32", installed_only=False):
        library, driver = peer(installed_only)
        self.base = [driver, library, model, str(threads), {"f32": "0", "f16": "1"}[kv]]

    def _run(self, *args):
        r = subprocess.run(self.base + [str(a) for a in args], capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(f"the peer failed: {r.stderr.strip()}")
        return json.loads(r.stdout)

    def greedy(self, ids, count):
        """[(id, gap between the two best logits)]"""
        return [tuple(s) for s in self._run("generate", ",".join(map(str, ids)), count)["steps"]]

    def logits(self, ids):
        import numpy as np
        with tempfile.NamedTemporaryFile() as f:
            r = self._run("logits", ",".join(map(str, ids)), f.name)
            return np.fromfile(f.name, "<f4").reshape(r["tokens"], r["vocab"])

    def bench(self, prompt, gen, repetitions):
        return self._run("bench", prompt, gen, repetitions)

    def quantize(self, kind, out, pure=False, imatrix=None):
        """The model as another file, by the peer's quantizer. The model's alignment must be 32."""
        self._run("quantize", kind, out, "pure" if pure else "mixed", *([imatrix] if imatrix else []))


class Ours:
    def __init__(self, model, threads=2, kv="f32", folder=None, bin_dir=None):
        """threads: of each worker. One alone decodes at a time, so both may use all processors."""
        self.folder = folder or tempfile.mkdtemp()
        self.bin = bin_dir or BIN
        self.config = os.path.join(self.folder, "compare.yaml")
        with open(self.config, "w", encoding="utf-8") as f:
            f.write(f"model: {os.path.abspath(model)}\ncontext: 2048\nsequences: 1\nkv_type: {kv}\nnpu: {{threads: {threads}}}\n"
                    f"gpu: {{threads: {threads}}}\n")

    def _run(self, *args):
        r = subprocess.run([os.path.join(self.bin, "coordinator"), "--config", self.config, *[str(a) for a in args]],
                           capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(f"coordinator failed: {r.stderr.strip()}")
        return r.stdout

    def greedy(self, ids, count):
        out = json.loads(self._run("generate", "--ids", ",".join(map(str, ids)), "--temperature", 0, "--max-tokens", count,
                                   "--json"))
        return out["output_ids"], out["finish_reason"]

    def logits(self, ids):
        import numpy as np
        out = os.path.join(self.folder, "compare.npy")
        self._run("eval", "--ids", ",".join(map(str, ids)), "--logits", out)
        return np.load(out)

    def bench(self, prompt, gen, repetitions):
        return json.loads(self._run("bench", "--prompt-tokens", prompt, "--gen-tokens", gen, "--repetitions", repetitions,
                                    "--json"))


def same_greedy(ours, theirs, ids, count, bound):
    """(how far both agree in words, in tokens, None or what is wrong): the first difference may only be where the peer's two best
    are nearer than twice the bound."""
    got, finish = ours.greedy(ids, count)
    want = theirs.greedy(ids, count)
    for i, (token, gap) in enumerate(want):
        if i == len(got) and finish == "stop":
            return "the same to our end", i, None
        if i >= len(got) or got[i] != token:
            if gap < 2 * bound:
                return f"the same until two best are {gap:.3f} apart", i, None
            mine = got[i] if i < len(got) else finish
            return "the same until", i, f"step {i}: {mine} instead of {token}, whose lead is {gap:.4f}"
    return "the same to the end", len(want), None


def kind_of(path):
    for kind in sorted(LOGIT_BOUND, key=len, reverse=True):
        if kind in os.path.basename(path).lower().replace("-", "_").replace("bfloat16", "bf16"):
            return kind
    raise SystemExit(f"compare: '{path}' does not name its type ({', '.join(LOGIT_BOUND)}) in its file name")


def prompts_for(vocab):
    """Those of the demo model's goldens where the vocabulary is the demo's, else random ids."""
    with open(os.path.join(ROOT, "tests", "golden", "demo_greedy.json"), encoding="utf-8") as f:
        golden = [p["prompt_ids"] for p in json.load(f)["prompts"]]
    if vocab == 4096:
        return golden
    r = random.Random(1)
    return [[2] + [r.randrange(vocab // 4, vocab) for _ in range(n)] for n in (5, 40)]


def check_model(path, ours, theirs, steps=64):
    """Yields (what, number, problem or None)."""
    import numpy as np
    bound = LOGIT_BOUND[kind_of(path)]
    vocab = theirs.logits([2]).shape[1]
    r = random.Random(2)
    ids = [2] + [r.randrange(vocab // 8, vocab) for _ in range(149)]
    a, b = ours.logits(ids), theirs.logits(ids)
    worst = float(np.abs(a - b).max())
    yield "150 tokens, largest logit difference", worst, None if worst <= bound else f"above {bound:g}"
    for prompt in prompts_for(vocab):
        how, same, problem = same_greedy(ours, theirs, prompt, steps, bound)
        yield f"greedy after {len(prompt)} tokens, {how}", same, problem


def command_check(args):
    bad = 0
    for path in args.models:
        for what, number, problem in check_model(path, Ours(path, args.threads), Peer(path, args.threads)):
            bad += problem is not None
            print(f"{os.path.basename(path)}: {what}: {number:.4g}: {problem or 'ok'}", flush=True)
    return 1 if bad else 0


def best_rate(result, phase):
    """Tokens/s of the best repetition as our bench reports it."""
    return next(t["tokens_per_s_best"] for t in result["tests"] if t["test"].startswith(phase))


def command_speed(args):
    ours, theirs = Ours(args.model, args.threads, "f16"), Peer(args.model, args.threads, "f16")
    table = {"pp": ([], []), "tg": ([], [])}
    for n in range(args.rounds):
        # Who goes first alternates as well: the first one warms the page cache and meets the cooler processor.
        for who in ((0, 1) if n % 2 == 0 else (1, 0)):
            result = (ours if who == 0 else theirs).bench(args.prompt, args.gen, args.repetitions)
            for phase in table:
                table[phase][who].append(best_rate(result, phase) if who == 0 else max(result[phase]))
        last = [(f"{p}{args.prompt if p == 'pp' else args.gen}", v[0][-1], v[1][-1]) for p, v in table.items()]
        print(f"round {n + 1}: " + ", ".join(f"{p} ours {a:.1f} theirs {b:.1f} ratio {a / b:.2f}" for p, a, b in last), flush=True)
    for phase, (a, b) in table.items():
        ours_median, theirs_median = statistics.median(a), statistics.median(b)
        print(f"{phase}: ours best {max(a):.1f} median {ours_median:.1f}, theirs best {max(b):.1f} median {theirs_median:.1f}, "
              f"ratio of medians {ours_median / theirs_median:.3f} ({args.threads} threads)")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(required=True)
    c = sub.add_parser("check")
    c.add_argument("models", nargs="+")
    c.add_argument("--threads", type=int, default=2)
    c.set_defaults(run=command_check)
    c = sub.add_parser("speed")
    c.add_argument("model")
    c.add_argument("--threads", type=int, default=2)
    c.add_argument("--prompt", type=int, default=512)
    c.add_argument("--gen", type=int, default=64)
    c.add_argument("--rounds", type=int, default=3)
    c.add_argument("--repetitions", type=int, default=2)
    c.set_defaults(run=command_speed)
    args = parser.parse_args()
    try:
        return args.run(args)
    except Unavailable as e:
        print(f"SKIP: {e}", file=sys.stderr)
        return 77


if __name__ == "__main__":
    sys.exit(main())
