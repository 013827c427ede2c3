#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Mangled HTTP requests at a server on this machine, best one built with sanitizers: whole requests with bytes changed, taken away
and put in, JSON with members that have other types and sizes, deep nesting, bad UTF-8, framing that two readers could understand
differently, many on one connection, some cut off. Whatever comes back is a response with a status of 200 or 4xx (or 503, when it is
full), or the end of the connection; what stands behind a refused head is never answered; in the end the server answers as it
should, nobody's request runs on, and it ends without a report of a sanitizer. Exit status 0: so it was.

  TANDEM_BIN=build/asan/bin bench/http/fuzz.py [--requests N] [--seed N]"""
import argparse
import json
import os
import random
import socket
import sys
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
sys.dont_write_bytecode = True
os.environ.setdefault("TANDEM_BIN", os.path.join(ROOT, "build", "asan", "bin"))
os.environ.setdefault("TANDEM_E2E", os.path.join(ROOT, "build", "asan", "e2e"))
import tandem  # noqa: E402
from http_client import Raw, Server  # noqa: E402
from tandem import Failure, check  # noqa: E402

PATHS = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/models", "/health", "/metrics", "/v1/stats", "/",
         "/style.css", "/../etc/passwd", "/v1/%63ompletions", "/v1/completions?x=1&y", "*", "http://a/health", "/" + "a" * 5000]
HEADERS = [b"Connection: close", b"Connection: keep-alive", b"Expect: 100-continue", b"Authorization: Bearer x", b"Authorization: ",
           b"Origin: http://evil.example", b"Transfer-Encoding: chunked", b"Content-Length: 7", b"Content-Length: 0", b"Host: [::1]",
           b"X: " + b"a" * 9000, b"Accept: \xff\xfe", b"Upgrade: h2c", b"Content-Encoding: gzip", b" folded: x", b"Range: bytes=0-"]
BITS = [b"\r\n", b"\0", b"\xff", b": ", b"{", b'"', b"9" * 20, b"\r\n\r\n", b"\\ud800", b"[" * 3000, b"0\r\n\r\n", b"\xf0\x9f\x98", b"-"]
VALUES = ["x", "", "Once", 1, 0, -1, 1.5, 1e308, 10**18, True, False, None, [], {}, ["a", 1], [[1]], [1, 2, 3], {"role": "user"},
          [{"role": "user", "content": "Hi"}], [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], {"1": -100}, {"1": "x"},
          "\ud83d\ude00", "a" * 3000, {"type": "json_object"}, [None] * 17, {"a": {"b": {"c": {}}}},
          {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"a": {"enum": [1, "b"]}}}}},
          {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {"$ref": "#"}}},
          {"type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": {f"p{i}": {} for i in range(400)}}}}]
MEMBERS = ["prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "stream", "stream_options", "stop", "seed",
           "logprobs", "top_logprobs", "logit_bias", "response_format", "presence_penalty", "frequency_penalty", "repetition_penalty",
           "model", "user", "echo", "tools", "content", "tokens", "max_completion_tokens", "add_special", "prompt\0", "text"]
# Lines that make of a good request one that two readers could understand differently.
DOUBTS = [b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chun\r\n\tked", b"Transfer-Encoding : x",
          b"Content-Length:\r\n 60", b"Content-Length: 60", b"Content-Length: 0", b"X: a\r\n b", b"X: a\r\n\t", b"X: a\0b", b"X: a\0",
          b"\0X: a", b"X: a\nContent-Length: 60", b"X: a\n", b"X: a\rTransfer-Encoding: chunked", b" X: a",
          b"Origin: http://localhost\r\n .example", b"Host: b", b"no colon"]
HIDDEN = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


def body(rng):
    members = {m: rng.choice(VALUES) for m in rng.sample(MEMBERS, rng.randrange(0, 6))}
    members.setdefault("max_tokens", rng.randrange(1, 4))
    members.setdefault(rng.choice(["prompt", "messages", "content", "tokens"]), rng.choice(VALUES))
    return json.dumps(members).encode()


def mangle(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4, 8])):
        at, what = rng.randrange(len(data) + 1), rng.randrange(4)
        if what == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif what == 1:
            del data[at:at + rng.randrange(1, 16)]
        elif what == 2:
            data[at:at] = rng.choice(BITS)
        else:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[other:other + rng.randrange(1, 40)]
    return bytes(data)


def request(rng):
    data = body(rng) if rng.randrange(2) else json.dumps({"prompt": "Once", "max_tokens": 2}).encode()
    method = rng.choice([b"POST"] * 6 + [b"GET", b"GET", b"OPTIONS", b"HEAD", b"PUT", b"DELETE", b"TRACE", b"CONNECT"])
    lines = [method + b" " + rng.choice(PATHS[:4] * 4 + PATHS).encode() + rng.choice([b" HTTP/1.1"] * 6 + [b" HTTP/1.0", b" HTTP/2.0", b""])]
    lines += [b"Host: localhost", b"Content-Type: application/json", b"Content-Length: %d" % len(data)]
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(HEADERS))
    if rng.randrange(8) == 0:
        data = mangle(rng, data)
    whole = b"\r\n".join(lines) + b"\r\n\r\n" + data
    return mangle(rng, whole) if rng.randrange(2) else whole


def doubtful(rng):
    """Such a request, and one behind it that must not be answered."""
    data = rng.choice([b'{"content": "Once"}', b"0\r\n\r\n", b"13\r\n{\"content\": \"Once\"}\r\n0\r\n\r\n", HIDDEN])
    lines = [b"Host: localhost", b"Content-Type: application/json", b"Content-Length: %d" % len(data)]
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(DOUBTS))
    return b"\r\n".join([b"POST /tokenize HTTP/1.1"] + lines) + b"\r\n\r\n" + data + HIDDEN


def statuses(data):
    """Of what came back: at least the first response must be whole in its head."""
    found = []
    for piece in data.split(b"HTTP/1.1 ")[1:]:
        found.append(int(piece[:3]))
    check(not data or data.startswith(b"HTTP/1.1 "), "no response:", data[:200])
    return found


def one_round(server, rng, counts):
    """Several connections at once, each with some requests one after the other."""
    clients = []
    for _ in range(100):
        c = Raw(server)
        c.doubtful = rng.randrange(8) == 0
        try:
            if c.doubtful:
                counts["requests"] += 1
                c.send(doubtful(rng))
                clients.append(c)  # ended by the server
                continue
            for _ in range(rng.choice([1, 1, 1, 2, 5])):
                data = request(rng)
                if rng.randrange(8) == 0:
                    data = data[:rng.randrange(len(data) + 1)]
                counts["requests"] += 1
                c.send(data)
            if rng.randrange(6) == 0:
                c.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                c.s.close()
                counts["reset"] += 1
                continue
            c.s.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # cut before all was said
        clients.append(c)
    for c in clients:
        check(c.ended(), "a connection does not end")
        check(not c.doubtful or b'"object":"list"' not in c.buffer, "what was hidden in a request was answered:", c.buffer)
        for status in statuses(c.buffer):
            counts[status] = counts.get(status, 0) + 1
            check(status in (100, 200, 204, 501, 503, 505) or 400 <= status < 500, status, c.buffer[:500])
        c.s.close()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--requests", type=int, default=20000)
    p.add_argument("--seed", type=int, default=1)
    o = p.parse_args()
    rng, counts, begin = random.Random(o.seed), {"requests": 0, "reset": 0}, time.monotonic()
    try:
        with Server("q8_0", context=256, http__timeout=1, http__max_body="64KiB") as s:
            want = s.complete("Once", max_tokens=20, temperature=0)["choices"][0]["text"]
            shown = 0
            while counts["requests"] < o.requests:
                one_round(s, rng, counts)
                if counts["requests"] // 5000 > shown:
                    shown = counts["requests"] // 5000
                    memory = {p["name"]: p["private_bytes"] >> 10 for p in s.stats()["processes"]}
                    print(f"{counts['requests']} requests, {time.monotonic() - begin:.0f} s; private KiB {memory}", flush=True)
            tandem.wait_until(lambda: s.stats()["requests"]["running"] == 0, 60, lambda: s.stats()["requests"])
            check(s.complete("Once", max_tokens=20, temperature=0)["choices"][0]["text"] == want, "another text afterwards")
            restarts = {p["name"]: p["restarts"] for p in s.stats()["processes"]}
            check(not any(restarts.values()), restarts)
    except Failure as e:
        sys.exit(f"fuzz.py: {e}")
    print(f"{counts['requests']} requests in {time.monotonic() - begin:.0f} s: {dict(sorted(counts.items(), key=str))}")


if __name__ == "__main__":
    main()
