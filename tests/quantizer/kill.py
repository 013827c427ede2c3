#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Kills a conversion again and again (SIGKILL, SIGINT or SIGTERM, at random moments) and lets it continue: the bytes must be
those of an undisturbed run.

    kill.py QUANTIZER [--kills N] [--layers N] [--type T] [--seed N] [more options of the quantizer]

The checkpoint is made in a temporary folder. Each run gets another number of threads; a short journal interval spreads the points
from which a run continues over the whole file.
"""
import argparse
import filecmp
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bench", "quantizer"))
import make_checkpoint  # noqa: E402 (its folder is known only now)


def command(a, source, out, threads):
    return [a.quantizer, "--in", source, "--out", out, "--type", a.type, "--journal", "128KiB", "--threads", str(threads)] + a.more


def outputs(out):
    stem = os.path.basename(out)[:-len(".gguf")]
    return sorted(f for f in os.listdir(os.path.dirname(out)) if f.startswith(stem))


def killed_run(a, source, out, threads, seconds, how):
    """True when the run was killed, False when it had ended before; and how many bytes it said it would keep."""
    with tempfile.TemporaryFile() as said:
        p = subprocess.Popen(command(a, source, out, threads), stdout=said, stderr=subprocess.STDOUT)
        time.sleep(seconds)
        p.send_signal(how)
        status = p.wait()
        said.seek(0)
        text = said.read().decode()
    # a signal that asks may come before its handler is there
    if status not in (0, -how, 0 if how == signal.SIGKILL else 128 + how):
        sys.exit(f"status {status}: {text}")
    kept = re.search(r"continuing: ([0-9.]+ \w+) of", text)
    return status != 0, kept.group(1) if kept else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantizer")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--seed", type=int, default=1)
    a, a.more = parser.parse_known_args()
    r = random.Random(a.seed)
    work = tempfile.mkdtemp(prefix="tandem-kill-")
    try:
        source, whole, out = (os.path.join(work, n) for n in ("in", "whole.gguf", "killed.gguf"))
        total = make_checkpoint.make(source, "small", a.layers, 8192, 30)
        begin = time.monotonic()
        subprocess.run(command(a, source, whole, 2), check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - begin
        kills, kept = 0, []
        # twice the share of one run, so that the kills spread over the conversion and half of them come early in a run; more where
        # a run gets nowhere, because the machine is busy
        share = 1.6 * seconds / a.kills + 0.03
        for _ in range(a.kills * 8):
            points = len({k for k in kept if k})
            if kills >= a.kills and points >= 2:
                break
            was_killed, at = killed_run(a, source, out, r.randint(1, 3), r.uniform(0, share),
                                        r.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)))
            if kept and at == kept[-1]:
                share *= 1.1
            kills += was_killed
            kept.append(at)
            if not was_killed:
                if kills >= a.kills:
                    break
                for name in outputs(out):  # done before the last kill: from the beginning
                    os.unlink(os.path.join(work, name))
        subprocess.run(command(a, source, out, 3), check=True, stdout=subprocess.DEVNULL)
        names = outputs(out)
        wanted = outputs(whole)
        if [n.replace("killed", "") for n in names] != [n.replace("whole", "") for n in wanted]:
            sys.exit(f"files: {names}; expected {wanted}")
        for x, y in zip(names, wanted):
            if not filecmp.cmp(os.path.join(work, x), os.path.join(work, y), shallow=False):
                sys.exit(f"{x} differs from {y}")
        points = len({k for k in kept if k})
        print(f"{total / 1e6:.0f} MB in, {seconds:.2f} s undisturbed, {kills} kills, {points} different points to continue from, "
              "same bytes")
        if kills < min(a.kills, 5) or points < 2:
            sys.exit("too few kills or points: the test says nothing")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
