# SPDX-License-Identifier: MIT
"""The coordinator itself is killed: --resume finishes what it was about, identically."""
import os
import re
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
    r.process.kill()
    r.process.wait()
    for t in r.threads:
        t.join()
    r.process.stdout.close()
    r.process.stderr.close()
    wait_until(lambda: not processes(r.process.pid), 2, lambda: processes(r.process.pid))
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


def test_killed_again():
    """Each takes on from the last; another start in between touches nothing."""
    cfg = config(model("demo", "f32"))
    args = ("--temperature", "1", "--seed", "5")
    want = texts(run("coordinator", "--config", cfg, *STORY, *args).stdout)
    killed(cfg, *STORY, *args, grown=80)
    sizes = []
    for _ in range(3):
        sizes.append(tokens(journals()[0]))
        killed(cfg, "--resume", grown=80)
    sizes.append(tokens(journals()[0]))
    check(sizes == sorted(set(sizes)), "it did not get further:", sizes)
    other = tandem.command("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--max-tokens", "3", "--temperature", "0")
    r = tandem.subprocess.run(other, capture_output=True, env=tandem.environment(), timeout=60)
    check(r.returncode == 0 and len(journals()) == 1, r.stderr, journals())
    check(texts(run("coordinator", "--config", cfg, "--resume").stdout) == want, "another text")
    check(not left_behind(), left_behind())


def test_other_models_and_nothing():
    cfg, other = config(model("demo", "q8_0")), config(model("demo", "f32"))
    r = run("coordinator", "--config", cfg, "--resume")
    check(r.stdout == "" and "nothing to resume" in r.stderr, r.stdout, r.stderr)
    killed(cfg, *STORY, "--seed", "3", grown=80)
    r = tandem.subprocess.run(tandem.command("coordinator", "--config", other, "--resume"), capture_output=True,
                              env=tandem.environment(), timeout=60)
    check(r.returncode == 0 and b"1 requests of another model" in r.stderr and len(journals()) == 1, r.stderr)
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
