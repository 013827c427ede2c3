#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Runs one pipeline for an hour (or --seconds) under mixed requests, samples every process once a second through the control socket,
and says whether memory, descriptors and threads stayed flat: the last quarter against the second. Exit status 0: they did.

  bench/soak/run.py [--seconds N] [--model FILE.gguf] [--csv FILE] [--set KEY=VALUE]..."""
import argparse
import os
import signal
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
sys.dont_write_bytecode = True
os.environ.setdefault("TANDEM_BIN", os.path.join(ROOT, "build", "release", "bin"))
os.environ.setdefault("TANDEM_E2E", os.path.join(ROOT, "build", "release", "e2e"))
import soak  # noqa: E402
import tandem  # noqa: E402


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=int, default=3600)
    p.add_argument("--model", help="default: the demo model in q8_0")
    p.add_argument("--csv", help="write every sample to this file")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the configuration, such as npu.threads=2")
    o = p.parse_args()
    keys = {k.replace(".", "__"): v for k, _, v in (s.partition("=") for s in o.set)}
    cfg = tandem.config(os.path.abspath(o.model) if o.model else tandem.model("demo", "q8_0"), **keys)
    csv = open(o.csv, "w", encoding="utf-8") if o.csv else None
    shown = -60.0

    def log(row):
        nonlocal shown
        seconds, figures, s = row
        if csv:
            if csv.tell() == 0:
                csv.write("seconds," + ",".join(f"{n}.{w}" for n in figures for w in figures[n]) + ",finished,output_tokens\n")
            csv.write(f"{seconds:.1f}," + ",".join(str(v) for f in figures.values() for v in f.values()) +
                      f",{s['requests']['finished']},{s['tokens']['output']}\n")
            csv.flush()
        if seconds - shown >= 60:
            shown = seconds
            print(f"{seconds:6.0f} s: {s['requests']['finished']} requests; private KiB: " +
                  ", ".join(f"{n} {f['private'] >> 10}" for n, f in figures.items()), flush=True)

    process = tandem.start("bench_soak", cfg, o.seconds)
    try:
        rows = soak.watch(process, 1.0, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        if csv:
            csv.close()
    print(out.decode().strip(), err.decode().strip())
    try:
        tandem.check(process.returncode == 0, "status", process.returncode)
        tandem.check(not tandem.left_behind(), "left behind:", tandem.left_behind())
        print(soak.judge(rows))
    except tandem.Failure as e:
        print(f"FAILED: {e}")
        return 1
    print(f"flat: {len(rows)} samples, bound {soak.BOUND} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
