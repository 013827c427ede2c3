# SPDX-License-Identifier: MIT
"""The HTTP server under clients that are wrong, slow, greedy, gone or many."""
import json
import os
import random
import signal
import socket
import threading

import tandem
from http_client import JSON, Raw, Server, Stream, joined, library_is_strict, plain
from tandem import check

# No end token: the answer goes on to max_tokens.
ENDLESS = {"logit_bias": {"1": -100, "9": -100}, "temperature": 0}


def user(text):
    return [{"role": "user", "content": text}]


def post(path, body, *lines, method="POST"):
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def alive(s):
    check(s.chat("Hi", max_tokens=1)["usage"]["completion_tokens"] <= 1, "the server goes on")


def test_bodies():
    bad = [b"", b"{", b"[]", b"3", b"null", b'"x"', b"{}{}", b"\x00", b"\xff\xfe{}", b'{"prompt": "\xff"}', b'{"prompt": "\xed\xa0\x80"}',
           b'{"prompt": "\\ud800"}', b'{"a": 1, "a": 2}', b"[" * 100000, b'{"a":' * 50000, b'{"prompt": [' + b"[" * 50000, b'{"prompt": "' + b"x" * 200000,
           b'{"prompt": "x", "max_tokens": NaN}', b"{'prompt': 'x'}", b'\xef\xbb\xbf{"prompt": "x"}']
    with Server(http__max_body="300KiB") as s:
        for body in bad:
            status, j = s.post("/v1/completions", body)
            deep = body.count(b"[") + body.count(b"{") > 10000  # refused by one or the other
            check(status == 400 and (j["error"]["code"] == "invalid_json" or deep and j["error"]["code"] == "json_too_complex"),
                  body[:40], status, j)
        for number in (2**63, -2**63 - 1, 10**30, "1e999"):  # it is JSON, but nothing here is so large
            status, j = s.post("/v1/completions", b'{"prompt": "x", "seed": %b}' % str(number).encode())
            check(status == 400 and j["error"]["code"] == "invalid_value" and "number that is too large" in j["error"]["message"], status, j)
        for number in (2**63 - 1, -2**63):
            check(s.post("/v1/completions", b'{"prompt": "x", "max_tokens": 1, "seed": %d}' % number)[0] == 200, number)
        for body in (b'{"prompt": "a\\u0000b"}', b'{"a\\u0000": 1}'):
            status, j = s.post("/v1/completions", body)
            check(status == 400 and j["error"]["code"] == "invalid_value" and "has a \\u0000 in a text" in j["error"]["message"], status, j)
        limit = 300 << 10
        filler = json.dumps({"prompt": "x", "user": ""}).encode()
        exact = filler[:-2] + b"u" * (limit - len(filler)) + b'"}'
        check(len(exact) == limit and s.post("/v1/completions", exact)[0] == 200, "as large as may be")
        for body in (exact + b" ", b"x" * (3 * limit)):
            with Raw(s, post("/v1/completions", body, f"Content-Length: {len(body)}")) as c:
                status, headers, text = c.response()
                check(status == 413 and json.loads(text)["error"]["code"] == "body_too_large", status, text)
        with Raw(s, post("/v1/completions", b"", "Content-Length: 999999999999")) as c:
            check(c.response()[0] == 413 and c.ended(), "before the body is there")
        with Raw(s, post("/v1/completions", b"", "Content-Length: 400000", "Expect: 100-continue")) as c:
            check(c.response()[0] == 413 and c.ended(), "instead of 100")
        chunk = b"2000\r\n" + b" " * 0x2000 + b"\r\n"
        with Raw(s, post("/v1/completions", chunk * 60 + b"0\r\n\r\n", "Transfer-Encoding: chunked")) as c:
            check(c.response()[0] == 413, "chunks without end")
        with Raw(s, post("/v1/completions", b"", "Transfer-Encoding: chunked")) as c:
            try:
                for _ in range(1000):  # 8 MB: more than is read for politeness
                    c.send(chunk)
                check(c.ended(), "a body without end is cut")
            except (ConnectionResetError, BrokenPipeError):
                pass
        body = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
        extension = b"" if library_is_strict() else b";ext=1"  # 1.0.1 takes its line's end for data, and refuses the next chunk
        pieces = b"".join(b"%x%s\r\n%c\r\n" % (1, extension, b) for b in body) + b"0\r\nTrailer: x\r\n\r\n"
        with Raw(s, post("/v1/completions", pieces, "Transfer-Encoding: chunked")) as c:
            check(c.response()[0] == 200, "a byte a chunk")
        with Raw(s, post("/v1/completions", b"", f"Content-Length: {len(body)}", "Expect: 100-continue")) as c:
            check(c.more() and c.buffer.startswith(b"HTTP/1.1 100"), c.buffer)
            c.buffer = b""
            c.send(body)
            check(c.response()[0] == 200, "after 100")
        alive(s)


def test_bodies_that_grow():
    """JSON that takes 80 times its size in memory is refused unread; what takes less is read within the coordinator's cap."""
    with Server(http__max_body="8MiB") as s:
        size = 8300000
        for unit in (b"{},", b'{"":{}},', b"[[]],"):
            body = b'{"prompt":[' + unit * ((size - 20) // len(unit)) + b"1]}"
            status, j = s.post("/v1/completions", body)
            check(status == 400 and j["error"]["code"] == "json_too_complex", unit, status, j)
        status, j = s.post("/v1/completions", b'{"prompt":[' + b"5," * (size // 2 - 10) + b"5]}")
        check(status == 400 and j["error"]["code"] == "context_length_exceeded", status, j)
        few = json.dumps({"prompt": "x", "max_tokens": 1, "logit_bias": {str(i): 1 for i in range(1000)}}).encode()
        check(s.post("/v1/completions", few)[0] == 200, "a thousand members")
        me = s.stats()["processes"][0]
        check(me["peak_bytes"] <= me["cap_bytes"] or me["peak_bytes"] == 0, me)
        alive(s)


def test_waiting_requests_are_small():
    """Of a request that waits its prompt's tokens stay, not what else its body said."""
    if tandem.SANITIZE:
        tandem.skip("sanitizers keep freed memory for a while")
    with Server(sequences=1, http__max_body="8MiB") as s:
        with Stream(s, "/v1/completions", prompt="Once", max_tokens=2000, **ENDLESS) as running:
            next(running)
            before = rss(s)
            body = json.dumps({"prompt": "x", "max_tokens": 1, "user": "u" * 8000000}).encode()
            waiting = [Raw(s, post("/v1/completions", body, f"Content-Length: {len(body)}")) for _ in range(12)]
            tandem.wait_until(lambda: s.stats()["requests"]["queued"] == 12, 60, lambda: s.stats()["requests"])
            check(rss(s) < before + (48 << 20), "12 requests of 8 MB hold", rss(s) - before)
        for c in waiting:
            check(c.response()[0] == 200, "answered in the end")
            c.s.close()


def rss(s):
    with open(f"/proc/{s.process.pid}/status", encoding="utf-8") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("RssAnon:"))


def on_the_way(port):
    """Bytes that were sent to or from this port of 127.0.0.1 and not read."""
    with open("/proc/net/tcp", encoding="utf-8") as f:
        rows = [line.split() for line in f.readlines()[1:]]
    return sum(int(n, 16) for r in rows if f":{port:04X}" in (r[1][8:], r[2][8:]) and r[3] == "01" for n in r[4].split(":"))


def test_bodies_in_all():
    """Many large bodies at once: what they hold together has a bound; who is above it is told to come again."""
    with Server(http__max_body="1MiB", http__timeout=60) as s:
        body = b" " * (1 << 20)
        waiting = [Raw(s, post("/v1/completions", body[:-1], f"Content-Length: {len(body)}")) for _ in range(12)]
        answers = []
        tandem.wait_until(lambda: s.stats()["http"]["connections"] >= 12 and on_the_way(s.port) == 0, 60, "twelve bodies were read")
        for c in waiting:
            c.send(b" ")
            answers.append(c.response())
            c.s.close()
        counts = {code: sum(1 for a in answers if a[0] == code) for code in (400, 503)}
        check(sum(counts.values()) == 12 and counts[400] >= 4 and counts[503] >= 1, counts)
        check(all(a[1]["retry-after"] for a in answers if a[0] == 503), answers[-1])
        alive(s)


def test_framing():
    """What two readers could understand differently is refused, and the connection ends."""
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = json.dumps({"prompt": "x"}).encode()
    cases = [
        post("/tokenize", b"0\r\n\r\n" + hidden, "Content-Length: 4", "Transfer-Encoding: chunked"),
        post("/tokenize", b"0\r\n\r\n" + hidden, "Transfer-Encoding: chunked", "Content-Length: 4"),
        post("/tokenize", body + hidden, "Content-Length: 5", f"Content-Length: {len(body)}"),
        post("/tokenize", body + hidden, f"Content-Length: {len(body)}", f"Content-Length: {len(body)}"),
        post("/tokenize", body + hidden, "Transfer-Encoding: identity"),
        post("/tokenize", body + hidden, "Transfer-Encoding: xchunked"),
        post("/tokenize", body + hidden, "Transfer-Encoding: gzip, chunked"),
        post("/tokenize", b"0\r\n\r\n" + hidden, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        post("/tokenize", body + hidden, f"Content-Length: +{len(body)}"),
        post("/tokenize", body + hidden, f"Content-Length: 0x{len(body):x}"),
        post("/tokenize", body + hidden, "Content-Length: -1"),
        post("/tokenize", body + hidden, "Content-Length: 99999999999999999999999999"),
        post("/tokenize", body + hidden, f"Content-Length : {len(body)}"),
        post("/tokenize", b"0\r\n\r\n" + hidden, "Transfer-Encoding : chunked"),
        post("/tokenize", body + hidden, f"Content-Length: {len(body)}", "Host: example.org"),
        b"GET /health HTTP/1.1\r\n\r\n" + hidden,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nbad header: x\r\n\r\n" + hidden,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n" + hidden,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
        b"G" * 100000 + b"\r\n\r\n",
        b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(5000)) + b"\r\n",
        b"BREW /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
    ]
    with Server(http__timeout=2) as s:
        for data in cases:
            with Raw(s) as c:
                try:
                    c.send(data)
                    c.s.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # it was cut before it had said all
                answer = c.response()
                check(answer is None or answer[0] in (400, 413, 414, 431, 501), data[:200], answer)
                check(b'"object":"list"' not in c.buffer and c.ended() and b'"object":"list"' not in c.buffer,
                      "what was hidden in a body was answered:", data[:300], c.buffer[:300])
        alive(s)


def is_refused(c, data, *statuses):
    """By one answer, with OpenAI's error object unless the library gave it, or gave none; nothing behind it is answered."""
    answer = c.response()
    if answer or not library_is_strict():
        status, headers, text = answer
        check(status in statuses and headers["connection"] == "close", data, answer)
        if not library_is_strict() or headers.get("content-type") == "application/json":
            check(json.loads(text)["error"]["code"] == "bad_request", data, answer)
    check(c.ended() and c.buffer == b"", "something else is answered:", data, c.buffer)


def test_folded_heads():
    """A head of which libmicrohttpd would leave something out (the rest of a folded header, what stands behind a NUL), or which has
    control characters, is refused: another reader may see another request in it."""
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = json.dumps({"prompt": "x"}).encode()
    length = f"Content-Length: {len(body)}"
    cases = [
        post("/tokenize", hidden, "Transfer-Encoding:\r\n chunked"),
        post("/tokenize", hidden, "Transfer-Encoding:\r\n chunked", "X: y"),
        post("/tokenize", body, length, "Transfer-Encoding:\r\n chunked"),
        post("/tokenize", body, "Transfer-Encoding:\r\n chunked", length),
        post("/tokenize", body, length, "Transfer-Encoding: chun\r\n\tked", "X: y"),
        post("/tokenize", body, length, "Content-Length:\r\n 60"),
        post("/tokenize", body, f"{length}\r\n 9"),
        post("/tokenize", body, f"{length}\r\n 9", "X: y"),
        post("/tokenize", body, f"{length}\r\n \t"),
        post("/tokenize", body, "X: y\r\n z", length),
        post("/tokenize", body, " X: y", length),
        post("/tokenize", body, f"{length}\0 200"),
        post("/tokenize", body, "X: y\0z", length),
        post("/tokenize", body, "X: y\0", length),
        post("/tokenize", b"e\r\n" + body + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked\0x"),
        post("/tokenize", body, length, "X: y\nTransfer-Encoding: chunked"),
        post("/tokenize", body, length).replace(b"\r\n\r\n", b"\r\n\0X: y\r\n"),
        post("/tokenize", body, length).replace(b"\r\n\r\n", b"\r\n\n"),
        post("/tokenize", body),  # no length at all
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n .example\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: http://example.org\r\n\r\n",
        b"GET /v1/models\0x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        *(method + b" /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
          for method in (b"G\x01T", b"GET\tX", b"G\x7f\xff", b"X:", b"GET:", b"X\rGET", b"\r\rGET")),
        *(post("/tokenize", body, length, line) for line in ("X: y\rTransfer-Encoding: chunked", "X: y\r", "X: \x01", "X: \x7f")),
        *(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
          for target in (b"/v1/models%00x", b"/v1/models?a=%00", b"/health\r", b"/health\x7f", b"/he\x0balth", b"/health\t")),
    ]
    with Server() as s:
        for data in cases:
            with Raw(s, data + hidden) as c:
                is_refused(c, data, 400, 411)
        for data in (post("/tokenize", body, length, "X:y", "Y: \t z \t", "Z:", "Cookie: a=b; c"), hidden.replace(b"/v1", b"/%76%31"),
                     hidden.replace(b"models", b"models?a=b&c=%20&d"), b"\r\n" + hidden):
            times = 1 if data.startswith(b"POST") and not library_is_strict() else 3  # there a body ends the connection
            with Raw(s, data * times) as c:
                check([c.response()[0] for _ in range(times)] == [200] * times, data)
        large = hidden.replace(b"Host", b"X: %s\r\nHost" % (b"x" * 24000))
        with Raw(s) as c:  # wherever the pieces end, and the buffer is moved
            for piece in [bytes([b]) for b in hidden * 2] + [large, hidden + large[:99], large[99:20000], large[20000:] + hidden]:
                c.send(piece)
            check([c.response()[0] for _ in range(6)] == [200] * 6, "in pieces")
        alive(s)


def test_heads_that_end_early():
    """libmicrohttpd before 1.0 takes a line of a colon for the end of a head, and overwrites it, so that nobody can see it. Whatever
    another reader takes for the rest of the head, or for the body behind it, is no request here."""
    ends = (b"\r\n:\n", b"\n:\r\n", b"\n:A\n", b"\0\r\n\n", b"\0A\n\n", b"\n\0\r\n", b"\n\0A\n", b"\0\n:\n")
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b"a" * 99 + b"\r\n" + hidden
    with Server() as s:
        for end in ends:
            rest = end + b"X: " + b"a" * 60 + b"\r\n\r\n"
            heads = [b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d" % n + rest + body
                     for n in (len(body), 100 + len(rest) - len(end))]
            heads.append(b"GET /health HTTP/1.1\r\nHost: localhost" + end + b"X: /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" + hidden)
            for data in heads:
                with Raw(s, data) as c:
                    c.response()
                    check(c.ended() and b'"object":"list"' not in c.buffer, "what was hidden is answered:", data, c.buffer)
        alive(s)


def test_refused_heads_are_json():
    """A refusal is one answer, with OpenAI's error object; what libmicrohttpd refuses itself ends the connection at least."""
    host = b"\r\nHost: localhost\r\n\r\n"
    chunked = post("/tokenize", b"", "Transfer-Encoding: chunked")
    with Server() as s:
        for data in (b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\n .example\r\n\r\n",
                     b"GET  /health HTTP/1.1" + host, b"GET /health  HTTP/1.1" + host,
                     b"GET /health x HTTP/1.1" + host, b"GET /health\t HTTP/1.1" + host):
            with Raw(s, data) as c:
                is_refused(c, data, 400)
        for status, data in ((414, b"GET /" + b"a" * 40000), (431, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40000),
                             (400, b"GET / HTTP/1.1\r\nno colon\r\n\r\n"), (505, b"GET / HTTP/2.0" + host), (505, b"GET / HTTP/0.9" + host),
                             (400, b"GET /health HTTP/1.1 " + host), (400, b"GET /health" + host),
                             (400, post("/tokenize", b"", "Content-Length: +1")), (413, post("/tokenize", b"", "Content-Length: " + "9" * 30)),
                             (400, chunked + b"x\r\n"), (413, chunked + b"1" * 20 + b"\r\n"), (None, b"GET\t/health\tHTTP/1.1" + host)):
            with Raw(s, data) as c:
                answer = c.response()
                expected = (status, 400, None) if library_is_strict() else (status,)
                check((answer and answer[0]) in expected and c.ended(), status, data[:100], answer)
        alive(s)


def test_chunks_are_the_last():
    """A body in chunks ends where libmicrohttpd says, which is lenient; so nothing behind it is a request. HTTP/1.0 has no chunks."""
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = json.dumps({"prompt": "x"}).encode()
    with Server() as s:
        for end in (b"\r\n0\r\n\r\n", b"\n0\n\n", b"\r\n0;a=b\r\n\0X: y\r\n", b"\r\n0\r\nX: y\r\n\tz\r\n\r\n"):
            data = post("/tokenize", b"%x\r\n%s%s" % (len(body), body, end), "Transfer-Encoding: chunked", "Connection: keep-alive")
            for version in (b"1.0", b"1.1"):
                with Raw(s, data.replace(b"HTTP/1.1", b"HTTP/" + version) + hidden) as c:
                    status, headers, text = c.response()
                    refused = status == 400 and library_is_strict() and (end != b"\r\n0\r\n\r\n" or version == b"1.0")
                    check(refused or status == 200 and json.loads(text)["count"] == 2, version, end, status, text)
                    check(headers["connection"] == "close" and c.ended() and c.buffer == b"", version, end, headers, c.buffer)


def test_absolute_form():
    """As a proxy is asked (RFC 9112, 3.2.2): the same, if it names the host that the header names."""
    with Server() as s:
        for target, host, status in (("http://localhost/v1/models", "localhost", 200), ("HTTP://LocalHost:80/v1/models?a=b", "localhost:80", 200),
                                     ("https://[::1]/health", "[::1]", 200), ("http://localhost", "localhost", 200),
                                     ("http://localhost?/health", "localhost", 200), ("http://localhost/nowhere", "localhost", 404),
                                     ("http://evil.example/health", "localhost", 400), ("http://localhost/health", "localhost:80", 400),
                                     ("http://localhost.evil.example/health", "localhost", 400), ("http:///health", "localhost", 400),
                                     ("http://x@localhost/health", "localhost", 400), ("http://evil.example/health", "evil.example", 403),
                                     ("ftp://localhost/health", "localhost", 404), ("/http://localhost/health", "localhost", 404),
                                     ("%68ttp://localhost/health", "localhost", 404), ("http:%2F%2Flocalhost/health", "localhost", 404),
                                     ("http://localhost%2Fhealth", "localhost", 400), ("http://localhost/health%0a", "localhost", 400)):
            with Raw(s, f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) as c:
                answer = c.response()
                check(answer and answer[0] == status, target, host, status, answer)
        alive(s)


def test_pipelining():
    body = json.dumps({"prompt": "Once", "max_tokens": 3, "temperature": 0}).encode()
    one = post("/v1/completions", body, f"Content-Length: {len(body)}")
    get = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Server() as s:
        with Raw(s, get + get + one + get) as c:
            kinds = [json.loads(c.response()[2])["object"] for _ in range(3)]
            check(kinds == ["list", "list", "text_completion"], kinds)
            if library_is_strict():
                check(c.response()[0] == 200, "behind a body")
            else:  # where the library thinks that a body ends need not be where another reader does
                check(c.ended() and c.buffer == b"", c.buffer)
        with Raw(s, (b"GET /health HTTP/1.0\r\n\r\n")) as c:
            check(c.response()[0] == 200 and c.ended(), "HTTP/1.0")
        streamed = json.dumps({"prompt": "Once", "max_tokens": 3, "stream": True}).encode()
        old = post("/v1/completions", streamed, f"Content-Length: {len(streamed)}").replace(b"HTTP/1.1", b"HTTP/1.0")
        with Raw(s, old) as c:
            check(c.ended() and c.buffer.endswith(b"data: [DONE]\n\n") and b"chunked" not in c.buffer.lower(), "a stream of 1.0:", c.buffer)


def test_slow_clients():
    """Who does not get on with asking is cut; the others do not notice."""
    with Server(http__timeout=1) as s:
        with Raw(s) as idle, Raw(s, b"GET /hea") as head, Raw(s, post("/tokenize", b"{", "Content-Length: 100")) as body:
            done = threading.Event()

            def drip(c, data):
                try:
                    while not done.wait(0.1):
                        c.send(data)
                except OSError:
                    pass
            drips = [threading.Thread(target=drip, args=a) for a in ((head, b"l"), (body, b" "))]
            for t in drips:
                t.start()
            alive(s)
            check(idle.ended() and head.ended() and body.ended(), "a slow client may stay")
            done.set()
            for t in drips:
                t.join()
        alive(s)


def gone(s):
    """Nothing runs any more."""
    tandem.wait_until(lambda: s.stats()["requests"]["running"] == 0, 60, lambda: s.stats())


def test_disconnect():
    with Server(sequences=1) as s:
        for path, body in (("/v1/completions", {"prompt": "Once"}), ("/v1/chat/completions", {"messages": user("Hi")})):
            with Stream(s, path, max_tokens=2000, **body, **ENDLESS) as stream:
                for _ in range(3):
                    next(stream)
            gone(s)
            data = json.dumps({**body, "max_tokens": 2000, **ENDLESS}).encode()
            with Raw(s, post(path, data, f"Content-Length: {len(data)}")):
                tandem.wait_until(lambda: s.stats()["requests"]["running"] == 1, 60, "running")
            gone(s)
            c = Raw(s, post(path, data, f"Content-Length: {len(data)}"))
            tandem.wait_until(lambda: s.stats()["requests"]["running"] == 1, 60, "running")
            c.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            c.s.close()  # with a reset
            gone(s)
        check(s.stats()["tokens"]["output"] < 6 * 2000, "none went on to its end", s.stats()["tokens"])
        want = s.complete("Once", max_tokens=20, temperature=0)["choices"][0]["text"]
        with Stream(s, "/v1/completions", prompt="Once", max_tokens=2000, **ENDLESS) as running:
            next(running)
            queued = Raw(s, post(path, data, f"Content-Length: {len(data)}"))  # gone while it waits
            tandem.wait_until(lambda: s.stats()["requests"]["queued"] == 1, 60, "waiting")
            queued.s.close()
            tandem.wait_until(lambda: s.stats()["requests"]["queued"] == 0, 60, "left the queue")
        check(s.complete("Once", max_tokens=20, temperature=0)["choices"][0]["text"] == want, "the next one's KV is clean")


def test_queue():
    with Server(sequences=1, http__max_queue=2) as s:
        streams = [Stream(s, "/v1/completions", prompt="Once", max_tokens=2000, **ENDLESS)]
        next(streams[0])
        streams += [Stream(s, "/v1/completions", prompt="Once", max_tokens=5, temperature=0) for _ in range(2)]
        status, headers, body = s.request("POST", "/v1/completions", b'{"prompt": "x"}', JSON)
        check(status == 429 and headers["retry-after"] == "1", status, headers, body)
        check(json.loads(body)["error"]["code"] == "queue_full" and json.loads(body)["error"]["type"] == "rate_limit_error", body)
        check(s.post("/v1/completions", {"prompt": "x", "n": 4})[0] == 400, "more than ever fits")
        streams[0].close()
        texts = [joined(st)[0][0]["text"] for st in streams[1:]]
        check(texts[0] == texts[1] != "", texts)
        for st in streams[1:]:
            st.close()
        alive(s)


def test_connections():
    """As many requests as connections are allowed; the next one is told so."""
    with Server(sequences=1, http__max_connections=4) as s:
        held = [Stream(s, "/v1/completions", prompt="Once", max_tokens=2000, **ENDLESS) for _ in range(4)]
        tandem.wait_until(lambda: s.request("GET", "/health")[0] == 503, 60, "the fifth")
        status, headers, body = s.request("GET", "/health")
        check(status == 503 and headers["retry-after"] == "1", status, headers, body)
        check(json.loads(body)["error"]["code"] == "too_many_connections" and headers["connection"] == "close", headers, body)
        half = [Raw(s, b"GET /hea") for _ in range(60)]  # they give way to one another, not to the streams
        check(half[0].ended(), "the first gives way")
        check(s.request("GET", "/health")[0] == 503, "still full")
        next(held[0])
        held.pop().close()
        tandem.wait_until(lambda: s.request("GET", "/health")[0] == 200, 60, "one left")
        for c in half:
            c.s.close()
        for st in held:
            st.close()
        alive(s)


def test_half_open_connections():
    """Connections that never send a whole request keep nobody out, however many they are: the oldest give way."""
    body = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    begun = (b"", b"GET /hea", post("/v1/completions", body[:-1], f"Content-Length: {len(body)}"), b"G" * 1000,
             b"PUT /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://example.org\r\nContent-Length: 100\r\n\r\n")  # refused when read
    with Server(http__max_connections=4, http__timeout=3600) as s:
        for data in begun:
            held = [Raw(s, data) for _ in range(60)]
            alive(s)
            check(held[0].ended(), "the oldest may stay:", data)
            if data.startswith(b"GET"):
                held[-1].send(b"lth HTTP/1.1\r\nHost: localhost\r\n\r\n")
                check(held[-1].response()[0] == 200, "the newest may go on")
            elif data.startswith(b"POST"):
                held[-1].send(body[-1:])
                check(held[-1].response()[0] == 200, "the newest may go on with its body")
            for c in held:
                c.s.close()
        with Raw(s, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as idle:
            check(idle.response()[0] == 200, "idle")
            held = [Raw(s) for _ in range(60)]
            check(idle.ended(), "between two requests it is like the others")
            for c in held:
                c.s.close()
        alive(s)


def test_many_streams():
    """Twenty clients on four sequences: each gets what it gets alone."""
    prompts = ["Once upon a time", "One day", "Tell me a story", "The cat"]
    params = [dict(prompt=prompts[i % 4], seed=i, max_tokens=10 + 7 * (i % 5), stop=["\n\n", "the end"], n=1 + i % 2) for i in range(20)]
    with Server(sequences=4) as s:
        alone = [plain(s.ask("/v1/completions", **p)) for p in params]
        got = [None] * len(params)

        def client(i):
            if i % 3:
                got[i] = joined(s.stream("/v1/completions", stream_options={"include_usage": True}, **params[i]))
            else:
                got[i] = plain(s.ask("/v1/completions", **params[i]))
        for _ in range(2):
            threads = [threading.Thread(target=client, args=(i,)) for i in range(len(params))]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            for i, p in enumerate(params):
                check(got[i] == alone[i], p, got[i], alone[i])
        gone(s)


def test_slow_reader():
    """A client that does not read for a while: others go on, memory stays, and it gets everything in the end."""
    with Server(sequences=2, http__timeout=60) as s:
        body = {"prompt": "Once", "max_tokens": 1500, **ENDLESS, "logprobs": 5}
        want = plain(s.ask("/v1/completions", **body))
        data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((s.host, s.port))
        slow.sendall(post("/v1/completions", data, f"Content-Length: {len(data)}").replace(b"HTTP/1.1", b"HTTP/1.0"))
        tandem.wait_until(lambda: s.stats()["requests"]["running"] == 1, 60, "running")
        for _ in range(3):
            alive(s)
        gone(s)  # it was computed, whether it is read or not
        text = b""
        while piece := slow.recv(65536):
            text += piece
        slow.close()
        events = [json.loads(l[6:]) for l in text.split(b"\r\n\r\n", 1)[1].split(b"\n") if l.startswith(b"data: {")]
        check(text.endswith(b"data: [DONE]\n\n") and joined(events) == want, text[-300:])


def test_time_is_over():
    with Server(sequences=1, http__request_timeout=1) as s:
        stage = s.stage("npu_worker")
        os.kill(stage, signal.SIGSTOP)
        try:
            stream = Stream(s, "/v1/completions", prompt="Once", max_tokens=2000, **ENDLESS)
            status, j = s.post("/v1/completions", {"prompt": "Once"})
            check(status == 504 and j["error"]["code"] == "timeout" and j["error"]["type"] == "server_error", status, j)
            events = list(stream)
            check(events[-1]["error"]["code"] == "timeout", events[-1])
        finally:
            os.kill(stage, signal.SIGCONT)
        alive(s)


def test_end_in_the_middle():
    """A signal: clients that wait are told, then everything is gone."""
    with Server(sequences=1) as s:
        with Stream(s, "/v1/completions", prompt="Once", max_tokens=2000, **ENDLESS) as stream:
            next(stream)
            data = json.dumps({"prompt": "x"}).encode()
            with Raw(s, post("/v1/completions", data, f"Content-Length: {len(data)}")) as waiting, Raw(s, b"GET /hea"):
                tandem.wait_until(lambda: s.stats()["requests"]["queued"] == 1, 60, "waiting")
                s.terminate()
                check(waiting.response()[0] == 503, "the one that waits")
                last = None
                for event in stream:
                    last = event
                check("the server is ending" in last["error"]["message"], last)


def mangled(rng, data):
    data = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        what = rng.randrange(3)
        if what == 0:
            data[at] = rng.randrange(256)
        elif what == 1:
            del data[at:at + rng.randrange(1, 8)]
        else:
            data[at:at] = rng.choice([b"\r\n", b"\0", b"\xff", b": ", b"{", b'"', b"9" * 20, b"\r\n\r\n"])
        data = data or bytearray(b"x")
    return bytes(data)


def test_noise():
    """Random and half-right requests: an answer of 4xx or an end, and the server goes on."""
    rng = random.Random(5)
    good = post("/v1/completions", b'{"prompt": "x", "max_tokens": 1, "n": 1}', "Content-Length: 40")
    with Server(http__timeout=1) as s:
        for _ in range(8):
            clients = []
            for i in range(50):
                c = Raw(s)
                try:
                    c.send(mangled(rng, good if i % 4 else rng.randbytes(rng.randrange(1, 400))))
                    c.s.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # cut already
                clients.append(c)
            for c in clients:
                answer = c.response()
                check(answer is None or 200 <= answer[0] < 600, answer)
                c.s.close()
        members = [("prompt", ["x", 1, [], {}, [[1]], ["a", 1], None]), ("n", [0, 1, 2, -1, 1e9, "1", None, [1]]),
                   ("stop", ["x", [], ["a"], [None], 3, {}]), ("temperature", [0, 3, -1, "x", None, True]),
                   ("logit_bias", [{}, {"1": "x"}, {"-1": 1}, {"1": 1}, [], 7]), ("max_tokens", [1, 0, 2, None, "1", 10**18]),
                   ("stream", [True, False, None, 1]), ("logprobs", [0, 1, True, -1, None]), ("seed", [1, -1, 2**63 - 1, 1.5, "x"])]
        for _ in range(300):
            body = {k: rng.choice(v) for k, v in members if rng.random() < 0.5}
            status, _, text = s.request("POST", "/v1/completions", json.dumps(body).encode(), JSON)
            check(status in (200, 400), body, status, text[:200])
        alive(s)
        gone(s)


if __name__ == "__main__":
    tandem.main(globals())
