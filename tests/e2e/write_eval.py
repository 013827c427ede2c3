# SPDX-License-Identifier: MIT
"""Writes models/demo/eval.txt: stories by the demo model itself, with fixed seeds, separated by two empty lines.

    TANDEM_BIN=build/release/bin python3 tests/e2e/write_eval.py

The text is the project's own, so that perplexity has a test that needs no text of others. It was written by the bf16 file with
an f32 KV cache; a CPU backend gives the same text anywhere.
"""
import os

import tandem

OPENINGS = ("a brave mouse", "a boy who found a key", "two friends and a boat", "a cat who could not sleep",
            "a girl and her granny",
            "a king who lost his hat", "a dragon who was afraid of fire", "a rainy day", "the old tree", "a little train",
            "a frog and a bird", "a lost ball", "a baker", "a star that fell", "a dog named Max", "a wise owl")


def main():
    cfg = tandem.config(tandem.model("demo", "bf16"), kv_type="f32", sequences=4)
    stories = []
    for seed, about in enumerate(OPENINGS):
        r = tandem.generate(cfg, "--chat", "--prompt", f"Tell me a story about {about}", "--temperature", 0.9, "--seed", seed,
                            "--max-tokens", 600, "--parallel", 3)
        stories += [c["text"].strip() for c in r["choices"] if c["finish_reason"] == "stop"]
    path = os.path.join(tandem.DEMO, "eval.txt")
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        f.write("\n\n\n".join(stories) + "\n")
    print(f"{path}: {len(stories)} stories, {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
