# SPDX-License-Identifier: MIT
"""What test_http_load.py and bench/http/load.py share: many streaming clients at once against one server, with some among them that
read slowly and some that never finish asking."""
import asyncio
import json
import random
import socket
import time

import soak
from tandem import check

ENDLESS = {"logit_bias": {"1": -100, "106": -100}}  # neither end of text nor end of turn
WORDS = ("Once upon a time", "The little cat", "One day a boy", "In the garden", "Tell me about the red kite")


class Client:
    """One after the other, streamed answers of different lengths; every fourth is a chat."""

    def __init__(self, number):
        self.rng = random.Random(number)
        self.answers = self.events = 0
        self.first, self.gaps, self.errors = [], [], []  # seconds

    def body(self):
        rng = self.rng
        params = {"max_tokens": rng.randrange(30, 120), "seed": rng.randrange(1 << 30), "temperature": 1.0, "stream": True, **ENDLESS}
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 12)))
        if rng.randrange(4):
            return "/v1/completions", {"prompt": text, **params}
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **params}

    async def one(self, host, port, until):
        path, body = self.body()
        data = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection(host, port)
        try:
            # HTTP/1.0: the events as they are, to the end of the connection
            writer.write(f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                         .encode() + data)
            last, events, done, status = time.monotonic(), 0, False, await reader.readline()
            begin = last
            if b" 200 " not in status:
                self.errors.append((status + await reader.read()).decode("utf-8", "replace"))
                return
            while line := await reader.readline():
                if line.startswith(b"data: {"):
                    now = time.monotonic()
                    if b'"error"' in line:
                        self.errors.append(line.decode())
                    (self.gaps if events else self.first).append(now - (last if events else begin))
                    last = now
                    events += 1
                    self.events += 1
                elif line.startswith(b"data: [DONE]"):
                    done = True
                if time.monotonic() > until:
                    return
            if not done:
                self.errors.append(f"the stream ended after {events} events without [DONE]")
            self.answers += 1
        finally:
            writer.close()

    async def run(self, host, port, until):
        while time.monotonic() < until and not self.errors:
            await self.one(host, port, until)


async def slow_reader(server, until):
    """A whole long answer is asked for, and read in drops."""
    data = json.dumps({"prompt": "Once", "max_tokens": 400, "stream": True, "logprobs": 5, **ENDLESS}).encode()
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.connect((server.host, server.port))
    s.sendall(f"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
              .encode() + data)
    s.setblocking(False)
    try:
        while time.monotonic() < until:
            await asyncio.sleep(0.25)
            try:
                if not s.recv(64):
                    return
            except BlockingIOError:
                pass
            except ConnectionResetError:  # cut for its slowness
                return
    finally:
        s.close()


async def half_open(server, until):
    """Part of a request, and nothing more, until it is cut; then again."""
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(random.choice([b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"]))
        try:
            await asyncio.wait_for(reader.read(), max(until - time.monotonic(), 0.01))
        except (asyncio.TimeoutError, ConnectionError):
            pass
        writer.close()


async def sampler(server, until, rows):
    begin = time.monotonic()
    while time.monotonic() < until:
        row = await asyncio.get_running_loop().run_in_executor(None, soak.sample, server.process.pid)
        if row:
            rows.append((time.monotonic() - begin, *row))
        await asyncio.sleep(0.25)


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))] if values else float("nan")


class Result:
    def __init__(self, clients, seconds, tokens, rows):
        self.clients, self.seconds, self.tokens, self.rows = clients, seconds, tokens, rows
        self.rate = tokens / seconds
        errors = [e for c in clients for e in c.errors]
        check(not errors and any(c.events for c in clients), len(errors), "errors:", errors[:3])
        shares = [c.events for c in clients]
        self.least, self.most = min(shares) / (sum(shares) / len(shares)), max(shares) / (sum(shares) / len(shares))

    def __str__(self):
        first = [s for c in self.clients for s in c.first]
        gaps = [s for c in self.clients for s in c.gaps]
        return (f"{len(self.clients)} clients: {self.rate:.0f} tokens/s, {sum(c.answers for c in self.clients)} answers, first event "
                f"after {1e3 * percentile(first, 50):.0f} ms (p99 {1e3 * percentile(first, 99):.0f}), between events "
                f"{1e3 * percentile(gaps, 50):.1f} ms (p99 {1e3 * percentile(gaps, 99):.1f}); of the mean, the clients had "
                f"{self.least:.2f} to {self.most:.2f}")


def load(server, n, seconds, slow=0, half=0):
    """n clients for so long."""
    clients, rows = [Client(i) for i in range(n)], []

    async def everything():
        until = time.monotonic() + seconds
        others = [slow_reader(server, until) for _ in range(slow)] + [half_open(server, until) for _ in range(half)]
        await asyncio.gather(*(c.run(server.host, server.port, until) for c in clients), *others, sampler(server, until, rows))

    before, begin = server.stats()["tokens"]["output"], time.monotonic()
    asyncio.run(everything())
    return Result(clients, time.monotonic() - begin, server.stats()["tokens"]["output"] - before, rows)
