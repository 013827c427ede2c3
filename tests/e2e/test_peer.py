# SPDX-License-Identifier: MIT
"""llama.cpp's prebuilt library opens every GGUF that we write and goes on as we do; we open the files that a foreign generator
makes, and the logits agree. Left out where the library is not installed (bench/peer/get.sh installs it into a cache)."""
import os
import subprocess
import sys

import tandem
from tandem import check

sys.path.insert(0, os.path.join(tandem.SOURCE, "bench", "peer"))
import compare  # noqa: E402


def compare_one(path):
    if tandem.SANITIZE:
        tandem.skip("the comparison with llama.cpp runs without sanitizers only")
    try:
        theirs = compare.Peer(path, 1, installed_only=True)
    except compare.Unavailable as e:
        tandem.skip(str(e))
    os.environ["TANDEM_RUNTIME_DIR"] = tandem.RUNTIME
    ours = compare.Ours(path, 1, folder=tandem.WORK, bin_dir=tandem.BIN)
    for what, number, problem in compare.check_model(path, ours, theirs):
        print(f"  {os.path.basename(path)}: {what}: {number:.4g}: {problem or 'ok'}", flush=True)
        check(problem is None, os.path.basename(path), what, number, problem)


def test_our_files():
    for kind in tandem.TYPES + ("q4_1", "q5_0", "q5_1", "q4_K", "q5_K", "q6_K"):
        compare_one(tandem.model("demo", kind))


def test_our_parts():
    """llama.cpp opens the first part and finds the others."""
    for kind, split, parts in (("q8_0", ("--split-max-size", "4MiB"), 4), ("q4_k_m", ("--split-per-layer",), 13)):
        out = tandem.scratch(f"parts-{kind}.gguf")
        tandem.run("quantizer", "--in", tandem.DEMO, "--out", out, "--type", kind, *split)
        compare_one(out.replace(".gguf", f"-00001-of-{parts:05}.gguf"))


def test_foreign_files():
    generator = tandem.need_shared("peer", "gen_gguf.py")
    for kind in tandem.TYPES:
        path = tandem.scratch(f"foreign-{kind}.gguf")
        subprocess.run([sys.executable, generator, path, "--preset", "tiny", "--type", kind], check=True, stdout=subprocess.DEVNULL)
        compare_one(path)
        os.unlink(path)


if __name__ == "__main__":
    tandem.main(globals())
