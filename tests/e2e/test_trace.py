# SPDX-License-Identifier: MIT
"""--trace: the file is JSON that says what happened, in an order that can have happened; tracing changes no answer and destroys no
file; what a killed stage did is in it, and so is its end."""
import collections
import json
import os
import re
import resource
import signal
import subprocess
import time

import tandem
import test_npu
import test_vulkan
from http_client import JSON, Server
from tandem import check, config, model, scratch
from test_recovery import Run
from test_spawn import OTHERS, Manager, address

PROCESSES = {"coordinator", "loader", "npu_worker", "gpu_worker"}
LAYERS = 12  # of the demo model
WORDS = re.compile(r"|process_name|process_sort_index|thread_name|thread_sort_index|coordinator|"
                   r"(loader|npu_worker|gpu_worker)(, restart 1| started| ended)?|loop|pipeline|data|main|fill \d|NPU|GPU|start|recovery|"
                   r"paused|configure|load weights|read|verify|repack|wait for (input|space)|send|logits|sample|done|dropped|embed|"
                   r"(attention|ffn)( \d+)?|head|run|chunk|wait|compute|schedule|weights|device|decode|prefill|"
                   r"ring (tokens|x0|x|h|output)|tokens/s")
PROMPT = ("generate", "--chat", "--prompt", "Tell me a story about a cat", "--max-tokens", "40", "--seed", "5", "--json")


class Trace:
    def __init__(self, path, whole=True):
        with open(path, encoding="utf-8") as f:
            self.text = f.read()
        if not whole:
            self.text = self.text.rstrip(",\n") + "]"
        self.events = json.loads(self.text)
        named = [e for e in self.events if e["ph"] == "M" and e["name"] == "process_name"]
        self.processes = {e["pid"]: e["args"]["name"] for e in named}
        check(len(named) == len(self.processes), "a process is named twice:", named)
        self.threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in self.events
                        if e["ph"] == "M" and e["name"] == "thread_name"}
        for e in self.events:
            check(e["pid"] in self.processes, "an event of nobody:", e)
            check(e["ph"] in "MC" or (e["pid"], e["tid"]) in self.threads, "a thread without a name:", e)
        self.spans = [e for e in self.events if e["ph"] == "X"]

    def of(self, process, thread="data"):
        return [e for e in self.spans if self.processes[e["pid"]] == process and self.threads[e["pid"], e["tid"]] == thread]

    def moments(self):
        return [e["name"] for e in self.events if e["ph"] == "i"]

    def check_nesting(self):
        """On one track, of two spans that overlap one lies within the other. Times are whole nanoseconds."""
        tracks = collections.defaultdict(list)
        for e in self.spans:
            begin = round(e["ts"] * 1000)
            tracks[e["pid"], e["tid"]].append((begin, begin + round(e["dur"] * 1000), e["name"]))
        for track, spans in tracks.items():
            spans.sort(key=lambda s: (s[0], -s[1]))
            stack = []
            for begin, end, name in spans:
                while stack and stack[-1][1] <= begin:
                    stack.pop()
                check(not stack or end <= stack[-1][1], "two spans overlap:", self.threads[track], (begin, end, name), stack)
                stack.append((begin, end, name))

    def check_words(self):
        """Nothing of what was said, no path, no key: these words and numbers alone."""
        for e in self.events:
            for value in (e["name"], e.get("cat", ""), *[v for v in e.get("args", {}).values() if isinstance(v, str)]):
                check(WORDS.fullmatch(value), "a text in the trace:", value)

    def check_flows(self):
        """Each flow begins once and ends once, whatever became of the chunk, with all its steps in between."""
        for name, steps in self.flows().items():
            check(re.fullmatch("st*f", "".join(p for _, p, _ in sorted(steps))), "a flow without beginning or end:", name, sorted(steps))

    def flows(self):
        flows = collections.defaultdict(list)
        for e in self.events:
            if e["ph"] in "stf":
                flows[e["id"]].append((e["ts"], e["ph"], self.processes[e["pid"]]))
        return flows


def path_of_chunk(layers):
    return ["coordinator", "loader", *["npu_worker", "gpu_worker"] * layers, "coordinator"]


def traced(cfg, name, *args):
    out = scratch(name)
    result = tandem.run("coordinator", "--config", cfg, *args, "--trace", out)
    return result.stdout, Trace(out)


def texts(out):
    return [c["text"] for c in json.loads(out)["choices"]]


def test_generation():
    cfg = config(model("demo", "q8_0"), sequences=2, chunk_tokens=8)
    args = (*PROMPT, "--parallel", "2")
    want = tandem.run("coordinator", "--config", cfg, *args).stdout
    out, t = traced(cfg, "generation.json", *args)
    check(texts(out) == texts(want), "tracing changes the text", texts(out), texts(want))
    check(set(t.processes.values()) == PROCESSES and len(t.processes) == 4, t.processes)
    for process, thread in (("coordinator", "loop"), ("coordinator", "pipeline"), ("loader", "data"), ("loader", "fill 1"),
                            ("npu_worker", "data"), ("npu_worker", "main"), ("gpu_worker", "data")):
        check(t.of(process, thread), "no spans of", process, thread)
    t.check_nesting()
    check("events lost" not in t.moments(), "events were lost")

    # Each chunk: once through everything, in an order and at times that can have been.
    sent = [e for e in t.of("coordinator", "loop") if e["name"] == "send"]
    flows = t.flows()
    check(len(sent) == len(flows) > 40, len(sent), len(flows))
    for name, steps in flows.items():
        check([p for _, _, p in sorted(steps)] == path_of_chunk(LAYERS), "another way than a chunk's:", name, sorted(steps))
        check([s for s, _, _ in steps if s <= 0] == [] and "".join(p for _, p, _ in sorted(steps)) == "s" + "t" * (2 * LAYERS + 1) + "f", steps)
    for process, name, layers in (("loader", "embed", 1), ("npu_worker", "attention", LAYERS), ("gpu_worker", "ffn", LAYERS)):
        spans = [e for e in t.of(process) if e["name"].split(" ")[0] == name]
        check(len(spans) == layers * len(sent), process, len(spans), "spans of", len(sent), "chunks")
        count = collections.Counter(e["args"]["layer"] for e in spans)
        check(set(count) == set(range(layers)) and len(set(count.values())) == 1, process, count)
        total = sum(e["args"]["tokens"] for e in spans)
        check(total == layers * sum(e["args"]["tokens"] for e in sent), process, total)

    # Prefill and decode, one sequence or two; each token was drawn once.
    kinds = collections.Counter(e["args"]["kind"] for e in t.of("npu_worker") if e["name"] == "attention 0")
    check(set(kinds) == {"prefill", "decode"} and kinds["decode"] >= 39, kinds)
    both = [e["args"] for e in sent if e["args"].get("sequences") == 2]
    check(both and all(a["kind"] == "prefill" or a["tokens"] == 2 for a in both), sent)
    samples = [e for e in t.spans if e["name"] == "sample"]
    choices = json.loads(out)["choices"]  # an end token is drawn, too, and not put out
    check(len(samples) == sum(len(c["output_ids"]) + (c["finish_reason"] == "stop") for c in choices), len(samples), choices)

    # What was read is what segments hold, and every counter is of a ring or of tokens.
    read = sum(e["args"]["bytes"] for e in t.spans if e["name"] == "read")
    loaded = sum(e["args"]["bytes"] for e in t.spans if e["name"] == "load weights")
    check(0 < read <= loaded, read, loaded)
    counters = {e["name"] for e in t.events if e["ph"] == "C"}
    check(counters == {"ring tokens", "ring x0", "ring h", "ring x", "ring output", "tokens/s"}, counters)

    t.check_words()


def test_every_command():
    cfg = config(model("demo", "q8_0"))
    text = scratch("text.txt")
    with open(text, "w", encoding="utf-8") as f:
        f.write("Once upon a time there was a dog. " * 8)
    ids = "2,516,477,272"
    for name, args in (("eval", ("eval", "--ids", ids, "--logits", scratch("l.npy"))), ("perplexity", ("perplexity", "--file", text)),
                       ("bench", ("bench", "--prompt-tokens", "16", "--gen-tokens", "4", "--repetitions", "1")),
                       ("imatrix", ("imatrix", "--file", text, "--out", scratch("i.gguf")))):
        _, t = traced(cfg, name + ".json", *args)
        check(set(t.processes.values()) == PROCESSES and t.flows(), name, t.processes)
        t.check_nesting()
    chat = scratch("chat.json")
    tandem.run("coordinator", "--config", cfg, "--trace", chat, "--max-tokens", "5", stdin="Hello\n")
    check(Trace(chat).flows(), "chat")
    result = tandem.run("coordinator", "--config", cfg, "plan", "--trace", chat, status=2)
    tandem.one_line_error(result, "--trace", "plan")


def test_serve():
    """Through clients, a key and a stage that dies, until a signal ends it."""
    out, keys = scratch("serve.json"), scratch("keys")
    with open(keys, "w", encoding="utf-8") as f:
        f.write("a-key-that-nobody-may-see\n")
    os.chmod(keys, 0o600)
    headers = {**JSON, "Authorization": "Bearer a-key-that-nobody-may-see"}
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 30, "temperature": 0}).encode()
    with Server("q8_0", args=("--trace", out), http__api_key_file=keys, restarts=100) as s:
        first = s.request("POST", "/v1/completions", body, headers)
        os.kill(s.stage("npu_worker"), signal.SIGKILL)
        tandem.wait_until(lambda: b'"restarts":1' in s.request("GET", "/v1/stats", headers=headers)[2], 60, "not started again")
        s.wait_ready()
        again = s.request("POST", "/v1/completions", body, headers)
    check(first[0] == again[0] == 200 and json.loads(first[2])["choices"] == json.loads(again[2])["choices"], first, again)
    t = Trace(out)
    t.check_words()
    t.check_nesting()
    check("key" not in t.text and "npu_worker ended" in t.moments(), t.moments())
    check(len([e for e in t.spans if e["name"] == "sample"]) == 60, "sampled")
    check("npu_worker, restart 1" in t.processes.values(), t.processes)


def test_flows_end():
    """Those of chunks that were under way when a stage was killed, each of the three in turn, and when a signal ended the run."""
    out = scratch("flows.json")
    run = Run(config(model("demo", "q8_0"), restarts=100), "bench", "--repetitions", "1000", "--trace", out)
    tandem.wait_until(lambda: os.path.exists(out) and os.path.getsize(out) > 200000, 60, "nothing is written while it runs")
    for n, name in enumerate(tandem.STAGES):
        run.kill(name)
        check(run.wait("recovered from the end of", n + 1), run.log())
    run.process.terminate()
    run.end(status=128 + signal.SIGTERM)
    t = Trace(out)
    t.check_nesting()
    t.check_flows()
    dropped = collections.Counter(e["args"]["epoch"] for e in t.of("coordinator", "loop") if e["name"] == "dropped")
    check(len(dropped) >= len(tandem.STAGES), "of four epochs that ended at work:", dropped)


def test_streamed():
    """Layers that pass through slots: waits for them, and the loader's reading, through the whole run."""
    cfg = config(model("demo", "q8_0"), npu__streamed=512, gpu__streamed=512)
    _, t = traced(cfg, "streamed.json", *PROMPT)
    t.check_nesting()
    waits = [e for e in t.spans if e["name"] == "wait for weights"]
    check(waits and all(e["args"]["layer"] < LAYERS for e in waits), "no waits for weights")
    last = max(e["ts"] for e in t.spans if e["name"] == "read")
    check(last > min(e["ts"] for e in t.spans if e["name"] == "sample"), "nothing was read while tokens were made")


def test_others_start_the_stages():
    """They are handed their memory like those that the coordinator starts."""
    path = address()
    manager = Manager(path)
    out = scratch("others.json")
    cfg = config(model("demo", "q8_0"), stage_socket=path, **OTHERS)
    run = Run(cfg, *PROMPT, "--trace", out)
    for name in tandem.STAGES:
        manager.start(name)
    pids = {manager.running[name].pid: name for name in tandem.STAGES}
    run.process.wait(timeout=tandem.TIMEOUT)
    manager.end()
    run.end()
    t = Trace(out)
    t.check_nesting()
    check({**pids, run.process.pid: "coordinator"} == t.processes, pids, t.processes)
    check(all([p for _, _, p in sorted(s)] == path_of_chunk(LAYERS) for s in t.flows().values()), "a chunk went another way")


def device_runs(t, process, thread, name):
    """Runs on a device lie within what the data thread did with a chunk, but for those before there was any."""
    t.check_nesting()
    runs, spans = t.of(process, thread), [e for e in t.of(process) if e["name"].startswith(name)]
    during = [r for r in runs if r["args"]["epoch"]]
    check(len(during) >= LAYERS, "runs of", process, len(runs))
    by_chunk = {(e["args"]["chunk"], e["args"]["layer"]): e for e in spans}
    for r in during:
        e = by_chunk[r["args"]["chunk"], r["args"]["layer"]]
        check(e["ts"] <= r["ts"] and r["ts"] + r["dur"] <= e["ts"] + e["dur"] + 0.001, "a run without its chunk:", r, e)


def test_gpu():
    cfg = config(model("demo", "q8_0"), **test_vulkan.device())
    want = tandem.run("coordinator", "--config", cfg, *PROMPT).stdout
    out, t = traced(cfg, "gpu.json", *PROMPT)
    check(json.loads(out)["output_ids"] == json.loads(want)["output_ids"], "tracing changes the text")
    device_runs(t, "gpu_worker", "GPU", "ffn")


def test_npu_runs():
    cfg = config(model("demo", "q8_0"), **test_npu.simulated())
    _, t = traced(cfg, "npu.json", *PROMPT)
    device_runs(t, "npu_worker", "NPU", "attention")


def test_killed_stage():
    cfg = config(model("demo", "q8_0"))
    args = ("generate", "--chat", "--prompt", "Tell me a very long story about a dog and a cat", "--max-tokens", "900", "--temperature", "1", "--seed", "3", "--json")
    want = json.loads(tandem.run("coordinator", "--config", cfg, *args).stdout)["output_ids"]
    for tries in range(20):  # until it is hit while it works
        out = scratch("killed.json")
        if os.path.exists(out):
            os.unlink(out)
        run = Run(cfg, *args, "--trace", out)
        pid = None
        if run.wait(" is ready: ", 3):
            time.sleep(0.02 * (tries + 1) % 0.2)
            pid = run.kill("gpu_worker")
        check(json.loads(run.end())["output_ids"] == want, "another text")
        t = Trace(out)
        t.check_nesting()
        before = [e for e in t.spans if e["pid"] == pid and e["name"].startswith("ffn")]
        after = [e for e in t.of("gpu_worker, restart 1") if e["name"].startswith("ffn")]
        dropped = [e for e in t.of("coordinator", "loop") if e["name"] == "dropped"]
        if before and after and dropped:
            break
    check(t.processes[pid] == "gpu_worker" and sorted(t.processes.values()) ==
          ["coordinator", "gpu_worker", "gpu_worker, restart 1", "loader", "npu_worker"], t.processes)
    check([m for m in t.moments() if m.startswith("gpu_worker")] == ["gpu_worker started", "gpu_worker ended", "gpu_worker started"],
          t.moments())
    ended, = (e["ts"] for e in t.events if e["name"] == "gpu_worker ended")
    recovery, = (e for e in t.of("coordinator", "pipeline") if e["name"] == "recovery")
    t.check_flows()
    check(dropped and all(ended < e["ts"] for e in dropped), "chunks that were lost:", ended, dropped)
    check(before and all(e["ts"] + e["dur"] < ended for e in before), "what the dead one did, or after its death")
    check(after and all(e["ts"] > ended for e in after), "what its successor did")
    check(abs(recovery["ts"] - ended) < recovery["dur"] and any(e["name"] == "paused" for e in t.of("npu_worker")), recovery)
    whole = [[p.split(",")[0] for _, _, p in sorted(steps)] for steps in t.flows().values()]
    check(whole.count(path_of_chunk(LAYERS)) >= len(want), whole.count(path_of_chunk(LAYERS)), "whole ways of chunks for", len(want), "tokens")


def test_killed_coordinator():
    """The array has no end then; with one, it is JSON."""
    cfg = config(model("demo", "q8_0"))
    out = scratch("cut.json")
    process = tandem.start("coordinator", "--config", cfg, "bench", "--repetitions", "1000", "--trace", out)
    tandem.wait_until(lambda: os.path.exists(out) and os.path.getsize(out) > 200000, 60, "nothing is written while it runs")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    tandem.wait_until(lambda: not tandem.processes(), 60, tandem.processes)
    tandem.run("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--max-tokens", "1")  # tidies up after the dead one
    with open(out, encoding="utf-8") as f:
        text = f.read()
    check(text.startswith("[\n") and text.endswith("}"), text[-50:])
    t = Trace(out, whole=False)
    check(set(t.processes.values()) == PROCESSES and len(t.spans) > 100, len(t.spans))


def test_files():
    """Never in place of a file; a folder that is not there is told before anything starts; a full disk ends the trace alone."""
    cfg = config(model("demo", "q8_0"))
    out = scratch("there.json")
    with open(out, "w", encoding="utf-8") as f:
        f.write("mine")
    result = tandem.run("coordinator", "--config", cfg, *PROMPT, "--trace", out, status=1)
    tandem.one_line_error(result, out, "exists already", "new file")
    with open(out, encoding="utf-8") as f:
        check(f.read() == "mine", "it was changed")
    missing = scratch("nowhere/trace.json")
    tandem.one_line_error(tandem.run("coordinator", "--config", cfg, *PROMPT, "--trace", missing, status=1), missing)

    full = scratch("full.json")
    process = tandem.start("coordinator", "--config", cfg, "--temperature", "0", "--max-tokens", "300", "--trace", full,
                           stdin=subprocess.PIPE)
    tandem.wait_running(process)
    process.stdin.write(b"Tell me a story\n")
    process.stdin.flush()
    story = process.stdout.readline()
    limit = os.path.getsize(full) + 50000  # of the coordinator alone, and when all memfds are made
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    limit = max(limit, os.path.getsize(full))  # it may have been written on until then
    answers = []
    for _ in range(3):
        process.stdin.write(b"Tell me a story\n")
        process.stdin.flush()
        answers.append(process.stdout.readline())
    process.stdin.close()
    err = process.stderr.read().decode()
    check(process.wait(timeout=60) == 0 and story, process.returncode, err)
    check(err.count(full) == 1 and "the run goes on" in err, err)
    check(os.path.getsize(full) <= limit, os.path.getsize(full), limit)
    check(Trace(full).spans, "the file is cut somewhere")


if __name__ == "__main__":
    tandem.main(globals())
