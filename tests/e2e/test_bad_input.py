# SPDX-License-Identifier: MIT
"""Broken files, configs and arguments: one sentence on stderr, a non-zero status, no crash, nothing half-written."""
import json
import os
import re
import random
import resource
import shutil
import subprocess
import sys

import numpy as np

import tandem
from tandem import DEMO, GOLDEN, check, config, model, one_line_error, run


def plan(path, **keys):
    return run("coordinator", "--config", config(path, **keys), "plan", status=None)


def data_start(data):
    """Where the tensor data begins: after the last of the names that the tensor table repeats."""
    return data.rindex(b"post_ffw_norm.weight") + 4096


def test_truncated_gguf():
    with open(model("tiny-27b", "q4_0"), "rb") as f:
        data = f.read()
    path = tandem.scratch("short.gguf")
    for size in (0, 1, 4, 7, 8, 24, 100, 1000, 5000, data_start(data) // 2, len(data) // 2, len(data) - 8192):
        with open(path, "wb") as f:
            f.write(data[:size])
        one_line_error(plan(path), "short.gguf")
    for command in (("generate", "--prompt", "a"), ("eval", "--ids", "2,3", "--logits", tandem.scratch("no.npy"))):
        one_line_error(run("coordinator", "--config", config(path), *command, status=None), "short.gguf")
    check(not os.path.exists(tandem.scratch("no.npy")), "an output file was left")
    r = run("loader", "--config", config(path), "--ids", "2,3", "--out", tandem.scratch("no.npy"), status=None)
    one_line_error(r, "short.gguf")


def test_corrupted_gguf():
    """Any byte of the metadata may be anything: it is accepted or refused in one sentence."""
    with open(model("tiny-27b", "q4_0"), "rb") as f:
        data = bytearray(f.read())
    path, r, refused = tandem.scratch("bad.gguf"), random.Random(1), 0
    end = data_start(bytes(data))
    for _ in range(60):
        copy = bytearray(data)
        for _ in range(r.choice((1, 1, 4, 64))):
            at = r.randrange(4 if r.random() < 0.5 else 24, r.choice((600, end)))
            copy[at] = r.choice((0, 1, 0x7f, 0x80, 0xff, r.randrange(256)))
        with open(path, "wb") as f:
            f.write(copy)
        result = plan(path)
        if result.returncode != 0:
            one_line_error(result)
            refused += 1
    check(refused > 10, f"only {refused} of 60 corrupted files were refused")


def test_hostile_counts():
    path = tandem.scratch("huge.gguf")
    for tensors, keys in ((2**64 - 1, 0), (0, 2**64 - 1), (2**32, 2**32), (1, 1)):
        with open(path, "wb") as f:
            f.write(b"GGUF" + (3).to_bytes(4, "little") + tensors.to_bytes(8, "little") + keys.to_bytes(8, "little") + b"\xff" * 64)
        one_line_error(plan(path), "huge.gguf")
    with open(path, "wb") as f:
        f.write(b"GGUF" + (1).to_bytes(4, "little") + bytes(100))
    one_line_error(plan(path), "version")
    with open(path, "wb") as f:
        f.write(b"GGML" + bytes(100))
    one_line_error(plan(path), "huge.gguf")


def test_missing_things():
    one_line_error(plan(tandem.scratch("nowhere.gguf")), "nowhere.gguf")
    one_line_error(plan(tandem.WORK), os.path.basename(tandem.WORK))
    one_line_error(run("coordinator", "--config", tandem.scratch("nowhere.yaml"), "plan", status=None), "nowhere.yaml")
    cfg = config(model("demo", "f32"))
    r = run("coordinator", "--config", cfg, "perplexity", "--file", tandem.scratch("nowhere.txt"), status=None)
    one_line_error(r, "nowhere.txt")
    r = run("coordinator", "--config", cfg, "eval", "--ids", "2,3", "--logits", "/nowhere/out.npy", status=None)
    one_line_error(r, "/nowhere/out.npy")


def test_heads_that_q8_0_cannot_cache():
    """48 dimensions: f16 takes them, q8_0 has blocks of 32. Refused before anything is loaded, by the plan and by the stage alone."""
    sys.path.insert(0, os.path.join(tandem.SOURCE, "bench", "quantizer"))
    import make_checkpoint  # its folder is known only now
    make_checkpoint.SHAPES["odd"] = (64, 6, 64, 2, 1, 48, 512, 64)
    source, path, x = tandem.scratch("odd"), tandem.scratch("odd.gguf"), tandem.scratch("x.npy")
    make_checkpoint.make(source, "odd")
    run("quantizer", "--in", source, "--out", path, "--type", "bf16")
    np.save(x, np.ones((3, 64), np.float32))
    for kv in ("f16", "q8_0"):
        cfg = config(path, kv_type=kv)
        for r in (run("coordinator", "--config", cfg, "plan", status=None),
                  run("npu_worker", "--config", cfg, "--layer", 0, "--in", x, "--out", tandem.scratch("h.npy"), status=None)):
            if kv == "f16":
                check(r.returncode == 0, r.stderr)
            else:
                one_line_error(r, "'kv_type'", "heads of 48", "expected")
                check(r.returncode == 1, r.returncode)


def test_bad_config():
    good = model("demo", "f32")
    for text, *words in (
            (f"model: {good}\nchunk_token: 4\n", "chunk_token", "chunk_tokens", "2"),
            (f"model: {good}\nnpu: {{thread: 4}}\n", "thread", "threads"),
            (f"model: {good}\nsequences: 0\n", "sequences"),
            (f"model: {good}\nsequences: 65\n", "sequences", "64"),
            (f"model: {good}\nchunk_tokens: 4096\n", "chunk_tokens"),
            (f"model: {good}\ncontext: -1\n", "context"),
            (f"model: {good}\ncontext: many\n", "context"),
            (f"model: {good}\nkv_type: q5\n", "kv_type", "f32, f16 or q8_0"),
            (f"model: {good}\nmemory: {{npu_worker: 12Gigs}}\n", "npu_worker"),
            (f"model: {good}\nnpu: {{backend: abacus}}\n", "backend"),
            (f"model: [{good}]\n", "model"),
            ("context: 128\n", "model"),
            (f"model: {good}\n\tcontext: 3\n", ),
            ("", "model"),
            ("\x00\x01\x02", )):
        path = tandem.scratch("bad.yaml")
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        r = run("coordinator", "--config", path, "plan", status=None)
        check(r.returncode != 0, "accepted:", text)
        one_line_error(r, "bad.yaml", *words)
    for override in ("chunk_token=4", "npu.thread=4", "sequences=0", "sequences", "=3"):
        r = run("coordinator", "--config", config(good), "--set", override, "plan", status=None)
        one_line_error(r, override.split("=")[0])


def test_caps_that_cannot_hold():
    """The plan says so before anything starts."""
    r = plan(model("demo", "f32"), memory__npu_worker="1MiB")
    check(r.returncode == 1 and "npu_worker" in r.stderr, r.returncode, r.stderr)
    cfg = config(model("demo", "f32"), memory__gpu_worker="2MiB")
    r = run("coordinator", "--config", cfg, "generate", "--prompt", "a", status=None)
    check(r.returncode == 1 and "gpu_worker" in r.stderr, r.returncode, r.stderr)


def checkpoint(name, *, drop=()):
    """A copy of tiny-27b that may be spoiled."""
    folder = tandem.scratch(name)
    shutil.copytree(os.path.join(GOLDEN, "tiny-27b"), folder, ignore=shutil.ignore_patterns("golden*", *drop))
    for file in os.listdir(folder):
        os.chmod(os.path.join(folder, file), 0o644)
    return folder


def refuse(folder, *words, kind="q4_0"):
    out = tandem.scratch("refused.gguf")
    r = run("quantizer", "--in", folder, "--out", out, "--type", kind, status=None)
    lines = tandem.sentences(r.stderr)
    check(r.returncode in (1, 2) and lines, f"status {r.returncode}", r.stderr)
    for word in words:
        check(word in lines[-1], f"'{word}' is missing in:", lines[-1])
    left = [f for f in os.listdir(tandem.WORK) if f.startswith("refused.gguf")]
    check(not left, "left behind:", left)


def test_bad_checkpoints():
    refuse(tandem.scratch("nowhere"), "nowhere")
    refuse(checkpoint("c1", drop=("config.json",)), "config.json")
    refuse(checkpoint("c2", drop=("tokenizer.model", "tokenizer.json")), "tokenizer")
    refuse(checkpoint("c3", drop=("model-00002*",)), "model-00002")
    folder = checkpoint("c4")
    shard = os.path.join(folder, "model-00001-of-00002.safetensors")
    size = os.path.getsize(shard)
    for keep in (0, 4, 100, size // 2, size - 1):
        os.truncate(shard, keep) if keep < os.path.getsize(shard) else None
        shutil.copy(os.path.join(GOLDEN, "tiny-27b", os.path.basename(shard)), shard)
        os.chmod(shard, 0o644)
        os.truncate(shard, keep)
        refuse(folder, "model-00001")
    folder = checkpoint("c5")
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as f:
        good = json.load(f)
    for change in ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, {"hidden_size": 161}, {"hidden_size": "big"},
                   {"num_hidden_layers": 9}, {"num_hidden_layers": -1}, {"vocab_size": 600}, {"num_key_value_heads": 3}):
        with open(path, "w", encoding="utf-8") as f:
            json.dump({**good, **change}, f)
        refuse(folder)
    with open(path, "w", encoding="utf-8") as f:
        f.write("{\"architectures\": [")
    refuse(folder, "config.json")
    with open(os.path.join(checkpoint("c6"), "tokenizer.model"), "r+b") as f:
        f.truncate(100)
    refuse(tandem.scratch("c6"), "tokenizer.model")
    refuse(DEMO, "q3_k", kind="q3_k")


def test_outputs_never_cost_another_file():
    """A slip in an output's name: a device, a model, a folder stay what they are. A link stays one."""
    path = model("demo", "q8_0")
    cfg = config(path)
    before = os.stat(path)
    for out in (path, "/dev/null", "/dev/stdout", tandem.WORK, ""):
        for ask in (("loader", "--config", cfg, "--ids", "2,5", "--out", out),
                    ("coordinator", "--config", cfg, "eval", "--ids", "2,5", "--logits", out)):
            tandem.one_line_error(run(*ask, status=None))
    after = os.stat(path)
    check((before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns), "the model")
    for name in ("/dev/null", "/dev/stdout"):
        check(not os.path.isfile(name) or os.path.islink(name), name, "was replaced")
    target, link = tandem.scratch("target.npy"), tandem.scratch("link.npy")
    os.symlink(target, link)
    tandem.one_line_error(run("loader", "--config", cfg, "--ids", "2,5", "--out", link, status=None), "link.npy")
    open(target, "w", encoding="utf-8").close()
    for _ in range(2):
        run("loader", "--config", cfg, "--ids", "2,5", "--out", link)
        check(os.path.islink(link) and os.path.getsize(target) > 1000, "the link was replaced")


def test_weights_that_are_no_numbers():
    """A file of ours that was changed is refused by its checksums. A foreign file may hold NaN: no text is made of it, no
    perplexity is nan."""
    path, text = tandem.scratch("nan.gguf"), tandem.scratch("text.txt")
    shutil.copy(model("demo", "f32"), path)
    with open(path, "r+b") as f:  # in the middle of the data; every matrix reaches every logit
        f.seek(os.path.getsize(path) // 2 // 4096 * 4096)
        f.write(b"\xff" * 4096)
    with open(text, "w", encoding="utf-8") as f:
        f.write("Once upon a time there was a cat.")
    tandem.one_line_error(run("coordinator", "--config", config(path), "generate", "--prompt", "Once", status=None),
                          "is damaged: its checksum is", "nan.gguf", "tensor 'blk.")
    cfg = config(path, checksums="false")
    for ask in (("generate", "--prompt", "Once"), ("perplexity", "--file", text), ("perplexity", "--file", text, "--json")):
        tandem.one_line_error(run("coordinator", "--config", cfg, *ask, status=None), "finite")


def test_fifo_as_input():
    fifo = tandem.scratch("fifo")
    os.mkfifo(fifo)
    r = run("coordinator", "--config", config(fifo), "plan", status=None)
    tandem.one_line_error(r, "regular file", "'model'")


def limited(limit, value, *args):
    def set_limit():
        resource.setrlimit(limit, (value, value))
    r = subprocess.run(tandem.command(*args), capture_output=True, env=tandem.environment(), preexec_fn=set_limit, text=True,
                       stdin=subprocess.DEVNULL, timeout=tandem.TIMEOUT)
    tandem.judge(r)
    return r


def test_limits():
    """Few descriptors and small files end in one sentence."""
    cfg = config(model("demo", "q8_0"))
    for n in (6, 20, 63):
        r = limited(resource.RLIMIT_NOFILE, n, "coordinator", "--config", cfg, "generate", "--prompt", "a")
        check(r.returncode == 1 and "open files" in r.stderr, n, r.returncode, r.stderr)
    r = limited(resource.RLIMIT_STACK, 65536, "gpu_worker", "--config", cfg, "--layer", "0", "--in", "x.npy", "--out", "y.npy")
    check(r.returncode == 1 and "stack" in r.stderr, r.returncode, r.stderr)
    out = tandem.scratch("limited.npy")
    r = limited(resource.RLIMIT_FSIZE, 512, "loader", "--config", cfg, "--ids", "2,3,4", "--out", out)
    check(r.returncode == 1 and "limited.npy" in r.stderr and not os.path.exists(out), r.returncode, r.stderr)
    check(not tandem.left_behind(), tandem.left_behind())


def test_prompt_too_long_for_the_context():
    """Refused with its figures; the prompts before and after it are answered as if it had not been there."""
    cfg, options = config(model("demo", "q8_0"), context=128), ("--temperature", "0", "--max-tokens", "20")
    cat, dog, long = "Tell me a story about a cat", "Tell me a story about a dog", "Once upon a time there was a garden. " * 40
    alone = run("coordinator", "--config", cfg, *options, stdin=f"{cat}\n{dog}\n").stdout
    r = run("coordinator", "--config", cfg, *options, stdin=f"{cat}\n{long}\n{dog}\n", status=1)
    check(r.stdout == alone and len(alone) > 40, r.stdout, alone)
    errors = tandem.sentences(r.stderr)
    check(len(errors) == 2 and re.search(r"line 2: prompt has [2-9]\d\d tokens; 'context' allows 128", errors[0]), r.stderr)
    check("1 of 3 prompts have no answer" in errors[1], r.stderr)
    one_line_error(run("coordinator", "--config", cfg, "generate", "--prompt", long, status=None), "'context' allows 128", "raise it")


def test_closed_streams():
    """No file of ours takes the number of a stream that the caller closed."""
    cfg = config(model("demo", "q8_0"))
    for closed, status in (((0,), 0), ((0, 2), 0), ((1,), 1), ((0, 1, 2), 1)):
        def close_them(which=closed):
            for fd in which:
                os.close(fd)
        r = subprocess.run(tandem.command("coordinator", "--config", cfg, *(() if closed == (0,) else ("generate", "--prompt", "Once"))),
                           env=tandem.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           preexec_fn=close_them, timeout=tandem.TIMEOUT)
        check(r.returncode == status, closed, r.returncode, r.stdout, r.stderr)
        check(closed != (0,) or r.stdout == b"", "prompts from nowhere:", r.stdout)
    check(not tandem.left_behind(), tandem.left_behind())


def test_output_is_replaced_only_when_complete():
    """A failing conversion leaves the old file as it was."""
    out = tandem.scratch("kept.gguf")
    with open(out, "wb") as f:
        f.write(b"old")
    folder = checkpoint("c7")
    os.truncate(os.path.join(folder, "model-00002-of-00002.safetensors"), 5000)
    run("quantizer", "--in", folder, "--out", out, "--type", "q4_0", status=1)
    with open(out, "rb") as f:
        check(f.read() == b"old", "the old file was touched")
    r = run("quantizer", "--in", DEMO, "--out", "/nowhere/out.gguf", "--type", "q4_0", status=None)
    check(r.returncode == 1 and "/nowhere" in r.stderr, r.returncode, r.stderr)


def test_bad_arrays():
    """Single-stage mode reads .npy files."""
    cfg = config(model("demo", "f32"))
    path, out = tandem.scratch("in.npy"), tandem.scratch("out.npy")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 256), }"
    good = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117) + b"\n" + bytes(2 * 256 * 4)
    cases = (b"", b"junk", good[:-1], good[:60], good.replace(b"<f4", b"<f8"), good.replace(b"(2, 256)", b"(2, 255)"),
             good.replace(b"(2, 256)", b"(2,2256)"), good.replace(b"False", b"True "), good.replace(b"(2, 256)", b"(-2,256)"))
    for data in cases:
        with open(path, "wb") as f:
            f.write(data)
        for program in ("npu_worker", "gpu_worker"):
            one_line_error(run(program, "--config", cfg, "--layer", 0, "--in", path, "--out", out, status=None), "in.npy")
    with open(path, "wb") as f:
        f.write(good)
    one_line_error(run("npu_worker", "--config", cfg, "--layer", 12, "--in", path, "--out", out, status=None), "12")
    one_line_error(run("loader", "--config", cfg, "--ids", "2,4096", "--out", out, status=None), "4096")
    check(not os.path.exists(out), "an output file was left")


if __name__ == "__main__":
    tandem.main(globals())
