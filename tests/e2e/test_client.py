# SPDX-License-Identifier: MIT
"""`coordinator client`: one prompt, a pipe, a chat on a terminal; with a key, over TLS, from a configuration; a server that is away, not
ready, ends in the middle of an answer, or says what it should not."""
import contextlib
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading

import tandem
from http_client import Server
from tandem import check, config, model, scratch, wait_until
from test_chat import Terminal

STORY = "Tell me a story about a cat"
CALM = ("--temperature", "0", "--max-tokens", "30")
# A server whose tokens take some tenth of a second each, so that an answer can be met in its middle.
SLOW = ("--fault", "gpu_worker:slow@p=0.1,seed=1")
LONG = ("--temperature", "0", "--max-tokens", "1000")
KEY = "a-key-that-nobody-else-has-to-know"


def url(server):
    return f"{'https' if server.tls else 'http'}://{server.host}:{server.port}"


def client(*args, stdin=None, status=0):
    r = subprocess.run(tandem.command("coordinator", "client", *args), input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
                       capture_output=True, text=True, env=tandem.environment(), timeout=tandem.TIMEOUT)
    tandem.judge(r)
    check(r.returncode == status, f"status {r.returncode} instead of {status}:", args, r.stdout, r.stderr)
    return r


def refused(*args, words=(), stdin=None):
    r = client(*args, stdin=stdin, status=1)
    tandem.one_line_error(r, *words)


class Chat(Terminal):
    def __init__(self, server, *args):
        address = server if isinstance(server, str) else url(server)
        super().__init__(command=tandem.command("coordinator", "client", "--url", address, *args))
        self.read_until(r"(^|\n)> ")

    def keys(self, *keys):
        for k in keys:
            os.write(self.master, k.encode())
        return self.read_until(r"\n> ").removesuffix("\n> ")

    def ask(self, text):
        """The answer alone."""
        self.type(text + "\n")
        return self.read_until(r"\n> ").removesuffix("\n> ").partition("\n(cut")[0].strip()

    def quit(self):
        os.write(self.master, b"\x04")
        self.leave(0, alone=False)


def answer_of(server, messages, **params):
    j = server.ask("/v1/chat/completions", messages=messages, **{"temperature": 0, "max_tokens": 30, "seed": 0, **params})
    return j["choices"][0]["message"]["content"]


def user(text):
    return {"role": "user", "content": text}


def test_one_prompt():
    local = tandem.run("coordinator", "--config", config(model("demo", "bf16")), *CALM, stdin=STORY + "\n").stdout
    with Server() as s:
        want = answer_of(s, [user(STORY)])
        r = client("--url", url(s), "--prompt", STORY, *CALM)
        check(r.stdout == want + "\n" and r.stderr == "", r.stdout, r.stderr, want)
        # as generate takes them
        options = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 7, "max_tokens": 40}
        args = [str(a) for k, v in options.items() for a in ("--" + k.replace("_", "-"), v)]
        want = answer_of(s, [{"role": "system", "content": "Be kind."}, user(STORY)], **options)
        r = client("--url", url(s) + "/v1/", "--prompt", STORY, "--system", "Be kind.", *args)
        check(r.stdout == want + "\n", r.stdout, want)
        penalised = client("--url", url(s), "--prompt", STORY, *CALM, "--repeat-penalty", "1.5").stdout
        check(penalised == answer_of(s, [user(STORY)], repetition_penalty=1.5) + "\n" and penalised != want, penalised)
        check(client("--url", url(s), *CALM, stdin=STORY + "\n").stdout == local, "another text than locally:", local)


def test_pipe():
    """Each line for itself; one that the server refuses fails alone."""
    with Server() as s:
        r = client("--url", url(s), *CALM, stdin=f"{STORY}\n\n{'x ' * 3000}\nHello", status=1)
        check(r.stdout == "".join(answer_of(s, [user(q)]) + "\n" for q in (STORY, "Hello")), r.stdout)
        lines = tandem.sentences(r.stderr)
        check(len(lines) == 2 and "line 3: server" in lines[0] and "tokens; the context has" in lines[0] and "1 of 4 prompts" in lines[1], lines)


def test_chat():
    path = scratch("client.json")
    with Server() as s, Chat(s, *CALM) as t:
        first = t.ask(STORY)
        check(first == answer_of(s, [user(STORY)]).strip(), first)
        said = [user(STORY), {"role": "assistant", "content": answer_of(s, [user(STORY)])}]
        second = t.ask("What did it see?")
        check(second == answer_of(s, [*said, user("What did it see?")]).strip(), second)
        shown = t.keys("/stats\n")
        check("conversation: 4 messages, " in shown and all(n in shown for n in ("loader", "npu_worker", "gpu_worker")), shown)
        check("4 messages are in" in t.keys(f"/save {path}\n"), "/save")
        with open(path, encoding="utf-8") as f:
            saved = json.load(f)
        check(saved["model"] == "demo-bf16" and saved["messages"][:2] == said, saved)
        check("is there already" in t.keys(f"/save {path}\n"), "/save twice")
        third = t.ask("And then?")
        t.keys("/reset\n")
        check(t.ask(STORY) == first, "/reset")
        check("4 messages" in t.keys(f"/load {path}\n") and t.ask("And then?") == third, "/load")
        # what does not fit is said, and the conversation is as it was
        check("tokens; the context has" in t.keys("\x1b[200~" + "x " * 3000 + "\x1b[201~\n"), "too long")
        check("conversation: 6 messages" in t.keys("/stats\n"), "a failed turn stays")
        check("unknown command" in t.keys("/nonsense\n") and "/load FILE" in t.keys("/help\n"), "/help")
        t.quit()


def test_interrupt():
    """Ctrl-C closes the stream: the answer ends, the server's sequence is free, and what was said stays."""
    with Server(args=SLOW) as s, Chat(s, *LONG) as t:
        for _ in range(2):
            t.type(STORY + "\n")
            t.read_until(r"\S+ \S+ ")
            check(s.stats()["requests"]["running"] == 1, s.stats()["requests"])
            os.write(t.master, b"\x03")
            t.read_until(r"\n> ")
            wait_until(lambda: s.stats()["requests"]["running"] == 0, 60, "the sequence is not free")
        check("conversation: 4 messages" in t.keys("/stats\n"), "what was said")
        check("once more ends" in t.keys("\x03"), "at the empty prompt")
        os.write(t.master, b"\x03")
        t.leave(130, alone=False)
        # not on a terminal it is the end
        p = tandem.start("coordinator", "client", "--url", url(s), "--prompt", STORY, *LONG, stdin=subprocess.DEVNULL)
        p.stdout.read(20)
        p.send_signal(signal.SIGINT)
        p.communicate(timeout=60)
        check(p.returncode == 130, "status", p.returncode)
        wait_until(lambda: s.stats()["requests"]["running"] == 0, 60, "the sequence is not free")


def key_file(name, key, mode=0o600):
    path = scratch(name)
    with open(path, "w", encoding="utf-8") as f:
        f.write(f"# a comment\n{key}\n")
    os.chmod(path, mode)
    return path


class KeyServer(Server):
    def get(self, path, headers=None):
        return super().get(path, {"Authorization": "Bearer " + KEY, **(headers or {})})


def test_key():
    right, wrong, open_to_all = key_file("right", KEY), key_file("wrong", "another-key"), key_file("open", KEY, 0o644)
    with KeyServer(http__api_key_file=right, env={"TANDEM_LOG": "debug"}, args=SLOW) as s:
        check(len(client("--url", url(s), "--api-key-file", right, "--prompt", STORY, *CALM[:3], "5").stdout) > 9, "the right key")
        refused("--url", url(s), "--prompt", STORY, words=("401", "--api-key-file", url(s)))
        refused("--url", url(s), "--api-key-file", wrong, "--prompt", STORY, words=("401", "--api-key-file"))
        refused("--url", url(s), "--api-key-file", open_to_all, "--prompt", STORY, words=("'--api-key-file'", "chmod 600"))
        refused("--url", url(s), "--api-key-file", scratch("none"), "--prompt", STORY, words=("'--api-key-file'", "No such file"))
        os.mkfifo(scratch("fifo"), 0o600)
        refused("--url", url(s), "--api-key-file", scratch("fifo"), "--prompt", STORY, words=("'--api-key-file'", "expected a file"))
        p = tandem.start("coordinator", "client", "--url", url(s), "--api-key-file", right, "--prompt", STORY, *LONG, stdin=subprocess.DEVNULL)
        p.stdout.read(20)
        for name in ("cmdline", "environ"):
            with open(f"/proc/{p.pid}/{name}", "rb") as f:
                check(KEY.encode() not in f.read(), "the key is in", name)
        p.kill()
        out, err = p.communicate(timeout=60)
        check(KEY.encode() not in out + err, "the key is in its output")
        check(KEY not in s.log, "the key is in the server's log")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def certificate():
    if not shutil.which("openssl"):
        tandem.skip("openssl is not installed")
    cert, key = scratch("cert.pem"), scratch("key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"], check=True, capture_output=True)
    return cert, key


class TlsServer(KeyServer):
    def __init__(self, cert, **keys):
        self.context = ssl.create_default_context(cafile=cert)
        super().__init__(**keys)

    def connect(self):
        return http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=tandem.TIMEOUT)


def test_tls_and_configuration():
    cert, key = certificate()
    keys = key_file("tls-key", KEY)
    with TlsServer(cert, http__listen=f"127.0.0.1:{free_port()}", http__tls_cert=cert, http__tls_key=key, http__api_key_file=keys) as s:
        refused("--url", url(s), "--api-key-file", keys, "--prompt", STORY, words=("certificate", "--ca-file"))
        refused("--url", url(s), "--ca-file", keys, "--prompt", STORY, words=("certificate", "--ca-file"))
        told = client("--url", url(s), "--api-key-file", keys, "--ca-file", cert, "--prompt", STORY, *CALM).stdout
        # the configuration of the server says all of it
        check(client("--config", s.config, "--prompt", STORY, *CALM).stdout == told and len(told) > 20, told)
        # its key is for its server, not for any other
        with Fake() as other:
            client("--config", s.config, "--url", other.url, "--prompt", STORY)
            check(not any("authorization" in h for h in other.headers), other.headers)


def test_away():
    port = free_port()
    refused("--url", f"http://127.0.0.1:{port}", "--prompt", "a", words=(f"'http://127.0.0.1:{port}' is not there", "coordinator serve"))
    refused("--url", "http://nowhere.invalid:1", "--prompt", "a", words=("nowhere.invalid",))
    for bad in ("ftp://a", "http://user:word@127.0.0.1:80", "http://127.0.0.1/other", "http://127.0.0.1/?a=b", "", "http://"):
        refused("--url", bad, "--prompt", "a", words=("address of the server", "expected"))
    refused("--config", config(model("demo", "bf16"), http__listen=f"127.0.0.1:{port}"), "--prompt", "a", words=(f"127.0.0.1:{port}", "is not there"))


def test_server_is_killed():
    with Server(status=-signal.SIGKILL, args=SLOW) as s:
        p = tandem.start("coordinator", "client", "--url", url(s), *LONG, stdin=subprocess.PIPE)
        p.stdin.write((STORY + "\nAnother\n").encode())
        p.stdin.flush()
        with Chat(s, *LONG) as t:
            t.type(STORY + "\n")
            t.read_until(r"\S+ \S+ ")
            p.stdout.read(20)
            s.process.kill()
            os.waitid(os.P_PID, s.process.pid, os.WEXITED | os.WNOWAIT)  # its sockets are closed one after the other
            said = t.read_until(r"\n> ")
            check("ended in the middle of the answer" in said and url(s) in said, said)
            check("is not there" in t.keys("And now?\n"), "a server that is gone")
            t.quit()
        out, err = p.communicate(timeout=60)
        check(p.returncode == 1 and err.count(b"\n") == 1 and b"ended in the middle of the answer" in err, p.returncode, err)
        wait_until(lambda: not tandem.processes(), 60, tandem.processes)
        tandem.run("coordinator", "--config", s.config, "generate", "--prompt", "a", "--max-tokens", 1)  # removes what the killed one left


def test_while_a_stage_is_started_again():
    with Server(args=SLOW) as s:
        p = tandem.start("coordinator", "client", "--url", url(s), "--prompt", STORY, *LONG, stdin=subprocess.DEVNULL)
        out = os.read(p.stdout.fileno(), 20)  # past its buffer, which communicate() does not know
        check(s.stats()["requests"]["running"] == 1, s.stats()["requests"])
        os.kill(s.stage("gpu_worker"), signal.SIGKILL)
        rest, err = p.communicate(timeout=60)
        want = client("--url", url(s), "--prompt", STORY, *LONG).stdout
        check(p.returncode == 0 and (out + rest).decode() == want and len(want) > 100, p.returncode, out + rest, err)


class Fake(contextlib.AbstractContextManager):
    """A server that says what it is told: a list of (status, headers, body) for requests other than that of the models."""

    def __init__(self, *replies):
        fake = self
        self.replies, self.headers = list(replies), []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, status, headers, body):
                self.send_response(status)
                for k, v in headers.items():
                    self.send_header(k, v)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                fake.headers.append({k.lower(): v for k, v in self.headers.items()})
                self.reply(200, {}, json.dumps({"data": [{"id": "fake"}]}).encode())

            def do_POST(self):
                fake.headers.append({k.lower(): v for k, v in self.headers.items()})
                fake.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = fake.replies.pop(0) if fake.replies else (200, {}, events("ok"))
                if isinstance(reply, threading.Event):  # until the client goes
                    reply.set()
                    self.rfile.read(1)
                else:
                    self.reply(*reply)

        http.server.ThreadingHTTPServer.handle_error = lambda *_: None  # clients that close a connection
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def events(*texts, end=b"data: [DONE]\n\n", newline="\n"):
    return "".join(f"data: {json.dumps({'choices': [{'delta': {'content': t}}]})}{newline}{newline}" for t in texts).encode() + end


def error(message, code=None):
    return json.dumps({"error": {"message": message, "code": code}}).encode()


def test_not_ready():
    """A server that says when to ask again is asked again; one that says that it has failed is not."""
    later = (503, {"Retry-After": "1"}, error("not ready: a stage is started again", "recovering"))
    with Fake(later, later, (429, {"Retry-After": "1"}, error("3 answers wait", "queue_full")), (200, {}, events("Once ", "upon"))) as s:
        r = client("--url", s.url, "--prompt", "a")
        check(r.stdout == "Once upon\n" and r.stderr.count("a stage is started again") == 1 and "asking again" in r.stderr, r.stdout, r.stderr)
    with Fake((503, {"Retry-After": "1"}, error("the pipeline is gone", "failed"))) as s:
        refused("--url", s.url, "--prompt", "a", words=("the pipeline is gone", "503", s.url))
    with Fake((503, {}, error("not now"))) as s:
        refused("--url", s.url, "--prompt", "a", words=("not now",))
    with Fake(*[(503, {"Retry-After": "60"}, error("later"))] * 3) as s:  # who waits can be interrupted
        p = tandem.start("coordinator", "client", "--url", s.url, "--prompt", "a", stdin=subprocess.DEVNULL)
        p.stderr.readline()
        p.send_signal(signal.SIGTERM)
        p.communicate(timeout=30)
        check(p.returncode == 143, p.returncode)


def test_silent_server():
    """One that takes a request and says nothing: Ctrl-C ends the waiting, before the first prompt the program, later the turn."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        p = tandem.start("coordinator", "client", "--url", f"http://127.0.0.1:{s.getsockname()[1]}", "--prompt", "a", stdin=subprocess.DEVNULL)
        with s.accept()[0] as c:
            c.recv(100)
            p.send_signal(signal.SIGINT)
            p.communicate(timeout=30)
            check(p.returncode == 130, p.returncode)
    silent = threading.Event()
    with Fake(silent) as s, Chat(s.url) as t:
        t.type("are you there\n")
        wait_until(silent.is_set, 30, "no request")
        os.write(t.master, b"\x03")
        t.read_until(r"\n> ")
        check(t.ask("and now") == "ok" and s.body["messages"] == [user("and now")], s.body)  # the turn without an answer is gone
        t.quit()


def test_what_a_server_may_say():
    with Fake((200, {}, events("a", "b", newline="\r\n", end=b": a comment\r\nevent: x\r\ndata: [DONE]\r\n\r\n")), (200, {}, b'data: {"choices":\ndata: []}\n\n' + events("c"))) as s:
        check(client("--url", s.url, stdin="1\n2\n").stdout == "ab\nc\n", "events in other forms")
        check(s.body["messages"] == [{"role": "user", "content": "2"}] and s.body["stream"] is True and s.body["max_tokens"] == 256 and
              "temperature" not in s.body and "top_k" not in s.body, s.body)
        client("--url", s.url, "--prompt", "x", "--temperature", "0.7")
        check(s.body["temperature"] == 0.7, s.body)
    for reply, words in (
            ((200, {}, b"data: {\n\n"), ("not JSON",)),
            ((200, {}, events("half", end=b"")), ("in the middle of the answer",)),
            ((200, {}, events(end=b"data: " + error("it went\nwrong \x1b[31m") + b"\n\n")), ("it went wrong [31m",)),
            ((200, {}, b"data: " + b"x" * (5 << 20)), ("more than",)),
            ((500, {}, b"<html>"), ("status 500",)),
            ((302, {"Location": "http://127.0.0.1:1/"}, b""), ("status 302",)),
            ((400, {}, b"\xff" * (5 << 20)), ("more than",))):
        with Fake(reply) as s:
            r = client("--url", s.url, "--prompt", "a", status=1)
            lines = tandem.sentences(r.stderr)
            check(len(lines) == 1 and lines[0].isprintable() and all(w in lines[0] for w in words), words, r.stderr)
    # no control character reaches a terminal; a file gets what was said
    nasty = "a\x1b]0;title\x07b\u009bc\td\x7fe"
    with Fake(*[(200, {}, events(nasty))] * 3) as s:
        with Chat(s.url) as t:
            shown = t.ask("say it")
            check("".join(shown.split()) == "a]0;titlebcde", repr(shown))
            t.quit()
        with Terminal(command=tandem.command("coordinator", "client", "--url", s.url, "--prompt", "a")) as t:
            shown = t.read_until(r"e\n")
            check(shown == "a]0;titlebc\tde\n", repr(shown))
            t.leave(0)
        check(client("--url", s.url, "--prompt", "a").stdout == nasty + "\n", "not what was said")


if __name__ == "__main__":
    tandem.main(globals())
