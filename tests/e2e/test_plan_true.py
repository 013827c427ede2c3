# SPDX-License-Identifier: MIT
"""The plan is true: with prompts that fill the context, the peak of every process is within 5% or 8 MiB of what was planned and never
above its cap, for the demo model and for synthetic ones with few layers of the shapes of 1B, 4B and 27B, resident and streamed. And
what is streamed is what the plan says: bytes of the file for a token, and not a bit of the text changes. Several sequences at once may
leave pages of the KV cache untouched, and nothing else (docs/OPERATIONS.md says why)."""
import os
import random
import subprocess
import sys

import tandem
from tandem import check, config, generate, model

MIB = 2**20
ALL = 512
SHAPES = {"1b": (6, 16384), "4b": (4, 16384), "27b": (4, 16384)}  # layers, vocabulary


def synthetic(shape):
    path = tandem.scratch(f"{shape}.gguf")
    if not os.path.exists(path):
        layers, vocab = SHAPES[shape]
        subprocess.run([sys.executable, tandem.need_shared("peer", "gen_gguf.py"), path, "--preset", shape, "--layers", str(layers),
                        "--vocab", str(vocab), "--type", "q4_0"], check=True, capture_output=True)
    return path


def plan(cfg):
    return tandem.run_json("coordinator", "--config", cfg, "plan", "--json")


def ids_of(n):
    r = random.Random(1)
    return tandem.ids_text([2] + [r.randrange(600, 4000) for _ in range(n - 1)])


def enforced():
    a = generate(config(model("demo", "q4_0")), "--prompt", "a", "--max-tokens", 1)
    return all(p["cap_enforced"] for p in a["processes"])


def untouched(planned, p):
    """Bytes of npu_worker's KV cache that never were in use: of its pool all else stays the same while it runs."""
    most = p["pool"]["peak"] - p["pool"]["weights"] - p["pool"]["scratch"]
    rows = planned["processes"]["npu_worker"]
    check(0 < most <= rows["kv"], "more pages than planned:", most, rows)
    return rows["kv"] - most  # tables of pages, which are little, with them


def hold(path, context, env=None, sequences=1, **keys):
    """Runs prompts that fill the context of every sequence, all at once; the answer."""
    cfg = config(path, context=context, sequences=sequences, npu__threads=2, gpu__threads=2, **keys)
    planned = plan(cfg)
    answer = generate(cfg, "--ids", ids_of(context - 6), "--temperature", 0, "--max-tokens", 6, "--parallel", sequences, env=env)
    for p in answer["processes"]:
        want, peak = planned["processes"][p["name"]]["total"], p["peak_bytes"]
        left = untouched(planned, p) if sequences > 1 and p["name"] == "npu_worker" else 0
        print(f"  {os.path.basename(path)} x {sequences} {keys} {p['name']}: planned {want / MIB:.1f} MiB, peak {peak / MIB:.1f}, cap "
              f"{p['cap_bytes'] / MIB:.1f}, pages never used {left / MIB:.1f}")
        check(peak <= p["cap_bytes"], "above the cap:", p)
        check(abs(peak - (want - left)) <= max(8 * MIB, want // 20), "not as planned:", want, left, peak, p)
    return planned, answer


def needed():
    if tandem.SANITIZE:
        tandem.skip("instrumented programs take more memory than is planned for others")
    if not enforced():
        tandem.skip("peaks are those of cgroups, which cannot be made here")


def test_demo():
    needed()
    for keys in ({}, {"npu__streamed": ALL, "gpu__streamed": ALL}):
        hold(model("demo", "q4_0"), 2048, **keys)


def test_shapes():
    """Each shape resident and streamed, with the same text; a streamed token costs the streamed bytes of the file."""
    needed()
    for shape, context in (("1b", 768), ("4b", 640), ("27b", 400)):
        path = synthetic(shape)
        whole, resident = hold(path, context)
        check(whole["streamed_bytes"] == 0, whole)
        for keys in ({"gpu__streamed": ALL}, {"npu__streamed": ALL, "gpu__streamed": ALL}):
            planned, got = hold(path, context, **keys)
            check(got["output_ids"] == resident["output_ids"], shape, keys, got["output_ids"], resident["output_ids"])
            read = next(p for p in got["processes"] if p["name"] == "loader")["bytes_read"]
            once = next(p for p in resident["processes"] if p["name"] == "loader")["bytes_read"]
            prompt_passes = -(-(context - 6) // (planned["chunk_tokens"] * planned["ring_slots"]))
            passes = prompt_passes + len(got["output_ids"]) - 1
            want = once + (passes - 1) * planned["streamed_bytes"]  # and, at the end, what is read ahead
            check(0 <= read - want <= planned["streamed_bytes"], shape, keys, read, want, planned["streamed_bytes"])


def test_four_sequences():
    """All sequences full at once: the same texts as one, and what is not as planned is pages that were never used."""
    needed()
    for path in (model("demo", "q4_0"), synthetic("1b"), synthetic("27b")):
        context = 1200 if "27b" in path else 2048
        _, one = hold(path, context)
        _, four = hold(path, context, sequences=4)
        for choice in four["choices"]:
            check(choice["output_ids"] == one["output_ids"], choice["output_ids"], one["output_ids"])


def test_chunks():
    """The shape with the most scratch beside its weights, in the largest chunks and in small ones."""
    needed()
    for chunk in (1024, 16):
        hold(synthetic("1b"), 2048, chunk_tokens=chunk)


def test_watched():
    """Without the kernel's count: what was seen in /proc is near the plan as well, and no more than the caps."""
    if tandem.SANITIZE:
        tandem.skip("instrumented programs take more memory than is planned for others")
    for path in (model("demo", "q4_0"), synthetic("1b")):
        hold(path, 768, env={"TANDEM_CAPS": "watched"})


def test_total():
    """27B-shaped under a total that cannot hold it: every cap held, the text that of the resident model."""
    needed()
    path = synthetic("27b")
    whole, resident = hold(path, 400)
    need = sum(p["total"] for p in whole["processes"].values())
    for percent in (85, 70):
        total = need * percent // 100 // MIB
        planned, got = hold(path, 400, memory__total=f"{total}MiB")
        check(planned["streamed_bytes"] > 0 and got["output_ids"] == resident["output_ids"], percent, planned)
        check(sum(p["cap_bytes"] for p in got["processes"]) <= total * MIB, percent, got["processes"])
        check(sum(p["peak_bytes"] for p in got["processes"]) <= total * MIB, percent, got["processes"])


tandem.main(globals())
