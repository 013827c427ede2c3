#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What quantization costs in quality, beside llama.cpp's quantizer: files of the same sizes by both, all run by our coordinator.

    quality.py [--checkpoint FOLDER] [--types q8_0,q6_k,q5_k_m,q4_k_m,q4_0] [--text FILE]... [--tokens N] [--imatrix TEXT]
               [--no-peer] [--no-plain]

A text is cut into windows of <bos> and 511 tokens; at each position the distribution of the next token is compared with that of
the bf16 file: KL(bf16 || type) in nats, whether the most probable token is the same, and the negative log likelihood (nll) of the
token that follows. Means are over all positions; +- is the standard error of the mean. Differences are of the same positions
(paired), ours minus the peer's file of that name, which has the same size; a tensor that has another type there is printed.
Texts: TANDEM_SHARED/demo-model/valid.txt where that is set, else models/demo/eval.txt.

Each type is made by us with the search and without, and by the peer, both mixed as llama.cpp does and pure where the name says so.
--imatrix: both again with the importance matrix that `coordinator imatrix` makes of a text, which should not be the one measured.
One window's logits of two files are in memory at a time. Needs numpy. TANDEM_BIN names the folder of the programs (default:
build/release/bin).
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(HERE, "..", "peer"))
import compare  # noqa: E402

WINDOW = 512
DEMO = os.path.join(ROOT, "models", "demo")

# What a name means: our arguments, the peer's type, and whether that is pure.
VARIANTS = {
    "q4_0": (["--type", "q4_0"], "q4_0", True),
    "q4_0, q6_K embedding": (["--type", "q4_0", "--tensor-type", "token_embd=q6_k"], "q4_0", False),
    "q4_1": (["--type", "q4_1"], "q4_1", True),
    "q5_0": (["--type", "q5_0"], "q5_0", True),
    "q5_1": (["--type", "q5_1"], "q5_1", True),
    "q4_k_m": (["--type", "q4_k_m"], "q4_k_m", False),
    "q4_k_m, pure": (["--type", "q4_k_m", "--pure"], "q4_k_m", True),
    "q5_k_m": (["--type", "q5_k_m"], "q5_k_m", False),
    "q5_k_m, pure": (["--type", "q5_k_m", "--pure"], "q5_k_m", True),
    "q6_k": (["--type", "q6_k"], "q6_k", False),
    "q8_0": (["--type", "q8_0"], "q8_0", False),
}


OURS, PLAIN, THEIRS, OURS_IMATRIX, THEIRS_IMATRIX = "ours", "ours, no search", "llama.cpp", "ours, imatrix", "llama.cpp, imatrix"
# What a file of ours is compared with.
BESIDE = {OURS: THEIRS, PLAIN: THEIRS, OURS_IMATRIX: THEIRS_IMATRIX}


class Sample:
    """A file under test: what was measured at each position, window by window."""
    def __init__(self, name, whose, path, bin_dir=None, threads=2):
        self.name, self.whose, self.path = name, whose, path
        self.runtime = compare.Ours(path, threads, "f16", tempfile.mkdtemp(dir=os.path.dirname(path)), bin_dir)
        self.reset()

    def reset(self):
        self.kl, self.nll, self.same = [], [], []

    def add(self, base, ids, log_p):
        """base: log probabilities of the bf16 file; each [positions][vocabulary]."""
        self.kl.append((np.exp(base) * (base - log_p)).sum(axis=1))
        self.same.append(base.argmax(axis=1) == log_p.argmax(axis=1))
        self.nll.append(-log_p[np.arange(len(ids) - 1), ids[1:]])


def mean_error(parts):
    """Mean of all positions and its standard error."""
    v = np.concatenate(parts).astype(np.float64)
    return v.mean(), v.std(ddof=1) / math.sqrt(len(v))


def difference(a, b):
    return mean_error([x - y for x, y in zip(a, b)])


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def windows_of(runtime, text, n_tokens=0):
    """Ids of <bos> and the tokens of each window."""
    ids = json.loads(runtime._run("tokenize", "--file", text, "--json"))["ids"]
    ids = ids[:n_tokens] if n_tokens else ids
    return [[2] + ids[i:i + WINDOW - 1] for i in range(0, len(ids), WINDOW - 1)]


def measure(base, samples, windows):
    """Runs every window through the bf16 file and all others."""
    for s in samples:
        s.reset()
    base.reset()
    for ids in filter(lambda w: len(w) > 1, windows):
        reference = log_softmax(base.runtime.logits(ids))[:len(ids) - 1]
        base.add(reference, ids, reference)
        for s in samples:
            s.add(reference, ids, log_softmax(s.runtime.logits(ids))[:len(ids) - 1])


def run(bin_dir, program, *args):
    r = subprocess.run([os.path.join(bin_dir or compare.BIN, program), *args], capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f"{program} failed: {r.stderr.strip()}")
    return r.stdout


def tensors(path, bin_dir=None):
    """{name: (type, bytes, elements)}"""
    out = run(bin_dir, "quantizer", "info", path)
    table = out[out.index("\ntensor ") + 1:].split("\n\n")[0]
    rows = map(str.split, table.splitlines()[1:])
    return {r[0]: (r[-4], int(r[-1]), math.prod(map(int, r[1:-4:2]))) for r in rows}


def make_files(folder, checkpoint, names, peer=True, plain=True, imatrix_text=None, bin_dir=None, installed_only=False):
    """(bf16 sample, {(name, whose): sample})"""
    path = os.path.join(folder, "bf16.gguf")
    run(bin_dir, "quantizer", "--in", checkpoint, "--out", path, "--type", "bf16")
    base = Sample("bf16", OURS, path, bin_dir)
    theirs = compare.Peer(path, 2, installed_only=installed_only) if peer else None
    imatrix = os.path.join(folder, "imatrix.gguf") if imatrix_text else None
    if imatrix:
        base.runtime._run("imatrix", "--file", imatrix_text, "--out", imatrix)
    samples = {}
    for n, name in enumerate(names):
        arguments, peer_type, pure = VARIANTS[name]
        ways = [OURS] + [PLAIN] * plain + [THEIRS] * peer + ([OURS_IMATRIX] + [THEIRS_IMATRIX] * peer if imatrix else [])
        for m, whose in enumerate(ways):
            path = os.path.join(folder, f"{n}-{m}.gguf")
            weights = imatrix if whose in (OURS_IMATRIX, THEIRS_IMATRIX) else None
            if whose in (THEIRS, THEIRS_IMATRIX):
                theirs.quantize(peer_type, path, pure, weights)
            else:
                run(bin_dir, "quantizer", "--in", checkpoint, "--out", path, *arguments, *["--no-search"] * (whose == PLAIN),
                    *(["--imatrix", weights] if weights else []))
            samples[name, whose] = Sample(name, whose, path, bin_dir)
    return base, samples


def other_types(samples, bin_dir=None):
    """Lines about tensors whose type or size is not the same in both files of a name."""
    for (name, whose), s in samples.items():
        peer = samples.get((name, BESIDE.get(whose)))
        if not peer:
            continue
        a, b = tensors(s.path, bin_dir), tensors(peer.path, bin_dir)
        for tensor in sorted(a.keys() | b.keys()):
            if a.get(tensor) != b.get(tensor):
                yield f"{name}, {whose}: '{tensor}' is {a.get(tensor)}, {b.get(tensor)} in llama.cpp's file"


def print_table(base, samples, bin_dir=None):
    print("| type | by | MB | bits | KL, 1e-3 | same top, % | perplexity | KL - llama.cpp's, 1e-3 | nll - llama.cpp's, 1e-3 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for s in [base, *samples.values()]:
        table = tensors(s.path, bin_dir).values()
        size = sum(t[1] for t in table)
        (kl, kl_error), (nll, _), (same, _) = mean_error(s.kl), mean_error(s.nll), mean_error(s.same)
        cells = [s.name, s.whose, f"{size / 1e6:.3f}", f"{8 * size / sum(t[2] for t in table):.2f}",
                 f"{1e3 * kl:.3f} +- {1e3 * kl_error:.3f}", f"{100 * same:.2f}", f"{math.exp(nll):.4f}"]
        peer = samples.get((s.name, BESIDE.get(s.whose)))
        for a, b in ((s.kl, peer.kl), (s.nll, peer.nll)) if peer else ():
            cells.append("{:+.3f} +- {:.3f}".format(*(1e3 * x for x in difference(a, b))))
        print("| " + " | ".join(cells + [""] * (9 - len(cells))) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=DEMO)
    parser.add_argument("--types", default="q8_0,q6_k,q5_k_m,q4_k_m,q4_0", help="a type brings its variants along")
    parser.add_argument("--text", action="append")
    parser.add_argument("--tokens", type=int, default=0, help="of each text from its begin; 0: all")
    parser.add_argument("--imatrix", metavar="TEXT", help="files with the importance matrix of this text as well")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-plain", action="store_true", help="without files of ours that were not searched")
    a = parser.parse_args()
    shared = os.environ.get("TANDEM_SHARED")
    texts = a.text or [os.path.join(shared, "demo-model", "valid.txt") if shared else os.path.join(DEMO, "eval.txt")]
    wanted = a.types.split(",")
    names = [v for v in VARIANTS if v.split(",")[0] in wanted]
    unknown = [t for t in wanted if t not in VARIANTS]
    if unknown:
        parser.error(f"type '{unknown[0]}' is not known; expected some of {', '.join(v for v in VARIANTS if ',' not in v)}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            base, samples = make_files(folder, a.checkpoint, names, not a.no_peer, not a.no_plain, a.imatrix)
        except compare.Unavailable as e:
            print(f"quality: {e}; --no-peer measures ours alone", file=sys.stderr)
            return 77
        for line in other_types(samples):
            print(line)
        for text in texts:
            windows = windows_of(base.runtime, text, a.tokens)
            measure(base, samples.values(), windows)
            print(f"\n{os.path.basename(text)}: {sum(map(len, base.nll))} positions in {len(windows)} windows\n")
            print_table(base, samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
