# SPDX-License-Identifier: MIT
"""Stages that others start (`spawn: false`): here the test is the service manager. The text is that of stages which the coordinator
starts, in whatever order they come and however often they die; who is no stage is sent away, and the run goes on."""
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import urllib.error
import urllib.request

import tandem
from tandem import STAGES, check, config, model, processes, scratch, wait_until
from test_recovery import GREEDY, LASTING, SEEDED, Run, answers, story

OTHERS = {f"{group}__spawn": "false" for group in ("loader", "npu", "gpu")}
PREAMBLE = b"TANDEM\r\n" + struct.pack("<II", 1, 0)
ROLES = {name: i for i, name in enumerate(STAGES)}
_sockets = 0


def address():
    """A path for a socket: short, in a folder of its own with mode 0700."""
    global _sockets
    _sockets += 1
    folder = scratch(f"s{_sockets}")
    os.mkdir(folder, 0o700)
    return os.path.join(folder, "sock")


class Manager:
    """Starts stages, and again when they end, as a service manager with Restart=always and no delay would."""

    def __init__(self, path):
        self.path, self.running, self.ended = path, {}, []

    def start(self, name, *before):
        self.running[name] = subprocess.Popen([*before, *tandem.command(name, "--stage-socket", self.path)],
                                              env=tandem.environment(), start_new_session=True, stdin=subprocess.DEVNULL,
                                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def kill(self, name, number=signal.SIGKILL):
        """End it, and start it again."""
        self.running[name].send_signal(number)
        self.restart(name)

    def restart(self, name):
        old = self.running.pop(name)
        _, err = old.communicate(timeout=60)
        self.ended.append((name, old.returncode, err.decode()))
        self.start(name)

    def end(self):
        """Without a coordinator they end by themselves."""
        for name, process in self.running.items():
            _, err = process.communicate(timeout=60)
            self.ended.append((name, process.returncode, err.decode()))
            check(process.returncode == 0, name, process.returncode, err)
        for name, _, err in self.ended:
            check("Sanitizer" not in err and "runtime error:" not in err, name, err)
        self.running = {}


def settings(path, **keys):
    return config(model("demo", "q8_0"), stage_socket=path, **{**OTHERS, **keys})


def spawned(args):
    return answers(tandem.run("coordinator", "--config", config(model("demo", "q8_0")), *args).stdout)[0]


def listening(path):
    wait_until(lambda: os.path.exists(path), 60, "does not listen")


def gone(path):
    check(not os.path.exists(path) and not os.path.exists(path + ".token"), os.listdir(os.path.dirname(path)))


def test_any_order():
    args = story(60, "--temperature", "0")
    want = spawned(args)
    for order in (STAGES, STAGES[::-1]):
        for first in (False, True):  # the stages wait for the coordinator, or it for them
            path = address()
            manager = Manager(path)
            if first:
                for name in order:
                    manager.start(name)
            run = Run(settings(path), *args)
            if not first:
                for name in order:  # the coordinator says whom it misses
                    check(run.wait(f"waiting for {name} to connect at '{path}'"), run.log())
                    manager.start(name)
            got, listed = answers(run.end())
            check(got == want, order, first, got, want)
            check([listed[name]["spawned"] for name in STAGES] == [False] * 3 and listed["coordinator"]["spawned"], listed)
            check(not any(listed[name]["cap_enforced"] for name in STAGES), listed)
            check({listed[name]["pid"] for name in STAGES} == {p.pid for p in manager.running.values()}, listed)
            manager.end()
            gone(path)


def test_one_of_three():
    """Each alone is run by others; the socket is in the runtime folder, which is found by the log."""
    args = story(40, "--temperature", "0")
    want = spawned(args)
    for name, group in zip(STAGES, ("loader", "npu", "gpu")):
        run = Run(config(model("demo", "q8_0"), **{f"{group}__spawn": "false"}), *args)
        check(run.wait(f"waiting for {name} to connect at"), run.log())
        path = re.search(r"waiting for \w+ to connect at '([^']+)'", run.log()).group(1)
        check(path == os.path.join(tandem.RUNTIME, f"tandem-{os.geteuid()}", str(run.process.pid), "stages.sock"), path)
        for file, mode in ((path, 0o600), (path + ".token", 0o600), (os.path.dirname(path), 0o700)):
            check(os.stat(file).st_mode & 0o777 == mode, file, oct(os.stat(file).st_mode))
        check(run.count("waiting for") == run.count(f"waiting for {name} "), run.log())
        manager = Manager(path)
        manager.start(name)
        got, _ = answers(run.end())
        check(got == want, name, got, want)
        manager.end()


def test_killed():
    """Each in turn, in the middle of an answer; one that stands still is killed by the coordinator, by its pidfd."""
    want = spawned(SEEDED)
    path = address()
    manager = Manager(path)
    run = Run(settings(path, heartbeat_s=1), *LASTING)
    for name in STAGES:
        manager.start(name)
    run.wait_ready()
    n = 0
    for name in (*STAGES, *STAGES[1:]):
        pid = manager.running[name].pid
        manager.kill(name)
        n += 1
        check(run.wait(f"{name} (pid {pid}) ended; who started it knows how"), run.log())
        check(run.wait("recovered from the end of", n), "too short an answer", run.log())
    manager.running["gpu_worker"].send_signal(signal.SIGSTOP)
    check(run.wait("gpu_worker (pid ") and run.wait(" hangs: "), run.log())
    manager.restart("gpu_worker")
    got, listed = answers(run.end())
    check(got == want, "the text is another", run.log())
    check(manager.ended[-1][1] == -signal.SIGKILL, manager.ended)
    check([listed[s]["restarts"] for s in STAGES] == [1, 2, 3], [listed[s]["restarts"] for s in STAGES])
    manager.end()
    gone(path)


def test_interrupted_while_it_waits():
    path = address()
    run = Run(settings(path), *GREEDY)
    check(run.wait("waiting for gpu_worker to connect", 2), run.log())  # at once, and when it is missed
    manager = Manager(path)
    manager.start("loader")
    check(run.wait("loader (pid "), run.log())
    check(knock(path, PREAMBLE).startswith(PREAMBLE), "who says nothing more is sent away after a while")
    check(run.wait("it said no HELLO within 5000 ms"), run.log())
    run.process.send_signal(signal.SIGINT)
    run.end(status=130)
    manager.end()
    gone(path)


def test_coordinator_killed():
    """Stages of others do not have its death signal: the end of the socket ends them. What it left is cleared by the next one."""
    path = address()
    manager = Manager(path)
    run = Run(settings(path, journal="off"), *LASTING)
    for name in STAGES:
        manager.start(name)
    run.wait_ready()
    with open(path + ".token", encoding="utf-8") as f:
        token = f.read()
    run.process.kill()
    run.process.wait()
    manager.end()
    check(os.path.exists(path), "a killed one cannot remove it")
    args = story(20, "--temperature", "0")
    again = Run(settings(path), *args)
    check(again.wait("waiting for loader"), again.log())
    with open(path + ".token", encoding="utf-8") as f:
        check(f.read() != token, "the token is the old one")
    for name in STAGES:
        manager.start(name)
    check(answers(again.end())[0] == spawned(args), again.log())
    manager.end()
    gone(path)
    for t in run.threads:
        t.join()
    run = Run(settings(None, journal="off"), *GREEDY)  # likewise in the runtime folder
    check(run.wait("waiting for loader"), run.log())
    run.process.kill()
    run.process.wait()
    tandem.run("coordinator", "--config", config(model("demo", "q8_0")), *args)
    for t in run.threads:
        t.join()


# ---------------------------------------------------------------- who is no stage

def text(s):
    b = s.encode()
    return (bytes([0xa0 | len(b)]) if len(b) < 32 else bytes([0xd9, len(b)])) + b


def hello(role, token, build=None):
    fields = {"t": 1, "role": role, "pid": os.getpid(), "build": build or version(), "backends": "cpu"}
    if token is not None:
        fields["token"] = token
    body = bytes([0x80 | len(fields)])
    for key, value in fields.items():
        body += text(key) + (text(value) if isinstance(value, str) else struct.pack(">BI", 0xce, value))
    return PREAMBLE + struct.pack("<I", len(body)) + body


def version():
    return subprocess.run(tandem.command("loader", "--version"), capture_output=True, check=True).stdout.decode().split()[-1]


def knock(path, data):
    """Says data; returns what is answered until the connection is closed."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(path)
        s.sendall(data)
        got = b""
        while True:
            try:
                some = s.recv(65536)
            except ConnectionResetError:
                return got
            if not some:
                return got
            got += some


def test_strangers():
    """While an answer is made, and stands still so that it does not end meanwhile: no token, a wrong one, one that is too short, a role that is there, one that the coordinator starts,
    no message at all, nonsense. Each is told why, the log names it, and the text is what it would have been."""
    want = spawned(SEEDED)
    path = address()
    manager = Manager(path)
    run = Run(settings(path, gpu__spawn="true", deadlines="off"), *LASTING)
    for name in STAGES[:2]:
        manager.start(name)
    run.wait_ready()
    stopped = run.pid("gpu_worker")
    os.kill(stopped, signal.SIGSTOP)
    with open(path + ".token", encoding="utf-8") as f:
        token = f.read()
    check(re.fullmatch("[0-9a-f]{64}", token), token)
    wrong = "f" * 64 if token[0] != "f" else "0" * 64
    npu, gpu = ROLES["npu_worker"], ROLES["gpu_worker"]
    cases = ((hello(npu, None), "it has no stage token"), (hello(npu, ""), "it has no stage token"),
             (hello(npu, wrong), "it has a wrong stage token"), (hello(npu, token[:63]), "it has a wrong stage token"),
             (hello(npu, token), "there is a npu_worker (pid "), (hello(gpu, token), "this coordinator starts its gpu_worker itself"),
             (hello(9, token), "field 'role' is 9"), (b"GET / HTTP/1.1\r\n\r\n", "does not speak this protocol"),
             (PREAMBLE + b"\x02\0\0\0\x81\xa1", "broken or cut off"),
             (PREAMBLE + b"\x04\0\0\0\x81\xa1t\x0d", "it sent a drain message before HELLO"))
    for data, words in cases:
        before = run.count(words)
        answer = knock(path, data)
        check(answer.startswith(PREAMBLE), answer)
        if data[24:25] == b"\x86" or b"stage token" in words.encode():
            check(words.encode() in answer, words, answer)
        check(run.wait(words, before + 1), words, run.log())
    idle = [socket.socket(socket.AF_UNIX) for _ in range(12)]  # they say nothing, and keep nobody away
    for s in idle:
        s.connect(path)
    check(run.wait("too many connect at once", 4), run.log())
    second = subprocess.run(tandem.command("npu_worker", "--stage-socket", path), env=tandem.environment(), capture_output=True,
                            timeout=60, check=False)
    check(second.returncode == 1 and b"the coordinator refuses this stage: there is a npu_worker (pid " in second.stderr,
          second.returncode, second.stderr)
    manager.kill("npu_worker")  # the real one is let in
    os.kill(stopped, signal.SIGCONT)
    got, listed = answers(run.end())
    check(got == want, "the text is another", run.log())
    check([listed[s]["restarts"] for s in STAGES] == [0, 1, 0], [listed[s]["restarts"] for s in STAGES])
    for s in idle:
        s.close()
    manager.end()
    check(token not in run.log(), "the token is in the log")
    gone(path)


def test_hostile():
    """Who has the token is a stage, and is treated as one: nonsense ends it, and the one that comes after it is as good as any."""
    want = spawned(SEEDED)
    path = address()
    manager = Manager(path)
    run = Run(settings(path), *LASTING)
    for name in STAGES:
        manager.start(name)
    run.wait_ready()
    with open(path + ".token", encoding="utf-8") as f:
        greeting = hello(ROLES["npu_worker"], f.read())
    manager.running["npu_worker"].kill()
    check(run.wait("it goes on when others have started it again"), run.log())
    pid = os.fork()
    if pid == 0:
        try:
            s = socket.socket(socket.AF_UNIX)
            s.connect(path)
            s.sendall(greeting + b"\xff" * 64)
            signal.pause()
        finally:
            os._exit(3)
    check(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, "it was not killed")
    check(run.wait(f"npu_worker (pid {pid}): frame of 4294967295 bytes"), run.log())
    manager.restart("npu_worker")
    got, listed = answers(run.end())
    check(got == want, "the text is another", run.log())
    check([listed[s]["restarts"] for s in STAGES] == [0, 2, 0], [listed[s]["restarts"] for s in STAGES])
    manager.end()


def test_another_user():
    """The folder keeps others out; who gets through all the same, with root's rights over files, is told apart by the kernel."""
    if os.geteuid() != 0:
        tandem.skip("only root can connect as another user")
    path = address()
    run = Run(settings(path), *GREEDY)
    check(run.wait("waiting for loader"), run.log())
    pid = os.fork()
    if pid == 0:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.prctl(28, 4, 0, 0, 0)  # PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP: capabilities stay
            os.setresuid(65534, 65534, 65534)
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
                s.settimeout(30)
                os._exit(0 if s.recv(1) == b"" else 2)
        except BaseException:
            os._exit(3)
    check(os.waitpid(pid, 0)[1] == 0, "it got an answer, or no connection")
    check(run.wait("the peer runs as user 65534; expected user 0"), run.log())
    run.process.send_signal(signal.SIGINT)
    run.end(status=130)


def test_where_it_cannot_listen():
    args = ("generate", "--ids", "2,3", "--max-tokens", "1")
    shared = scratch("shared")
    os.mkdir(shared, 0o755)
    os.chmod(shared, 0o755)
    taken = address()
    with open(taken, "w", encoding="utf-8"):
        pass
    for path, part in ((os.path.join(shared, "sock"), "is not a folder of this user with mode 0700"),
                       (scratch("nowhere/sock"), "make it, with mode 0700"), (taken, "is there, and no socket"),
                       (os.path.join(os.path.dirname(taken), "x" * 120), "bytes; expected at most 107")):
        r = tandem.run("coordinator", "--config", settings(path), *args, status=1)
        tandem.one_line_error(r, part)
    os.unlink(taken)
    path = address()
    run = Run(settings(path), *GREEDY)
    check(run.wait("waiting for loader"), run.log())
    second = subprocess.run(tandem.command("coordinator", "--config", settings(path), *args), env=tandem.environment(),
                            capture_output=True, timeout=60, check=False)
    check(second.returncode == 1 and b"another coordinator listens at" in second.stderr, second.returncode, second.stderr)
    check(os.path.exists(path) and os.path.exists(path + ".token"), "the second took the first one's files away")
    run.process.send_signal(signal.SIGINT)
    run.end(status=130)
    gone(path)


def test_plan_names_the_caps():
    cfg = settings(address(), gpu__spawn="true")
    plan = tandem.run_json("coordinator", "--config", cfg, "plan", "--json")["processes"]
    check([plan[s]["spawned"] for s in STAGES] == [False, False, True], plan)
    out = tandem.run("coordinator", "--config", cfg, "plan").stdout
    line = next(l for l in out.splitlines() if l.startswith("others "))
    check(re.findall(r"(\w+) \(MemoryMax=(\d+)\)", line) == [(s, str(plan[s]["cap"])) for s in STAGES[:2]], line, plan)


def unit_command(unit, cfg, path):
    """The last ExecStart of a unit, as it would be run, with the paths of this test."""
    with open(os.path.join(tandem.SOURCE, "packaging", "systemd", unit + ".in"), encoding="utf-8") as f:
        line = re.findall("^ExecStart=(.+)$", f.read(), re.M)[-1]
    for installed, here in (("@BINDIR@/", tandem.BIN + "/"), ("@STAGESDIR@/", tandem.BIN + "/"),
                            ("@CONFDIR@/tandem.yaml", cfg), ("/run/tandem/coordinator.sock", path)):
        line = line.replace(installed, here)
    check("@" not in line and "/run/tandem" not in line.replace(path, ""), line)
    return line.split(" ")


def test_commands_of_the_units():
    """What the unit files run is what serves."""
    path = address()
    cfg = config(model("demo", "q8_0"), http__listen="127.0.0.1:0")
    want = tandem.run_json("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--temperature", "0", "--max-tokens", "20",
                           "--json")["text"]
    running = [subprocess.Popen(unit_command(unit, cfg, path), env=tandem.environment(), start_new_session=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for unit in ("tandem-coordinator.service.d/attached.conf", "tandem-loader.service", "tandem-npu-worker.service",
                            "tandem-gpu-worker.service")]
    url = running[0].stdout.readline().decode().split(" ")[-1].strip()
    check(url.startswith("http://"), url)

    def healthy():
        try:
            return urllib.request.urlopen(url + "/health", timeout=10).status == 200
        except urllib.error.HTTPError:
            return False
    wait_until(healthy, 60, "does not become ready")
    body = json.dumps({"prompt": "Once", "temperature": 0, "max_tokens": 20}).encode()
    request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        check(json.load(answer)["choices"][0]["text"] == want, want)
    running[0].terminate()
    said = [p.communicate(timeout=60)[1].decode() for p in running]
    check([p.returncode for p in running] == [143, 0, 0, 0], [p.returncode for p in running], said)
    check(not tandem.left_behind(), tandem.left_behind())
    gone(path)


def test_valgrind():
    """Slow, and held for no hang."""
    if not shutil.which("valgrind"):
        tandem.skip("valgrind is not installed")
    if tandem.SANITIZE:
        tandem.skip("valgrind and sanitizers exclude each other")
    args = ("generate", "--prompt", "Once", "--temperature", "0", "--max-tokens", "3", "--json")
    want = spawned(args)
    path = address()
    manager = Manager(path)
    run = Run(settings(path, deadlines="off", sandbox="off"), *args, env={"TANDEM_CPU": "ref"})
    manager.start("npu_worker", "valgrind", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite")
    for name in ("loader", "gpu_worker"):
        manager.start(name)
    got, _ = answers(run.end())
    check(got == want, got, want)
    manager.end()
    err = next(e for n, _, e in manager.ended if n == "npu_worker")
    check("ERROR SUMMARY: 0 errors" in err, err)


if __name__ == "__main__":
    tandem.main(globals())
