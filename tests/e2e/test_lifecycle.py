# SPDX-License-Identifier: MIT
"""What is left after an exit, a signal, or a kill: nothing, or what the next start removes."""
import contextlib
import os
import signal
import subprocess
import sys
import time

import tandem
from tandem import check, config, left_behind, model, processes, start, wait_running, wait_until

# Long enough to be in the middle of: 1900 tokens, whatever the model would like to stop at.
LONG = ("bench", "--prompt-tokens", "64", "--gen-tokens", "1900")


def finish(process, timeout=30):
    out, err = process.communicate(timeout=timeout)
    return out, err.decode("utf-8", "replace")


def streaming(cfg):
    """A generation that has already printed something."""
    process = start("coordinator", "--config", cfg, "generate", "--chat", "--prompt", "Tell me a long story", "--temperature", "1",
                    "--seed", "3", "--max-tokens", "1500")
    first = os.read(process.stdout.fileno(), 1)
    check(first, "ended before the first character:", process.stderr.read().decode("utf-8", "replace") if not first else "")
    return process


def test_signals_end_cleanly():
    cfg = config(model("demo", "f32"))
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for begin in (lambda: start("coordinator", "--config", cfg, *LONG), lambda: streaming(cfg)):
            process = begin()
            wait_running(process)
            process.send_signal(number)
            _, err = finish(process)
            check(process.returncode == status, f"{number!r}: status {process.returncode} instead of {status}", err)
            check("Sanitizer" not in err, err)
            check(not processes(process.pid), "still running:", processes(process.pid))
            check(not left_behind(), left_behind())


def test_signal_while_idle():
    process = start("coordinator", "--config", config(model("demo", "f32")), stdin=subprocess.PIPE)
    wait_running(process)
    process.send_signal(signal.SIGTERM)
    _, err = finish(process)
    check(process.returncode == 143, "status", process.returncode, err)
    check(not left_behind(), left_behind())


def test_signal_to_the_whole_group():
    """Ctrl-C on a terminal reaches the stages as well; they must leave the ending to the coordinator."""
    process = streaming(config(model("demo", "f32")))
    os.killpg(process.pid, signal.SIGINT)
    _, err = finish(process)
    check(process.returncode == 130, "status", process.returncode, err)
    check(not left_behind(), left_behind())


def test_kill_of_the_coordinator():
    cfg = config(model("demo", "f32"))
    process = start("coordinator", "--config", cfg, *LONG)
    wait_running(process)
    pid = process.pid
    process.kill()
    killed = time.monotonic()
    process.wait()
    wait_until(lambda: not processes(pid), 1.0, lambda: processes(pid))
    print(f"  stages were gone after {time.monotonic() - killed:.3f} s")
    finish(process)
    # The next start works and clears what the killed one could not.
    r = tandem.run("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--max-tokens", "3", "--temperature", "0")
    check(r.stdout.strip(), "no text after a restart")
    check(not left_behind(), left_behind())
    check(not tandem.cgroups([pid]), "stale cgroups:", tandem.cgroups([pid]))


def test_stopped_stages_die_with_their_coordinator():
    """None of them can look at its socket: the kernel ends them."""
    process = start("coordinator", "--config", config(model("demo", "f32")), *LONG)
    wait_running(process)
    stages = [pid for pid in processes(process.pid) if pid != process.pid]
    check(len(stages) == 3, stages)

    def threads(pid):
        with open(f"/proc/{pid}/status", encoding="utf-8") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("Threads:"))
    # a stage asks for it before it has threads; one that has only been started may not have
    wait_until(lambda: all(threads(pid) > 1 for pid in stages), 60, "the stages do not run")
    for pid in stages:
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    wait_until(lambda: not processes(process.pid), 1.0, lambda: processes(process.pid))
    finish(process)
    tandem.run("coordinator", "--config", config(model("demo", "f32")), "generate", "--prompt", "Once", "--max-tokens", "1")
    check(not left_behind(), left_behind())


def test_hungry_coordinator():
    """A coordinator that the kernel ends for its own cap can say nothing: the next start reads it in the group that it left."""
    if tandem.SANITIZE:
        tandem.skip("sanitizers want to be loaded first")
    hungry = os.path.join(os.path.dirname(tandem.BIN), "tests", "libhungry.so")
    cfg = config(model("demo", "f32"))
    once = ("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--max-tokens", "3", "--temperature", "0")
    process = start("coordinator", "--config", cfg, *LONG,
                    env={"LD_PRELOAD": hungry, "HUNGRY": "coordinator", "HUNGRY_AFTER_MS": "1500"})
    wait_running(process)
    folders = tandem.cgroups([process.pid])
    if not folders:
        process.kill()
        finish(process)
        tandem.run(*once)
        tandem.skip("no cgroups: caps are not enforced here")
    _, err = finish(process, 60)
    check(process.returncode == -9, "status", process.returncode, err)
    r = tandem.run(*once)
    check(f"coordinator {process.pid} was killed by the kernel: it needed more than its cap of " in r.stderr and
          "raise 'memory.coordinator'" in r.stderr, r.stderr)
    check(not left_behind() and not tandem.cgroups([process.pid]), left_behind(), tandem.cgroups([process.pid]))
    check("was killed" not in tandem.run(*once).stderr, "said twice")


def test_many_starts_at_once():
    """Starts, ends and kills side by side: none takes another's folder for stale, and nothing stays in the end."""
    cfg = config(model("demo", "q8_0"))
    ask = ("--config", cfg, "generate", "--prompt", "a", "--max-tokens", "1")
    pids = []
    for _ in range(3):
        some = [start("coordinator", *ask) for _ in range(6)]
        victim = start("coordinator", "--config", cfg, *LONG)
        pids += [p.pid for p in some] + [victim.pid]
        for process in some:
            _, err = finish(process, 120)
            check(process.returncode == 0, "status", process.returncode, err)
        victim.kill()
        finish(victim)
        tandem.run("coordinator", *ask)  # at once: the victim's stages may still be ending
    check(not left_behind(), left_behind())
    check(not tandem.cgroups(pids), "stale cgroups:", tandem.cgroups(pids))


def test_kill_of_a_stage():
    """Without restarts: one clear error, a non-zero status, nothing left. With them: test_recovery.py."""
    for victim in tandem.STAGES:
        process = start("coordinator", "--config", config(model("demo", "f32"), restarts=0), *LONG)
        wait_running(process)
        pid = next(p for p, c in processes(process.pid).items() if os.path.basename(c.split(" ")[0]) == victim)
        os.kill(pid, signal.SIGKILL)
        out, err = finish(process)
        check(process.returncode == 1, f"{victim}: status {process.returncode}", err)
        check(victim in err and "Sanitizer" not in err, f"the error does not name {victim}:", err)
        check(not left_behind(), left_behind())


def test_hungry_stage():
    """A stage that takes memory without end is ended at its cap, by the kernel or by the coordinator's watch, and the error says so."""
    if tandem.SANITIZE:
        tandem.skip("sanitizers want to be loaded first")
    hungry = os.path.join(os.path.dirname(tandem.BIN), "tests", "libhungry.so")
    for caps in (None, "watched"):
        for victim, shared in (("npu_worker", None), ("loader", None), ("loader", "1"), ("gpu_worker", "1")):
            env = {"LD_PRELOAD": hungry, "HUNGRY": victim, "HUNGRY_AFTER_MS": "1000", "HUNGRY_SHARED": shared, "TANDEM_CAPS": caps}
            process = start("coordinator", "--config", config(model("demo", "f32"), restarts=0), *LONG, env=env)
            out, err = finish(process, 120)
            check(process.returncode == 1, f"{victim}: status {process.returncode}", err)
            check(f"{victim} (pid " in err and "it needed more than its cap of" in err and f"raise 'memory.{victim}'" in err, caps, err)
            check(caps is None or "and watched, not enforced by the kernel" in err, err)
            check(not left_behind(), left_behind())


def test_kill_for_a_cap():
    """A stage that the kernel ends for its memory: the error says so, and which key to raise."""
    process = start("coordinator", "--config", config(model("demo", "f32"), kv_type="f32", restarts=0), *LONG)
    wait_running(process)
    folders = tandem.cgroups([process.pid])
    if not folders:
        process.kill()
        finish(process)
        tandem.skip("no cgroups: caps are not enforced here")
    folder = os.path.join(folders[0], "npu_worker")
    usage, cap = ("memory.current", "memory.max") if os.path.exists(os.path.join(folder, "memory.max")) else (
        "memory.usage_in_bytes", "memory.limit_in_bytes")

    def lower():
        try:
            with open(os.path.join(folder, usage), encoding="utf-8") as f:
                room = int(f.read()) + (256 << 10)
            with open(os.path.join(folder, cap), "w", encoding="utf-8") as f:
                f.write(str(room))
            return True
        except OSError:  # it grew meanwhile
            return process.poll() is not None

    wait_until(lower, 30, "the cap could not be lowered")
    _, err = finish(process, 120)
    check(process.returncode == 1, "status", process.returncode, err)
    check("npu_worker (pid " in err and "it needed more than its cap of" in err and "raise 'memory.npu_worker'" in err, err)
    check(not left_behind(), left_behind())


@contextlib.contextmanager
def group_around(limit):
    """A cgroup of v1 with a limit: its path, and what a process does to begin in it."""
    with open("/proc/self/cgroup", encoding="utf-8") as f:
        own = [line.strip().split(":", 2)[2] for line in f if line.split(":")[1] == "memory"]
    around = f"/sys/fs/cgroup/memory{own[0].rstrip('/')}/around-{os.getpid()}" if own else ""
    try:
        os.mkdir(around)
    except OSError:
        tandem.skip("no cgroup of v1 that groups can be made in")

    def write(name, value):
        with open(f"{around}/{name}", "w", encoding="utf-8") as f:
            f.write(str(value))

    def removed():
        try:
            os.rmdir(around)
            return True
        except OSError:  # processes are ending in it
            return False

    try:
        write("memory.limit_in_bytes", limit)
        yield around, lambda: write("cgroup.procs", os.getpid())
    finally:
        wait_until(removed, 10, "the group is not empty")


def test_kill_for_others():
    """A group around everything has less than the caps allow: the error names it and its limit, and no cap to raise."""
    if tandem.SANITIZE:
        tandem.skip("sanitizers take memory of their own")
    with group_around(300 << 20) as (around, enter):
        for caps in (None, "watched"):
            for _ in range(5):  # whom the kernel ends is its choice, and now and then it is a small one
                process = start("coordinator", "--config", config(model("demo", "q8_0"), memory__gpu_worker="2GiB", restarts=0), *LONG,
                                "--fault", "gpu_worker:oom@20", env={"TANDEM_CAPS": caps}, preexec_fn=enter)
                _, err = finish(process, 120)
                if "gpu_worker (pid " in err:
                    break
            check(process.returncode == 1, "status", process.returncode, err)
            check("gpu_worker (pid " in err and "for want of memory around it" in err, caps, err)
            check(f"group '{around}' was at its limit of 300.0 MiB" in err and "raise 'memory" not in err, caps, err)
            check("of its cap of 2.0 GiB" in err or caps, err)
            check(not left_behind(), left_behind())


def test_little_is_free():
    """A start where the plan fits the machine, but not what others leave of it, says so with the figures, as `plan` does."""
    if tandem.SANITIZE:
        tandem.skip("sanitizers need gigabytes more, and here as much again is taken")
    cfg = config(model("demo", "q8_0"))
    need = sum(p["total"] for p in tandem.run_json("coordinator", "--config", cfg, "plan", "--json")["processes"].values())
    with group_around(2 * need) as (_, enter):
        hog = f"b = bytearray({need + need // 2}); print(flush=True); input()"
        other = subprocess.Popen([sys.executable, "-c", hog], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=enter)
        try:
            other.stdout.readline()
            _, err = finish(start("coordinator", "--config", cfg, "generate", "--prompt", "a", "--max-tokens", "1", preexec_fn=enter))
            check(f"of memory free; the processes need {need / 2**20:.1f} MiB" in err and "close other programs first" in err, err)
        finally:
            other.communicate(b"\n")
    _, err = finish(start("coordinator", "--config", cfg, "generate", "--prompt", "a", "--max-tokens", "1"))
    check("of memory free" not in err, err)


def test_text_that_does_not_fit():
    """A text too large for what is free, or for anybody, is refused before it is read."""
    cfg, text = config(model("demo", "q8_0")), tandem.scratch("text")
    with open(text, "wb") as f:
        f.truncate(256 << 20)
    ask = ("--config", cfg, "perplexity", "--file", text)
    r = tandem.run("coordinator", *ask, status=1)
    tandem.one_line_error(r, f"file '{text}' has 256.0 MiB; expected less than 256.0 MiB of text")
    os.truncate(text, 20 << 20)
    with group_around(64 << 20) as (_, enter):
        process = start("coordinator", *ask, preexec_fn=enter)
        _, err = finish(process)
    check(process.returncode == 1 and f"file '{text}' has 20.0 MiB, for which up to 80.0 MiB of memory are taken" in err, err)


def test_end_of_input():
    """One prompt per line from a pipe; the end of input is a clean end."""
    r = tandem.run("coordinator", "--config", config(model("demo", "bf16")), "--temperature", "0",
                   stdin="Tell me a story about a cat\nTell me a story about a dog")
    check("cat" in r.stdout and "dog" in r.stdout, "the stories are not there:", r.stdout)


def test_closed_output():
    """The reader of our stream goes away, as with 'head'."""
    process = streaming(config(model("demo", "f32")))
    process.stdout.close()
    err = process.stderr.read().decode("utf-8", "replace")
    process.stderr.close()
    process.wait(timeout=60)
    check("Sanitizer" not in err, err)
    wait_until(lambda: not processes(process.pid), 2.0, lambda: processes(process.pid))
    check(not left_behind(), left_behind())


def test_two_at_once():
    """Two coordinators share the runtime folder and do not take each other for dead."""
    cfg = config(model("demo", "f32"))
    first = start("coordinator", "--config", cfg, "--temperature", "0", stdin=subprocess.PIPE)
    wait_running(first)
    second = start("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--max-tokens", "3", "--temperature", "0")
    out, err = finish(second)
    check(second.returncode == 0 and out.strip(), "status", second.returncode, err)
    check(first.poll() is None, "the first one ended")
    out, err = first.communicate(b"Tell me a story about a cat\n", timeout=60)
    check(first.returncode == 0 and b"cat" in out, "status", first.returncode, out, err)
    check(not left_behind(), left_behind())


def test_without_model_file_beside_stages():
    """Commands that need no pipeline start no process."""
    before = set(processes())
    tandem.run("coordinator", "--config", config(model("demo", "f32")), "plan")
    check(set(processes()) == before, "processes appeared")


if __name__ == "__main__":
    tandem.main(globals())
