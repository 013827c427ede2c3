# SPDX-License-Identifier: MIT
"""The coordinator itself is killed: --resume finishes what it was about, identically."""
import fcntl
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import termios
import time

import tandem
from tandem import check, config, left_behind, model, processes, run, wait_until
from test_recovery import Run

STORY = ("generate", "--chat", "--prompt", "Tell me a very long story about a dog", "--max-tokens", "1500")


def journals():
    return [os.path.join(folder, f) for folder, _, files in os.walk(tandem.RUNTIME) for f in files if f.startswith("request-")]


def tokens(path):
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def end_by_kill(r):
    r.process.kill()
    r.process.wait()
    for t in r.threads:
        t.join()
    r.process.stdout.close()
    r.process.stderr.close()
    wait_until(lambda: not processes(r.process.pid), 2, lambda: processes(r.process.pid))


def try_kill(cfg, args, grown):
    """None: it ended first. Several requests must all have begun, and not ended."""
    r = Run(cfg, *args)
    n = int(args[args.index("--parallel") + 1]) if "--parallel" in args else 1
    ended = lambda: r.process.poll() is not None
    wait_until(lambda: len(journals()) == n or ended(), 60, r.log)
    before = min([tokens(p) for p in journals()] or [0])

    def far_enough():
        sizes = [tokens(p) for p in journals()]  # empty while one is being moved
        return len(sizes) < n or min(sizes) >= before + grown

    wait_until(lambda: far_enough() or ended(), 60, r.log)
    end_by_kill(r)
    for path in journals():
        check(os.stat(path).st_mode & 0o777 == 0o600, path, oct(os.stat(path).st_mode))
    return r if journals() else None


def killed(cfg, *args, grown):
    """A run that is killed when each of its requests has so many bytes of tokens in its file."""
    for _ in range(20):
        if try_kill(cfg, args, grown):
            return
    check(False, "it always ended before it was killed")


def texts(out):
    """Of `generate --parallel` and of --resume, without how they ended."""
    parts = re.split(r"^--- answer \d+ \(\w+\)\n", out, flags=re.M)
    return sorted(p.strip() for p in parts if p.strip())


def test_one_and_several():
    cfg = config(model("demo", "f32"))
    for more in (("--temperature", "0"), ("--temperature", "1", "--seed", "3"), ("--temperature", "1", "--seed", "3", "--parallel", "4")):
        want = texts(run("coordinator", "--config", cfg, *STORY, *more).stdout)
        killed(cfg, *STORY, *more, grown=80)
        left = len(journals())
        r = run("coordinator", "--config", cfg, "--resume")
        got = texts(r.stdout)
        check(len(got) == left and all(t in want for t in got), more, f"{left} were left", got, want)
        check(not left_behind() and not journals(), left_behind())


def ended(path):
    """The last entry says how the request ended, and no token."""
    try:
        with open(path, "rb") as f:
            f.seek(-8, os.SEEK_END)
            return struct.unpack("=I", f.read(4))[0] >= 0xFFFFFF00
    except FileNotFoundError:
        return False


def test_complete_but_not_printed():
    """Some of several answers are complete, and wait for the others: they are not lost, and nothing of them is computed again."""
    cfg = config(model("demo", "f32"))
    args = ("generate", "--chat", "--prompt", "Tell me a story about a dog", "--temperature", "1", "--seed", "11", "--parallel", "4")
    want = texts(run("coordinator", "--config", cfg, *args).stdout)
    check(len({len(t) for t in want}) > 1, "all of one length")
    for _ in range(20):
        r = Run(cfg, *args)
        wait_until(lambda: any(map(ended, journals())) or r.process.poll() is not None, 60, r.log)
        end_by_kill(r)
        if journals():
            break
    check(len(journals()) == 4 and r.out == b"" and any(map(ended, journals())), journals(), r.out)
    check(texts(run("coordinator", "--config", cfg, "--resume").stdout) == want, "other texts")
    check(not left_behind() and not journals(), left_behind())


class Reader:
    """Of a pipe in packet mode that takes one: each write of the coordinator waits until the one before it was read."""

    def __init__(self, cfg, *args):
        self.end, theirs = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        check(fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096) == 4096, "a pipe of one page")
        os.write(theirs, b".")
        self.process = subprocess.Popen(tandem.command("coordinator", "--config", cfg, *args), stdout=theirs, stderr=subprocess.PIPE,
                                        stdin=subprocess.DEVNULL, env=tandem.environment())
        os.close(theirs)
        self.got = b""

    def stands(self):
        """It waits for us: its main thread sleeps, and goes on sleeping, while something is there to be read."""
        for _ in range(10):
            with open(f"/proc/{self.process.pid}/stat") as f:
                state = f.read().rsplit(")", 1)[1].split()[0]
            if state != "S" or struct.unpack("i", fcntl.ioctl(self.end, termios.FIONREAD, b"\0" * 4))[0] == 0:
                return False
            time.sleep(0.01)
        return True

    def read(self):
        self.got += os.read(self.end, 65536)

    def kill(self):
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not processes(self.process.pid), 2, lambda: processes(self.process.pid))
        while some := os.read(self.end, 65536):
            self.got += some
        os.close(self.end)
        self.process.stderr.close()
        return self.got[1:].decode()


def test_killed_while_printing():
    """Each answer is printed whole once, whichever run it is that prints it."""
    cfg = config(model("demo", "f32"))
    args = (*STORY, "--temperature", "1", "--seed", "3", "--parallel", "4")
    want = texts(run("coordinator", "--config", cfg, *args).stdout)
    r, out = Reader(cfg, *args), []
    for left in (4, 3, 1):  # killed before anything is printed, after one answer, and after another two
        all_ended = lambda: len(journals()) == 4 - len(out) and all(map(ended, journals()))
        wait_until(lambda: all_ended() and r.stands(), 120, lambda: (left, journals()))
        while len(journals()) > left:
            r.read()
            wait_until(r.stands, 60, lambda: (left, journals()))
        check(len(journals()) == left, journals())
        out += texts(r.kill())
        check(len(out) == 4 - left, f"{left} were left:", out)
        r = Reader(cfg, "--resume") if left > 1 else None
    out += texts(run("coordinator", "--config", cfg, "--resume").stdout)
    check(sorted(out) == want, "not each once:", out, want)
    check(not left_behind() and not journals(), left_behind())


def test_killed_again():
    """Each takes on from the last; another start in between touches nothing."""
    cfg = config(model("demo", "f32"))
    args = ("--temperature", "1", "--seed", "5")
    want = texts(run("coordinator", "--config", cfg, *STORY, *args).stdout)
    killed(cfg, *STORY, *args, grown=80)
    sizes = []
    for _ in range(3):
        sizes.append(tokens(journals()[0]))
        killed(cfg, "--resume", "--fault", "gpu_worker:slow@p=0.3", grown=80)  # so that it does not end first
    sizes.append(tokens(journals()[0]))
    check(sizes == sorted(set(sizes)), "it did not get further:", sizes)
    other = tandem.command("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--max-tokens", "3", "--temperature", "0")
    r = tandem.subprocess.run(other, capture_output=True, env=tandem.environment(), timeout=60)
    check(r.returncode == 0 and len(journals()) == 1, r.stderr, journals())
    check(texts(run("coordinator", "--config", cfg, "--resume").stdout) == want, "another text")
    check(not left_behind(), left_behind())


def test_resume_that_ends_early():
    """By Ctrl-C, or by a request that fails: what is not printed whole is left, and goes on from there."""
    cfg = config(model("demo", "f32"))
    args = ("--temperature", "1", "--seed", "3", "--parallel", "2")
    want = texts(run("coordinator", "--config", cfg, *STORY, *args).stdout)
    for _ in range(20):  # until it was in the middle
        killed(cfg, *STORY, *args, grown=80)
        if len(journals()) == 2 and not any(map(ended, journals())):
            break
        run("coordinator", "--config", cfg, "--resume")
    r = Run(cfg, "--resume", "--fault", "gpu_worker:slow@p=1")  # a second for each token
    wait_until(lambda: r.count(" is ready: ") == 3 and len(journals()) == 2, 60, r.log)
    r.process.send_signal(signal.SIGINT)
    r.process.wait()
    for t in r.threads:
        t.join()
    r.process.stdout.close()
    r.process.stderr.close()
    check(r.process.returncode == 130 and len(journals()) == 2 and not processes(r.process.pid), r.log(), journals())
    r = tandem.subprocess.run(tandem.command("coordinator", "--config", cfg, "--resume", "--fault", "loader:eio@p=1"), capture_output=True,
                              env=tandem.environment(), timeout=60)
    check(r.returncode == 1 and b"--resume tries those again" in r.stderr and len(journals()) == 2, r.stderr, journals())
    check(texts(run("coordinator", "--config", cfg, "--resume").stdout) == want, "other texts")
    check(not left_behind() and not journals(), left_behind())


def test_full_disk():
    """The runtime folder has no more room while an answer is finished: it stays as far as it had come, also after another kill."""
    cfg = config(model("demo", "f32"))
    args = ("--temperature", "1", "--seed", "3")
    want = texts(run("coordinator", "--config", cfg, *STORY, *args).stdout)
    killed(cfg, *STORY, *args, grown=80)
    r = Run(cfg, "--resume", "--fault", "gpu_worker:slow@p=1")  # a second for each token
    wait_until(lambda: r.count(" is ready: ") == 3 and len(journals()) == 1, 60, r.log)
    size = tokens(journals()[0])
    resource.prlimit(r.process.pid, resource.RLIMIT_FSIZE, (size + 4, resource.RLIM_INFINITY))  # half an entry
    check(r.wait("cannot be written any more"), r.log())
    check(r.process.poll() is None and tokens(journals()[0]) in (size, size + 8), size, journals())  # one may have come meanwhile
    end_by_kill(r)
    check(texts(run("coordinator", "--config", cfg, "--resume").stdout) == want, "another text")
    check(not left_behind() and not journals(), left_behind())


SLOW = ("--fault", "gpu_worker:slow@p=0.3")  # it is killed before it ends


def resume_in(cfg, context):
    """Of one that may leave something: status, output, and what was said but for what was found."""
    r = subprocess.run(tandem.command("coordinator", "--config", cfg, "--set", f"context={context}", "--resume"), capture_output=True,
                       env=tandem.environment(), timeout=tandem.TIMEOUT)
    return r.returncode, r.stdout.decode(), [line for line in tandem.sentences(r.stderr.decode()) if " warn runtime: " not in line]


def test_other_context():
    """In less room an answer would be another: it is left, the reason is said, and the others are finished. In more it is the same."""
    cfg = config(model("demo", "f32"))
    long = ("generate", "--prompt", "Once there was a cat. " * 100, "--temperature", "0", "--max-tokens", "200")
    short = ("generate", "--prompt", "Once", "--temperature", "1", "--seed", "4", "--max-tokens", "100")
    tight = ("--set", "context=100", *STORY, "--temperature", "1", "--seed", "3")
    roomy = run("coordinator", "--config", cfg, *tight[2:]).stdout
    want_long, want_short, want_tight = (run("coordinator", "--config", cfg, *a).stdout for a in (long, short, tight))
    check(roomy.startswith(want_tight.strip()) and len(roomy) > len(want_tight) + 10, "'context' ends nothing:", want_tight, roomy)
    killed(cfg, *long, *SLOW, grown=80)
    r = Run(cfg, *short, *SLOW)
    wait_until(lambda: len(journals()) == 2, 60, r.log)  # the other one stays
    end_by_kill(r)
    status, out, said = resume_in(cfg, 512)
    check(status == 1 and out == want_short and len(journals()) == 1, status, out, want_short, said, journals())
    check(len(said) == 2 and "'context' is 512, and was 2048 when it was begun: set it to " in said[0], said)
    check("not every answer could be finished" in said[1], said)
    need = said[0].split("set it to ")[1].split()[0]
    status, out, _ = resume_in(cfg, int(need) - 1)
    check(status == 1 and out == "" and len(journals()) == 1, need, out)
    check(resume_in(cfg, need)[:2] == (0, want_long), "another text")

    killed(cfg, *tight, *SLOW, grown=80)
    check(run("coordinator", "--config", cfg, "--resume").stdout == want_tight, "another text")
    check(not left_behind() and not journals(), left_behind())


def test_other_models_and_nothing():
    cfg, other = config(model("demo", "q8_0")), config(model("demo", "f32"))
    r = run("coordinator", "--config", cfg, "--resume")
    check(r.stdout == "" and "nothing to resume" in r.stderr, r.stdout, r.stderr)
    damaged = os.path.join(tandem.WORK, "damaged.gguf")
    shutil.copy(model("demo", "q8_0"), damaged)
    with open(damaged, "r+b") as f:  # a weight
        f.seek(-1000, os.SEEK_END)
        byte = f.read(1)
        f.seek(-1000, os.SEEK_END)
        f.write(bytes([byte[0] ^ 1]))
    check("is damaged" in run("coordinator", "--config", config(damaged), "generate", "--prompt", "a", status=1).stderr, "not damaged")
    r = run("coordinator", "--config", config(damaged), "--resume")  # no weight is read to find nothing
    check(r.stdout == "" and "nothing to resume" in r.stderr and "is damaged" not in r.stderr, r.stdout, r.stderr)
    killed(cfg, *STORY, "--seed", "3", grown=80)
    r = tandem.subprocess.run(tandem.command("coordinator", "--config", other, "--resume"), capture_output=True,
                              env=tandem.environment(), timeout=60)
    said = [line for line in tandem.sentences(r.stderr.decode()) if " warn runtime: " not in line]
    check(r.returncode == 0 and r.stdout == b"" and len(journals()) == 1, r.stderr)
    check(len(said) == 1 and said[0].startswith("nothing to resume with this model: 1 request of another model"), said)
    check(run("coordinator", "--config", cfg, "--resume").stdout.strip(), "nothing was resumed")
    off = config(model("demo", "q8_0"), journal="off")
    p = Run(off, *STORY, "--seed", "3")
    p.wait_ready()
    time.sleep(0.1)
    check(not journals(), journals())
    p.end()
    tandem.one_line_error(run("coordinator", "--config", off, "--resume", status=None), "'journal' is off")


if __name__ == "__main__":
    tandem.main(globals())
