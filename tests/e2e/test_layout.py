# SPDX-License-Identifier: MIT
"""The multimodal layout of a checkpoint holds the same text model, so it gives the same GGUF."""
import filecmp
import json
import os

import tandem
from tandem import GOLDEN, check


def test_multimodal():
    for kind in ("f32", "bf16", "q4_0"):
        a, b = tandem.scratch("plain.gguf"), tandem.scratch("multimodal.gguf")
        tandem.run("quantizer", "--in", os.path.join(GOLDEN, "tiny-27b"), "--out", a, "--type", kind)
        r = tandem.run("quantizer", "--in", os.path.join(GOLDEN, "tiny-27b-multimodal"), "--out", b, "--type", kind)
        check(filecmp.cmp(a, b, shallow=False), f"{kind}: the files differ")
        with open(os.path.join(GOLDEN, "tiny-27b-multimodal", "model.safetensors.index.json"), encoding="utf-8") as f:
            names = json.load(f)["weight_map"]
        skipped = sum("vision_tower" in n or "multi_modal_projector" in n for n in names)
        said = r.stdout + r.stderr
        check(skipped > 0 and str(skipped) in said, f"{skipped} skipped tensors are not reported:", said)


def test_other_prefix():
    """model.language_model.* is how newer files name what was language_model.model.*"""
    source, out = tandem.scratch("renamed"), tandem.scratch("renamed.gguf")
    os.mkdir(source)
    base = os.path.join(GOLDEN, "tiny-27b-multimodal")

    def rename(n):
        return n.replace("language_model.model.", "model.language_model.") if n.startswith("language_model.") else "model." + n
    for name in os.listdir(base):
        path = os.path.join(base, name)
        if name.endswith(".safetensors"):
            with open(path, "rb") as f:
                data = f.read()
            size = int.from_bytes(data[:8], "little")
            header = {k if k == "__metadata__" else rename(k): v for k, v in json.loads(data[8:8 + size]).items()}
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with open(os.path.join(source, name), "wb") as f:
                f.write(len(text).to_bytes(8, "little") + text + data[8 + size:])
        elif name.endswith("index.json"):
            with open(path, encoding="utf-8") as f:
                index = json.load(f)
            index["weight_map"] = {rename(k): v for k, v in index["weight_map"].items()}
            with open(os.path.join(source, name), "w", encoding="utf-8") as f:
                json.dump(index, f)
        else:
            os.symlink(path, os.path.join(source, name))
    tandem.run("quantizer", "--in", source, "--out", out, "--type", "bf16")
    check(filecmp.cmp(out, tandem.model("tiny-27b", "bf16"), shallow=False), "the files differ")


def parts_of(folder):
    return sorted(f for f in os.listdir(folder) if f.startswith("m-"))


def test_parts_run_like_the_whole():
    """A model in parts, opened by any of them, and by stages alone."""
    folder = tandem.scratch("parts")
    os.mkdir(folder)
    tandem.run("quantizer", "--in", tandem.DEMO, "--out", os.path.join(folder, "m.gguf"), "--type", "q8_0", "--split-per-layer")
    names = parts_of(folder)
    check(names == [f"m-{i:05d}-of-00013.gguf" for i in range(1, 14)], names)
    whole = tandem.generate(tandem.config(tandem.model("demo", "q8_0")), "--ids", "2,516,477", "--temperature", "0", "--max-tokens", "24")
    for part in (names[0], names[5]):
        got = tandem.generate(tandem.config(os.path.join(folder, part)), "--ids", "2,516,477", "--temperature", "0", "--max-tokens", "24")
        check(got["choices"] == whole["choices"] if "choices" in got else got["text"] == whole["text"], part, got)
    os.unlink(os.path.join(folder, names[7]))
    r = tandem.run("coordinator", "--config", tandem.config(os.path.join(folder, names[0])), "plan", status=1)
    check(names[7] in r.stderr, "the missing part is not named:", r.stderr)


def test_single_file():
    """One model.safetensors without an index."""
    source, out = tandem.scratch("single"), tandem.scratch("single.gguf")
    os.mkdir(source)
    base = os.path.join(GOLDEN, "tiny-27b")
    header, blobs, offset = {}, [], 0
    for name in sorted(os.listdir(base)):
        path = os.path.join(base, name)
        if name.startswith("model-"):
            with open(path, "rb") as f:
                data = f.read()
            size = int.from_bytes(data[:8], "little")
            for k, v in json.loads(data[8:8 + size]).items():
                if k != "__metadata__":
                    begin, end = v["data_offsets"]
                    header[k] = {**v, "data_offsets": [offset, offset + end - begin]}
                    blobs.append(data[8 + size + begin:8 + size + end])
                    offset += end - begin
        elif name in ("config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
            os.symlink(path, os.path.join(source, name))
    text = json.dumps(header).encode()
    with open(os.path.join(source, "model.safetensors"), "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(blobs))
    tandem.run("quantizer", "--in", source, "--out", out, "--type", "f32")
    check(filecmp.cmp(out, tandem.model("tiny-27b", "f32"), shallow=False), "the files differ")


if __name__ == "__main__":
    tandem.main(globals())
