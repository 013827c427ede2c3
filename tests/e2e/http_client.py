# SPDX-License-Identifier: MIT
"""A server under test and its clients, for test_http*.py: http.client for ordinary requests, sockets where bytes matter."""
import ctypes
import http.client
import json
import os
import signal
import socket
import threading
import time

import tandem
from tandem import check, config, model

JSON = {"Content-Type": "application/json"}


def library_is_strict():
    """Since 1.0 libmicrohttpd refuses what is ambiguous itself, with HTML of its own, or without an answer."""
    library = ctypes.CDLL("libmicrohttpd.so.12")
    library.MHD_get_version.restype = ctypes.c_char_p
    return int(library.MHD_get_version().split(b".")[0]) >= 1


class Server:
    """`coordinator serve` on a port of its own. The config's keys as in tandem.config."""

    def __init__(self, kind="bf16", env=None, wait=True, program=None, status=143, args=(), **keys):
        keys = {"http__listen": "127.0.0.1:0", **keys}
        self.status, self.log, self.told_to_end = status, "", False
        self.config = config(model("demo", kind), **keys)
        self.process = tandem.start(program or "coordinator", "--config", self.config, "serve", *args, env=env)
        self.reader = threading.Thread(target=self._read_log)
        self.reader.start()
        line = self.process.stdout.readline().decode()
        check(line.startswith("listening on http"), "no address but", repr(line), "; log:", self.log)
        self.tls = line.startswith("listening on https")
        self.host, _, port = line.strip().partition("://")[2].rpartition(":")
        self.port = int(port)
        if wait:
            self.wait_ready()

    def _read_log(self):
        for line in self.process.stderr:
            self.log += line.decode("utf-8", "replace")

    def wait_ready(self):
        tandem.wait_until(lambda: self.get("/health")[0] == 200 or self.process.poll() is not None, 60, lambda: self.log)
        check(self.process.poll() is None, "ended early:", self.log)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:  # a test failed in the middle: nothing of it may trouble the next
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.reader.join()
            return
        self.close()

    def terminate(self):
        """Once: at the very end, when the program handles signals no longer, another one would kill it."""
        if not self.told_to_end and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.told_to_end = True

    def close(self):
        if self.process.returncode is not None:
            return
        self.terminate()
        code = self.process.wait(timeout=60)
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        for sign in ("Sanitizer", "runtime error:"):
            check(sign not in self.log, "a sanitizer reported:", self.log[-4000:])
        check(code == self.status, f"status {code} instead of {self.status}; log:", self.log)
        check(not tandem.left_behind(), tandem.left_behind())

    def stage(self, name):
        """The pid of a stage."""
        for pid, command in tandem.processes(self.process.pid).items():
            if os.path.basename(command.split(" ")[0]) == name:
                return pid
        raise tandem.Failure(f"no {name} among", tandem.processes(self.process.pid))

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=tandem.TIMEOUT)

    def request(self, method, path, body=None, headers=None):
        """(status, headers, bytes)"""
        c = self.connect()
        try:
            c.request(method, path, body, headers or {})
            r = c.getresponse()
            return r.status, {k.lower(): v for k, v in r.getheaders()}, r.read()
        finally:
            c.close()

    def get(self, path, headers=None):
        status, _, body = self.request("GET", path, None, headers)
        return status, json.loads(body)

    def post(self, path, body, headers=None):
        """(status, parsed JSON). body: an object, or bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, answer = self.request("POST", path, data, {**JSON, **(headers or {})})
        return status, json.loads(answer)

    def ask(self, path, **body):
        status, j = self.post(path, body)
        check(status == 200, f"status {status}:", j, "to", body)
        return j

    def chat(self, text, **params):
        return self.ask("/v1/chat/completions", messages=[{"role": "user", "content": text}], **params)

    def complete(self, prompt, **params):
        return self.ask("/v1/completions", prompt=prompt, **params)

    def stream(self, path, **body):
        """All events of a streamed answer, [DONE] checked and left out."""
        with Stream(self, path, **body) as s:
            return list(s)

    def stats(self):
        return self.get("/v1/stats")[1]


class Stream:
    """The events of a streamed answer as they come."""

    def __init__(self, server, path, **body):
        self.c = server.connect()
        self.c.request("POST", path, json.dumps({**body, "stream": True}), JSON)
        self.r = self.c.getresponse()
        check(self.r.status == 200, self.r.status, self.r.read() if self.r.status != 200 else "")
        check(self.r.getheader("Content-Type").startswith("text/event-stream"), self.r.getheaders())
        self.done = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.r.close()
        self.c.close()

    def __iter__(self):
        return self

    def __next__(self):
        line = self.r.readline()
        while line == b"\n":
            line = self.r.readline()
        if not line:
            check(self.done, "the stream ended without [DONE]")
            raise StopIteration
        check(not self.done and line.startswith(b"data: ") and line.endswith(b"\n"), "no event:", line)
        if line == b"data: [DONE]\n":
            self.done = True
            return self.__next__()
        return json.loads(line[6:])


def usage_of(answer):
    """Without what depends on earlier requests."""
    usage = dict(answer["usage"])
    check(usage.pop("prompt_tokens_details").keys() == {"cached_tokens"}, answer["usage"])
    return usage


def joined(events):
    """What the events of a stream say, in the shape of an answer that was not streamed."""
    choices, usage = {}, None
    for e in events:
        check("error" not in e, e)
        usage = usage_of(e) if e.get("usage") else usage
        for part in e["choices"]:
            c = choices.setdefault(part["index"], {"text": "", "logprobs": None, "finish_reason": None})
            check(c["finish_reason"] is None, "an event after the last one:", e)
            if "delta" in part:
                if not c.get("begun"):
                    check(part["delta"].get("role") == "assistant", "the first event has no role:", e)
                    c["begun"] = True
                c["text"] += part["delta"].get("content", "")
            else:
                c["text"] += part["text"]
            if part["logprobs"]:
                c["logprobs"] = c["logprobs"] or {k: [] for k in part["logprobs"] if part["logprobs"][k] is not None}
                for k in c["logprobs"]:
                    c["logprobs"][k] += part["logprobs"][k]
            c["finish_reason"] = part["finish_reason"]
    return [choices[i] for i in sorted(choices)], usage


def plain(answer):
    """The same of an answer that was not streamed."""
    choices = []
    for c in answer["choices"]:
        scores = c["logprobs"]
        if scores:
            scores = {k: v for k, v in scores.items() if v is not None}
        one = {"text": c["message"]["content"] if "message" in c else c["text"], "logprobs": scores,
               "finish_reason": c["finish_reason"]}
        if "message" in c:
            one["begun"] = True
        choices.append(one)
    return choices, usage_of(answer)


class Raw:
    """A socket: bytes out, responses in."""

    def __init__(self, server, data=b""):
        self.s = socket.create_connection((server.host, server.port), timeout=60)
        self.buffer = b""
        if data:
            self.send(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.s.close()

    def send(self, data):
        self.s.sendall(data)

    def more(self):
        try:
            piece = self.s.recv(65536)
        except ConnectionResetError:
            piece = b""
        self.buffer += piece
        return bool(piece)

    def response(self):
        """(status, headers, body) of a response with Content-Length; None at the end of the connection."""
        while b"\r\n\r\n" not in self.buffer:
            if not self.more():
                check(self.buffer == b"", "half a response:", self.buffer)
                return None
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (l.partition(":") for l in lines[1:])}
        status = int(lines[0].split()[1])
        n = int(headers.get("content-length", 0))
        while len(self.buffer) < n:
            check(self.more(), "the body was cut:", self.buffer)
        body, self.buffer = self.buffer[:n], self.buffer[n:]
        return status, headers, body

    def ended(self):
        """The server closes within the tests' patience."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if not self.more():
                return True
        return False
