# SPDX-License-Identifier: MIT
"""A stage dies, hangs or is killed while requests run: what comes out is what would have come out without it, bit for bit."""
import ctypes
import json
import mmap
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import threading
import time

import numpy as np
import tandem
from tandem import check, config, left_behind, model, processes, wait_until

WORKERS = ("npu_worker", "gpu_worker")


class Run:
    """A coordinator whose log is read as it comes."""

    def __init__(self, cfg, *args, env=None, **options):
        self.process = tandem.start("coordinator", "--config", cfg, *args, env={"TANDEM_LOG": "info", **(env or {})}, **options)
        self.lines, self.out = [], b""
        self.threads = [threading.Thread(target=self._read_log), threading.Thread(target=self._read_output)]
        for t in self.threads:
            t.start()

    def _read_log(self):
        for line in self.process.stderr:
            self.lines.append(line.decode("utf-8", "replace").rstrip())

    def _read_output(self):
        while True:
            some = self.process.stdout.read1(65536)
            if not some:
                return
            self.out += some

    def count(self, words):
        return sum(words in line for line in list(self.lines))

    def log(self):
        return "\n".join(self.lines)

    def wait(self, words, n=1, seconds=60):
        """Whether it was said; it may have ended since."""
        wait_until(lambda: self.count(words) >= n or self.process.poll() is not None, seconds, lambda: (words, self.log()))
        if self.process.poll() is not None:
            self.threads[0].join()
        return self.count(words) >= n

    def wait_ready(self):
        check(self.wait(" is ready: ", 3), "ended early:", self.log())

    def pid(self, stage):
        for pid, line in processes(self.process.pid).items():
            if os.path.basename(line.split(" ")[0]) == stage:
                return pid
        return None

    def kill(self, stage, number=signal.SIGKILL):
        pid = self.pid(stage)
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pid = None
        return pid

    def end(self, status=0, timeout=tandem.TIMEOUT):
        self.process.wait(timeout=timeout)
        for t in self.threads:
            t.join()
        self.process.stdout.close()
        self.process.stderr.close()
        check("Sanitizer" not in self.log() and "runtime error:" not in self.log(), self.log())
        check(self.process.returncode == status, f"status {self.process.returncode} instead of {status}:", self.log())
        wait_until(lambda: not left_behind(), 2, left_behind)
        check(not tandem.cgroups([self.process.pid]), tandem.cgroups([self.process.pid]))
        return self.out.decode("utf-8")


def answers(text):
    j = json.loads(text)
    return [a["output_ids"] for a in j.get("choices", [j])], {p["name"]: p for p in j["processes"]}


def story(n_tokens, *more):
    return ("generate", "--chat", "--prompt", "Tell me a very long story about a dog and a cat", "--max-tokens", n_tokens, "--json", *more)


GREEDY = story(400, "--temperature", "0")
SEEDED = story(1900, "--temperature", "1", "--seed", "3")
LASTING = (*SEEDED, "--fault", "loader:slow@p=0.03,seed=1:always")  # the same text, for seconds on any machine
FOUR = story(500, "--temperature", "1", "--seed", "11", "--parallel", "4")


def scoring(n_bytes):
    """Arguments of perplexity over so much text: prefill without end."""
    text = tandem.scratch("text.txt")
    with open(os.path.join(tandem.DEMO, "eval.txt"), encoding="utf-8") as f, open(text, "w", encoding="utf-8") as g:
        g.write(f.read()[:n_bytes])
    return ("perplexity", "--file", text, "--window", "256", "--json")


def same_score(got, want, *what):
    for key in ("ppl", "mean_nll", "scored_tokens", "standard_error"):
        check(got[key] == want[key], *what, key, got[key], want[key])


def long_prompt(n):
    """Text of the model's own kind, as ids."""
    with open(os.path.join(tandem.DEMO, "eval.txt"), encoding="utf-8") as f:
        text = f.read()[:8 * n]
    ids = tandem.run_json("coordinator", "--config", config(model("demo", "q8_0")), "tokenize", "--text", text, "--json")["ids"]
    return [2, *ids[:n - 1]]


def kills(cfg, ids, count, victims, env=None):
    """A greedy answer with deaths on the way: whose, one after the other, at moments that follow from a fixed seed."""
    rng = random.Random(7)
    run = Run(cfg, "generate", "--ids", tandem.ids_text(ids), "--temperature", "0", "--max-tokens", count, "--json", env=env)
    run.wait_ready()
    for n, victim in enumerate(victims):
        if not run.wait("recovered from", n):
            break
        time.sleep(rng.uniform(0.02, 0.3))
        run.kill(victim)
    return json.loads(run.end())


def test_each_stage():
    """Once in the middle; a worker that is started again reads nothing from the model file."""
    cfg = config(model("demo", "q8_0"))
    size = os.path.getsize(model("demo", "q8_0"))
    for args in (GREEDY, SEEDED, FOUR):
        want, before = answers(Run(cfg, *args).end())
        for victim in tandem.STAGES:
            for _ in range(20):  # until it is hit while it works
                run = Run(cfg, *args)
                if not run.wait(" is ready: ", 3) or run.kill(victim) is None or not run.wait(f"recovered from the end of {victim}", 1):
                    run.end()
                    continue
                got, stats = answers(run.end())
                check(got == want, victim, args, "another text")
                check({n: p["restarts"] for n, p in stats.items()} == {n: int(n == victim) for n in stats}, stats)
                check("killed by signal 9" in stats[victim]["last_reason"], stats[victim])
                if victim != "loader":  # rows of the embedding apart, of which a prefill reads some again
                    more = stats["loader"]["bytes_read"] - before["loader"]["bytes_read"]
                    check(more < size / 20, victim, f"{more} bytes of {size} were read again")
                break
            else:
                check(False, f"{victim} was never hit in time")


def test_chunks_in_flight():
    """gpu_worker dies with three chunks of a prompt or more under way, each as long as the window, so that its border lies among them."""
    cfg = config(model("demo", "f32"), chunk_tokens=128)  # the window of the model
    args = ("generate", "--ids", tandem.ids_text(long_prompt(1800)), "--temperature", "0", "--max-tokens", "40", "--json")
    want, _ = answers(Run(cfg, *args).end())
    for n in (30, 140):
        out = tandem.scratch(f"in-flight-{n}.json")
        got, stats = answers(Run(cfg, *args, "--fault", f"gpu_worker:segv@{n}", "--trace", out).end())
        check(got == want and stats["gpu_worker"]["restarts"] == 1, n, "another text")
        with open(out, encoding="utf-8") as f:
            dropped = [e["args"] for e in json.load(f) if e.get("name") == "dropped"]
        check(len(dropped) >= 3 and all(d["kind"] == "prefill" and d["tokens"] == 128 for d in dropped), n, dropped)


def test_long_prompt():
    """Killed at any moment of a prompt that is a multiple of chunk and window."""
    ids = tandem.ids_text(long_prompt(1800))
    args = ("generate", "--ids", ids, "--temperature", "0", "--max-tokens", "60", "--json")
    for keys in ({"chunk_tokens": 16}, {"chunk_tokens": 128, "kv_type": "q8_0"}):
        cfg = config(model("demo", "f32"), **keys)
        want, _ = answers(Run(cfg, *args).end())
        for victim in tandem.STAGES:
            hits = 0
            for attempt in range(20):
                run = Run(cfg, *args)
                run.wait_ready()
                time.sleep(0.02 * (attempt % 5))
                run.kill(victim)
                got, stats = answers(run.end())
                check(got == want, victim, keys, "another text")
                hits += stats[victim]["restarts"]
                if hits >= 3:
                    break
            check(hits >= 3, victim, f"was hit {hits} times")


def test_logits_and_perplexity():
    """Rows are given out once each, and are the same bits."""
    cfg = config(model("demo", "q8_0"), chunk_tokens=32, restarts=1000, restarts_per_minute=1000)
    ids = long_prompt(1900)
    want = tandem.evaluate(cfg, ids)
    score = scoring(40000)
    ppl = tandem.run_json("coordinator", "--config", cfg, *score)
    rng = random.Random(1)
    for victim in tandem.STAGES:
        out = tandem.scratch("killed.npy")
        run = Run(cfg, "eval", "--ids", tandem.ids_text(ids), "--logits", out)
        run.wait_ready()
        for _ in range(3):
            time.sleep(rng.uniform(0, 0.05))
            run.kill(victim)
        run.end()
        check(np.array_equal(np.load(out), want), victim, "other logits")
        run = Run(cfg, *score)
        run.wait_ready()
        for n in range(4):  # each time once it is back, and now and then on its way
            if not run.wait("recovered from", n):
                break
            for _ in range(1 + n % 2):
                time.sleep(rng.uniform(0, 0.1))
                run.kill(victim)
        same_score(json.loads(run.end()), ppl, victim)


def test_deaths_together():
    """Two at once, all at once, and the successor at once."""
    cfg = config(model("demo", "q8_0"), restarts=1000, restarts_per_minute=1000)
    want, _ = answers(Run(cfg, *SEEDED).end())
    for victims in (("loader", "npu_worker"), ("npu_worker", "gpu_worker"), ("gpu_worker", "loader"), tandem.STAGES):
        run = Run(cfg, *SEEDED)
        run.wait_ready()
        time.sleep(0.05)
        for victim in victims:
            run.kill(victim)
        got, _ = answers(run.end())
        check(got == want, victims, "another text")
    for first in tandem.STAGES:
        for second in tandem.STAGES:
            run = Run(cfg, *SEEDED)
            run.wait_ready()
            time.sleep(0.05)
            gone = run.kill(first)
            for _ in range(3):  # on the way back, at different moments
                wait_until(lambda: run.pid(second) not in (None, gone) or run.process.poll() is not None, 30, run.log)
                time.sleep(0.004)
                gone = run.kill(second)
            got, _ = answers(run.end())
            check(got == want, first, second, "another text")


def test_while_loading():
    cfg = config(model("demo", "f32"))
    want, _ = answers(Run(cfg, *GREEDY).end())
    hits = 0
    for attempt in range(60):
        if hits == 9:
            return
        victim = tandem.STAGES[attempt % 3]
        run = Run(cfg, *GREEDY)
        wait_until(lambda: run.pid(victim) is not None, 30, run.log)
        time.sleep(0.003 * (attempt % 12))
        run.kill(victim)
        got, stats = answers(run.end())
        check(got == want, victim, "another text")
        hits += stats[victim]["restarts"]
    check(False, f"only {hits} of 60 were hit")


def test_idle():
    """Between two prompts of a chat; the one after it does not notice."""
    cfg = config(model("demo", "q8_0"))
    prompts = b"Tell me a story about a cat\nTell me a story about a dog\n"
    want = tandem.run("coordinator", "--config", cfg, "--temperature", "0", stdin=prompts.decode()).stdout
    for victim in tandem.STAGES:
        run = Run(cfg, "--temperature", "0", stdin=subprocess.PIPE)
        run.wait_ready()
        run.kill(victim)
        check(run.wait("recovered from the end of " + victim), run.log())
        run.process.stdin.write(prompts)
        run.process.stdin.close()
        got = run.end()
        check(got == want, victim, "another text:", got)
        check("re-prefill 0.0" in run.log(), run.log())


def test_signals_in_the_middle():
    """The program ends as ever while a stage is down, waits for its next start, or is being paused."""
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for deaths in range(1, 5):
            for victim in WORKERS:
                run = Run(config(model("demo", "q8_0"), restarts=100), "bench", "--gen-tokens", "1900")
                run.wait_ready()
                gone = None
                for _ in range(deaths):
                    wait_until(lambda: run.pid(victim) not in (None, gone) or run.process.poll() is not None, 30, run.log)
                    gone = run.kill(victim)
                run.process.send_signal(number)
                run.end(status)


def test_limit():
    """A stage that never comes back, and one that does not get further."""
    cfg = config(model("demo", "q8_0"), restarts=3)
    run = Run(cfg, "bench", "--gen-tokens", "1900")
    run.wait_ready()
    while run.process.poll() is None:
        run.kill("npu_worker")
    run.end(1)
    check("npu_worker (pid " in run.lines[-1] and "killed by signal 9" in run.lines[-1], run.log())
    check(3 <= run.count("it is started again") <= 20, run.log())
    cfg = config(model("demo", "q8_0"), restarts=1000000, restarts_per_minute=4)
    run = Run(cfg, "bench", "--gen-tokens", "1900")
    run.wait_ready()
    while run.process.poll() is None:
        before = run.count("recovered from")
        run.kill("gpu_worker")
        wait_until(lambda: run.count("recovered from") > before or run.process.poll() is not None, 30, run.log)
    run.end(1)
    check(run.count("it is started again") in (4, 5), run.log())  # the fifth without the request
    check("after 4 restarts within a minute ('restarts_per_minute')" in run.lines[-1], run.log())


def test_hang():
    """A stopped process answers no ping; what it was about is told, and the text is the same."""
    cfg = config(model("demo", "q8_0"), heartbeat_s=1)
    want, _ = answers(Run(cfg, *FOUR).end())
    for victim in tandem.STAGES:
        for _ in range(20):  # until it is hit while it works
            run = Run(cfg, *FOUR)
            run.wait_ready()
            time.sleep(0.05)
            run.kill(victim, signal.SIGSTOP)
            if run.wait("recovered from"):
                break
            run.end()
        else:
            check(False, f"{victim} was never hit in time")
        got, stats = answers(run.end())
        check(got == want, victim, "another text")
        check("hangs" in stats[victim]["last_reason"] and "'heartbeat_s'" in stats[victim]["last_reason"], stats[victim])
        detect = float(re.search(r"detect ([0-9.]+) before", run.log())[1])
        check(detect >= 1000, victim, run.log())


def data_thread(pid):
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/comm", encoding="utf-8") as f:
            if f.read().strip() == "data":
                return int(tid)
    raise tandem.Failure(f"process {pid} has no data thread")


def test_stuck_data_thread():
    """A computation that does not come back while the control thread answers. A debugger stops the one thread; where it stood is known
    only to the stage, so that an idle one is let go, and another is tried."""
    libc = ctypes.CDLL(None, use_errno=True)
    seize, interrupt, detach = 0x4206, 0x4207, 17
    cfg, score = config(model("demo", "q8_0")), scoring(100000)
    want = json.loads(Run(cfg, *score).end())
    for victim in WORKERS:
        for _ in range(20):
            run = Run(cfg, *score)
            run.wait_ready()
            time.sleep(0.2)
            tid = data_thread(run.pid(victim))
            if libc.ptrace(seize, tid, None, None) < 0:
                run.process.send_signal(signal.SIGTERM)
                run.end(143)
                tandem.skip(f"ptrace is not allowed here: {os.strerror(ctypes.get_errno())}")
            libc.ptrace(interrupt, tid, None, None)
            end = time.monotonic() + 4
            while time.monotonic() < end and not run.count("recovered from"):
                try:
                    os.waitpid(tid, 0x40000000 | os.WNOHANG)  # __WALL: nobody can bury it before its tracer has
                except ChildProcessError:
                    pass
                time.sleep(0.02)
            libc.ptrace(detach, tid, None, None)
            same_score(json.loads(run.end()), want, victim)
            if run.count("recovered from"):
                break
        check(run.count(victim + " (pid ") and run.count("hangs: chunk ") and run.count("20 times what is usual"), run.log())


def memory_of_ring(pid, name):
    """The indices of one, as a process that has it maps them."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        if os.readlink(path).startswith(f"/memfd:{name} "):
            with open(path, "r+b") as f:
                return mmap.mmap(f.fileno(), 4096)
    raise tandem.Failure(f"process {pid} has no ring '{name}'")


def test_reader_spoils_a_ring():
    """A reader's index that cannot be: its writer notices, and both are ended, not only the one that noticed. The reader is stopped
    meanwhile, as one that neither looks at the ring any more nor says anything; the writer, until all there is to write waits for it."""
    tail = 128
    cfg, score = config(model("demo", "q8_0"), chunk_tokens=32), scoring(60000)
    want = json.loads(Run(cfg, *score).end())
    for writer, reader, name in (("loader", "npu_worker", "x0"), ("npu_worker", "gpu_worker", "h"), ("gpu_worker", "npu_worker", "x")):
        run = Run(cfg, *score)
        run.wait_ready()
        ring = memory_of_ring(run.process.pid, f"tandem-{name}")
        said = f"put into its input ring what {writer} could make no sense of; it is started again"
        for _ in range(20):
            run.kill(writer, signal.SIGSTOP)
            time.sleep(0.1)
            run.kill(reader, signal.SIGSTOP)
            true = ring[tail:tail + 4]
            ring[tail:tail + 4] = struct.pack("<I", (struct.unpack("<I", true)[0] + 1000) % 2**32)
            run.kill(writer, signal.SIGCONT)
            end = time.monotonic() + 0.5
            while time.monotonic() < end and not run.count("it is started again"):
                time.sleep(0.01)
            if run.count("it is started again"):
                break
            ring[tail:tail + 4] = true  # at the last layer gpu_worker writes to the coordinator
            run.kill(reader, signal.SIGCONT)
            time.sleep(0.01)
        check(run.wait(said), writer, reader, run.log())
        same_score(json.loads(run.end()), want, writer, reader)
        check(run.count("output ring 0 is poisoned") == 1 and run.count("it is started again") == 2, writer, reader, run.log())


def test_deadlines_off():
    """For debuggers: a stage that stands still is waited for, and goes on where it was."""
    cfg = config(model("demo", "q8_0"), heartbeat_s=1, deadlines="off")
    want, _ = answers(Run(cfg, *FOUR).end())
    for victim in tandem.STAGES:
        run = Run(cfg, *FOUR)
        run.wait_ready()
        pid = run.kill(victim, signal.SIGSTOP)
        time.sleep(3)
        check(pid is None or run.process.poll() is None, run.log())
        run.kill(victim, signal.SIGCONT)
        got, stats = answers(run.end())
        check(got == want and stats[victim]["restarts"] == 0, victim, stats[victim])
    run = Run(cfg, "bench", "--gen-tokens", "1900")
    run.wait_ready()
    run.kill("gpu_worker", signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    run.end(130)


def test_stopped_as_a_whole():
    """Ctrl-Z and fg: nobody is taken for dead."""
    run = Run(config(model("demo", "q8_0"), heartbeat_s=1), *FOUR)
    run.wait_ready()
    os.killpg(run.process.pid, signal.SIGSTOP)
    time.sleep(3)
    os.killpg(run.process.pid, signal.SIGCONT)
    _, stats = answers(run.end())
    check(all(p["restarts"] == 0 for p in stats.values()), run.log())


def test_given_up():
    """Under a limit that is reached while a request is under way, with no other backend: the request ends, and says why. What it got
    further since the death before counts for it."""
    for fault, deaths in (("gpu_worker:oom@30:always", 1), ("gpu_worker:oom@1:always", 2)):
        if tandem.SANITIZE:
            fault = fault.replace("oom", "exit")  # sanitizers take memory of their own
        run = Run(config(model("demo", "f32"), restarts_per_minute=1), *GREEDY, "--fault", fault)
        run.end(1)
        times = "1 time" if deaths == 1 else f"{deaths} times"
        check(run.count(f"'{fault}' happens now") == 2, fault, run.log())  # nothing of the request is sent once more
        check(run.count("it is started again (restart 1)") == 1, fault, run.log())
        answer = json.loads(run.out)
        check(answer["finish_reason"] == "error" and run.lines[-1].endswith(answer["error"]), fault, answer, run.log())
        check(f"given up after 1 restart within a minute ('restarts_per_minute'): {times} in a row a stage died while it was under way" in run.lines[-1], fault, run.log())
        check(tandem.SANITIZE or "raise 'memory.gpu_worker'" in run.lines[-1], fault, run.log())


def test_replaced_model():
    """A loader that is started again must find the file that the others have their weights of: not another in its place, not one that
    was written to, not one that is longer, each told by that alone."""
    path = tandem.scratch("replaced.gguf")

    def other_in_its_place(st):
        shutil.copyfile(path, path + ".new")
        os.utime(path + ".new", ns=(st.st_atime_ns, st.st_mtime_ns))
        os.replace(path + ".new", path)

    def written_to(st):
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns + 1000))

    def longer(st):
        with open(path, "ab") as f:
            f.write(b"\0" * 64)
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))

    def read_only(st):
        os.chmod(path, 0o400)

    for change in (other_in_its_place, written_to, longer, read_only):
        shutil.copyfile(model("demo", "f32"), path)
        run = Run(config(path), *LASTING)
        run.wait_ready()
        change(os.stat(path))
        check(run.kill("loader"), change.__name__, "it ended too early", run.log())
        if change is read_only:  # the same file
            check(run.wait("recovered from"), run.log())
            run.end()
        else:
            run.end(1)
            size = os.path.getsize(path)
            words = f"model '{path}' was replaced or written to since the start", f", now {size}); expected the file"
            check(all(w in run.lines[-1] for w in words), change.__name__, run.log())
        os.unlink(path)


def test_no_restarts_while_summing():
    """imatrix: what a worker had summed is gone with it; a clear end, and no file."""
    text, out = tandem.scratch("sums.txt"), tandem.scratch("sums.gguf")
    with open(os.path.join(tandem.DEMO, "eval.txt"), encoding="utf-8") as f, open(text, "w", encoding="utf-8") as g:
        g.write(f.read()[:200000])
    for victim in tandem.STAGES:
        run = Run(config(model("demo", "q8_0")), "imatrix", "--file", text, "--out", out)
        run.wait_ready()
        time.sleep(0.3)
        run.kill(victim)
        run.end(1)
        check(victim in run.lines[-1] and "what it had collected is lost" in run.lines[-1], run.log())
        check(not os.path.exists(out), "a file was left")


def test_caps_stay():
    """The new process is in the group of its predecessor, whose cap is the same."""
    cap = 2048 if tandem.SANITIZE else 200  # MiB: what sanitizers take is planned, too
    run = Run(config(model("demo", "f32"), memory=f"{{gpu_worker: {cap}MiB}}"), *SEEDED)
    run.wait_ready()
    folders = tandem.cgroups([run.process.pid])
    run.kill("gpu_worker")
    alive = run.wait("recovered from")
    if not folders or not alive:
        run.end()
        tandem.skip("no cgroups: caps are not enforced here" if not folders else "it ended too early")
    found = []
    for name in ("memory.max", "memory.limit_in_bytes", "cgroup.procs"):
        try:
            with open(os.path.join(folders[0], "gpu_worker", name), encoding="utf-8") as f:
                found.append(f.read().split())
        except FileNotFoundError:
            continue
    pid = run.pid("gpu_worker")
    run.end()
    check(found == [[str(cap << 20)], [str(pid)]] or pid is None, found, pid)


if __name__ == "__main__":
    tandem.main(globals())
