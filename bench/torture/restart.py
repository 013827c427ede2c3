#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How long a killed worker is away, and what its successor reads of the model: `coordinator bench` generates while one worker is killed
again and again, each time once it is back and has got further.

    bench/torture/restart.py MODEL.gguf [--kills 30] [--bin build/release/bin] [--set 'gpu: {threads: 1}']

ready: from the kill, by this program's clock, until all three stages are ready again. restart, remap and re-prefill: as the coordinator
tells them; restart lasts until the process runs and is configured, remap until all stages have weights and rings. read: bytes that the
loader read of the model beyond those of a run without kills. Exit status 1: that was more than a hundredth of the file for each kill,
or a run failed."""
import argparse
import json
import os
import random
import signal
import statistics
import sys
import time

from torture import RECOVERED, Folder, Pipeline, Wrong


class Bench(Folder):
    def __init__(self, args):
        super().__init__(args, "restart-", "context: 512", "sequences: 1")
        self.args, self.rng = args, random.Random(1)

    def start(self):
        p = Pipeline(self, "bench", "--prompt-tokens", "16", "--gen-tokens", str(self.args.tokens), "--repetitions", "1", "--json")
        p.wait(lambda: p.count(" is ready: ") >= 3, "start")
        return p

    @staticmethod
    def read(p):
        return next(s["bytes_read"] for s in json.loads(p.end())["processes"] if s["name"] == "loader")

    @staticmethod
    def kill(p, victim):
        """Milliseconds until all are ready, or None: the run ended before."""
        pid, seen, done = p.stage(victim), p.count(" is ready: "), p.count("recovered from")
        if pid is None:
            return None
        when = time.monotonic()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
        p.wait(lambda: p.count("recovered from") > done, "no recovery", 60)
        ready = [t for t, line in list(p.lines) if " is ready: " in line]
        return (ready[seen + 2] - when) * 1e3 if len(ready) >= seen + 3 and p.count("recovered from") > done else None

    def measure(self, victim, undisturbed):
        ready, recovered, read = [], [], 0
        while len(ready) < self.args.kills:
            p = self.start()
            while p.runs() and len(ready) < self.args.kills:
                time.sleep(self.rng.uniform(0.05, 0.25))
                ms = self.kill(p, victim) if p.runs() else None
                if ms is not None:
                    ready.append(ms)
            read += self.read(p) - undisturbed
            recovered += [list(map(float, m.groups()[2:])) for _, line in p.lines if (m := RECOVERED.search(line)) and m[1] == victim]
        return ready, recovered, read

    def run(self):
        size, enough = os.path.getsize(self.args.model), True
        undisturbed = self.read(self.start())
        print(f"{self.args.model}: {size} bytes; a run without kills reads {undisturbed}; ms: median, most")
        for victim in ("gpu_worker", "npu_worker"):
            ready, recovered, read = self.measure(victim, undisturbed)
            parts = (("ready", ready), *((n, [r[k] for r in recovered]) for k, n in ((1, "restart"), (2, "remap"), (3, "re-prefill"))))
            said = "; ".join(f"{name} {statistics.median(v):.1f}, {max(v):.1f}" for name, v in parts)
            print(f"{victim}: {len(ready)} kills: {said}; read {read} bytes more", flush=True)
            enough &= read <= len(ready) * size / 100
        return enough


def main(argv=None):
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--bin", default="build/release/bin")
    p.add_argument("--kills", type=int, default=30)
    p.add_argument("--tokens", type=int, default=480)
    p.add_argument("--set", action="append", default=[], metavar="'KEY: VALUE'", help="a line more of the configuration")
    bench = Bench(p.parse_args(argv))
    try:
        enough = bench.run()
        if not enough:
            print("more was read than rows of the embedding", file=sys.stderr)
        return 0 if enough else 1
    except Wrong as e:
        print(e, file=sys.stderr)
        return 1
    finally:
        bench.close()


if __name__ == "__main__":
    sys.exit(main())
