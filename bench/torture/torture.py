#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Kills stages of a pipeline at random moments while it generates, and compares every text with that of an undisturbed run.

    bench/torture/torture.py --bin build/release/bin --model models/demo-q8_0.gguf --kills 1000 --seed 1

Two kinds of run take turns: short ones (`generate` with 1 to 4 sequences, greedy or seeded, short and long prompts), and long ones, in
which a coordinator answers line after line. Each run has a new coordinator. In the long ones it and its stages are looked at after each
answer, and each process is compared with itself: the coordinator from its first look to its last, a stage for as long as it lives. A kill
is SIGKILL, SIGSEGV or SIGSTOP (found as a hang) of one stage; now and then two stages die at once, or the successor is killed
while it starts. Exit status 1: a text differs, a request was lost, or something was left behind. Standard library only.

On backends that promise less (Vulkan, an NPU), `--near BOUND` takes greedy answers alone, and one that differs for right if it first does
where the two best logits of the cpu backend are nearer than twice BOUND."""
import argparse
import array
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

STAGES = ("loader", "npu_worker", "gpu_worker")
SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGSEGV,) * 3 + (signal.SIGSTOP,)
PROMPTS = ["Tell me a story about a " + w for w in
           ("cat", "red kite", "small boat", "bear and a bee", "girl who could fly", "lost shoe", "snowman", "very old tree")]
RECOVERED = re.compile(r"recovered from the end of (\w+): pause ([0-9.]+) ms \(detect ([0-9.]+) before; restart ([0-9.]+), remap "
                       r"([0-9.]+), re-prefill ([0-9.]+)\)")
TIMEOUT = 300
SETTLE = 3
# What a process may have more at its last look than at its first. npu_worker: huge pages of its pool besides, which
# it touches one after the other as texts get longer.
GROWTH_KIB = {"coordinator": 1024, "loader": 1024, "npu_worker": 1024 + 8 * 2048, "gpu_worker": 1024}


class Wrong(Exception):
    pass


class Pipeline:
    """A coordinator, its log with the time of each line, and its output."""

    def __init__(self, torture, *args, **options):
        env = {**os.environ, "TANDEM_LOG": "info", "TANDEM_RUNTIME_DIR": torture.runtime}
        command = [os.path.join(torture.bin, "coordinator"), "--config", torture.config, *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True, **options)
        self.lines, self.out = [], b""
        self.threads = [threading.Thread(target=self._read_log, daemon=True), threading.Thread(target=self._read_output, daemon=True)]
        for t in self.threads:
            t.start()

    def _read_log(self):
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.decode("utf-8", "replace").rstrip()))

    def _read_output(self):
        while True:
            some = self.process.stdout.read1(65536)
            if not some:
                return
            self.out += some

    def log(self):
        return "\n".join(line for _, line in self.lines)

    def count(self, words):
        return sum(words in line for _, line in list(self.lines))

    def runs(self):
        return self.process.poll() is None

    def wait(self, condition, what, seconds=TIMEOUT):
        end = time.monotonic() + seconds
        while not condition() and self.runs():
            if time.monotonic() > end:
                self.process.kill()
                raise Wrong(f"{what}: not within {seconds} s\n{self.log()[-4000:]}")
            time.sleep(0.001)

    def stage(self, name):
        """Process id, or None."""
        me = self.process.pid
        try:
            with open(f"/proc/{me}/task/{me}/children", encoding="ascii") as f:
                children = f.read().split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        for pid in children:
            try:
                with open(f"/proc/{pid}/comm", encoding="utf-8") as f, open(f"/proc/{pid}/stat", encoding="utf-8") as g:
                    if f.read().strip() == name and g.read().rpartition(")")[2].split()[0] != "Z":
                        return int(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return None

    def end(self):
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Wrong(f"did not end within {TIMEOUT} s\n{self.log()[-4000:]}") from None
        for t in self.threads:
            t.join()
        self.process.stdout.close()
        self.process.stderr.close()
        if self.process.returncode:
            raise Wrong(f"status {self.process.returncode}\n{self.log()[-4000:]}")
        return self.out.decode("utf-8")


def texts(out):
    j = json.loads(out)
    return j["prompt_ids"], [(a["finish_reason"], a["output_ids"]) for a in j.get("choices", [j])]


class Folder:
    """Where pipelines run: their configuration, without limits of restarts, and a runtime folder of their own."""

    def __init__(self, args, prefix, *keys):
        self.bin = args.bin
        self.folder = tempfile.mkdtemp(prefix=prefix)
        self.runtime = os.path.join(self.folder, "run")
        os.mkdir(self.runtime)
        self.config = os.path.join(self.folder, "config.yaml")
        with open(self.config, "w", encoding="utf-8") as f:
            f.write("\n".join((f"model: {os.path.abspath(args.model)}", "restarts: 1000000", "restarts_per_minute: 1000000", *keys,
                               *args.set)) + "\n")

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class Torture(Folder):
    def __init__(self, args):
        self.args, self.rng = args, random.Random(args.seed)
        super().__init__(args, "torture-", "heartbeat_s: 1")
        self.kills, self.by, self.pauses, self.detect, self.looks = 0, {}, [], [], {}
        self.lock = threading.Lock()
        self.undisturbed = {}
        self.answers = self.ties = 0

    # ---------------------------------------------------------------- what runs

    def jobs(self):
        """name: arguments of generate. The long prompt fills several chunks at once, across the border of the model's window."""
        short = PROMPTS[0]
        long = " ".join(f"Once there was a {p[24:]}. It was happy and went home. The next day it came back to play again." for p in PROMPTS * 7)
        jobs = {}
        for n in range(1, 5):
            jobs[f"greedy x{n}"] = ("--prompt", short, "--temperature", "0", "--parallel", n)
            jobs[f"seeded x{n}"] = ("--prompt", short, "--temperature", "1", "--seed", "11", "--parallel", n)
        if self.args.near:
            jobs = {n: a for n, a in jobs.items() if n.startswith("greedy")}
        jobs["long prompt"] = ("--prompt", long, "--temperature", "0", "--parallel", 1)
        if not self.args.near:
            jobs["long prompt x3"] = ("--prompt", long, "--temperature", "1", "--seed", "5", "--parallel", 3)
        return {name: ("generate", *map(str, a), "--chat", "--max-tokens", str(self.args.tokens), "--json") for name, a in jobs.items()}

    # ---------------------------------------------------------------- kills

    def kill(self, p, stage, number):
        pid = p.stage(stage)
        if pid is None:
            return False
        at = len(p.lines)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        now = time.monotonic()
        self.kills += 1
        key = f"{stage} {number.name}"
        self.by[key] = self.by.get(key, 0) + 1
        if number != signal.SIGSTOP:
            self.detect.append((p, pid, at, now))
        return True

    def some_kill(self, p):
        """One of: a stage; two at once; a stage and its successor while it starts."""
        stage, number, what = self.rng.choice(STAGES), self.rng.choice(SIGNALS), self.rng.random()
        done = p.count("recovered from")
        if not self.kill(p, stage, number):
            return
        if what < 0.1:
            self.kill(p, self.rng.choice([s for s in STAGES if s != stage]), self.rng.choice(SIGNALS))
        elif what < 0.25 and number != signal.SIGSTOP:
            time.sleep(self.rng.uniform(0.002, 0.02))
            self.kill(p, self.rng.choice(STAGES), signal.SIGKILL)
        p.wait(lambda: p.count("recovered from") > done, "no recovery", 60)

    def note(self, p):
        """Pauses out of a log."""
        for _, line in p.lines:
            m = RECOVERED.search(line)
            if m:
                self.pauses.append((m[1], *map(float, m.groups()[1:])))
        for q, pid, at, when in self.detect:
            if q is p:
                seen = next((t for t, line in p.lines[at:] if f"(pid {pid}) was killed" in line), None)
                if seen is not None:
                    self.pauses_detect.append((seen - when) * 1e3)
        self.detect = [d for d in self.detect if d[0] is not p]

    # ---------------------------------------------------------------- runs

    def short_run(self, name, args):
        p = Pipeline(self, *args)
        p.wait(lambda: p.count(" is ready: ") >= 3, "start")
        while p.runs() and self.kills < self.args.kills:
            time.sleep(self.rng.expovariate(1 / self.args.gap))
            if p.runs():
                self.some_kill(p)
        ids, got = texts(p.end())
        _, want = self.undisturbed[name]
        self.answers += 1
        if got != want:
            self.ties += 1
            if len(got) != len(want) or not all(self.near(ids, g[1], w[1]) for g, w in zip(got, want)):
                raise Wrong(f"'{name}': another text\n{got}\ninstead of\n{want}\n{p.log()[-4000:]}")
        self.note(p)
        self.nothing_left(p)

    def near(self, prompt, got, want):
        """The same, or first different at a near tie."""
        at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), None)
        if at is None or not self.args.near:
            return got == want
        out = os.path.join(self.folder, "logits.npy")
        Pipeline(self, "--set", "gpu.backend=cpu", "--set", "npu.backend=cpu", "eval", "--ids", ",".join(map(str, prompt + want[:at])),
                 "--logits", out).end()
        with open(out, "rb") as f:
            data = f.read()
        rows = array.array("f", data[10 + int.from_bytes(data[8:10], "little"):])
        last = sorted(rows[-(len(rows) // (len(prompt) + at)):])
        return last[-1] - last[-2] < 2 * self.args.near

    def long_run(self, kills):
        """Line after line to one coordinator; what it and stages that live on hold when they idle must not grow."""
        args = ("--temperature", "0", "--max-tokens", "150")
        lines = [self.rng.choice(PROMPTS) for _ in range(max(4, kills // 4))]
        p = Pipeline(self, *args, stdin=subprocess.PIPE)
        p.wait(lambda: p.count(" is ready: ") >= 3, "start")
        until = min(self.kills + kills, self.args.kills)
        want = b""
        for line in lines:
            want += self.chat(line)
            p.process.stdin.write(line.encode() + b"\n")
            p.process.stdin.flush()
            for _ in range(4):
                if self.kills < until:
                    time.sleep(self.rng.expovariate(4 / self.args.gap))
                    self.some_kill(p)
            p.wait(lambda: len(p.out) >= len(want), f"the answer to '{line}'")
            if p.out != want:
                raise Wrong(f"'{line}': another text: {p.out[-400:]!r} instead of {want[-400:]!r}\n{p.log()[-4000:]}")
            self.look(p)
        p.process.stdin.close()
        p.end()
        self.note(p)
        self.nothing_left(p)

    def chat(self, line):
        if line not in self.undisturbed:
            p = Pipeline(self, "--temperature", "0", "--max-tokens", "150", stdin=subprocess.PIPE)
            p.process.stdin.write(line.encode() + b"\n")
            p.process.stdin.close()
            self.undisturbed[line] = p.end().encode()
        return self.undisturbed[line]

    @staticmethod
    def held(pid):
        """Descriptors, memfds among them, threads, KiB of private memory."""
        links = []
        for n in os.listdir(f"/proc/{pid}/fd"):
            try:
                links.append(os.readlink(f"/proc/{pid}/fd/{n}"))
            except FileNotFoundError:
                continue
        with open(f"/proc/{pid}/status", encoding="utf-8") as f:
            status = dict(line.split(":", 1) for line in f if ":" in line)
        if "RssAnon" not in status:  # it has just ended
            raise ProcessLookupError(pid)
        return {"fds": len(links), "memfds": sum("/memfd:" in link for link in links), "threads": int(status["Threads"]),
                "private_kib": int(status["RssAnon"].split()[0])}

    def grown(self, name, first, last):
        """Of what it has more than it may have more; "" for nothing."""
        more = {"fds": 2, "memfds": 0, "threads": 0, "private_kib": GROWTH_KIB[name]}
        return ", ".join(k for k in more if last[k] > first[k] + more[k] and not (self.args.no_memory and k == "private_kib"))

    def look(self, p):
        """At each process of an idle pipeline. Pids come again, so a process is known by its start as well; one that still starts has
        next to nothing."""
        stages = {s: p.stage(s) for s in STAGES}
        ready = {s for s, pid in stages.items() if p.count(f"{s} (pid {pid}) is ready: ")}
        for name, pid in (("coordinator", p.process.pid), *stages.items()):
            if name != "coordinator" and name not in ready:
                continue
            try:
                with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
                    start = f.read().rpartition(")")[2].split()[19]
                looks = self.looks.setdefault((name, pid, start), [])
                if name == "coordinator" and not looks:  # in a recovery it has a thread less
                    if len(ready) < len(STAGES):
                        continue
                    time.sleep(0.1)
                held, end = self.held(pid), time.monotonic() + SETTLE
                while looks and self.grown(name, looks[0], held) and time.monotonic() < end:  # the last recovery may be under way
                    time.sleep(0.05)
                    held = self.held(pid)
                looks.append(held)
            except (FileNotFoundError, ProcessLookupError):
                continue

    def nothing_left(self, p):
        session, end = p.process.pid, time.monotonic() + 3
        while True:
            left = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
                        fields = f.read().rpartition(")")[2].split()
                    if int(fields[3]) == session and fields[0] not in "ZX":
                        left.append(f"process {pid}")
                except (FileNotFoundError, ProcessLookupError):
                    continue
            for folder, _, files in os.walk(self.runtime):
                left += [os.path.join(folder, f) for f in files]
            for folder, names, _ in os.walk("/sys/fs/cgroup"):
                left += [os.path.join(folder, n) for n in names if n == f"tandem-{session}"]
            if not left:
                return
            if time.monotonic() > end:
                raise Wrong(f"left behind: {left}")
            time.sleep(0.02)

    def run(self):
        self.pauses_detect = []
        jobs = self.jobs()
        for name, args in jobs.items():
            self.undisturbed[name] = texts(Pipeline(self, *args).end())
        start, turn = time.monotonic(), 0
        while self.kills < self.args.kills:
            if turn % 12 == 3 and not self.args.near:
                self.long_run(max(8, self.args.kills // 8))
            else:
                name = self.rng.choice(list(jobs))
                self.short_run(name, jobs[name])
            turn += 1
        self.seconds = time.monotonic() - start
        self.judge_growth()
        return self.result()

    def judge_growth(self):
        """Of each process on its own: descriptors and threads return to what they were, and private memory does not grow with deaths."""
        for (name, pid, _), looks in self.looks.items():
            if looks and (what := self.grown(name, looks[0], looks[-1])):
                raise Wrong(f"{name} (pid {pid}) has more than at first of {what}: {looks}")

    def held_most(self):
        """For each kind of process: how many were looked at more than once, how often the one most looked at, the first and the last look
        at it, and what any had more in its last look than in its first."""
        figures = {}
        for name in ("coordinator", *STAGES):
            all_looks = [looks for (n, _, _), looks in self.looks.items() if n == name and len(looks) > 1]
            if all_looks:
                longest = max(all_looks, key=len)
                figures[name] = {"processes": len(all_looks), "looks": len(longest), "first": longest[0], "last": longest[-1],
                                 "most_growth": {k: max(looks[-1][k] - looks[0][k] for looks in all_looks) for k in longest[0]}}
        return figures

    # ---------------------------------------------------------------- figures

    def result(self):
        def split(values):
            values = sorted(values)
            if not values:
                return None
            return {"median": round(statistics.median(values), 1), "p99": round(values[min(len(values) - 1, int(len(values) * 0.99))], 1),
                    "most": round(values[-1], 1)}
        columns = ("pause", "hang", "restart", "remap", "re-prefill")
        figures = {}
        for stage in (*STAGES, "all"):
            rows = [p for p in self.pauses if stage in (p[0], "all")]
            figures[stage] = {"recoveries": len(rows), **{c: split([r[1 + i] for r in rows]) for i, c in enumerate(columns) if c != "hang"}}
        figures["all"]["detect (kill)"] = split(self.pauses_detect)
        figures["all"]["detect (hang)"] = split([p[2] for p in self.pauses if p[2] > 0])
        return {"kills": self.kills, "by": dict(sorted(self.by.items())), "seed": self.args.seed, "seconds": round(self.seconds, 1), "runs": self.answers,
                "near_ties": self.ties,
                "ms": figures, "held": self.held_most()}


def show(r):
    print(f"{r['kills']} kills in {r['seconds']} s, seed {r['seed']}: every text as without them"
          + (f" but for near ties in {r['near_ties']} of {r['runs']} runs" if r["near_ties"] else "") + ", nothing left behind")
    print("  " + ", ".join(f"{k} {n}" for k, n in r["by"].items()))
    for stage, f in r["ms"].items():
        cells = [f"{c} {v['median']} / {v['p99']} / {v['most']}" for c, v in f.items() if isinstance(v, dict)]
        print(f"  {stage:<11} {f['recoveries']:>4} recoveries; ms, median / p99 / most: " + "; ".join(cells))
    for name, h in r["held"].items():
        print(f"  {name:<11} when idle: {h['processes']} looked at more than once, the longest {h['looks']} times, at first and at last: "
              f"{h['first']}, {h['last']}; any of them grew by at most {h['most_growth']}")


def parse(words=None):
    a = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    a.add_argument("--bin", default="build/release/bin", help="folder of the programs")
    a.add_argument("--model", required=True, help="GGUF file")
    a.add_argument("--kills", type=int, default=1000)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--tokens", type=int, default=300, help="of each answer at most")
    a.add_argument("--gap", type=float, default=0.1, help="mean seconds from a recovery to the next kill")
    a.add_argument("--near", type=float, default=0, help="bound of logits beside the cpu backend, where texts may differ at near ties")
    a.add_argument("--set", action="append", default=[], help="line of the config, such as 'npu: {threads: 1}'; may be repeated")
    a.add_argument("--no-memory", action="store_true", help="private memory may grow: sanitizers keep what was freed")
    a.add_argument("--json", action="store_true")
    return a.parse_args(words)


def main(words=None):
    torture = Torture(parse(words))
    try:
        r = torture.run()
    except Wrong as e:
        print(f"torture: error: after {torture.kills} kills (seed {torture.args.seed}): {e}", file=sys.stderr)
        return 1
    finally:
        torture.close()
    print(json.dumps(r, indent=1)) if torture.args.json else show(r)
    return 0


if __name__ == "__main__":
    sys.exit(main())
