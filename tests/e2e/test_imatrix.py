# SPDX-License-Identifier: MIT
"""The importance matrix: sums equal to those of single stages' dumps, the same bytes for any number of threads, and of use."""
import os
import struct

import numpy as np

import tandem
from tandem import check, config, model, run

TEXT = os.path.join(tandem.DEMO, "eval.txt")


def gguf_tensors(path):
    """{name: f32 array} of a GGUF file whose tensors are all f32 (specification: ggml/docs/gguf.md)."""
    with open(path, "rb") as f:
        data = f.read()
    at = 0

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0]

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n:at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            of = take("I")
            return [value(of) for _ in range(take("Q"))]
        return take({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}[kind])

    check(data[:4] == b"GGUF", "no GGUF")
    at = 8
    n_tensors, n_keys = take("Q"), take("Q")
    keys = {name: value(take("I")) for name in (text() for _ in range(n_keys))}
    infos = []
    for _ in range(n_tensors):
        name = text()
        dims = [take("Q") for _ in range(take("I"))]
        check(take("I") == 0, name, "is not f32")
        infos.append((name, int(np.prod(dims)), take("Q")))
    start = -(-at // 32) * 32
    return keys, {name: np.frombuffer(data, "<f4", n, start + offset) for name, n, offset in infos}


def imatrix(name, *options, **keys):
    out = tandem.scratch(name)
    result = tandem.run_json("coordinator", "--config", config(model("demo", "f32"), kv_type="f32", **keys), "imatrix", "--out", out,
                             "--json", *options)
    return out, result


def short_text():
    path = tandem.scratch("short.txt")
    with open(path, "w", encoding="utf-8") as f:
        f.write("Once upon a time there was a little cat who liked to sit on a red chair and look at the birds in the tree.")
    return path


def test_sums():
    """The first two layers of one window, by hand: loader, then each stage alone with --dump."""
    path, result = imatrix("sums.gguf", "--file", short_text(), "--window", 64)
    cfg = config(model("demo", "f32"), kv_type="f32")
    ids = [2] + tandem.run_json("coordinator", "--config", cfg, "tokenize", "--file", short_text(), "--json")["ids"]
    check(result["tokens"] == len(ids) and result["windows"] == 1, result, len(ids))
    keys, tensors = gguf_tensors(path)
    check(keys["general.type"] == "imatrix" and keys["imatrix.datasets"] == ["short.txt"] and keys["imatrix.chunk_count"] == 1 and
          keys["imatrix.chunk_size"] == 64, keys)
    check(len(tensors) == 12 * 7 * 2, len(tensors), "tensors")
    check(all(v[0] == len(ids) for n, v in tensors.items() if n.endswith(".counts")), "counts")
    x, h, dump = tandem.scratch("x.npy"), tandem.scratch("h.npy"), tandem.scratch("dump")
    os.mkdir(dump)
    run("loader", "--config", cfg, "--ids", tandem.ids_text(ids), "--out", x)
    for layer in (0, 1):
        run("npu_worker", "--config", cfg, "--layer", layer, "--in", x, "--out", h, "--dump", dump)
        run("gpu_worker", "--config", cfg, "--layer", layer, "--in", h, "--out", x, "--dump", dump)
        for rows, matrices in (("in_norm", ("attn_q", "attn_k", "attn_v")), ("heads", ("attn_output",)),
                               ("pre_ffn_norm", ("ffn_gate", "ffn_up")), ("act", ("ffn_down",))):
            want = (np.load(os.path.join(dump, rows + ".npy")).astype(np.float64) ** 2).sum(0)
            for matrix in matrices:
                got = tensors[f"blk.{layer}.{matrix}.weight.in_sum2"]
                check(np.allclose(got, want, rtol=1e-6, atol=0), f"layer {layer}, {matrix}:", np.abs(got / want - 1).max())


def test_same_bytes():
    """Threads, chunks and sequences change nothing."""
    with open(imatrix("a.gguf", "--file", TEXT, "--window", 256, sequences=1, chunk_tokens=256)[0], "rb") as f:
        want = f.read()
    for keys in ({"npu__threads": 3, "gpu__threads": 2}, {"sequences": 4, "chunk_tokens": 64}):
        with open(imatrix("b.gguf", "--file", TEXT, "--window", 256, **keys)[0], "rb") as f:
            check(f.read() == want, keys, "changes the file")


def test_it_lowers_the_weighted_error():
    """The quantizer takes the file, and what it makes of it differs from what it makes without."""
    path, _ = imatrix("use.gguf", "--file", TEXT)
    with_it, without = tandem.scratch("with.gguf"), tandem.scratch("without.gguf")
    run("quantizer", "--in", tandem.DEMO, "--out", with_it, "--type", "q4_0", "--imatrix", path)
    run("quantizer", "--in", tandem.DEMO, "--out", without, "--type", "q4_0")
    a, b = (tandem.run_json("coordinator", "--config", config(p), "perplexity", "--file", TEXT, "--json") for p in (with_it, without))
    print(f"  perplexity of the text that made the matrix: {a['ppl']:.4f} with it, {b['ppl']:.4f} without")
    check(a["ppl"] != b["ppl"] and a["ppl"] < b["ppl"] * 1.02, a["ppl"], b["ppl"])


def test_refusals():
    cfg = config(model("demo", "f32"))
    empty, out = tandem.scratch("empty.txt"), tandem.scratch("no.gguf")
    open(empty, "w", encoding="utf-8").close()
    for words, options in (("no text", ("--file", empty, "--out", out)), ("--window", ("--file", TEXT, "--out", out, "--window", 4096)),
                           ("GGUF", ("--file", TEXT, "--out", TEXT)), ("--out", ("--file", TEXT))):
        tandem.one_line_error(run("coordinator", "--config", cfg, "imatrix", *options, status=None), words)
        check(not os.path.exists(out), "half a file was left")


if __name__ == "__main__":
    tandem.main(globals())
