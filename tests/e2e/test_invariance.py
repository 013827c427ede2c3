# SPDX-License-Identifier: MIT
"""The CPU backends are batch-invariant: chunk size, thread count, other sequences, prefill or decode change no bit of a logit."""
import itertools
import json
import os
import random
import re

import numpy as np

import tandem
from tandem import check, config, evaluate, generate, model

CHUNKS, THREADS = (1, 7, 64, 256), (1, 2, 3)


def some_ids(n):
    """Longer than the demo model's window of 128, so that both kinds of layers and several KV pages take part."""
    r = random.Random(7)
    return [2] + [r.randrange(270, 4096) for _ in range(n - 1)]


def same_bits(a, b, what):
    check(a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32)), what, "differs, at most by",
          float(np.abs(a - b).max()))


def sweep(kind, pairs, env=None, ids=None, kv=None):
    ids = ids or some_ids(300)
    first = None
    for chunk, threads in pairs:
        # A chunk is never smaller than the number of sequences: one token of each must fit.
        cfg = config(model("demo", kind), sequences=1, kv_type=kv, chunk_tokens=chunk, npu__threads=threads,
                     gpu__threads=threads)
        got = evaluate(cfg, ids, env=env)
        if first is None:
            first = got
            check(np.isfinite(got).all() and float(got.std()) > 0.1, "these are no logits")
        same_bits(got, first, f"{kind} {env or ''}, kv {kv or 'f16'}: chunk {chunk}, {threads} threads")
    return first


def all_pairs():
    return list(itertools.product(CHUNKS, THREADS))


def test_f32():
    sweep("f32", all_pairs())


def test_bf16():
    sweep("bf16", all_pairs())


def test_f16():
    sweep("f16", [(64, 1), (7, 2), (1, 3)])


def test_q8_0():
    sweep("q8_0", all_pairs())


def test_q4_0():
    sweep("q4_0", all_pairs())


def test_eight_bit_kv():
    first = sweep("bf16", all_pairs(), kv="q8_0")
    half = evaluate(config(model("demo", "bf16"), sequences=1), some_ids(300))
    check(not np.array_equal(first, half), "this was no q8_0")


def test_other_shapes():
    """tiny-27b: 160 columns, 2 KV heads, a window of 32, rows that are no multiple of a tile's 16."""
    r = random.Random(3)
    ids = [2] + [r.randrange(10, 512) for _ in range(149)]
    for kind, kv in (("f32", None), ("q8_0", None), ("q4_0", None), ("bf16", "q8_0")):
        first = None
        for chunk, threads in ((64, 1), (1, 2), (7, 3), (256, 2)):
            got = evaluate(config(model("tiny-27b", kind), sequences=1, kv_type=kv, chunk_tokens=chunk, npu__threads=threads,
                                  gpu__threads=threads), ids)
            first = got if first is None else first
            same_bits(got, first, f"tiny-27b {kind}, kv {kv or 'f16'}: chunk {chunk}, {threads} threads")


def variants():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        flags = next((set(l.split(":", 1)[1].split()) for l in f if l.startswith("flags")), set())
    yield "ref"
    if {"avx2", "fma", "f16c"} <= flags:
        yield "avx2"
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"} <= flags:
        yield "avx512"


def test_variants():
    """Every kernel variant that this processor has is invariant by itself; here they also agree with each other."""
    ids = some_ids(70)  # more than one KV page; the reference is slow
    for kind, kv in (("f32", None), ("bf16", None), ("q8_0", None), ("q4_0", None), ("bf16", "q8_0")):
        results = {v: sweep(kind, [(64, 2), (7, 3)], env={"TANDEM_CPU": v}, ids=ids, kv=kv) for v in variants()}
        for name, got in results.items():
            same_bits(got, results["ref"], f"{kind}, kv {kv or 'f16'}: variant {name} against ref")


def test_unknown_variant_is_refused():
    r = tandem.run("coordinator", "--config", config(model("demo", "f32")), "eval", "--ids", "2,3", "--logits",
                   tandem.scratch("no.npy"), env={"TANDEM_CPU": "no_such_variant"}, status=None)
    tandem.one_line_error(r, "no_such_variant")


def test_several_sequences():
    """Perplexity cuts a text into windows that run side by side: 1 to 4 at once must give the same sum, to the last digit."""
    text = tandem.scratch("text.txt")
    r = random.Random(11)
    words = ["the", "cat", "said", "hello", "and", "a", "big", "red", "kite", "flew", "over", "Tom", "house", "."]
    with open(text, "w", encoding="utf-8") as f:
        f.write(" ".join(r.choice(words) for _ in range(1200)))
    for kind, kv in (("f32", None), ("q4_0", None), ("bf16", "q8_0")):
        first = None
        for sequences, chunk in ((1, 64), (2, 64), (3, 7), (4, 64), (4, 256)):
            cfg = config(model("demo", kind), sequences=sequences, chunk_tokens=chunk, kv_type=kv)
            got = tandem.run_json("coordinator", "--config", cfg, "perplexity", "--file", text, "--window", 128, "--json")
            first = first or got
            check(got["mean_nll"] == first["mean_nll"], f"{kind}, {sequences} sequences: {got['mean_nll']!r} is not "
                  f"{first['mean_nll']!r}")


def test_decode_equals_prefill():
    """Tokens that were decoded one by one are the greedy choice of a prefill over the whole text, too."""
    for kind, kv in (("f32", None), ("q8_0", None), ("bf16", "q8_0")):
        cfg = config(model("demo", kind), kv_type=kv)
        prompt = some_ids(20)
        out = generate(cfg, "--ids", tandem.ids_text(prompt), "--temperature", 0, "--max-tokens", 150)["output_ids"]
        logits = evaluate(cfg, prompt + out)[len(prompt) - 1:-1]
        check(logits.argmax(-1).tolist() == out, f"{kind}: decode and prefill choose different tokens")


def test_parallel_copies():
    """K greedy copies, decoded in shared chunks, all write what one alone writes."""
    for kind, kv in (("f32", None), ("q4_0", None), ("bf16", "q8_0")):
        cfg = config(model("demo", kind), sequences=4, kv_type=kv)
        ask = ("--prompt", "Once upon a time", "--temperature", 0, "--max-tokens", 60)
        alone = generate(cfg, *ask)["output_ids"]
        for copies in (2, 3, 4):
            choices = generate(cfg, *ask, "--parallel", copies)["choices"]
            check(len(choices) == copies, "choices:", len(choices))
            for c in choices:
                check(c["output_ids"] == alone, f"{kind}: a copy among {copies} differs:", c["output_ids"])


def plan(cfg, memory):
    return tandem.run("coordinator", "--config", cfg, "--set", f"npu.memory={memory}", "plan", "--json", status=None)


def smallest(cfg):
    """MiB that npu.memory needs at least, as the refusal names it; a MiB less is refused, too."""
    r = plan(cfg, "1MiB")
    check(r.returncode == 1 and "'npu.memory'" in r.stderr, r.stderr)
    least = int(re.search(r"raise it to at least (\d+) MiB", r.stderr).group(1))
    r = plan(cfg, f"{least - 1}MiB")
    check(r.returncode == 1 and f"raise it to at least {least} MiB" in r.stderr, r.stderr)
    return least


def test_npu_budget():
    """From the smallest budget to 2 GiB: chunks and pages differ, no bit of a logit does."""
    ids = some_ids(700)
    cfg = config(model("demo", "q8_0"), sequences=1)
    least = smallest(cfg)
    chunks, first = set(), None
    for mib in (2048, 64, least + 4, least + 2, least + 1, least):
        made = json.loads(plan(cfg, f"{mib}MiB").stdout)
        npu = made["processes"]["npu_worker"]
        check(npu["weights"] + npu["kv"] + npu["scratch"] <= 0.8 * mib * 2**20, mib, made)
        chunks.add(made["chunk_tokens"])
        got = evaluate(config(model("demo", "q8_0"), sequences=1, npu__memory=f"{mib}MiB"), ids)
        first = got if first is None else first
        same_bits(got, first, f"npu.memory {mib} MiB")
    check(len(chunks) >= 3 and 128 in chunks, "chunks", chunks)


def test_shared_pages():
    """Eight answers at once where the KV cache holds little more than one context: they wait for pages, and none differs."""
    words = ("--chat", "--prompt", "Tell me a story", "--temperature", "1", "--seed", "5", "--max-tokens", "300", "--parallel", "8")
    texts, pages = [], []
    cfg = config(model("demo", "q8_0"), sequences=8)
    for mib in (smallest(cfg) + 1, 2048):
        cfg = config(model("demo", "q8_0"), sequences=8, npu__memory=f"{mib}MiB")
        pages.append(json.loads(plan(cfg, f"{mib}MiB").stdout)["kv_pages"])
        out = json.loads(tandem.run("coordinator", "--config", cfg, "generate", *words, "--json").stdout)
        texts.append([c["output_ids"] for c in sorted(out["choices"], key=lambda c: c["choice"])])
    check(pages[0] * 4 < pages[1], "pages", pages)
    check(texts[0] == texts[1] and len(set(map(tuple, texts[0]))) == 8, *texts)


if __name__ == "__main__":
    tandem.main(globals())
