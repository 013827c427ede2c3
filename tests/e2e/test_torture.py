# SPDX-License-Identifier: MIT
"""A hundred kills of random stages at random moments, by bench/torture/torture.py; 1,000 of them are run by hand."""
import os
import sys

import tandem
from tandem import check, model

sys.path.insert(0, os.path.join(tandem.SOURCE, "bench", "torture"))
import torture  # noqa: E402


def test_a_hundred_kills():
    words = ["--bin", tandem.BIN, "--model", model("demo", "q8_0"), "--kills", "20" if tandem.SANITIZE else "100", "--seed", "4", "--tokens", "150",
             "--set", "npu: {threads: 1}", "--set", "gpu: {threads: 1}"]
    check(torture.main(words) == 0, "see above")


if __name__ == "__main__":
    tandem.main(globals())
