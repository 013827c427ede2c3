# SPDX-License-Identifier: MIT
"""What test_soak.py and bench/soak/run.py share: samples of a running coordinator through its control socket, and whether memory,
descriptors and threads stayed flat."""
import json
import os
import socket
import time

import tandem
from tandem import check

# Private memory of a process may grow by so much between the two ends of a soak: the heap's free space wanders. What a leak of one
# small block for each request comes to in an hour is far above it.
BOUND = 1 << 20
# Its cgroup counts the page cache of the model file, too, for the loader, and the kernel charges in batches.
USAGE_BOUND = 4 << 20
# npu_worker's KV cache is touched as it is used, a huge page at a time, and pages come back in another order.
HUGE = {"npu_worker": 2 << 20}
PROCESSES = ("coordinator", *tandem.STAGES)


def ask(pid, request=b'{"op":"stats"}\n'):
    """The statistics of the coordinator with that pid; None while it has no socket (yet, or any more)."""
    path = os.path.join(tandem.RUNTIME, f"tandem-{os.geteuid()}", str(pid), "control")
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        try:
            s.connect(path)
            s.sendall(request)
            data = b""
            while not data.endswith(b"\n"):
                piece = s.recv(65536)
                if not piece:
                    return None
                data += piece
        except (FileNotFoundError, ConnectionError):
            return None
    return json.loads(data)


def count(pid, what):
    try:
        return len(os.listdir(f"/proc/{pid}/{what}"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def sample(pid):
    """{process: {private, usage, fds, threads}} and the statistics, or None when it has ended."""
    s = ask(pid)
    if s is None or s["state"] != "running":
        return None
    row = {p["name"]: {"private": p["private_bytes"], "usage": p["usage_bytes"], "rss": p["rss_bytes"], "peak": p["peak_bytes"],
                       "cap": p["cap_bytes"], "fds": count(p["pid"], "fd"), "threads": count(p["pid"], "task")}
           for p in s["processes"]}
    if any(v is None for p in row.values() for v in p.values()):
        return None
    return row, s


def watch(process, interval, log=None):
    """Samples until the process ends: [(seconds, row, statistics)]."""
    begin, rows = time.monotonic(), []
    while process.poll() is None:
        one = sample(process.pid)
        if one:
            rows.append((time.monotonic() - begin, *one))
            if log:
                log(rows[-1])
        time.sleep(interval)
    return rows


def highest(rows, process, what):
    return max(r[1][process][what] for r in rows)


def judge(rows, bound=BOUND):
    """The last quarter against the second: the first is for warming up. Returns a table for people."""
    check(len(rows) >= 16, f"only {len(rows)} samples")
    quarter = len(rows) // 4
    before, after, lines = rows[quarter:2 * quarter], rows[-quarter:], []
    for name in PROCESSES:
        figures = {what: (highest(before, name, what), highest(after, name, what)) for what in rows[0][1][name]}
        lines.append(f"  {name}: " + ", ".join(f"{what} {a} -> {b}" for what, (a, b) in figures.items()))
        for what, most in (("private", bound + HUGE.get(name, 0)), ("usage", USAGE_BOUND)):
            a, b = figures[what]
            check(b <= a + most, f"{name}: {what} memory grew from {a} to {b} bytes, by more than {most}\n" + "\n".join(lines))
        # The least, because some come and go, such as a connection of ours; and each request in progress has its file in the journal.
        for what, most in (("fds", rows[-1][2]["requests"]["sequences"] if name == "coordinator" else 0), ("threads", 0)):
            a, b = min(r[1][name][what] for r in before), min(r[1][name][what] for r in after)
            check(b <= a + most, f"{name}: {what} grew from {a} to {b}")
        check(figures["peak"][1] <= rows[0][1][name]["cap"], f"{name}: above its cap")
    last = rows[-1][2]
    check(last["requests"]["failed"] == 0, last["requests"])
    return "\n".join(lines)
