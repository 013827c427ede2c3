# SPDX-License-Identifier: MIT
"""Gemma 3 in numpy, float64, from the checkpoint: a second opinion on what the C programs compute, written to be read.

    python3 reference.py eval-nll       rewrites tests/golden/eval_nll.json from models/demo and models/demo/eval.txt
    python3 reference.py check          compares this file with the stored goldens

One forward pass over a whole sequence, without cache, chunks or quantization. Arithmetic: docs/NUMERICS.md.
"""
import json
import math
import os
import sys

import numpy as np

import tandem


class Model:
    def __init__(self, folder):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
            c = json.load(f)
        c = c.get("text_config", c)
        self.layers, self.heads, self.kv_heads = c["num_hidden_layers"], c["num_attention_heads"], c["num_key_value_heads"]
        self.head_dim, self.hidden, self.eps = c["head_dim"], c["hidden_size"], c.get("rms_norm_eps", 1e-6)
        self.window, self.scale = c["sliding_window"], c["query_pre_attn_scalar"] ** -0.5
        every = c.get("sliding_window_pattern", c.get("_sliding_window_pattern", 6))
        kinds = c.get("layer_types") or ["sliding_attention"] * self.layers
        self.is_global = [k == "full_attention" for k in kinds] if "layer_types" in c else \
            [(i + 1) % every == 0 for i in range(self.layers)]
        if "rope_parameters" in c:
            far, near = c["rope_parameters"]["full_attention"], c["rope_parameters"]["sliding_attention"]
        else:
            far, near = {"rope_theta": c.get("rope_theta", 1e6), **(c.get("rope_scaling") or {})}, \
                {"rope_theta": c.get("rope_local_base_freq", 1e4)}
        exponent = -np.arange(0, self.head_dim, 2) / self.head_dim
        self.angles = {True: far["rope_theta"] ** exponent / far.get("factor", 1.0), False: near["rope_theta"] ** exponent}
        self.w = {}
        for file in sorted(os.listdir(folder)):
            if file.endswith(".safetensors"):
                self.w.update({k.replace("language_model.", ""): v.astype(np.float64)
                               for k, v in tandem.st_load(os.path.join(folder, file)).items() if v.dtype == np.float32})

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * (1.0 + self.w[name + ".weight"])

    def rotate(self, x, is_global):
        """x: [tokens, heads, head_dim]; element i turns with element i + head_dim / 2."""
        angle = np.arange(x.shape[0])[:, None, None] * self.angles[is_global]
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)

    def product(self, x, name):
        """q, k, v, o of attention."""
        return x @ self.w[name + ".weight"].T

    def attended(self, x):
        """What enters attention itself: q, k or v."""
        return x

    def attention(self, x, i):
        p, n = f"model.layers.{i}.self_attn.", x.shape[0]
        q, k, v = (self.product(x, f"{p}{m}_proj").reshape(n, -1, self.head_dim) for m in "qkv")
        q = self.rotate(self.norm(q, p + "q_norm"), self.is_global[i])
        k = self.rotate(self.norm(k, p + "k_norm"), self.is_global[i])
        q, k, v = (self.attended(a) for a in (q, k, v))
        back = np.arange(n)[:, None] - np.arange(n)[None, :]
        seen = (back >= 0) & (self.is_global[i] | (back < self.window))
        out = np.empty_like(q)
        for h in range(self.heads):
            g = h * self.kv_heads // self.heads
            s = np.where(seen, q[:, h] @ k[:, g].T * self.scale, -np.inf)
            s = np.exp(s - s.max(axis=1, keepdims=True))
            out[:, h] = (s / s.sum(axis=1, keepdims=True)) @ v[:, g]
        return self.product(out.reshape(n, -1), p + "o_proj")

    def ffn_input(self, x):
        """What enters gate and up, and down."""
        return x

    def ffn(self, x, i):
        p, x = f"model.layers.{i}.mlp.", self.ffn_input(x)
        gate = x @ self.w[p + "gate_proj.weight"].T
        gelu = 0.5 * gate * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate ** 3)))
        return self.ffn_input(gelu * (x @ self.w[p + "up_proj.weight"].T)) @ self.w[p + "down_proj.weight"].T

    def logits(self, ids):
        table = self.w["model.embed_tokens.weight"]
        x = table[np.asarray(ids)] * math.sqrt(self.hidden)
        for i in range(self.layers):
            p = f"model.layers.{i}."
            x = x + self.norm(self.attention(self.norm(x, p + "input_layernorm"), i), p + "post_attention_layernorm")
            x = x + self.norm(self.ffn(self.norm(x, p + "pre_feedforward_layernorm"), i), p + "post_feedforward_layernorm")
        return self.norm(x, "model.norm") @ table.T


class RoundedProducts(Model):
    """How far rounding in the products of attention may move logits: every factor and result is moved by a random part of what
    rounding it to bf16 may change (2^-8 of it), with `attends` also the q, k and v that attention is computed of. Where the CPU
    backend works with int8 activations, also by a random part of half a step of its block of 32, twice in the FFN, whose inputs are
    rounded in both runs that are compared."""

    def __init__(self, folder, int8, attends, seed):
        super().__init__(folder)
        self.int8, self.attends, self.random = int8, attends, np.random.default_rng(seed)

    def move(self, a, by):
        return a + self.random.uniform(-1, 1, a.shape) * by

    def bf16(self, a):
        return self.move(a, np.abs(a) * 2.0 ** -8)

    def activations(self, x):
        if not self.int8:
            return x
        blocks = x.reshape(x.shape[0], -1, 32)
        return self.move(blocks, np.abs(blocks).max(axis=2, keepdims=True) / 254).reshape(x.shape)

    def product(self, x, name):
        return self.bf16(self.bf16(self.activations(x)) @ self.bf16(self.w[name + ".weight"]).T)

    def attended(self, x):
        return self.bf16(x) if self.attends else x

    def ffn_input(self, x):
        return self.activations(self.activations(x))


def rounded_products(folder, ids, int8, attends=False, draws=4):
    """The most that a logit was moved by, over some draws, and the root mean square."""
    exact = Model(folder).logits(ids)
    moved = np.stack([RoundedProducts(folder, int8, attends, seed).logits(ids) - exact for seed in range(draws)])
    return float(np.abs(moved).max()), float(np.sqrt(np.mean(moved ** 2)))


def nll(logits, targets):
    top = logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - logits[np.arange(len(targets)), targets]


def window_nll(model, ids, window, bos=2):
    """<bos> and window - 1 tokens, no overlap, all but <bos> scored, the last window shorter."""
    parts = []
    for begin in range(0, len(ids), window - 1):
        part = [bos] + list(ids[begin:begin + window - 1])
        parts.append(nll(model.logits(part[:-1]), part[1:]))
    return np.concatenate(parts)


def llama_cpp_nll(model, ids, window, bos=2):
    """Chunks of `window` of <bos> + ids, the first token of each replaced by <bos>, the second half scored, no partial chunk."""
    ids, parts = [bos] + list(ids), []
    for begin in range(0, len(ids) - window + 1, window):
        part = [bos] + ids[begin + 1:begin + window]
        first = window // 2
        parts.append(nll(model.logits(part)[first:window - 1], part[first + 1:]))
    return np.concatenate(parts)


def eval_ids():
    """Token ids of eval.txt by our own tokenizer, which test_tokens.py holds against SentencePiece's ids."""
    cfg = tandem.config(tandem.model("demo", "bf16"))
    file = os.path.join(tandem.DEMO, "eval.txt")
    return tandem.run_json("coordinator", "--config", cfg, "tokenize", "--file", file, "--json")["ids"]


def write_eval_nll():
    model, ids = Model(tandem.DEMO), eval_ids()
    result = {"about": "perplexity of models/demo/eval.txt, float64 on the bf16 weights; made by tests/e2e/reference.py eval-nll",
              "tokens": len(ids)}
    for name, values in (("window512", window_nll(model, ids, 512)), ("llamacpp512", llama_cpp_nll(model, ids, 512))):
        result[name] = {"scored_tokens": len(values), "mean_nll": float(values.mean()), "ppl": math.exp(values.mean())}
    with open(os.path.join(tandem.GOLDEN, "eval_nll.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    print(json.dumps(result, indent=1))


def check_goldens():
    g = tandem.st_load(os.path.join(tandem.GOLDEN, "demo_logits_p32.safetensors"))
    tandem.close(Model(tandem.DEMO).logits(g["p32.ids"]), g["p32.logits"], 1e-4, "demo, 32 tokens")
    g = tandem.st_load(os.path.join(tandem.GOLDEN, "tiny-27b", "golden.safetensors"))
    for folder in ("tiny-27b",):
        tandem.close(Model(os.path.join(tandem.GOLDEN, folder)).logits(g["ids"]), g["logits"], 1e-4, f"{folder}, 100 tokens")


if __name__ == "__main__":
    actions = {"eval-nll": write_eval_nll, "check": check_goldens}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit(__doc__)
    actions[sys.argv[1]]()
