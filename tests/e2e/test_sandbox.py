# SPDX-License-Identifier: MIT
"""What real stages can do no longer while they generate: seccomp and no_new_privs on every thread, descriptors that no program inherits,
and the end of a stage that does what it should not. What each profile refuses is tested call by call in tests/proto/test_sandbox.c."""
import os
import re

import tandem
from tandem import check, config, left_behind, model, processes, start, wait_until
from test_lifecycle import LONG, finish
from test_npu import simulated
from test_vulkan import device

TRESPASS = os.path.join(os.path.dirname(tandem.BIN), "tests", "libtrespass.so")
O_CLOEXEC = 0o2000000


def stages(process):
    names = {os.path.basename(c.split(" ")[0]): p for p, c in processes(process.pid).items()}
    return {name: names[name] for name in tandem.STAGES if name in names}


def status(pid, thread):
    with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8") as f:
        return dict(re.findall(r"^(\w+):\s*(.*)$", f.read(), re.M))


def generating(cfg, env=None):
    """A coordinator in the middle of a long answer."""
    process = start("coordinator", "--config", cfg, "generate", "--chat", "--prompt", "Tell me a long story", "--temperature", "1",
                    "--seed", "3", "--max-tokens", "1500", env=env)
    first = os.read(process.stdout.fileno(), 1)
    check(first, "ended before the first character:", process.stderr.read().decode("utf-8", "replace") if not first else "")
    return process


def stop(process):
    process.terminate()
    _, err = finish(process)
    check(process.returncode == 143, "status", process.returncode, err)
    check(not left_behind(), left_behind())
    return err


def check_sealed(cfg, profiles, env=None):
    process = generating(cfg, {"TANDEM_LOG": "warn,supervise:info", **(env or {})})
    found = stages(process)
    check(len(found) == 3, found)
    for name, pid in found.items():
        threads = os.listdir(f"/proc/{pid}/task")
        check(len(threads) >= 2, name, threads)
        for thread in threads:
            s = status(pid, thread)
            if not tandem.SANITIZE:
                check(s["Seccomp"] == "2", name, s["Name"], "Seccomp:", s["Seccomp"])
            check(s["NoNewPrivs"] == "1", name, s["Name"], "NoNewPrivs:", s["NoNewPrivs"])
    err = stop(process)
    for name, profile in profiles.items():
        said = re.search(rf"{name} \(pid \d+\) is ready: .*; sandbox (.*)", err)
        check(said and said.group(1).startswith(f"{profile}: seccomp"), name, err)
    return err


def test_stages_are_sealed():
    check_sealed(config(model("demo", "q8_0"), npu__threads=2), {s: "strict" for s in tandem.STAGES})


def test_stages_with_drivers_are_sealed():
    keys = {**device(), "gpu__threads": 1}
    env = {"XDG_CACHE_HOME": tandem.scratch("cache"), "VK_DRIVER_FILES": os.environ.get("VK_DRIVER_FILES")}
    check_sealed(config(model("demo", "q8_0"), **keys), {"loader": "strict", "npu_worker": "strict", "gpu_worker": "driver"}, env)


def test_npu_is_sealed():
    keys = simulated()
    check_sealed(config(model("demo", "q8_0"), **keys), {"loader": "strict", "npu_worker": "driver", "gpu_worker": "strict"},
                 {"XDG_CACHE_HOME": tandem.scratch("cache")})


def test_off():
    process = generating(config(model("demo", "q8_0"), sandbox="off"), {"TANDEM_LOG": "warn,supervise:info"})
    own = status(os.getpid(), os.getpid())
    for name, pid in stages(process).items():
        filters = int(status(pid, pid)["Seccomp_filters"]) - int(own["Seccomp_filters"])  # Linux 5.9
        check(filters == 1, name, filters, "filters; expected the one that refuses io_uring")
    check(stop(process).count("; sandbox off") == 3, "not said")


def test_descriptors_are_cloexec():
    """Of every process, all but the standard streams, which it was given."""
    process = generating(config(model("demo", "q8_0")))
    found = {"coordinator": process.pid, **stages(process)}
    check(len(found) == 4, found)
    for name, pid in found.items():
        n = 0
        for fd in map(int, os.listdir(f"/proc/{pid}/fdinfo")):
            if fd <= 2:
                continue
            with open(f"/proc/{pid}/fdinfo/{fd}", encoding="utf-8") as f:
                flags = int(re.search(r"^flags:\s*(\d+)$", f.read(), re.M).group(1), 8)
            check(flags & O_CLOEXEC, f"{name}: descriptor {fd} is inherited:", os.readlink(f"/proc/{pid}/fd/{fd}"), oct(flags))
            n += 1
        check(n >= 5, name, "has only", n, "descriptors")
    stop(process)


def test_what_is_forbidden_ends_a_stage():
    if tandem.SANITIZE:
        tandem.skip("with sanitizers, filters only report")
    for victim in tandem.STAGES:
        env = {"LD_PRELOAD": TRESPASS, "TRESPASS": victim, "TRESPASS_AFTER_MS": "1000", "TRESPASS_DOES": "socket"}
        process = start("coordinator", "--config", config(model("demo", "f32"), restarts=0), *LONG, env=env)
        _, err = finish(process, 120)
        check(process.returncode == 1, f"{victim}: status {process.returncode}", err)
        check(f"{victim} (pid " in err and "was ended by its seccomp filter (SIGSYS)" in err and "trespass:" not in err, err)
        check(not left_behind(), left_behind())


def test_files_cannot_be_opened():
    if tandem.SANITIZE:
        tandem.skip("with sanitizers, filters only report")
    env = {"LD_PRELOAD": TRESPASS, "TRESPASS": "npu_worker", "TRESPASS_AFTER_MS": "1000", "TRESPASS_DOES": "open"}
    process = start("coordinator", "--config", config(model("demo", "f32")), *LONG, env=env)
    said = b""
    while b"trespass" not in said:
        line = process.stderr.readline()
        check(line, "ended without a word:", said)
        said += line
    check(b"trespass: -1, errno 13" in said, said)
    stop(process)


if __name__ == "__main__":
    tandem.main(globals())
