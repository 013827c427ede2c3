# SPDX-License-Identifier: MIT
"""What --json prints: the keys that scripts rely on, their types, and that the numbers in them hang together."""
import json
import re

import tandem
from tandem import check, config, model, run_json

NUMBER = (int, float)
PROCESSES = ["coordinator", "loader", "npu_worker", "gpu_worker"]


def shape(value, expected, where="top"):
    """expected: {key: type | dict | [one element]}; other keys may be there."""
    if isinstance(expected, dict):
        check(isinstance(value, dict), f"{where} is no object")
        for key, inner in expected.items():
            check(key in value, f"{where} has no '{key}': {sorted(value)}")
            shape(value[key], inner, f"{where}.{key}")
    elif isinstance(expected, list):
        check(isinstance(value, list) and value, f"{where} is no list, or empty")
        for i, v in enumerate(value):
            shape(v, expected[0], f"{where}[{i}]")
    else:
        check(isinstance(value, expected) and (expected is bool or not isinstance(value, bool)), f"{where} is {value!r}")


PROCESS = {"name": str, "pid": int, "backend": str, "cap_bytes": int, "cap_enforced": bool, "spawned": bool, "peak_bytes": int,
           "budget": {"total": int}, "restarts": int, "last_reason": str}
RECOVERIES = {"count": int, "last_stage": str, "detect_ms": NUMBER, "restart_ms": NUMBER, "remap_ms": NUMBER, "reprefill_ms": NUMBER,
              "pause_ms": NUMBER}
TIMINGS = {"queue_ms": NUMBER, "prefill_ms": NUMBER, "decode_ms": NUMBER, "prefill_tokens_per_s": NUMBER,
           "decode_tokens_per_s": NUMBER}
ANSWER = {"output_ids": [int], "text": str, "finish_reason": str, "numerics_changed": bool, "timings": TIMINGS}


def processes(listed):
    check([p["name"] for p in listed] == PROCESSES, [p["name"] for p in listed])
    check(len({p["pid"] for p in listed}) == 4, "pids", [p["pid"] for p in listed])
    for p in listed:
        check(0 < p["peak_bytes"] <= p["cap_bytes"], f"{p['name']}: peak {p['peak_bytes']}, cap {p['cap_bytes']}")


def test_generate():
    cfg = config(model("demo", "q8_0"))
    r = run_json("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--max-tokens", 20, "--temperature", 0, "--json")
    shape(r, {"prompt_ids": [int], **ANSWER, "processes": [PROCESS], "recoveries": RECOVERIES})
    check(r["timings"]["decode_tokens_per_s"] > 0 and r["timings"]["prefill_tokens_per_s"] > 0, r["timings"])
    processes(r["processes"])


def test_generate_in_parallel():
    cfg = config(model("demo", "q8_0"))
    r = run_json("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--max-tokens", 20, "--parallel", 3, "--json")
    shape(r, {"prompt_ids": [int], "choices": [{"choice": int, **ANSWER}], "processes": [PROCESS]})
    check([c["choice"] for c in r["choices"]] == [0, 1, 2], "choices")


def test_generate_of_which_one_fails():
    """The read of a token's embedding fails, in the first of two answers or in the second: the other one is whole."""
    ask = ("generate", "--prompt", "Once", "--max-tokens", 8, "--temperature", 1, "--seed", 5, "--json")
    cfg = config(model("demo", "q8_0"), sequences=1)
    want = run_json("coordinator", "--config", cfg, *ask, "--parallel", 2)["choices"]
    for fault, failed, n_ids in (("loader:eio@6", 0, 5), ("loader:eio@13", 1, 4)):
        r = tandem.run("coordinator", "--config", cfg, *ask, "--parallel", 2, "--fault", fault, status=1)
        j = json.loads(r.stdout)
        shape(j, {"prompt_ids": [int], "choices": [{"choice": int, **ANSWER}], "processes": [PROCESS], "recoveries": RECOVERIES})
        bad, good = j["choices"][failed], j["choices"][1 - failed]
        for key in ("choice", "output_ids", "text", "finish_reason"):
            check(good[key] == want[1 - failed][key] and "error" not in good, fault, key, good, want)
        check(bad["finish_reason"] == "error" and bad["output_ids"] == want[failed]["output_ids"][:n_ids], fault, bad, want)
        check("cannot read" in bad["error"] and "Input/output error" in bad["error"], bad)
        check(tandem.sentences(r.stderr)[-1] == f"coordinator: error: answer {failed}: {bad['error']}", r.stderr)
    r = tandem.run("coordinator", "--config", cfg, *ask, "--fault", "loader:eio@6", status=1)
    alone = json.loads(r.stdout)
    check(alone["finish_reason"] == "error" and "Input/output error" in alone["error"], alone)
    check(alone["output_ids"] == want[0]["output_ids"][:5] and want[0]["text"].startswith(alone["text"]), alone, want)


def test_perplexity():
    cfg, file = config(model("demo", "q8_0")), tandem.scratch("text.txt")
    with open(file, "w", encoding="utf-8") as f:
        f.write("Once upon a time, there was a cat. " * 40)
    r = run_json("coordinator", "--config", cfg, "perplexity", "--file", file, "--window", 64, "--json")
    shape(r, {"method": str, "window": int, "text_tokens": int, "windows": int, "scored_tokens": int, "ppl": NUMBER,
              "mean_nll": NUMBER})
    check(r["scored_tokens"] == r["text_tokens"], "the method 'window' scores every token:", r)
    check(r["windows"] == -(-r["text_tokens"] // 63), "windows:", r)


def test_bench():
    cfg = config(model("demo", "q8_0"))
    r = run_json("coordinator", "--config", cfg, "bench", "--prompt-tokens", 128, "--gen-tokens", 16, "--repetitions", 2, "--json")
    shape(r, {"chunk_tokens": int, "npu_threads": int, "gpu_threads": int, "tensor_bytes": int, "processes": [PROCESS],
              "tests": [{"test": str, "repetitions": int, "tokens_per_s": NUMBER, "tokens_per_s_best": NUMBER, "chunks": int,
                         "stage_ms_per_token": {"loader": NUMBER, "npu_worker": NUMBER, "gpu_worker": NUMBER},
                         "ring_wait_ms_per_token": {"npu_worker": NUMBER, "gpu_worker": NUMBER}, "hops_per_chunk": NUMBER}]})
    processes(r["processes"])
    check([t["test"] for t in r["tests"]] == ["pp128", "tg16"], [t["test"] for t in r["tests"]])
    for t in r["tests"]:
        check(t["repetitions"] == 2 and 0 < t["tokens_per_s"] <= t["tokens_per_s_best"], t)
        # Coordinator to loader to npu_worker, then two a layer, the last of them back to the coordinator.
        check(t["hops_per_chunk"] == 2 + 2 * 12, f"{t['test']}: {t['hops_per_chunk']} ring hops per chunk")


def test_plan():
    cfg = config(model("demo", "q8_0"))
    r = run_json("coordinator", "--config", cfg, "plan", "--json")
    sizes = {"weights": int, "kv": int, "scratch": int, "ring": int, "fixed": int, "total": int, "cap": int}
    shape(r, {"huge_pages_shared": bool, "huge_pages_private": bool, "memlock_bytes": int})
    shape(r, {"layers": int, "context": int, "sequences": int, "kv_type": str, "chunk_tokens": int, "tensor_bytes": int,
              "processes": {p: sizes for p in PROCESSES}})
    check(r["layers"] == 12 and r["context"] == 2048, r)
    for name, p in r["processes"].items():
        check(p["total"] <= p["cap"], f"{name}: total {p['total']} above cap {p['cap']}")
    weights = sum(p["weights"] for p in r["processes"].values())
    # Weights are held once: the workers hold the file's tensors, padded to pages (the embedding doubles as the head).
    check(r["tensor_bytes"] <= weights <= 1.05 * r["tensor_bytes"] + 128 * 4096, f"weights {weights}, tensors {r['tensor_bytes']}")


def test_plan_follows_the_config():
    plans = [run_json("coordinator", "--config", config(model("demo", "q8_0"), **keys), "plan", "--json")["processes"]["npu_worker"]
             for keys in ({}, {"kv_type": "f32"}, {"context": 1024}, {"sequences": 8}, {"kv_type": "q8_0"})]
    base, wide, short, many, narrow = (p["kv"] for p in plans)
    check(abs(wide - 2 * base) < 0.01 * wide, f"f32 KV is twice f16: {wide}, {base}")
    # Pages of 32 and 17 KiB, the latter rounded to 20; page tables besides.
    check(abs(narrow - 20 / 32 * base) < 0.01 * base, f"q8_0 KV beside f16: {narrow}, {base}")
    check(short < base < many, f"KV grows with context and sequences: {short}, {base}, {many}")


def test_tables_for_people():
    cfg = config(model("demo", "q8_0"))
    for args in (("plan",), ("bench", "--prompt-tokens", 32, "--gen-tokens", 8, "--repetitions", 1),
                 ("generate", "--prompt", "Once", "--max-tokens", 5, "--report")):
        text = tandem.run("coordinator", "--config", cfg, *args).stdout
        for name in PROCESSES:
            check(re.search(rf"^{name}\b", text, re.M), f"{args[0]}: no line for {name}:\n{text}")


def test_tokenize():
    cfg = config(model("demo", "q8_0"))
    r = run_json("coordinator", "--config", cfg, "tokenize", "--text", "Once upon a time", "--json")
    shape(r, {"ids": [int], "pieces": [str]})
    check(r["ids"] == [516, 477, 272, 436], r)
    plain = tandem.run("coordinator", "--config", cfg, "tokenize", "--text", "Once upon a time").stdout
    check(plain == "516,477,272,436\n", plain)
    r = run_json("coordinator", "--config", cfg, "detokenize", "--ids", "516,477,272,436", "--json")
    check(r["text"] == "Once upon a time", r)


if __name__ == "__main__":
    tandem.main(globals())
