# SPDX-License-Identifier: MIT
"""Logits, hidden states and greedy continuations against the values that Hugging Face transformers gave.

Bounds: 1e-3 for f32 and bf16 weights with an f32 KV cache (only the order of f32 sums differs), 0.05 with f16 K and V
(rounding them alone moves logits by up to 0.024). q8_0 K and V are compared with f32 ones, since they are coarser than any golden
needs: an entry moves by up to 1/254 of the largest in its block, where f16 moves it by 1/2048 of itself; logits of demo moved by
0.08, those of tiny-27b, whose weights are random, by 0.41.
"""
import os

import numpy as np

import tandem
from tandem import check, close, config, evaluate, generate, model, st_load

EXACT, HALF_KV = 1e-3, 0.05
EIGHT_BIT_KV = {"demo": 0.2, "tiny-27b": 1.0}


def golden(name):
    return st_load(os.path.join(tandem.GOLDEN, name))


def logits(name, kind, kv, bound, ids, want, what):
    close(evaluate(config(model(name, kind), kv_type=kv), ids), want, bound, f"{name} {kind}, kv {kv}, {what}")


def test_demo_32_tokens():
    g = golden("demo_logits_p32.safetensors")
    for kind in ("f32", "bf16"):
        logits("demo", kind, "f32", EXACT, g["p32.ids"], g["p32.logits"], "32 tokens")
        logits("demo", kind, None, HALF_KV, g["p32.ids"], g["p32.logits"], "32 tokens")


def test_tiny_27b():
    g = golden("tiny-27b/golden.safetensors")
    for kind in ("f32", "bf16"):
        logits("tiny-27b", kind, "f32", EXACT, g["ids"], g["logits"], "100 tokens")
        logits("tiny-27b", kind, None, HALF_KV, g["ids"], g["logits"], "100 tokens")


def test_tiny_27b_config_of_transformers_5():
    """The same checkpoint described in the other style of config.json."""
    source, out = tandem.scratch("v5"), tandem.scratch("v5.gguf")
    os.mkdir(source)
    for name in os.listdir(os.path.join(tandem.GOLDEN, "tiny-27b")):
        if name not in ("config.json", "golden.safetensors"):
            target = "config.json" if name == "config_v5.json" else name
            os.symlink(os.path.join(tandem.GOLDEN, "tiny-27b", name), os.path.join(source, target))
    tandem.run("quantizer", "--in", source, "--out", out, "--type", "f32")
    with open(out, "rb") as a, open(model("tiny-27b", "f32"), "rb") as b:
        check(a.read() == b.read(), "the two styles of config.json give different files")


def test_demo_long_prompts():
    path = tandem.need_shared("golden", "demo_logits.safetensors")
    g = st_load(path)
    for kind in ("f32", "bf16"):
        logits("demo", kind, "f32", EXACT, g["p300.ids"], g["p300.logits"], "300 tokens, beyond the window")
        got = evaluate(config(model("demo", kind), kv_type="f32"), g["p1500.ids"])
        close(got[-1], g["p1500.last_logits"], EXACT, f"demo {kind}, last of 1500 tokens")


def stage(program, cfg, *args):
    out = tandem.scratch("stage.npy")
    tandem.run(program, "--config", cfg, *args, "--out", out)
    rows = np.load(out)
    os.unlink(out)
    return rows


def single_stages(name, kind, g, layers):
    """Each stage alone, fed with the golden input of its layer."""
    cfg = config(model(name, kind), kv_type="f32")
    x = stage("loader", cfg, "--ids", tandem.ids_text(g["ids"]))
    close(x, g["embed"], EXACT, f"{name} {kind}: loader")
    x_file, h_file = tandem.scratch("x.npy"), tandem.scratch("h.npy")
    for layer in range(layers):
        np.save(x_file, g["embed"] if layer == 0 else g[f"layer.{layer - 1}.ffn"])
        np.save(h_file, g[f"layer.{layer}.attn"])
        h = stage("npu_worker", cfg, "--layer", layer, "--in", x_file)
        x = stage("gpu_worker", cfg, "--layer", layer, "--in", h_file)
        close(h, g[f"layer.{layer}.attn"], EXACT, f"{name} {kind}: npu_worker, layer {layer}")
        close(x, g[f"layer.{layer}.ffn"], EXACT, f"{name} {kind}: gpu_worker, layer {layer}")


def test_single_stages_of_demo():
    g = golden("demo_hidden16.safetensors")
    single_stages("demo", "f32", g, 12)
    single_stages("demo", "bf16", g, 12)


def test_single_stages_of_tiny_27b():
    single_stages("tiny-27b", "f32", golden("tiny-27b/golden.safetensors"), 8)


def test_chain_of_single_stages():
    """Loader, then every layer by hand, each fed with our own output: the bits of the last layer lead to the golden."""
    g = golden("demo_hidden16.safetensors")
    cfg = config(model("demo", "f32"), kv_type="f32")
    x = stage("loader", cfg, "--ids", tandem.ids_text(g["ids"]))
    x_file, h_file = tandem.scratch("x.npy"), tandem.scratch("h.npy")
    for layer in range(12):
        np.save(x_file, x)
        np.save(h_file, stage("npu_worker", cfg, "--layer", layer, "--in", x_file))
        x = stage("gpu_worker", cfg, "--layer", layer, "--in", h_file)
    close(x, g["layer.11.ffn"], EXACT, "demo f32: 12 layers one after the other")


def test_greedy():
    for kind, kv in (("f32", "f32"), ("bf16", "f32"), ("f32", None), ("bf16", None)):
        cfg = config(model("demo", kind), kv_type=kv)
        for prompt in tandem.golden_json("demo_greedy.json")["prompts"]:
            r = generate(cfg, "--ids", tandem.ids_text(prompt["prompt_ids"]), "--temperature", 0, "--max-tokens",
                         len(prompt["output_ids"]))
            check(r["prompt_ids"] == prompt["prompt_ids"], "prompt ids", r["prompt_ids"])
            check(r["output_ids"] == prompt["output_ids"], f"{kind}, kv {kv}: '{prompt['prompt']}' goes on with", r["output_ids"],
                  "instead of", prompt["output_ids"])
            check(r["text"] == prompt["output_text"], "text", r["text"])


def eight_bit_kv(name, kind, ids):
    exact = evaluate(config(model(name, kind), kv_type="f32"), ids)
    got = evaluate(config(model(name, kind), kv_type="q8_0"), ids)
    what = f"{name} {kind}, {len(ids)} tokens, kv q8_0 beside f32"
    close(got, exact, EIGHT_BIT_KV[name], what)
    rms = float(np.sqrt(np.mean((got - exact) ** 2)))
    print(f"  {what}: root mean square {rms:.3g}")
    check(0 < rms < EIGHT_BIT_KV[name] / 6, what, "root mean square", rms)


def test_eight_bit_kv():
    for kind in ("f32", "bf16"):
        eight_bit_kv("demo", kind, golden("demo_logits_p32.safetensors")["p32.ids"])
        eight_bit_kv("tiny-27b", kind, golden("tiny-27b/golden.safetensors")["ids"])


def test_eight_bit_kv_beyond_the_window():
    eight_bit_kv("demo", "bf16", st_load(tandem.need_shared("golden", "demo_logits.safetensors"))["p300.ids"])


def test_eight_bit_kv_of_a_single_stage():
    """npu_worker alone: near the golden, and not what an f32 cache gives."""
    g, x_file = golden("demo_hidden16.safetensors"), tandem.scratch("x.npy")
    for layer in (0, 5, 11):
        np.save(x_file, g["embed"] if layer == 0 else g[f"layer.{layer - 1}.ffn"])
        h = {kv: stage("npu_worker", config(model("demo", "f32"), kv_type=kv), "--layer", layer, "--in", x_file)
             for kv in ("f32", "q8_0")}
        want = g[f"layer.{layer}.attn"]
        close(h["q8_0"], want, 0.1, f"npu_worker, layer {layer}, kv q8_0")
        check(not np.array_equal(h["f32"], h["q8_0"]), "npu_worker does not use q8_0")


def test_eight_bit_kv_greedy():
    """The text of the golden, or another one from where the two best logits are too near for q8_0 to tell them apart."""
    for kind in ("f32", "bf16"):
        for prompt in tandem.golden_json("demo_greedy.json")["prompts"]:
            ids, want = prompt["prompt_ids"], prompt["output_ids"]
            got = generate(config(model("demo", kind), kv_type="q8_0"), "--ids", tandem.ids_text(ids), "--temperature", 0,
                           "--max-tokens", len(want))["output_ids"]
            if got == want:
                continue
            at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
            row = np.sort(evaluate(config(model("demo", kind), kv_type="f32"), ids + want)[len(ids) - 1 + at])
            print(f"  {kind}, '{prompt['prompt']}': other text from token {at} on, where the lead is {row[-1] - row[-2]:.3g}")
            check(row[-1] - row[-2] < 2 * EIGHT_BIT_KV["demo"], f"{kind}, '{prompt['prompt']}': token {at} differs:", got, want)


def test_quantized_is_near():
    """Integer types have no golden; they must stay near enough to the f32 logits to be the same model."""
    g = golden("demo_logits_p32.safetensors")
    for kind, bound in (("q8_0", 1.0), ("q4_0", 8.0)):
        got = evaluate(config(model("demo", kind)), g["p32.ids"])
        rms = float(np.sqrt(np.mean((got - g["p32.logits"]) ** 2)))
        print(f"  demo {kind}: root mean square difference {rms:.3g}")
        close(got, g["p32.logits"], bound, f"demo {kind}")


if __name__ == "__main__":
    tandem.main(globals())
