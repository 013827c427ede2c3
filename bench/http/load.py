#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Streaming clients against a server on this machine: first one, then --clients of them for --seconds, beside --slow that read in
drops and --half that never finish asking. Says tokens/s of both and the times between events; memory, descriptors and threads must
stay flat. Exit status 0: no error, and so it was.

  bench/http/load.py [--clients N] [--seconds N] [--slow N] [--half N] [--type T] [--set KEY=VALUE]..."""
import argparse
import os
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
sys.dont_write_bytecode = True
os.environ.setdefault("TANDEM_BIN", os.path.join(ROOT, "build", "release", "bin"))
os.environ.setdefault("TANDEM_E2E", os.path.join(ROOT, "build", "release", "e2e"))
import http_load  # noqa: E402
import soak  # noqa: E402
from http_client import Server  # noqa: E402
from tandem import Failure  # noqa: E402


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clients", type=int, default=64)
    p.add_argument("--seconds", type=int, default=60)
    p.add_argument("--slow", type=int, default=8)
    p.add_argument("--half", type=int, default=16)
    p.add_argument("--type", default="q8_0", help="of the demo model")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the configuration, such as sequences=16")
    o = p.parse_args()
    keys = {"sequences": min(o.clients, 64), "context": 512, "http__max_connections": 2 * (o.clients + o.slow + o.half)}
    keys |= {k.replace(".", "__"): v for k, _, v in (s.partition("=") for s in o.set)}
    try:
        with Server(o.type, **keys) as s:
            alone = http_load.load(s, 1, max(o.seconds / 6, 2))
            print(alone, flush=True)
            together = http_load.load(s, o.clients, o.seconds, o.slow, o.half)
            print(together)
            print(f"{together.rate / alone.rate:.2f} times the tokens/s of one client; load {os.getloadavg()[0]:.1f}")
            print(soak.judge(together.rows))
    except Failure as e:
        sys.exit(f"load.py: {e}")


if __name__ == "__main__":
    main()
