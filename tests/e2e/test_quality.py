# SPDX-License-Identifier: MIT
"""What quantization keeps of the demo model, all run by our programs over eval.txt and compared with bf16.

Beside llama.cpp: files of the same sizes by both quantizers, ours with its search, theirs without importance matrix. Our mean KL
divergence must be strictly lower, our mean negative log likelihood not higher by more than two paired standard errors. Left out
where the library is not installed (bench/peer/get.sh installs it into a cache). The importance matrix of the text's first half
changes the files and does no harm in the second half, by the same measures."""
import os
import sys

import tandem
from tandem import check

sys.path.insert(0, os.path.join(tandem.SOURCE, "bench", "quantizer"))
import quality  # noqa: E402

TEXT = os.path.join(tandem.DEMO, "eval.txt")
TYPES = ("q4_0", "q4_k_m")


def measure(windows=slice(None), **options):
    """(bf16 sample, {(type, whose): sample})"""
    if tandem.SANITIZE:
        tandem.skip("many positions, and the same code as in other tests: without sanitizers only")
    os.environ["TANDEM_RUNTIME_DIR"] = tandem.RUNTIME
    base, samples = quality.make_files(tandem.WORK, tandem.DEMO, TYPES, bin_dir=tandem.BIN, **options)
    quality.measure(base, samples.values(), quality.windows_of(base.runtime, TEXT)[windows])
    quality.print_table(base, samples, tandem.BIN)
    left = tandem.left_behind()
    check(not left, "left behind:", left)
    return base, samples


def test_beside_llamacpp():
    try:
        base, samples = measure(plain=False, installed_only=True)
    except quality.compare.Unavailable as e:
        tandem.skip(str(e))
    check(sum(map(len, base.nll)) == 8108, "positions:", sum(map(len, base.nll)), "instead of 8108")
    for line in quality.other_types(samples, tandem.BIN):
        check(False, "not at equal size:", line)
    for kind in TYPES:
        ours, theirs = samples[kind, quality.OURS], samples[kind, quality.THEIRS]
        kl, _ = quality.difference(ours.kl, theirs.kl)
        nll, error = quality.difference(ours.nll, theirs.nll)
        check(kl < 0, f"{kind}: mean KL is {kl:.3g} above llama.cpp's")
        check(nll <= 2 * error, f"{kind}: mean nll is {nll:.3g} above llama.cpp's, two standard errors are {2 * error:.3g}")


def test_importance_matrix():
    with open(TEXT, encoding="utf-8") as f:
        lines = f.readlines()
    half = tandem.scratch("half.txt")
    with open(half, "w", encoding="utf-8") as f:
        f.writelines(lines[:len(lines) // 2])
    _, samples = measure(slice(8, None), peer=False, plain=False, imatrix_text=half)
    for kind in TYPES:
        kl, error = quality.difference(samples[kind, quality.OURS_IMATRIX].kl, samples[kind, quality.OURS].kl)
        print(f"  {kind}: the matrix changes the mean KL by {kl:.3g} +- {error:.2g}")
        check(kl != 0, f"{kind}: the importance matrix was not used")
        check(kl <= 2 * error, f"{kind}: mean KL with importance matrix is {kl:.3g} above that without, +- {error:.2g}")


if __name__ == "__main__":
    tandem.main(globals())
