# SPDX-License-Identifier: MIT
"""`stats`, `top` and the control socket behind them: what they show, which coordinator they ask, and that nothing that is sent
to the socket harms the run."""
import contextlib
import fcntl
import json
import os
import pty
import random
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import termios
import time

import tandem
from tandem import check, config, left_behind, model, processes, start, wait_running, wait_until

STORY = b"Tell me a story about a cat\n"
PROCESSES = ["coordinator", "loader", "npu_worker", "gpu_worker"]
RINGS = ["tokens", "x0", "h", "x", "output"]


@contextlib.contextmanager
def running(cfg, alone=True):
    """A coordinator that waits for prompts on a pipe; afterwards it must end well and leave nothing."""
    process = start("coordinator", "--config", cfg, "--temperature", "0", "--max-tokens", "30", stdin=subprocess.PIPE)
    try:
        wait_running(process)
        wait_until(lambda: ask(process)["state"] == "running", 60, "it does not get ready")
        yield process
        out, err = process.communicate(timeout=60)
        check(process.returncode == 0, "status", process.returncode, err)
        check(b"Sanitizer" not in err, err)
        check(not alone or not left_behind(), left_behind())
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def socket_path(process):
    return os.path.join(tandem.RUNTIME, f"tandem-{os.geteuid()}", str(process.pid), "control")


def connect(process):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    wait_until(lambda: s.connect_ex(socket_path(process)) == 0, 60, "no socket")
    return s


def read_line(s):
    with s.makefile("rb", buffering=0) as f:
        return f.readline()


def ask(process, request=b'{"op":"stats"}\n'):
    with connect(process) as s:
        s.sendall(request)
        return json.loads(read_line(s))


def answer(process):
    """One prompt through the coordinator: the line that it prints."""
    process.stdin.write(STORY)
    process.stdin.flush()
    return process.stdout.readline().decode()


def stats(cfg, *args, status=0, **options):
    r = subprocess.run(tandem.command("coordinator", "--config", cfg, "stats", *args), capture_output=True, text=True,
                       env=tandem.environment(**options), timeout=tandem.TIMEOUT)
    tandem.judge(r)
    check(r.returncode == status, "status", r.returncode, r.stderr)
    if status:
        tandem.one_line_error(r)
    return r.stderr if status else r.stdout


def test_figures():
    cfg = config(model("demo", "q8_0"))
    with running(cfg) as process:
        story = answer(process)
        check("cat" in story, story)
        wait_until(lambda: ask(process)["chunks"]["in_flight"] == 0, 60, "a chunk stays in flight")
        s = ask(process, b'{"op":"stats","pss":true}\n')
        check(s["requests"] == {"queued": 0, "running": 0, "sequences": 4, "finished": 1, "failed": 0}, s["requests"])
        check(s["tokens"]["prompt"] > 8 and s["tokens"]["output"] == 30, s["tokens"])
        check(s["chunks"] == {"in_flight": 0, "in_flight_most": 4} and s["context"] == 2048, s)
        check(0 < s["kv"]["pages_used"] <= s["kv"]["pages"], s["kv"])
        check([(r["name"], r["fill"], r["slots"]) for r in s["rings"]] == [(n, 0, 8 if n == "tokens" else 4) for n in RINGS], s["rings"])
        check([p["name"] for p in s["processes"]] == PROCESSES, s["processes"])
        for p in s["processes"]:
            check(p["answered"] and p["restarts"] == 0 and p["kills"] == 0, p)
            check(0 < p["private_bytes"] <= p["rss_bytes"] and 0 < p["pss_bytes"] <= p["rss_bytes"], p)
            check(p["budget"]["total"] <= p["budget"]["limit"] < p["cap_bytes"], p)
            for category, used in p["budget"].items():
                if category in p["peak"] and category != "total":
                    check(used <= p["peak"][category] <= p["planned"][category], p["name"], category, p)
            check((p["usage_bytes"] > 0) == p["cap_enforced"], p)
        # The same from the command, with and without --json; prompt and answer are counted on.
        again = json.loads(stats(cfg, "--json"))
        check(again["tokens"] == {**s["tokens"], **{k: again["tokens"][k] for k in again["tokens"] if "second" in k}}, again["tokens"])
        text = stats(cfg)
        for name in PROCESSES:
            check(len(re.findall(rf"^{name} ", text, re.M)) >= 2, name, text)
        check("1 finished, 0 of them failed" in text and f"coordinator {process.pid}, running" in text, text)
        check(ask(process)["processes"][2]["pss_bytes"] == 0, "PSS was not asked for")


def test_which_one():
    one, other = config(model("demo", "q8_0")), config(model("demo", "q8_0"))
    err = stats(one, status=1)
    check("no coordinator with config" in err and one in err and tandem.RUNTIME in err, err)
    err = stats(os.path.join(tandem.WORK, "nothing.yaml"), status=1)
    check("nothing.yaml" in err and "No such file" in err, err)
    link = tandem.scratch("link.yaml")
    os.symlink(one, link)
    with running(one) as a:
        check(json.loads(stats(link, "--json"))["processes"][0]["pid"] == a.pid, "by way of a link")
        check("no coordinator with config" in stats(other, status=1), "the other config")
        err = stats(other, "--pid", str(a.pid), status=1)
        check(f"coordinator {a.pid} runs with config" in err and other in err, err)
        err = stats(one, "--pid", str(os.getpid()), status=1)
        check(f"no coordinator with pid {os.getpid()}" in err, err)
        with running(one, alone=False) as b:
            err = stats(one, status=1)
            check("2 coordinators" in err and "--pid" in err and str(a.pid) in err and str(b.pid) in err, err)
            for p in (a, b):
                check(json.loads(stats(one, "--json", "--pid", str(p.pid)))["processes"][0]["pid"] == p.pid, "--pid")


def test_socket_is_private():
    with running(config(model("demo", "q8_0"))) as process:
        path = socket_path(process)
        check(stat.S_IMODE(os.stat(path).st_mode) == 0o600, oct(os.stat(path).st_mode))
        check(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700, "the folder")
        if os.geteuid() == 0:  # another user who somehow gets at the socket is told nothing
            os.chmod(path, 0o666)
            code = ("import os,socket,sys\ns=socket.socket(socket.AF_UNIX)\nd=os.open(os.path.dirname(sys.argv[1]),os.O_PATH)\n"
                    "os.setresuid(65534,65534,65534)\ntry:\n s.connect(f'/proc/self/fd/{d}/control')\n"
                    " s.sendall(b'{\"op\":\"stats\"}\\n')\n print('got',s.recv(100))\nexcept OSError as e:\n print('refused',e)\n")
            r = subprocess.run(["/usr/bin/python3", "-c", code, path], capture_output=True, text=True, timeout=60)
            check("got b''" in r.stdout or "refused" in r.stdout, r.stdout, r.stderr)
        check("cat" in answer(process), "no story")


def test_bad_requests():
    cases = ((b"\n", "JSON"), (b"nonsense\n", "JSON"), (b"[1]\n", "'op'"), (b"{}\n", "'op'"), (b'"stats"\n', "JSON"),
             (b'{"op":7}\n', "'op'"), (b'{"op":"explode"}\n', "expected stats"), (b'{"op":"stats","op":"stats"}\n', "JSON"),
             (b'{"op":"stats","pss":1}\n', "'pss'"), (b'{"op":"stats","more":1}\n', "unknown key"), (b"\xff\xfe{}\n", "0xff"),
             (b'{"op":"st\0ats"}\n', "JSON"), (b"[" * 4000 + b"\n", "JSON"), (b"x" * 5000, "too long"), (b"x" * 100000, "too long"))
    with running(config(model("demo", "q8_0"))) as process:
        for request, word in cases:
            with connect(process) as s:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    s.sendall(request)
                a = json.loads(read_line(s))
                check(list(a) == ["error"] and word in a["error"], request[:40], a)
        with connect(process) as s:  # after a refusal the connection goes on, and requests may come in one piece or in many
            s.sendall(b'bad\n{"op":"stats"}\n{"op":"sta')
            check("error" in json.loads(read_line(s)), "no error")
            check("rings" in json.loads(read_line(s)), "no answer")
            s.sendall(b'ts"}\n')
            check("rings" in json.loads(read_line(s)), "no answer")
            s.sendall(b'{"op":"stats"}')
            s.shutdown(socket.SHUT_WR)
            check("rings" in json.loads(read_line(s)) and read_line(s) == b"", "the end of the client's side")
        check("cat" in answer(process), "no story")


def test_garbage():
    """Random bytes, cut-off requests, clients that go away at any time: the run goes on, and no descriptor stays."""
    r = random.Random(5)
    good = b'{"op":"stats","pss":true}\n'
    with running(config(model("demo", "q8_0"))) as process:
        ask(process)
        before = len(os.listdir(f"/proc/{process.pid}/fd"))
        for i in range(300):
            s = connect(process)
            data = bytearray(good * r.randint(1, 4) if i % 2 else r.randbytes(r.randint(0, 6000)))
            for _ in range(r.randint(0, 3)):
                if data:
                    data[r.randrange(len(data))] = r.randrange(256)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                s.sendall(bytes(data[:r.randint(0, len(data))]))
            if i % 3 == 0:
                s.settimeout(0.001)
                with contextlib.suppress(OSError):
                    s.recv(r.randint(1, 100))
            s.close()
        check("cat" in answer(process), "no story")
        wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) <= before, 30, "descriptors stay open")
        check(ask(process)["requests"]["finished"] == 1, "requests")


def test_idle_and_slow_clients():
    """Clients that say nothing make room for others; one that reads nothing is dropped, and holds up nobody."""
    with running(config(model("demo", "q8_0"))) as process:
        idle = [connect(process) for _ in range(30)]
        check(ask(process)["state"] == "running", "state")
        slow = connect(process)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        slow.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(4000):  # until it takes no more, for its answers have nowhere to go
                slow.sendall(b'{"op":"stats"}\n')
        check(ask(process)["state"] == "running", "state")
        check("cat" in answer(process), "no story")
        slow.settimeout(60)
        def gone():
            try:
                slow.send(b"\n")
                return False
            except BlockingIOError:
                return False
            except OSError:
                return True
        slow.setblocking(False)
        wait_until(gone, 60, "it is not dropped")
        for s in [*idle, slow]:
            s.close()


def test_stage_that_does_not_answer():
    with running(config(model("demo", "q8_0"))) as process:
        pid = next(p["pid"] for p in ask(process)["processes"] if p["name"] == "loader")
        os.kill(pid, signal.SIGSTOP)
        s = ask(process)
        os.kill(pid, signal.SIGCONT)
        check([p["answered"] for p in s["processes"]] == [True, False, True, True], s["processes"])
        check(s["processes"][1]["budget"]["scratch"] > 0, "its last answer is forgotten")
        wait_until(lambda: all(p["answered"] for p in ask(process)["processes"]), 60, "it does not come back")


def test_long_runtime_folder():
    """Longer than the address of a socket may be."""
    deep = os.path.join(tandem.WORK, "d" * 100, "e" * 60)
    os.makedirs(deep)
    cfg = config(model("demo", "q8_0"))
    process = start("coordinator", "--config", cfg, stdin=subprocess.PIPE, env={"TANDEM_RUNTIME_DIR": deep})
    try:
        def there():
            r = subprocess.run(tandem.command("coordinator", "--config", cfg, "stats", "--json"), capture_output=True, text=True,
                               env=tandem.environment(TANDEM_RUNTIME_DIR=deep), timeout=60)
            return r.returncode == 0 and json.loads(r.stdout)["state"] == "running"
        wait_until(there, 60, "no answer")
    finally:
        out, err = process.communicate(timeout=60)
    check(process.returncode == 0 and not os.listdir(deep), process.returncode, err, os.listdir(deep))


def test_pool_without_a_limit():
    """Where npu.memory is not set, nothing is said to be left of the machine's memory, of which a cap gives less."""
    for keys, limited in (({}, False), ({"npu__memory": "64MiB"}, True)):
        cfg = config(model("demo", "q8_0"), **keys)
        pool = next(p for p in tandem.generate(cfg, "--prompt", "a", "--max-tokens", 1)["processes"] if p["name"] == "npu_worker")["pool"]
        check(pool["limited"] == limited and pool["fragmentation"] < 1, pool)
        report = tandem.run("coordinator", "--config", cfg, "generate", "--prompt", "a", "--max-tokens", "1", "--report").stdout
        line = next(x for x in report.splitlines() if x.startswith("npu_worker") and " in use" in x)
        check(("'npu.memory' sets no limit" in line) != limited and ("largest free part" in line) == limited, line)


def test_pool_before_the_first_request():
    with running(config(model("demo", "q8_0"), npu__memory="64MiB")) as process:
        worker = next(p for p in ask(process)["processes"] if p["name"] == "npu_worker")
        pool = worker["pool"]
        check(pool["weights"] == worker["budget"]["weights"] > 0 and pool["scratch"] == worker["budget"]["scratch"] > 0, worker)
        check(pool["kv"] == 0 and pool["largest_free"] > 0, pool)


# ---------------------------------------------------------------- top

class Screen:
    """`top` on a pseudo-terminal."""

    def __init__(self, cfg, *args, rows=24, columns=100, term="xterm"):
        self.master, slave = pty.openpty()
        self.slave = os.dup(slave)
        self.resize(rows, columns)
        self.mode = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            tandem.command("coordinator", "--config", cfg, "top", *args), stdin=slave, stdout=slave, stderr=subprocess.PIPE,
            env=tandem.environment(TERM=term), start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.text = ""

    def resize(self, rows, columns):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds=1.0):
        if select.select([self.master], [], [], seconds)[0]:
            self.text += os.read(self.master, 65536).decode("ascii")

    def frames(self):
        """Whole screens so far, as lists of rows."""
        whole = re.findall(r"\x1b\[H(.*?)\x1b\[J", self.text, re.S)
        return [re.split(r"\r+\n", f.replace("\x1b[K", ""))[:-1] for f in whole]

    def until(self, condition, what):
        def met():
            self.read(0.2)
            return any(condition(f) for f in self.frames())
        wait_until(met, 60, lambda: f"{what}: {self.text[-3000:]!r}")

    def end(self, status):
        wait_until(lambda: self.read(0.1) or self.process.poll() is not None, 60, "top does not end")
        self.read(0.2)
        err = self.process.stderr.read().decode()
        self.process.stderr.close()
        check(self.process.returncode == status, "status", self.process.returncode, err)
        check(self.text.startswith("\x1b[?1049h\x1b[?25l") and self.text.endswith("\x1b[?25h\x1b[?1049l"), repr(self.text[-100:]))
        check(termios.tcgetattr(self.slave) == self.mode, "the terminal's mode is not as it was")
        os.close(self.slave)
        os.close(self.master)
        return err


def test_top_on_a_terminal():
    cfg = config(model("demo", "q8_0"))
    with running(cfg, alone=False) as process:
        answer(process)
        wait_until(lambda: ask(process)["chunks"]["in_flight"] == 0, 60, "a chunk stays in flight")
        top = Screen(cfg)
        top.until(lambda f: len(f) > 12, "no screen")
        frame = top.frames()[0]
        check(frame[0].startswith(f"tandem {process.pid}  running  0:0"), frame)
        for i, name in enumerate(PROCESSES):
            r = frame[9 + i]
            check(re.match(rf"{name} +\d+ .*\[W*K*S*R*D*\+*\.*\] +[\d.]+M/ *[\d.]+M", r), r)
        check(tandem.SANITIZE or "W" in frame[11] and "K" in frame[11] and "R" in frame[9] and "W" in frame[12], frame)
        check(re.match(r"rings +tokens \[\.{8}\] x0 \[\.{4}\] h \[\.{4}\] x \[\.{4}\] output \[\.{4}\]", frame[4]), frame[4])
        check("since start" in frame[1] and " 30" in frame[1] and "1 finished" in frame[2] and "0 of 4 in flight" in frame[3], frame)
        check(all(len(r) <= 100 for r in frame), frame)
        top.until(lambda f: "0%" in f[10], "no second screen, or no share of time in it")
        answer(process)
        top.until(lambda f: "2 finished" in f[2], "the second request is not seen")
        top.resize(8, 40)
        top.until(lambda f: len(f) == 7 and max(map(len, f)) == 40, "no small screen")
        top.resize(30, 180)
        top.until(lambda f: len(f) > 12 and len(f[10]) > 150, "no large screen")
        os.write(top.master, b"xyz\n")
        os.write(top.master, b"q")
        top.end(0)
        top = Screen(cfg)
        top.until(lambda f: True, "no screen")
        os.write(top.master, b"\x1a\x03")  # it does not stop; it ends
        top.end(130)
        top = Screen(cfg, "--count", "2")
        top.end(0)
        check(len(top.frames()) == 2, len(top.frames()))
        top = Screen(cfg)
        top.until(lambda f: True, "no screen")
        top.process.send_signal(signal.SIGTERM)
        top.end(143)
        top = Screen(cfg)
        top.until(lambda f: True, "no screen")
        for term in ("dumb", ""):
            plain = Screen(cfg, "--count", "1", term=term)
            wait_until(lambda: plain.read(0.1) or plain.process.poll() is not None, 60, "top does not end")
            plain.read(0.2)
            check(plain.process.returncode == 0 and plain.text.count("\n") == 1 and "\x1b" not in plain.text, repr(plain.text))
            plain.process.stderr.close()
    check("has ended" in top.end(0), "the end of the coordinator")
    check(not left_behind(), left_behind())


def test_top_without_a_terminal():
    cfg = config(model("demo", "q8_0"))
    with running(cfg) as process:
        answer(process)
        for args in ((), ("--json",)):
            r = subprocess.run(tandem.command("coordinator", "--config", cfg, "top", "--count", "2", *args), capture_output=True,
                               text=True, env=tandem.environment(), stdin=subprocess.DEVNULL, timeout=60)
            lines = r.stdout.splitlines()
            check(r.returncode == 0 and len(lines) == 2 and "\x1b" not in r.stdout, r.returncode, r.stdout, r.stderr)
            if args:
                check(json.loads(lines[1])["uptime_ms"] > json.loads(lines[0])["uptime_ms"], lines)
            else:
                check(all(re.match(r"running: tokens/s prompt [\d.]+ answers [\d.]+; running 0 .*; memory coordinator", l)
                          for l in lines), lines)
        # A reader that goes away ends it with an error, and not by a signal.
        top = start("coordinator", "--config", cfg, "top")
        top.stdout.readline()
        top.stdout.close()
        check(top.wait(timeout=60) == 1 and b"standard output" in top.stderr.read(), "a closed output")
        top.stderr.close()


if __name__ == "__main__":
    tandem.main(globals())
