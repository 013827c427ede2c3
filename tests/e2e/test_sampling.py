# SPDX-License-Identifier: MIT
"""Seeds reproduce a text; parallel copies draw their own numbers; greedy ignores all of it."""
import tandem
from tandem import check, config, generate, model

ASK = ("--prompt", "Once upon a time", "--max-tokens", 40)


def test_seed():
    cfg = config(model("demo", "bf16"))
    a = generate(cfg, *ASK, "--temperature", 1, "--seed", 5)["output_ids"]
    check(generate(cfg, *ASK, "--temperature", 1, "--seed", 5)["output_ids"] == a, "the same seed gave another text")
    others = [generate(cfg, *ASK, "--temperature", 1, "--seed", s)["output_ids"] for s in (6, 7)]
    check(any(o != a for o in others), "three seeds gave one text")


def test_seed_does_not_depend_on_chunks_or_threads():
    want = None
    for chunk, threads in ((64, 1), (1, 2), (7, 3)):
        cfg = config(model("demo", "q8_0"), sequences=1, chunk_tokens=chunk, npu__threads=threads, gpu__threads=threads)
        got = generate(cfg, *ASK, "--temperature", 1, "--seed", 9)["output_ids"]
        want = want or got
        check(got == want, f"chunk {chunk}, {threads} threads: another text")


def test_choices():
    cfg = config(model("demo", "bf16"), sequences=4)
    warm = generate(cfg, *ASK, "--temperature", 1, "--seed", 5, "--parallel", 4)["choices"]
    check(len({tuple(c["output_ids"]) for c in warm}) > 1, "four choices at temperature 1 are all the same")
    again = generate(cfg, *ASK, "--temperature", 1, "--seed", 5, "--parallel", 4)["choices"]
    check([c["output_ids"] for c in again] == [c["output_ids"] for c in warm], "the same seed gave other choices")
    alone = generate(cfg, *ASK, "--temperature", 1, "--seed", 5)["output_ids"]
    check(warm[0]["output_ids"] == alone, "the first choice is not what one alone writes")
    cold = generate(cfg, *ASK, "--temperature", 0, "--seed", 5, "--parallel", 4)["choices"]
    check(len({tuple(c["output_ids"]) for c in cold}) == 1, "greedy choices differ")


def test_more_copies_than_sequences():
    """They wait for a slot; nobody is refused."""
    cfg = config(model("demo", "bf16"), sequences=2)
    choices = generate(cfg, *ASK, "--temperature", 0, "--parallel", 5)["choices"]
    check(len(choices) == 5 and len({tuple(c["output_ids"]) for c in choices}) == 1, choices)


def test_ends():
    cfg = config(model("demo", "bf16"))
    r = generate(cfg, *ASK, "--temperature", 0)
    check(r["finish_reason"] == "length" and len(r["output_ids"]) == 40, r["finish_reason"], len(r["output_ids"]))
    r = generate(cfg, "--chat", "--prompt", "Tell me a story about a brave mouse", "--temperature", 0, "--max-tokens", 600)
    check(r["finish_reason"] == "stop" and 9 not in r["output_ids"][:-1], r["finish_reason"], r["output_ids"][-5:])
    check("brave mouse" in r["text"] and "<end_of_turn>" not in r["text"], r["text"])
    short = config(model("demo", "bf16"), context=32)
    r = generate(short, "--prompt", "Once upon a time", "--temperature", 0, "--max-tokens", 100)
    used = len(r["prompt_ids"]) + len(r["output_ids"])
    check(r["finish_reason"] == "context" and 32 <= used <= 33, r["finish_reason"], used)


def test_bad_parameters():
    cfg = config(model("demo", "bf16"))
    for option, value in (("--temperature", "-1"), ("--temperature", "warm"), ("--top-p", "1.5"), ("--min-p", "-0.1"),
                          ("--seed", "-x"), ("--max-tokens", "many"), ("--parallel", "0"), ("--ids", "2,banana"),
                          ("--ids", "2,4096"), ("--ids", "")):
        base = () if option == "--ids" else ("--prompt", "a")
        r = tandem.run("coordinator", "--config", cfg, "generate", *base, option, value, status=None)
        refused = r.returncode in (1, 2) and r.stdout == "" and r.stderr.strip()
        check(refused, f"{option} {value}: status {r.returncode}", r.stderr)


if __name__ == "__main__":
    tandem.main(globals())
