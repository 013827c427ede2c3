# SPDX-License-Identifier: MIT
"""Quantizes the bundled checkpoints once for all end-to-end tests. A second conversion must give the same bytes."""
import filecmp
import os

import tandem


def make(name, source, kind):
    path = os.path.join(tandem.MODELS, f"{name}-{kind}.gguf")
    os.makedirs(tandem.MODELS, exist_ok=True)
    tandem.run("quantizer", "--in", source, "--out", path, "--type", kind)
    print(f"  {path}: {os.path.getsize(path)} bytes")


def test_models():
    for kind in tandem.TYPES:
        make("demo", tandem.DEMO, kind)
    for kind in ("f32", "bf16", "q8_0", "q4_0"):
        make("tiny-27b", os.path.join(tandem.GOLDEN, "tiny-27b"), kind)


def test_again_gives_the_same_bytes():
    again = tandem.scratch("again.gguf")
    for kind in ("bf16", "q4_0"):
        tandem.run("quantizer", "--in", tandem.DEMO, "--out", again, "--type", kind)
        tandem.check(filecmp.cmp(tandem.model("demo", kind), again, shallow=False), f"two {kind} conversions differ")
        os.unlink(again)


if __name__ == "__main__":
    tandem.main(globals())
