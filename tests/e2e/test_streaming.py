# SPDX-License-Identifier: MIT
"""Weights that are read for every pass instead of being kept: not a bit of a logit and not a character of a text differs, whatever
the chunk size, the number of slots, which worker streams, and what runs beside it."""
import os
import random
import time

import numpy as np

import tandem
from tandem import check, config, evaluate, generate, model

ALL = 512


def some_ids(n, vocab=4096):
    r = random.Random(5)
    return [2] + [r.randrange(270 if vocab > 1000 else 10, vocab) for _ in range(n - 1)]


def same_bits(a, b, what):
    check(a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32)), what, "differs, at most by",
          float(np.abs(a - b).max()))


def modes():
    """Which layers stream: all, some, of one worker; through two slots and three."""
    yield {"npu__streamed": ALL, "gpu__streamed": ALL}
    yield {"npu__streamed": ALL, "gpu__streamed": ALL, "stream_slots": 3}
    yield {"npu__streamed": 4}
    yield {"gpu__streamed": 4}
    yield {"npu__streamed": 4, "gpu__streamed": ALL}


def process(answer, name):
    return next(p for p in answer["processes"] if p["name"] == name)


def sweep(name, kind, ids, chunks):
    resident = evaluate(config(model(name, kind), sequences=1, chunk_tokens=64), ids)
    check(np.isfinite(resident).all() and float(resident.std()) > 0.1, "these are no logits")
    for chunk in chunks:
        for keys in modes():
            got = evaluate(config(model(name, kind), sequences=1, chunk_tokens=chunk, **keys), ids)
            same_bits(got, resident, f"{name} {kind}, chunks of {chunk}, {keys}")


def test_logits():
    """300 positions: with chunks of one token that is many passes, with 256 one."""
    sweep("demo", "q4_0", some_ids(300), (1, 7, 64, 256))
    sweep("demo", "bf16", some_ids(100), (16,))


def test_other_shapes():
    ids = some_ids(150, 512)
    for kind in ("q8_0", "f32"):
        sweep("tiny-27b", kind, ids, (7, 64))


def test_texts():
    """A prompt of several passes and decoding after it; what was waited for is told."""
    path = model("demo", "q8_0")
    args = ("--ids", tandem.ids_text(some_ids(90)), "--temperature", 0, "--max-tokens", 60)
    resident = generate(config(path, chunk_tokens=8), *args)
    check(process(resident, "gpu_worker")["stream_visits"] == 0, resident["processes"])
    for keys in modes():
        cfg = config(path, chunk_tokens=8, context=256, **keys)
        got = generate(cfg, *args)
        slots = tandem.run_json("coordinator", "--config", cfg, "plan", "--json")["ring_slots"]
        check(got["output_ids"] == resident["output_ids"], keys, got["text"])
        for worker, key in (("npu_worker", "npu__streamed"), ("gpu_worker", "gpu__streamed")):
            p = process(got, worker)
            passes = -(-12 // slots) + len(got["output_ids"]) - 1  # so many chunks of 8 a pass, then a token each
            layers = 0 if key not in keys else 4 if keys[key] == 4 else {2: 12, 3: 12}[keys.get("stream_slots", 2)]
            check(p["stream_visits"] == passes * layers, worker, keys, p)
            waits = p.get("stream_layer_wait_ms", [])
            check(bool(waits) == bool(layers) and abs(sum(waits) - p["stream_wait_ms"]) <= 1e-3 * p["stream_visits"], worker, keys, p)
            check(0 <= p["stream_hits"] <= p["stream_visits"] and p["stream_wait_max_ms"] <= p["stream_wait_ms"] + 1e-9, p)


def test_parallel():
    """Four sampled answers in one batch, each as it is alone."""
    path = model("demo", "q4_0")
    args = ("--prompt", "Once upon a time", "--temperature", 0.9, "--seed", 3, "--max-tokens", 40, "--parallel", 4)
    resident = generate(config(path), *args)
    for keys in modes():
        got = generate(config(path, **keys), *args)
        check([c["output_ids"] for c in got["choices"]] == [c["output_ids"] for c in resident["choices"]], keys)


def test_perplexity():
    """Windows of a text side by side, each of several chunks: the same sum to the last digit."""
    text = tandem.scratch("text.txt")
    r = random.Random(11)
    with open(text, "w", encoding="utf-8") as f:
        f.write(" ".join(r.choice(["the", "cat", "said", "hello", "and", "a", "big", "red", "kite"]) for _ in range(700)))
    want = None
    for keys in ({}, *modes()):
        cfg = config(model("demo", "q8_0"), sequences=3, chunk_tokens=16, **keys)
        got = tandem.run_json("coordinator", "--config", cfg, "perplexity", "--file", text, "--window", 128, "--json")
        want = want or got
        check(got["mean_nll"] == want["mean_nll"], keys, got["mean_nll"], want["mean_nll"])


def test_bytes_read():
    """Each streamed layer is read once for a pass, whatever is in the pass: a token more costs the streamed bytes more."""
    path = model("demo", "q4_0")
    def read(tokens, parallel, **keys):
        a = generate(config(path, **keys), "--prompt", "Once upon a time", "--temperature", 0.7, "--max-tokens", tokens,
                     "--parallel", parallel)
        check("length" in [c["finish_reason"] for c in a.get("choices", [a])], a)
        return process(a, "loader")["bytes_read"]
    plan = tandem.run_json("coordinator", "--config", config(path, npu__streamed=ALL, gpu__streamed=ALL), "plan", "--json")
    streamed = plan["streamed_bytes"]
    check(0.5 * os.path.getsize(path) < streamed < os.path.getsize(path), streamed)
    for parallel in (1, 4):
        few, many = (read(n, parallel, npu__streamed=ALL, gpu__streamed=ALL) for n in (10, 30))
        check(abs(many - few - 20 * streamed) < streamed, parallel, (many - few) / streamed)  # less or more of what is read ahead
        check(read(30, parallel) < os.path.getsize(path) * 1.2, "resident weights are read once")


def test_lost_messages():
    """A message about a slot is lost, whichever of two passes it is: it is asked for again, long before anybody is taken for one that
    hangs, and nothing else happens."""
    cfg = config(model("demo", "q8_0"), npu__streamed=8, gpu__streamed=8)
    args = ("generate", "--prompt", "Once upon a time", "--temperature", 0, "--max-tokens", 12)
    want = tandem.run("coordinator", "--config", cfg, *args).stdout
    for i in range(13):
        faults = [f"{worker}:drop-message@{first + n + i}" for worker, first in (("gpu_worker", 31), ("npu_worker", 67)) for n in (0, 12)]
        faults.append(f"loader:drop-message@{2 + i % 9}")
        if i == 12:  # several in a row, reminders among them
            faults = ["loader:drop-message@5"] * 6
        began = time.monotonic()
        r = tandem.run("coordinator", "--config", cfg, *args, *(w for f in faults for w in ("--fault", f)))
        took = time.monotonic() - began
        check(r.stdout == want, faults, r.stdout)
        check(all(f"'{f}' happens now" in r.stderr for f in faults) and "started again" not in r.stderr, faults, r.stderr)
        check(took < 30, f"{took:.1f} s: nobody asked again", faults)


def test_damaged_file():
    """Damage in a streamed layer is told by tensor when it is first read, and nothing is left behind."""
    path = tandem.scratch("bad.gguf")
    with open(model("demo", "q4_0"), "rb") as f:
        data = bytearray(f.read())
    data[len(data) - 40000] ^= 1  # the last layer's
    with open(path, "wb") as f:
        f.write(data)
    for keys in ({}, {"npu__streamed": ALL, "gpu__streamed": ALL}):
        r = tandem.run("coordinator", "--config", config(path, **keys), "generate", "--prompt", "Once", "--max-tokens", 3, status=None)
        tandem.one_line_error(r, "loader", "is damaged: its checksum is", "tensor 'blk.11.")


tandem.main(globals())
