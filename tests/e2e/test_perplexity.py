# SPDX-License-Identifier: MIT
"""Perplexity by both methods. eval.txt is the project's own text with values of reference.py; valid.txt (TANDEM_SHARED) has
values of Hugging Face transformers.

Bounds: 1e-3 with an f32 KV cache for f32 and bf16 weights; 1e-3 of the value with f16 or q8_0 K and V; q8_0 within 0.5% of bf16.
"""
import json
import os

import tandem
from tandem import check, config, model

METHODS = (("window", "window512"), ("llama.cpp", "llamacpp512"))


def perplexity(kind, file, method, kv=None):
    r = tandem.run_json("coordinator", "--config", config(model("demo", kind), kv_type=kv), "perplexity", "--file", file,
                        "--method", method, "--window", 512, "--json")
    print(f"  {os.path.basename(file)}, {kind}, kv {kv or 'f16'}, {method}: {r['ppl']:.5f} ({r['scored_tokens']} tokens, "
          f"{r['tokens_per_s']:.0f} tokens/s)", flush=True)
    return r


def near(r, want, bound):
    check(r["scored_tokens"] == want["scored_tokens"], "scored tokens:", r["scored_tokens"], "instead of", want["scored_tokens"])
    check(abs(r["ppl"] - want["ppl"]) <= bound, f"perplexity {r['ppl']:.6f} instead of {want['ppl']:.6f}, bound {bound:g}")


def floats(file, want):
    for method, name in METHODS:
        near(perplexity("f32", file, method, "f32"), want[name], 1e-3)
        near(perplexity("bf16", file, method, "f32"), want[name], 1e-3)
        near(perplexity("bf16", file, method), want[name], 1e-3 * want[name]["ppl"])
    near(perplexity("bf16", file, "window", "q8_0"), want["window512"], 1e-3 * want["window512"]["ppl"])


def integers(file, bf16):
    q8 = perplexity("q8_0", file, "window")["ppl"]
    check(abs(q8 / bf16 - 1) <= 5e-3, f"q8_0 is {100 * (q8 / bf16 - 1):+.3f}% away from bf16; expected 0.5% at most")
    q4 = perplexity("q4_0", file, "window")["ppl"]
    print(f"  against bf16: q8_0 {100 * (q8 / bf16 - 1):+.3f}%, q4_0 {100 * (q4 / bf16 - 1):+.2f}%")
    check(1.0 < q4 < 2 * bf16, f"q4_0: {q4} is not the perplexity of this model")


def own_text():
    return os.path.join(tandem.DEMO, "eval.txt"), tandem.golden_json("eval_nll.json")


def test_eval_text_float_types():
    floats(*own_text())


def test_eval_text_integer_types():
    file, want = own_text()
    integers(file, want["window512"]["ppl"])


def valid_text():
    file = tandem.need_shared("demo-model", "valid.txt")
    if tandem.SANITIZE:
        tandem.skip("the whole of valid.txt takes too long under a sanitizer")
    with open(tandem.need_shared("golden", "manifest.json"), encoding="utf-8") as f:
        return file, json.load(f)["perplexity"]


def test_valid_text_float_types():
    floats(*valid_text())


def test_valid_text_integer_types():
    file, want = valid_text()
    integers(file, want["window512"]["ppl"])


def test_longer_window():
    """2048 tokens: 16 times the sliding window."""
    file, want = valid_text()
    r = tandem.run_json("coordinator", "--config", config(model("demo", "bf16"), kv_type="f32"), "perplexity", "--file", file,
                        "--window", 2048, "--json")
    near(r, want["window2048"], 1e-3)


def test_plain_output():
    file, _ = own_text()
    text = tandem.run("coordinator", "--config", config(model("demo", "q8_0")), "perplexity", "--file", file).stdout
    check("perplexity" in text, text)


if __name__ == "__main__":
    tandem.main(globals())
