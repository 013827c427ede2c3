# SPDX-License-Identifier: MIT
"""The HTTP server's answers: every endpoint, every parameter, streamed and not, refusals by name, and who may ask."""
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile

import numpy as np

import tandem
from http_client import JSON, Server, joined, plain
from tandem import check, config, model

STORY = "Tell me a story about a red kite."


def user(text):
    return [{"role": "user", "content": text}]


def test_small_endpoints():
    with Server() as s:
        check(s.get("/health") == (200, {"status": "ok"}), s.get("/health"))
        status, models = s.get("/v1/models")
        check(status == 200 and models["object"] == "list" and len(models["data"]) == 1, models)
        name = models["data"][0]["id"]
        check(name == "demo-bf16" and models["data"][0]["max_model_len"] == 2048, models)
        check(s.get("/v1/models/demo-bf16")[1] == models["data"][0], "one model")
        check(s.get("/v1/models/other")[0] == 404, "another model")
        status, headers, body = s.request("HEAD", "/health")
        check(status == 200 and body == b"" and int(headers["content-length"]) > 0, status, headers, body)
        for method, path, want, allow in (("GET", "/nothing", 404, None), ("GET", "/tokenize", 405, "POST"),
                                          ("POST", "/health", 405, "GET, HEAD"), ("DELETE", "/health", 405, "GET, HEAD"),
                                          ("DELETE", "/tokenize", 405, "POST"), ("PUT", "/", 405, "GET, HEAD"),
                                          ("DELETE", "/v1/models/demo", 405, "GET, HEAD"), ("PUT", "/page.jss", 404, None), ("GET", "/v1/models%3Fx", 404, None),
                                          ("GET", "/health%3F/v1", 404, None),
                                          ("GET", "/v1/chat/completions?x=1", 405, "POST"), ("GET", "/health?x=1", 200, None)):
            status, headers, body = s.request(method, path, b"{}" if method == "POST" else None, JSON)
            check(status == want and (want == 200 or "error" in json.loads(body)), method, path, status, body)
            check(headers.get("allow") == allow, method, path, headers)
        stats = s.stats()
        check([p["name"] for p in stats["processes"]] == ["coordinator", "loader", "npu_worker", "gpu_worker"], stats)
        check(stats["state"] == "running" and stats["requests"] == {"queued": 0, "running": 0, "sequences": 4, "finished": 0, "failed": 0}, stats)


def test_tokens():
    cfg = config(model("demo", "bf16"))
    texts = ("Once upon a time", "", "ünïcode \U0001f600\n\n  x<start_of_turn>", "a" * 3000)
    ids = [tandem.run_json("coordinator", "--config", cfg, "tokenize", "--text", t, "--json")["ids"] for t in texts]
    chat = tandem.generate(cfg, "--chat", "--prompt", "  Hello there\n", "--system", "Be kind.", "--max-tokens", 1)
    with Server() as s:
        for text, want in zip(texts, ids):
            j = s.ask("/tokenize", prompt=text)
            check(j == {"count": len(want) + 1, "max_model_len": 2048, "tokens": [2] + want}, text[:40], j)
            check(s.ask("/tokenize", prompt=text, add_special_tokens=False)["tokens"] == want, text[:40])
            if "<" not in text:
                check(s.ask("/detokenize", tokens=want) == {"prompt": text}, text[:40])
        for role in ("system", "developer"):
            for content in ("  Hello there\n", [{"type": "text", "text": "  Hello there\n"}],
                            [{"type": "text", "text": " Hello "}, {"type": "text", "text": "there"}]):
                ids = s.ask("/tokenize", messages=[{"role": role, "content": "Be kind."}, {"role": "user", "content": content}])
                same = not isinstance(content, list) or len(content) == 1
                check((ids["tokens"] == chat["prompt_ids"]) == same, "the template", content, ids)  # parts are trimmed: "Hellothere"


def test_as_the_command_line():
    """The same tokens as `generate`, greedy and with a seed."""
    cfg = config(model("demo", "bf16"))
    sets = (({"temperature": 0}, ("--temperature", 0)),
            ({"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "seed": 7},
             ("--temperature", 0.9, "--top-k", 40, "--top-p", 0.9, "--min-p", 0.02, "--seed", 7)),
            ({"seed": 3}, ("--seed", 3)))
    wanted = [tandem.generate(cfg, "--chat", "--prompt", STORY, "--max-tokens", 60, *args) for _, args in sets]
    once = tandem.generate(cfg, "--prompt", "Once upon a time", "--max-tokens", 30, "--temperature", 0)
    with Server() as s:
        for (extra, _), want in zip(sets, wanted):
            got = s.chat(STORY, max_tokens=60, model="demo-bf16", **extra)
            c = got["choices"][0]
            check(got["object"] == "chat.completion" and got["model"] == "demo-bf16" and got["id"].startswith("chatcmpl-"), got)
            check(c["message"] == {"role": "assistant", "content": want["text"], "refusal": None}, c, want["text"])
            n = {"prompt_tokens": len(want["prompt_ids"]), "completion_tokens": len(want["output_ids"])}
            check(got["usage"]["total_tokens"] == sum(n.values()) and n.items() <= got["usage"].items(), got["usage"], n)
            check(c["finish_reason"] == want["finish_reason"], c, want["finish_reason"])
        ids = once["prompt_ids"]
        for prompt in ("Once upon a time", ids, ["Once upon a time"], [ids]):
            got = s.complete(prompt, max_tokens=30, temperature=0)
            check(got["object"] == "text_completion" and got["choices"][0]["text"] == once["text"], prompt, got)
        two = s.complete(["Once upon a time", "One day", "Once upon a time"], max_tokens=30, temperature=0)
        check([c["index"] for c in two["choices"]] == [0, 1, 2], two)
        check(two["choices"][0]["text"] == two["choices"][2]["text"] == once["text"] != two["choices"][1]["text"], two)
        check(len(s.complete("One day", temperature=0)["choices"][0]["text"].split()) <= 16, "max_tokens is 16 by default")


def test_streams_say_the_same():
    sets = [{"temperature": 0, "max_tokens": 40}, {"seed": 11, "max_tokens": 40, "n": 3}, {"seed": 5, "max_completion_tokens": 1},
            {"seed": 12, "max_tokens": 60, "stop": [".", "\n"]}, {"temperature": 0, "max_tokens": 300},
            {"seed": 2, "max_tokens": 30, "logprobs": True, "top_logprobs": 3, "n": 2},
            {"temperature": 0, "max_tokens": 60, "logprobs": True, "stop": ["kite", "the"]}]
    with Server() as s:
        for params in sets:
            want = plain(s.chat(STORY, **params))
            got = joined(s.stream("/v1/chat/completions", messages=user(STORY), stream_options={"include_usage": True}, **params))
            check(got == want, params, "\n", got, "\n", want)
            params = dict(params)
            params["max_tokens"] = params.pop("max_completion_tokens", params.get("max_tokens"))
            if params.pop("logprobs", False):
                params["logprobs"] = params.pop("top_logprobs", 0)
            want = plain(s.complete(["One day", "Once"], **params))
            got = joined(s.stream("/v1/completions", prompt=["One day", "Once"], stream_options={"include_usage": True}, **params))
            check(got == want, params, "\n", got, "\n", want)
        events = s.stream("/v1/chat/completions", messages=user(STORY), max_tokens=3)
        check(all("usage" not in e for e in events), "usage that nobody asked for")
        events = s.stream("/v1/chat/completions", messages=user(STORY), max_tokens=3, stream_options={"include_usage": True})
        check(events[-1]["choices"] == [] and all(e["usage"] is None for e in events[:-1]), events)


def test_sampling():
    with Server() as s:
        def text(**params):
            return s.complete("Once upon a time", **{"max_tokens": 24, **params})["choices"][0]["text"]
        greedy = text(temperature=0)
        for params in ({"top_k": 1}, {"min_p": 1}, {"top_p": 0}):
            check(text(temperature=1.5, seed=1, **params) == greedy, params)
        check(text(seed=1) == text(seed=1), "a seed repeats")
        check(len({text(seed=i, temperature=1.2, top_k=-1, top_p=1) for i in range(4)}) > 2, "seeds differ")
        check(len({text(temperature=1.2, top_k=0, top_p=1) for _ in range(4)}) > 1, "without a seed each is its own")
        several = [c["text"] for c in s.complete("Once", n=4, seed=1, max_tokens=20, temperature=1.2)["choices"]]
        check(len(set(several)) > 1 and several[0] == s.complete("Once", seed=1, max_tokens=20, temperature=1.2)["choices"][0]["text"],
              several)
        kite, = s.ask("/tokenize", prompt=" cat", add_special_tokens=False)["tokens"]
        check(text(temperature=0, max_tokens=3, logit_bias={str(kite): 100}) == " cat cat cat", "bias")
        cats = [text(temperature=0, max_tokens=12, logit_bias={str(kite): 22}, **p).count(" cat")
                for p in ({}, {"frequency_penalty": 2}, {"frequency_penalty": 2, "presence_penalty": 2})]
        check(12 >= cats[0] > cats[1] >= cats[2] >= 1, "penalties of the output", cats)
        first = s.ask("/tokenize", prompt=greedy, add_special_tokens=False)["tokens"][0]
        check(text(temperature=0, logit_bias={str(first): -100}) != greedy, "a ban")
        check(text(temperature=0, repetition_penalty=1.5, max_tokens=60) != text(temperature=0, max_tokens=60), "repetition penalty")


def test_logprobs():
    """Against a softmax of the logits that `eval` writes."""
    model("demo", "f32")  # made now, if need be
    with Server("f32") as s:
        params = {"max_tokens": 12, "temperature": 1, "seed": 4, "logit_bias": {"5": -100}}
        answer = s.chat(STORY, logprobs=True, top_logprobs=20, **params)
        ids = s.ask("/tokenize", messages=user(STORY))["tokens"]
        scores = answer["choices"][0]["logprobs"]["content"]
        check("".join(t["token"] for t in scores) == answer["choices"][0]["message"]["content"], answer)
        check(bytes(b for t in scores for b in t["bytes"]).decode() == answer["choices"][0]["message"]["content"], answer)
        out = s.ask("/tokenize", prompt=answer["choices"][0]["message"]["content"], add_special_tokens=False)["tokens"]
        check(len(out) == len(scores), "the text has other tokens than were generated; take another seed")
        bare = s.chat(STORY, logprobs=True, **params)["choices"][0]["logprobs"]["content"]
        check([t["logprob"] for t in bare] == [t["logprob"] for t in scores] and bare[0]["top_logprobs"] == [], bare)
        old = s.complete("Once upon", logprobs=2, max_tokens=8, temperature=0)["choices"][0]
        check("".join(old["logprobs"]["tokens"]) == old["text"] and len(old["logprobs"]["token_logprobs"]) == 8, old)
        check(all(2 <= len(t) <= 3 and old["logprobs"]["tokens"][i] in t for i, t in enumerate(old["logprobs"]["top_logprobs"])), old)
        check(all(old["text"][o:].startswith(t) for o, t in zip(old["logprobs"]["text_offset"], old["logprobs"]["tokens"])), old)
    logits = tandem.evaluate(s.config, ids + out)[len(ids) - 1:-1].astype(np.float64)
    logs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1, keepdims=True)
    for i, t in enumerate(scores):
        check(abs(t["logprob"] - logs[i, out[i]]) < 1e-4, i, t, logs[i, out[i]])
        top = [x["logprob"] for x in t["top_logprobs"]]
        check(np.allclose(top, np.sort(logs[i])[::-1][:20], atol=1e-4), i, top)


def test_stop_strings():
    """Every piece of a text as a stop string: the text ends before its first occurrence, whatever the tokens' borders are."""
    with Server() as s:
        whole = s.complete("Once upon a time", temperature=0, max_tokens=40)["choices"][0]["text"]
        for start in range(0, 60, 4):
            for length in (1, 2, 5, 9):
                stop = whole[start:start + length]
                want = whole[:whole.index(stop)]
                for stops in (stop, ["\U0001f600 never", stop + "\u00e9", stop]):
                    got = s.complete("Once upon a time", temperature=0, max_tokens=40, stop=stops)["choices"][0]
                    check(got["text"] == want and got["finish_reason"] == "stop", repr(stop), repr(got["text"]), repr(want))
                pieces = [e["choices"][0]["text"] for e in
                          s.stream("/v1/completions", prompt="Once upon a time", temperature=0, max_tokens=40, stop=stop)]
                check("".join(pieces) == want, "streamed", repr(stop), pieces)
        held = s.complete("Once upon a time", temperature=0, max_tokens=40, stop=whole[-3:] + "~~")["choices"][0]
        check(held["text"] == whole and held["finish_reason"] == "length", "what was held back comes at the end", held)
        sixteen = [f"\u00e9{i}" for i in range(15)] + [whole[20:24]]
        check(s.complete("Once upon a time", temperature=0, max_tokens=40, stop=sixteen)["choices"][0]["text"] ==
              whole[:whole.index(whole[20:24])], "sixteen")


PERSON = {"type": "object", "additionalProperties": False, "required": ["name", "tags", "sub"],
          "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 20}, "age": {"type": "integer"},
                         "tags": {"type": "array", "items": {"enum": ["red", "green", "greenish"]}, "minItems": 1, "maxItems": 3},
                         "sub": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/sub"}]}, "ok": {"type": "boolean"}},
          "$defs": {"sub": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"], "additionalProperties": False}}}


def is_person(text):
    j = json.loads(text)
    sub = j["sub"]
    return (list(j) == [k for k in PERSON["properties"] if k in j] and {"name", "tags", "sub"} <= set(j) and 1 <= len(j["name"]) <= 20
            and isinstance(j.get("age", 0), int) and 1 <= len(j["tags"]) <= 3 and set(j["tags"]) <= {"red", "green", "greenish"}
            and (sub is None or list(sub) == ["x"] and isinstance(sub["x"], (int, float))) and isinstance(j.get("ok", True), bool))


def test_formats():
    schema = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    with Server() as s:
        for seed in range(12):
            params = {"seed": seed, "max_tokens": 400, "temperature": [0, 0.7, 1, 2][seed % 4], "response_format": schema}
            want = plain(s.chat("Tell me about Tom, as JSON.", n=2, logprobs=True, **params))
            for c in want[0]:
                check(c["finish_reason"] == "stop" and is_person(c["text"]), c["text"], c["finish_reason"])
            got = joined(s.stream("/v1/chat/completions", messages=user("Tell me about Tom, as JSON."), n=2, logprobs=True,
                                  stream_options={"include_usage": True}, **params))
            check(got == want, str(got)[:2000], str(want)[:2000])
        text = s.complete("A person: ", response_format=schema, max_tokens=400, seed=1)["choices"][0]["text"]
        check(is_person(text), text)
        ends = 0
        for seed in range(12):
            c = s.chat("Tell me about Tom, as JSON.", seed=seed, max_tokens=150, response_format={"type": "json_object"})["choices"][0]
            check(c["message"]["content"].startswith("{"), c)
            if c["finish_reason"] == "stop":
                check(isinstance(json.loads(c["message"]["content"]), dict), c)
                ends += 1
        print(f"  {ends} of 12 objects came to their end")
        check(s.chat("Hi", seed=1, max_tokens=5, response_format={"type": "text"})["choices"] ==
              s.chat("Hi", seed=1, max_tokens=5)["choices"], "text is no format")
        endless = {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}
        status, j = s.post("/v1/chat/completions", {"messages": user("x"), "response_format":
                                                    {"type": "json_schema", "json_schema": {"schema": endless}}})
        check(status == 500 and "no end" in j["error"]["message"], status, j)
        for bad, words in (({"type": "xml"}, "json_object"), ({}, "json_object"), ("json", "json_object"), ({"type": "json_schema"}, "json_schema"),
                           ({"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "x"}}}, "'pattern' is not supported"),
                           ({"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}, "comes back to itself"),
                           ({"type": "json_schema", "json_schema": {"schema": {"$ref": "#/$defs/there"}}}, "'$ref' to '#/$defs/there' does not name"),
                           ({"type": "json_object", "schema": {"type": "boolean"}}, "'schema' is not supported"),
                           ({"type": "text", "json_schema": {}}, "'json_schema' is not supported"),
                           ({"type": "json_schema", "strict": True, "json_schema": {"schema": {}}}, "'strict' is not supported"),
                           ({"type": "json_schema", "json_schema": {"schema": {}, "shema": {}}}, "'json_schema.shema' is not supported")):
            status, j = s.post("/v1/chat/completions", {"messages": user("x"), "response_format": bad})
            check(status == 400 and j["error"]["param"] == "response_format" and words in j["error"]["message"], bad, status, j)


def test_conversation():
    with Server(context=64) as s:
        turns = user("Hi") + [{"role": "assistant", "content": "Hello.", "refusal": None, "tool_calls": None}] + user("A cat?")
        check(s.ask("/v1/chat/completions", messages=turns, max_tokens=5, user="u", store=False, tools=[], n=None,
                    response_format={"type": "text"})["usage"]["completion_tokens"] <= 5, "a conversation")
        full = s.chat("Hi", temperature=0, logit_bias={"1": -100, "9": -100})  # never an end token
        check(full["choices"][0]["finish_reason"] == "length" and full["usage"]["total_tokens"] in (64, 65), full["usage"])
        for n in (10**12, 2**32, 2**63 - 1):  # more than there is room for is no error, however much
            again = s.chat("Hi", temperature=0, logit_bias={"1": -100, "9": -100}, max_tokens=n)
            check(again["choices"] == full["choices"], n, again)
        status, j = s.post("/v1/chat/completions", {"messages": user("a b c " * 40)})
        check(status == 400 and j["error"]["code"] == "context_length_exceeded" and j["error"]["param"] == "messages", j)


REFUSED = [
    ({}, 400, "messages", "missing_parameter"),
    ({"messages": []}, 400, "messages", "invalid_value"),
    ({"messages": "Hi"}, 400, "messages", "invalid_value"),
    ({"messages": [1]}, 400, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "user", "content": []}]}, 400, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400,
     "messages[0].content[0]", "invalid_value"),
    ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, 400, "messages[0].name", "unsupported_parameter"),
    ({"messages": user("a") + user("b")}, 400, "messages", "invalid_value"),
    ({"messages": [{"role": "system", "content": "x"}]}, 400, "messages", "invalid_value"),
    ({"model": "gpt-4o"}, 404, "model", "model_not_found"),
    ({"model": 3}, 400, "model", "invalid_value"),
    ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, 400, "max_tokens", "invalid_value"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, 400, None, "invalid_value"),
    ({"temperature": 2.1}, 400, "temperature", "invalid_value"),
    ({"temperature": "1"}, 400, "temperature", "invalid_value"),
    ({"top_p": -0.1}, 400, "top_p", "invalid_value"),
    ({"top_k": -2}, 400, "top_k", "invalid_value"),
    ({"min_p": 1.1}, 400, "min_p", "invalid_value"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty", "invalid_value"),
    ({"presence_penalty": 3}, 400, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -3}, 400, "frequency_penalty", "invalid_value"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 101}}, 400, "logit_bias", "invalid_value"),
    ({"logit_bias": {"99999999": 1}}, 400, "logit_bias", "invalid_value"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, 400, "logit_bias", "invalid_value"),
    ({"seed": 1.5}, 400, "seed", "invalid_value"),
    ({"stop": ""}, 400, "stop", "invalid_value"),
    ({"stop": [""]}, 400, "stop", "invalid_value"),
    ({"stop": ["x"] * 17}, 400, "stop", "invalid_value"),
    ({"stop": "x" * 257}, 400, "stop", "invalid_value"),
    ({"stop": [1]}, 400, "stop", "invalid_value"),
    ({"n": 0}, 400, "n", "invalid_value"),
    ({"n": 65}, 400, "n", "invalid_value"),
    ({"stream": 1}, 400, "stream", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, 400, "stream_options", "unsupported_parameter"),
    ({"logprobs": 3}, 400, "logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 3}, 400, "top_logprobs", "invalid_value"),
    ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
    ({"temprature": 1}, 400, "temprature", "unsupported_parameter"),
    ({"prompt": "x"}, 400, "prompt", "unsupported_parameter"),
    ({"audio": {}}, 400, "audio", "unsupported_parameter"),
]


def test_refusals():
    with Server() as s:
        for body, status, param, code in REFUSED:
            whole = body if "messages" in body or not body else {"messages": user("Hi"), **body}
            got, j = s.post("/v1/chat/completions", whole)
            e = j["error"]
            check(got == status and e["code"] == code and (param is None or e["param"] == param), body, got, e)
            check(e["type"] == "invalid_request_error" and e["message"], e)
            check(code != "unsupported_parameter" or param.split("[")[0] in e["message"], e)
        check("did you mean 'temperature'" in s.post("/v1/chat/completions", {"messages": user("x"), "temprature": 1})[1]["error"]["message"],
              "nearest name")
        for body, param in (({}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [["a"]]}, "prompt"),
                            ({"prompt": {"a": 1}}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": [10**9]}, "prompt"),
                            ({"prompt": ["x"] * 65}, "prompt"), ({"prompt": "x", "echo": True}, "echo"), ({"prompt": "x", "best_of": 2}, "best_of"),
                            ({"prompt": [[]]}, "prompt"), ({"prompt": "x", "logprobs": True}, "logprobs"), ({"prompt": [1], "n": 64, "suffix": "x"}, "suffix"),
                            ({"prompt": ["a", "b", "c"], "n": 64}, "n")):
            status, j = s.post("/v1/completions", body)
            check(status == 400 and j["error"]["param"] == param, body, status, j)
        for path, body in (("/tokenize", {}), ("/tokenize", {"prompt": [1]}), ("/tokenize", {"prompt": "a", "messages": user("b")}),
                           ("/tokenize", {"prompt": "x", "n": 1}), ("/detokenize", {"tokens": "x"}), ("/detokenize", {"tokens": [-1]}),
                           ("/detokenize", {"tokens": [10**30]})):
            status, j = s.post(path, body)
            check(status == 400 and j["error"]["message"], path, body, status, j)


def test_not_ready_yet():
    """The server listens while the stages start: health says so, what needs them waits."""
    folder = tempfile.mkdtemp(dir=tandem.WORK)
    gate = os.path.join(folder, "go")
    for name in ("coordinator", "npu_worker", "gpu_worker"):
        shutil.copy(os.path.join(tandem.BIN, name), folder)
    with open(os.path.join(folder, "loader"), "w", encoding="utf-8") as f:
        f.write(f'#!/bin/sh\nwhile [ ! -e "{gate}" ]; do sleep 0.05; done\nexec "{tandem.BIN}/loader" "$@"\n')
    os.chmod(f.name, 0o755)
    with Server(program=os.path.join(folder, "coordinator"), wait=False) as s:
        status, headers, body = s.request("GET", "/health")
        j = json.loads(body)
        check(status == 503 and j["status"] == "loading" and j["reason"] and headers["retry-after"] == "1", status, j, headers)
        status, j = s.post("/v1/chat/completions", {"messages": user("Hi")})
        check(status == 503 and j["error"]["code"] == "loading", status, j)
        check(s.ask("/tokenize", prompt="Once")["count"] > 1, "tokenize needs no stage")
        open(gate, "w", encoding="utf-8").close()
        s.wait_ready()
        check(s.chat("Hi", max_tokens=1)["usage"]["completion_tokens"] == 1, "ready")


def key_file(text, mode=0o600):
    fd, path = tempfile.mkstemp(dir=tandem.WORK)
    os.write(fd, text.encode())
    os.close(fd)
    os.chmod(path, mode)
    return path


def test_keys():
    keys = ["first-key-1234567890", "second.key/+=_0987654321"]
    path = key_file(f"# comment\n{keys[0]}\n\n  \n{keys[1]}  \n")
    with Server(http__api_key_file=path, env={"TANDEM_LOG": "debug", "TANDEM_TRACE": "msg"}) as s:
        for key in keys:
            check(s.get("/v1/models", {"Authorization": "Bearer " + key})[0] == 200, key)
        check(s.get("/v1/models", {"Authorization": "bearer   " + keys[0]})[0] == 200, "the scheme's case")
        for value in (None, "", "Bearer", "Bearer ", "Basic " + keys[0], keys[0], "Bearer " + keys[0][:-1], "Bearer " + keys[0] + "x",
                      "Bearer # comment", "Bearer " + "x" * 300):
            status, headers, body = s.request("GET", "/v1/models", None, {"Authorization": value} if value is not None else {})
            check(status == 401 and headers["www-authenticate"] == "Bearer", value, status, headers)
            check(json.loads(body)["error"]["code"] == "invalid_api_key", body)
        check(s.request("POST", "/v1/completions", b'{"prompt": "x"}', JSON)[0] == 401, "POST")
        check(s.get("/health")[0] == 200, "health needs no key")
        status, _ = s.post("/v1/completions", {"prompt": "x", "max_tokens": 2}, {"Authorization": "Bearer " + keys[1]})
        check(status == 200, status)
        for pid in tandem.processes(s.process.pid):
            for name in ("cmdline", "environ"):
                with open(f"/proc/{pid}/{name}", "rb") as f:
                    seen = f.read()
                check(not any(k.encode() in seen for k in keys), "a key in /proc", pid, name)
    check("http:" in s.log, "nothing was logged:", s.log[:300])
    check(not any(k in s.log for k in keys), "a key in the log")


def refused(*words, **keys):
    tandem.one_line_error(tandem.run("coordinator", "--config", config(model("demo", "bf16"), **keys), "serve", status=1), *words)


def test_who_may_listen():
    refused("'http.listen' is none", "--set http.listen=")
    for text in ("nonsense", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536", "example.org:80", "':80'", "'[::1:80'", "'[::g]:80'"):
        refused("http.listen", "expected an address and a port", http__listen=text)
    refused("'http.listen'", "can be reached from other machines", "http.api_key_file", http__listen="0.0.0.0:0")
    refused("'http.listen'", "can be reached from other machines", http__listen="'[::]:0'")
    refused("cannot listen", http__listen="203.0.113.7:0", http__insecure="true")
    refused("may be read by everybody", http__listen="127.0.0.1:0", http__api_key_file=key_file("0123456789abcdef", 0o644))
    refused("has no key", http__listen="127.0.0.1:0", http__api_key_file=key_file("# none\n"))
    refused("line 2", "a key of 7 bytes", http__listen="127.0.0.1:0", http__api_key_file=key_file("0123456789abcdef\n1234567\n"))
    refused("cannot be opened", http__listen="127.0.0.1:0", http__api_key_file="/nonexistent")
    os.mkfifo(tandem.scratch("fifo"), 0o600)
    for other in (tandem.scratch("fifo"), os.path.dirname(tandem.scratch("fifo")), "/dev/zero"):
        refused(f"'{other}'", "expected a file", http__listen="127.0.0.1:0", http__api_key_file=other)
    refused("expected both", http__listen="127.0.0.1:0", http__tls_cert="/etc/hostname")
    with Server(http__listen="0.0.0.0:0", http__insecure="true") as s:
        check(s.get("/health")[0] == 200, "insecure, as was said")
    with Server(http__listen="0.0.0.0:0", http__api_key_file=key_file("0123456789abcdef")) as s:
        check(s.get("/v1/models")[0] == 401 and s.get("/health")[0] == 200, "with a key")
    with Server(http__listen="localhost:0", http__model_name="my model") as s:
        check(s.get("/v1/models")[1]["data"][0]["id"] == "my model", "named")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused("cannot listen", http__listen=f"127.0.0.1:{taken.getsockname()[1]}")


def test_other_origins():
    evil = {"Origin": "https://evil.example"}
    with Server() as s:
        own = f"127.0.0.1:{s.port}"
        for headers, want in (({}, 200), (evil, 403), ({"Origin": f"http://{own}"}, 200), ({"Host": "evil.example"}, 403),
                              ({"Host": f"evil.example:{s.port}"}, 403), ({"Host": "localhost"}, 200), ({"Host": "[::1]:80"}, 200),
                              ({"Host": "127.0.0.1.evil.example"}, 403), ({"Origin": "http://evil.example", "Host": "evil.example"}, 403),
                              ({"Origin": "null"}, 403), ({"Host": "[::1].evil.example"}, 403), ({"Host": "127.0.0.1:80@evil.example"}, 403),
                              ({"Host": "127.0.0.1:"}, 200), ({"Host": ":80"}, 403), ({"Host": "[evil.example]"}, 403),
                              ({"Host": "..."}, 403), ({"Host": "[]"}, 403), ({"Host": "["}, 403), ({"Host": "[::ffff:127.0.0.1]"}, 200)):
            check(s.get("/health", headers)[0] == want, headers, want)
        for kind in (None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
            check(s.request("POST", "/tokenize", b'{"prompt": "x"}', {"Content-Type": kind} if kind else {})[0] == 415, kind)
        check(s.request("POST", "/tokenize", b'{"prompt": "x"}', {"Content-Type": "application/json; charset=utf-8"})[0] == 200, "charset")
        check(s.request("OPTIONS", "/v1/completions", None, evil)[0] == 403, "preflight")
    with Server(http__cors="https://chat.example") as s:
        good = {"Origin": "https://chat.example"}
        status, headers, _ = s.request("OPTIONS", "/v1/completions", None, good)
        check(status == 204 and headers["access-control-allow-origin"] == good["Origin"], status, headers)
        check(headers["access-control-allow-headers"] == "Authorization, Content-Type" and headers["vary"] == "Origin", headers)
        asked = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-retry-count"  # as openai's in a browser
        for names, want in ((asked, asked), ("x-a, x-b", "x-a, x-b"), ("x-\xe9", None), ('x-"a"', None), ("x" * 1024, "x" * 1024), ("x" * 1025, None)):
            status, headers, _ = s.request("OPTIONS", "/v1/completions", None, {
                **good, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": names})
            check(status == 204 and headers["access-control-allow-headers"] == (want or "Authorization, Content-Type"), names, headers)
        check("access-control-allow-headers" not in s.request("OPTIONS", "/v1/completions", None, {
            **evil, "Access-Control-Request-Headers": asked})[1], "another origin's preflight")
        status, headers, _ = s.request("GET", "/health", None, good)
        check(headers["access-control-expose-headers"] == "Retry-After", headers)
        check(status == 200 and headers["access-control-allow-origin"] == good["Origin"], headers)
        check(s.get("/health", evil)[0] == 403, "another origin")
    for wrong in ("https://chat.example/", "https://chat.example/page", "chat.example", "https://"):
        r = tandem.run("coordinator", "--config", config(model("demo", "bf16"), http__listen="127.0.0.1:0", http__cors=wrong), "serve", status=1)
        tandem.one_line_error(r, f"key 'http.cors': found '{wrong}'")
    with Server(http__cors="'*'") as s:
        check(s.request("GET", "/health", None, evil)[1]["access-control-allow-origin"] == "*", "all")


def test_tls():
    if not shutil.which("openssl"):
        tandem.skip("openssl is not installed")
    cert, key = os.path.join(tandem.WORK, "cert.pem"), os.path.join(tandem.WORK, "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"], check=True, capture_output=True)
    refused("cannot be started", "PEM", http__listen="127.0.0.1:0", http__tls_cert=cert, http__tls_key=cert)
    context = ssl.create_default_context(cafile=cert)
    with TlsServer(context, http__tls_cert=cert, http__tls_key=key) as s:
        check(s.tls, "https")
        want = plain(s.chat(STORY, temperature=0, max_tokens=30))
        got = joined(s.stream("/v1/chat/completions", messages=user(STORY), temperature=0, max_tokens=30, stream_options={"include_usage": True}))
        check(got == want, got, want)


class TlsServer(Server):
    def __init__(self, context, **keys):
        self.context = context
        super().__init__(**keys)

    def connect(self):
        import http.client
        return http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=tandem.TIMEOUT)


if __name__ == "__main__":
    tandem.main(globals())
