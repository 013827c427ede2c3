# SPDX-License-Identifier: MIT
"""What the end-to-end tests share: where things are, running programs, reading safetensors, and telling what was left behind.

The environment is set by tests/e2e/CMakeLists.txt: TANDEM_BIN (programs under test), TANDEM_SOURCE (the project),
TANDEM_E2E (a folder to write in), TANDEM_SANITIZE (as configured, may be empty). TANDEM_SHARED comes from the caller.
A test file defines functions named test_*, and ends with `tandem.main(globals())`.
"""
import atexit
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

import numpy as np

SOURCE = os.environ.get("TANDEM_SOURCE", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BIN = os.environ.get("TANDEM_BIN", os.path.join(SOURCE, "build", "dev", "bin"))
E2E = os.environ.get("TANDEM_E2E", os.path.join(SOURCE, "build", "dev", "e2e"))
SANITIZE = os.environ.get("TANDEM_SANITIZE", "")
SHARED = os.environ.get("TANDEM_SHARED", "")
GOLDEN = os.path.join(SOURCE, "tests", "golden")
DEMO = os.path.join(SOURCE, "models", "demo")
MODELS = os.path.join(E2E, "models")
SKIP_STATUS = 77
STAGES = ("loader", "npu_worker", "gpu_worker")
# Far above what any run needs; a test that reaches it hangs.
TIMEOUT = 600 if SANITIZE else 300

os.makedirs(E2E, exist_ok=True)
WORK = tempfile.mkdtemp(prefix=os.path.basename(sys.argv[0]).removesuffix(".py") + "-", dir=E2E)
RUNTIME = os.path.join(WORK, "run")
os.mkdir(RUNTIME)


@atexit.register
def _clean():
    if os.environ.get("TANDEM_E2E_KEEP") is None:
        shutil.rmtree(WORK, ignore_errors=True)


class Failure(Exception):
    pass


class Skip(Exception):
    pass


def check(ok, *what):
    if not ok:
        raise Failure(" ".join(str(w) for w in what))


def skip(reason):
    raise Skip(reason)


def need_shared(*parts):
    """Path below TANDEM_SHARED, or the test is left out."""
    if not SHARED:
        skip(f"{os.path.basename(sys.argv[0])}: TANDEM_SHARED is not set; {'/'.join(parts)} is needed")
    path = os.path.join(SHARED, *parts)
    if not os.path.exists(path):
        skip(f"{os.path.basename(sys.argv[0])}: '{path}' is not there")
    return path


def main(names):
    """Run the test functions of a file, or those named on the command line. Exit 77 when all were left out."""
    tests = [(n, f) for n, f in names.items() if n.startswith("test_") and callable(f)]
    if sys.argv[1:]:
        tests = [(n, f) for n, f in tests if n in sys.argv[1:]]
        check(len(tests) == len(sys.argv[1:]), "no such test:", sys.argv[1:])
    failed = skipped = 0
    for name, function in tests:
        start = time.monotonic()
        try:
            function()
            word = "ok"
        except Skip as e:
            print(f"SKIP: {name}: {e}")
            skipped += 1
            continue
        except Failure as e:
            word = f"FAILED: {e}"
            failed += 1
        except subprocess.TimeoutExpired as e:
            word = f"FAILED: timed out: {e}"
            failed += 1
        except Exception:  # a mistake in the test itself is a failure too, and the others still run
            word = "FAILED: " + traceback.format_exc()
            failed += 1
        print(f"{name}: {word} ({time.monotonic() - start:.1f} s)", flush=True)
    sys.exit(1 if failed else SKIP_STATUS if skipped == len(tests) else 0)


# ---------------------------------------------------------------- programs

def environment(**extra):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TANDEM_")}
    env["TANDEM_RUNTIME_DIR"] = RUNTIME
    env["XDG_STATE_HOME"] = os.path.join(WORK, "state")  # no test writes into its user's history
    env.update({k: v for k, v in extra.items() if v is not None})
    return env


def command(program, *args):
    return [os.path.join(BIN, program), *[str(a) for a in args]]


def judge(result):
    """No program may ever die by a signal or make a sanitizer speak, whatever was asked of it."""
    for sign in ("Sanitizer", "runtime error:"):
        check(sign not in result.stderr, "a sanitizer reported:", result.stderr[-4000:])
    check(result.returncode >= 0, f"killed by signal {-result.returncode}:", " ".join(result.args), result.stderr[-2000:])
    return result


def run(program, *args, status=0, stdin=None, env=None, timeout=TIMEOUT):
    """Run to the end. status: what is expected, None = any. What is printed must be UTF-8; nothing may be left behind."""
    result = subprocess.run(command(program, *args), input=None if stdin is None else stdin.encode(),
                            stdin=None if stdin is not None else subprocess.DEVNULL, capture_output=True,
                            env=environment(**(env or {})), timeout=timeout)
    for name in ("stdout", "stderr"):
        try:
            setattr(result, name, getattr(result, name).decode("utf-8"))
        except UnicodeDecodeError as e:
            raise Failure(f"{name} of {' '.join(result.args)} is no UTF-8 ({e}): {getattr(result, name)[:400]!r}")
    judge(result)
    if status is not None:
        check(result.returncode == status, f"status {result.returncode} instead of {status}:", " ".join(result.args), "\n",
              result.stderr)
    left = left_behind()
    check(not left, "left behind after", " ".join(result.args), ":", left)
    return result


def sentences(stderr):
    """Lines on stderr, but for the statement that caps are not held by the kernel here, which is no error."""
    return [l for l in stderr.splitlines() if l.strip() and " warn memory: caps are accounted" not in l]


def one_line_error(result, *words):
    """A refusal: status 1 or 2, one sentence on stderr that says what is wrong, nothing on stdout."""
    lines = sentences(result.stderr)
    check(result.returncode in (1, 2), f"status {result.returncode} instead of 1 or 2:", " ".join(result.args), result.stderr)
    check(len(lines) == 1, f"{len(lines)} lines instead of one:", result.stderr)
    check(result.stdout == "", "output in spite of the error:", result.stdout[:200])
    check(lines[0].isprintable(), "bytes of the input reach the terminal as they are:", repr(lines[0]))
    for word in words:
        check(word in lines[0], f"'{word}' is missing in:", lines[0])


def run_json(program, *args, **options):
    out = run(program, *args, **options).stdout
    try:
        return json.loads(out)
    except ValueError as e:
        raise Failure(f"not JSON ({e}): {out[:500]}")


def start(program, *args, env=None, **options):
    """Start in a session of its own, so that what it leaves behind can be told apart."""
    return subprocess.Popen(command(program, *args), env=environment(**(env or {})), start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def processes(session=None):
    """{pid: command line} of those that were started with our runtime folder (or belong to a session); zombies do not count."""
    found = {}
    wanted = ("TANDEM_RUNTIME_DIR=" + RUNTIME).encode()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", "rb") as f:
                fields = f.read().rpartition(b")")[2].split()
            if fields[0] in (b"Z", b"X"):
                continue
            with open(f"/proc/{pid}/environ", "rb") as f:
                ours = wanted in f.read().split(b"\0")
            if ours or (session is not None and int(fields[3]) == session):
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    found[int(pid)] = f.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def cgroups(pids=None):
    """Folders of ours in the cgroup trees: tandem-<pid>, for the given pids or all."""
    found = []
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        for name in names:
            if name.startswith("tandem-") and (pids is None or name in {f"tandem-{p}" for p in pids}):
                found.append(os.path.join(folder, name))
    return found


def left_behind():
    """Everything that should be gone once a program has ended: processes, runtime folders, temporary files."""
    left = [f"process {p}: {c}" for p, c in processes().items()]
    for folder, names, files in os.walk(RUNTIME):
        left += [os.path.join(folder, f) for f in files]
        if folder != RUNTIME:  # RUNTIME/tandem-<uid> itself may stay
            left += [os.path.join(folder, n) for n in names]
    for folder, _, files in os.walk(WORK):
        left += [os.path.join(folder, f) for f in files if ".tmp" in f]
    return left


def wait_until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < end, f"not within {seconds} s:", what() if callable(what) else what)
        time.sleep(0.01)


def wait_running(process):
    """Until the coordinator has its three stages."""
    def stages():
        names = processes(process.pid).values()
        return all(any(os.path.basename(c.split(" ")[0]) == s for c in names) for s in STAGES)
    wait_until(lambda: stages() or process.poll() is not None, 60, lambda: processes(process.pid))
    check(process.poll() is None, "ended early:", process.stderr.read() if process.poll() is not None else "")


# ---------------------------------------------------------------- models and configs

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def model(name, kind):
    """Made by prepare.py, which ctest runs first."""
    path = os.path.join(MODELS, f"{name}-{kind}.gguf")
    if not os.path.exists(path):
        os.makedirs(MODELS, exist_ok=True)
        source = DEMO if name == "demo" else os.path.join(GOLDEN, name)
        run("quantizer", "--in", source, "--out", path, "--type", kind)
    return path


_configs = 0


def config(path, **keys):
    """Write a config; nested keys with two underscores (npu__threads=2). Two compute threads in all unless told."""
    global _configs
    _configs += 1
    flat = {"context": 2048, "npu__threads": 1, "gpu__threads": 1, **keys}
    lines, groups = [f"model: {path}"], {}
    for key, value in flat.items():
        if value is None:
            continue
        group, _, name = key.rpartition("__")
        if group:
            groups.setdefault(group, []).append(f"{name}: {value}")
        else:
            lines.append(f"{name}: {value}")
    lines += [f"{group}: {{{', '.join(items)}}}" for group, items in groups.items()]
    file = os.path.join(WORK, f"config-{_configs}.yaml")
    with open(file, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")
    return file


# ---------------------------------------------------------------- data

def st_load(path):
    """A safetensors file as {name: array}; bf16 is widened to f32."""
    with open(path, "rb") as f:
        data = f.read()
    size, = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, t in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        raw = data[8 + size + begin:8 + size + end]
        if t["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8"}[t["dtype"]])
        tensors[name] = values.reshape(t["shape"])
    return tensors


def golden_json(name):
    with open(os.path.join(GOLDEN, name), encoding="utf-8") as f:
        return json.load(f)


def ids_text(ids):
    return ",".join(str(int(i)) for i in ids)


def scratch(name):
    return os.path.join(WORK, name)


def evaluate(cfg, ids, env=None):
    """Logits of every position: [n][vocab] f32."""
    out = scratch("logits.npy")
    run("coordinator", "--config", cfg, "eval", "--ids", ids_text(ids), "--logits", out, env=env)
    logits = np.load(out)
    os.unlink(out)
    check(logits.dtype == np.float32 and logits.shape[0] == len(ids), "shape", logits.shape, logits.dtype)
    return logits


def generate(cfg, *args, env=None):
    return run_json("coordinator", "--config", cfg, "generate", *args, "--json", env=env)


def close(got, want, bound, what):
    worst = float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max())
    print(f"  {what}: worst difference {worst:.3g}, bound {bound:g}")
    check(np.isfinite(got).all() and worst <= bound, f"{what}: worst difference {worst:.3g} is above {bound:g}")
