# SPDX-License-Identifier: MIT
"""/metrics: every line is Prometheus' text format, every number is what the requests before it come to, and the dashboard asks for
nothing that is not there. promtool (Debian: prometheus) reads it too, where it is installed."""
import json
import os
import re
import shutil
import signal
import subprocess

import tandem
from http_client import Server
from tandem import check

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf'({NAME})(?:\{{((?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\}})? ([0-9.e+-]+)\Z')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\[\\"n])*)"')


def parse(text):
    """{family: (type, {(name, labels): value})}; refuses what the format does not allow."""
    families, name = {}, None
    check(text.endswith("\n") and "\n\n" not in text, "lines")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            check(name not in families and len(line.split(" ", 3)[3]) > 10, "a family twice, or without help:", line)
            families[name] = (None, {})
        elif line.startswith("# TYPE "):
            _, _, of, kind = line.split(" ")
            check(of == name and families[of] == (None, {}) and kind in ("counter", "gauge", "histogram"), line)
            check((kind == "counter") == of.endswith("_total"), "a counter's name ends with _total:", line)
            families[name] = (kind, {})
        else:
            m = SAMPLE.match(line)
            check(m, "no sample:", line)
            kind, samples = families[name]
            own = m[1] == name or (kind == "histogram" and m[1] in (name + "_bucket", name + "_sum", name + "_count"))
            labels = tuple(LABEL.findall(m[2] or ""))
            check(own and len(dict(labels)) == len(labels) and (m[1], labels) not in samples, "a sample of another family, or twice:", line)
            samples[m[1], labels] = float(m[3])
            check(float(m[3]) >= 0, line)
    for name, (kind, samples) in families.items():
        check(kind and samples, "an empty family:", name)
        if kind == "histogram":
            buckets = [(dict(l)["le"], v) for (n, l), v in samples.items() if n.endswith("_bucket")]
            bounds = [float(le) for le, _ in buckets]
            check(bounds == sorted(bounds) and buckets[-1][0] == "+Inf", name, bounds)
            check([v for _, v in buckets] == sorted(v for _, v in buckets), name, buckets)
            count, = (v for (n, _), v in samples.items() if n.endswith("_count"))
            check(buckets[-1][1] == count, name, buckets, count)
    return families


def metrics(server):
    status, headers, body = server.request("GET", "/metrics")
    check(status == 200 and headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8", status, headers, body[:200])
    return parse(body.decode()), body


def value(families, name, **labels):
    for _, samples in families.values():
        for (n, l), v in samples.items():
            if n == name and labels.items() <= dict(l).items():
                return v
    raise tandem.Failure("no", name, labels)


def test_numbers():
    with Server("q8_0", sequences=4) as s:
        f, _ = metrics(s)
        for name in ("vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:time_to_first_token_seconds_count"):
            check(value(f, name) == 0, name)
        never = {"1": -100, "9": -100}
        n = s.complete(["Once upon a time", "One day"], n=2, max_tokens=30, seed=1, logit_bias=never)["usage"]
        stopped = s.complete("Once upon a time", max_tokens=200, temperature=0, stop=[" the"])["usage"]
        tandem.wait_until(lambda: s.stats()["requests"]["finished"] == 5, 60, lambda: s.stats())
        f, _ = metrics(s)
        out = n["completion_tokens"] + stopped["completion_tokens"]
        check(n["completion_tokens"] == 120 and value(f, "vllm:generation_tokens_total", model_name="demo-q8_0") == out, out)
        check(value(f, "vllm:time_to_first_token_seconds_count") == 5, "one for each answer")
        check(value(f, "vllm:time_per_output_token_seconds_count") == out - 5, "one for each token but the first")
        check(value(f, "vllm:e2e_request_latency_seconds_count") == value(f, "vllm:request_queue_time_seconds_count") == 5, "whole")
        whole, first = (value(f, f"vllm:{x}_seconds_sum") for x in ("e2e_request_latency", "time_to_first_token"))
        check(whole > first > 0, whole, first)
        for reason, count in (("length", 4), ("stop", 1), ("abort", 0)):
            check(value(f, "vllm:request_success_total", finished_reason=reason) == count, reason)
        check(value(f, "vllm:num_requests_running") == value(f, "vllm:num_requests_waiting") == 0, "nothing runs")
        check(value(f, "tandem_sequences") == 4 and value(f, "tandem_state", state="running") == 1, "state")
        stats = s.stats()
        for p in stats["processes"]:
            check(value(f, "tandem_memory_cap_bytes", process=p["name"]) == p["cap_bytes"], p)
            for category in ("weights", "scratch", "ring"):
                check(value(f, "tandem_memory_bytes", process=p["name"], category=category) == p["budget"][category], p, category)
            check(0 < value(f, "tandem_memory_used_bytes", process=p["name"]) <= p["cap_bytes"], p)
        for r in stats["rings"]:
            check(value(f, "tandem_ring_slots", ring=r["name"]) == r["slots"], r)
        check(0 < value(f, "tandem_read_bytes_total", process="loader"), "what was read")
        os.kill(s.stage("gpu_worker"), signal.SIGKILL)
        tandem.wait_until(lambda: s.get("/health")[0] == 200 and value(metrics(s)[0], "tandem_restarts_total", process="gpu_worker") == 1,
                          60, lambda: s.log)


def test_key_and_name():
    """The name of the model is a label, whatever is in it; who has no key sees nothing."""
    path = tandem.scratch("keys")
    with open(path, "w", encoding="utf-8") as f:
        f.write("the-key-of-this-test\n")
    os.chmod(path, 0o600)
    with Server(http__api_key_file=path, http__model_name="'a \"b\" \\ é'") as s:
        check(s.request("GET", "/metrics")[0] == 401, "without a key")
        status, _, body = s.request("GET", "/metrics", None, {"Authorization": "Bearer the-key-of-this-test"})
        check(status == 200, status, body)
        f = parse(body.decode())
        check(value(f, "vllm:num_requests_running", model_name='a \\"b\\" \\\\ é') == 0, body[:400])


def test_while_loading():
    """Prometheus sees a server that starts."""
    with Server(wait=False) as s:
        f, _ = metrics(s)
        check(sum(v for k, v in f["tandem_state"][1].items()) == 1, f["tandem_state"])
        s.wait_ready()


def test_dashboard():
    """Each expression names metrics that are there; panels do not lie on each other."""
    with open(os.path.join(tandem.SOURCE, "packaging", "grafana", "tandem.json"), encoding="utf-8") as file:
        board = json.load(file)
    with Server() as s:
        f, body = metrics(s)
    names = {n for _, samples in f.values() for n, _ in samples}
    cells = set()
    for p in board["panels"]:
        g = p["gridPos"]
        check(g["x"] + g["w"] <= 24, p["title"])
        own = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        check(not own & cells, p["title"], "lies on another")
        cells |= own
        for t in p["targets"]:
            asked = set(re.findall(r"(?:vllm:|tandem_)\w+", t["expr"]))
            check(asked and asked <= names, p["title"], t["expr"], asked - names)
    promtool = shutil.which("promtool")
    if not promtool:
        tandem.skip("'promtool' is not installed (Debian package prometheus); the rest of this test was run")
    r = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, timeout=60)
    complaints = [l for l in r.stderr.decode().splitlines() if "should not contain ':'" not in l]  # vLLM's names do
    check(r.returncode in (0, 3) and not complaints, r.returncode, complaints)


if __name__ == "__main__":
    tandem.main(globals())
