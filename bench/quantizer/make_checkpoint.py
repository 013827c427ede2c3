#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes a synthetic Gemma 3 checkpoint as Hugging Face lays it out: bf16, shards, real tensor shapes, as many layers as asked.

    make_checkpoint.py FOLDER --shape 27b --layers 6
    make_checkpoint.py FOLDER --shape small --layers 4 --vocab 8192 --shard 40

Weights are normal numbers from a fixed seed, one block of 8 Mi of them shifted for each tensor; they are written as they are made,
so memory stays below 200 MB. The tokenizer has as many pieces as the vocabulary and no merges that mean anything.
"""
import argparse
import json
import os
import struct

import numpy as np

# hidden, layers, ffn, heads, kv heads, head size, vocabulary, window
SHAPES = {
    "small": (512, 8, 2048, 4, 2, 128, 16384, 128),
    "1b": (1152, 26, 6912, 4, 1, 256, 262144, 512),
    "4b": (2560, 34, 10240, 8, 4, 256, 262208, 1024),
    "12b": (3840, 48, 15360, 16, 8, 256, 262208, 1024),
    "27b": (5376, 62, 21504, 32, 16, 128, 262208, 1024),
}
BLOCK = 8 << 20


def shapes(hidden, layers, ffn, heads, kv_heads, head, vocab):
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(layers):
        p = f"model.layers.{i}."
        for name, rows, cols in (("self_attn.q_proj", heads * head, hidden), ("self_attn.k_proj", kv_heads * head, hidden),
                                 ("self_attn.v_proj", kv_heads * head, hidden), ("self_attn.o_proj", hidden, heads * head),
                                 ("mlp.gate_proj", ffn, hidden), ("mlp.up_proj", ffn, hidden), ("mlp.down_proj", hidden, ffn)):
            yield f"{p}{name}.weight", (rows, cols)
        for name, n in (("input_layernorm", hidden), ("self_attn.q_norm", head), ("self_attn.k_norm", head),
                        ("post_attention_layernorm", hidden), ("pre_feedforward_layernorm", hidden),
                        ("post_feedforward_layernorm", hidden)):
            yield f"{p}{name}.weight", (n,)
    yield "model.norm.weight", (hidden,)


def size(shape):
    return 2 * int(np.prod(shape))


def field(number, payload):
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out) + bytes([n])


def piece(text, score, kind):
    return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))


def write_tokenizer(path, vocab):
    """sentencepiece_model.proto: BPE, byte fallback, identity normalizer, no dummy prefix."""
    special = [("<pad>", 3), ("<eos>", 3), ("<bos>", 3), ("<unk>", 2)] + [(f"<0x{i:02X}>", 6) for i in range(256)]
    with open(path, "wb") as f:
        for text, kind in special:
            f.write(piece(text, 0.0, kind))
        for i in range(len(special), vocab):
            f.write(piece(f"w{i:x}", -float(i), 1))
        f.write(field(2, b"\x18\x02" + b"\x20" + varint(vocab) + b"\x98\x02\x01\xc0\x02\x03\xc8\x02\x02\xd0\x02\x01\xd8\x02\x00"))
        f.write(field(3, field(1, b"identity") + b"\x18\x00\x20\x00\x28\x01"))


def write_config(path, a):
    hidden, layers, ffn, heads, kv_heads, head, vocab, window = a
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": vocab, "hidden_size": hidden,
                   "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
                   "num_key_value_heads": kv_heads, "head_dim": head, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
                   "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": hidden // heads,
                   "sliding_window": window, "sliding_window_pattern": 6, "tie_word_embeddings": True, "dtype": "bfloat16"}, f)


def to_bf16(x):
    return (x.view("<u4") >> 16).astype("<u2")


def write_shard(path, tensors, blocks, normal):
    header, offset = {}, 0
    for name, shape in tensors:
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size(shape)]}
        offset += size(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        if normal is None:
            f.truncate(f.tell() + offset)
            return
        for name, shape in tensors:
            deviation = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
            if deviation not in blocks:
                blocks.clear()
                blocks[deviation] = to_bf16(normal * np.float32(deviation))
            block, left = blocks[deviation], size(shape) // 2
            at = sum(name.encode()) * 4099 % BLOCK
            while left:
                n = min(left, BLOCK - at)
                f.write(memoryview(block[at:at + n]))
                left, at = left - n, 0


def make(folder, shape, layers=None, vocab=None, shard_mb=4500, sparse=False):
    hidden, n_layers, ffn, heads, kv_heads, head, n_vocab, window = SHAPES[shape]
    n_layers, n_vocab = layers or n_layers, vocab or n_vocab
    os.makedirs(folder, exist_ok=True)
    shards, used = [[]], 0
    tensors = list(shapes(hidden, n_layers, ffn, heads, kv_heads, head, n_vocab))
    for name, s in tensors:
        if shards[-1] and used + size(s) > shard_mb * 1000000:
            shards.append([])
            used = 0
        shards[-1].append((name, s))
        used += size(s)
    normal = None if sparse else np.random.default_rng(7).standard_normal(BLOCK, dtype=np.float32)
    index, blocks = {}, {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(os.path.join(folder, name), shard, blocks, normal)
        index.update((t, name) for t, _ in shard)
    total = sum(size(s) for _, s in tensors)
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": index}, f)
    write_config(os.path.join(folder, "config.json"), (hidden, n_layers, ffn, heads, kv_heads, head, n_vocab, window))
    write_tokenizer(os.path.join(folder, "tokenizer.model"), n_vocab)
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--shape", choices=SHAPES, default="27b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--shard", type=int, default=4500, help="megabytes in one file (default: 4500)")
    parser.add_argument("--sparse", action="store_true", help="all weights are zero and take no disk: for plans and for memory")
    a = parser.parse_args()
    print(f"{a.folder}: {make(a.folder, a.shape, a.layers, a.vocab, a.shard, a.sparse) / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
