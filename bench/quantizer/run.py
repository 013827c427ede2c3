#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The quantizer on a checkpoint of real tensor shapes: time, input GB/s, peak memory, beside the disk and llama.cpp's quantizer.

    run.py FOLDER [--shape 27b] [--layers 4] [--types q8_0,q4_0] [--rounds 3] [--threads 2] [--memory SIZE] [--search]
           [--warm]
    TANDEM_PEER="COMMAND" run.py FOLDER ...      COMMAND -m IN.gguf -o OUT.gguf --ftype TYPE --pure --qbuf 64 -t N

FOLDER gets the checkpoint (kept for the next time) and the outputs (removed). Each round runs dd, ours and the peer one after the
other, in changing order, so that a neighbour's load meets all of them. Ours reads past the page cache; the peer's input is dropped
from it before each run (posix_fadvise), or with --warm read into it.

Peak memory is that of the whole process, from GNU time (Debian package time). One more run of ours goes into a memory cgroup of
300 MiB (v1 or v2, as root), page cache counted, or, where there is none, under an address space limit of 600 MiB.
"""
import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import make_checkpoint

MIB = 1 << 20
LIMIT = 300 * MIB
HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.environ.get("TANDEM_BIN") or os.path.join(HERE, "..", "..", "build", "release", "bin")


def drop_cache(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def files_of(path):
    return [os.path.join(path, f) for f in os.listdir(path)] if os.path.isdir(path) else [path]


def timed(command, inputs, preexec=None, warm=False):
    """Seconds, and the peak MiB of the process, which GNU time measures: it is small itself, and what the kernel counts for a child
    begins with the size of the process that forked it."""
    for path in inputs:
        if warm:
            subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=4M"], check=True, stderr=subprocess.DEVNULL)
        else:
            drop_cache(path)
    begin = time.monotonic()
    p = subprocess.run(["/usr/bin/time", "-f", "peak %M", *command], capture_output=True, preexec_fn=preexec, check=False)
    seconds = time.monotonic() - begin
    if p.returncode != 0:
        sys.exit(f"{' '.join(command)}: status {p.returncode}\n{p.stderr.decode()[-1000:]}")
    return seconds, int(re.findall(r"peak (\d+)", p.stderr.decode())[-1]) / 1024


def dd_speed(folder, source):
    """Bytes per second that dd reads and writes, past the page cache, 4 MiB at a time."""
    target = os.path.join(folder, "dd.tmp")
    size = min(os.path.getsize(source), 2 << 30) // (4 * MIB)
    begin = time.monotonic()
    subprocess.run(["dd", f"if={source}", "of=/dev/null", "bs=4M", f"count={size}", "iflag=direct"], check=True,
                   stderr=subprocess.DEVNULL)
    read = size * 4 * MIB / (time.monotonic() - begin)
    begin = time.monotonic()
    subprocess.run(["dd", "if=/dev/zero", f"of={target}", "bs=4M", f"count={size // 2}", "oflag=direct", "conv=fsync"], check=True,
                   stderr=subprocess.DEVNULL)
    write = size // 2 * 4 * MIB / (time.monotonic() - begin)
    os.unlink(target)
    return read, write


def ours(a, source, kind, out, search):
    command = [os.path.join(BIN, "quantizer"), "--in", source, "--out", out, "--type", kind, "--pure", "--threads", str(a.threads)]
    return command + (["--memory", a.memory] if a.memory else []) + ([] if search else ["--no-search"])


def core_speed(a, source, kind, search):
    """Input bytes per second that the cores can convert: the trial that the quantizer makes before it begins."""
    command = ours(a, source, kind, os.path.join(a.folder, "none.gguf"), search) + ["--dry-run"]
    out = subprocess.run(command, check=True, capture_output=True)
    return float(re.search(r"converting ([0-9.]+) GB/s", out.stdout.decode()).group(1)) * 1e9


class Cgroup:
    """A memory cgroup of LIMIT bytes, or None where none can be made."""
    def __init__(self):
        self.path = None
        name = f"tandem-bench-{os.getpid()}"
        for base, limit, peak in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
                                  ("/sys/fs/cgroup", "memory.max", "memory.peak")):
            path = os.path.join(base, name)
            try:
                os.mkdir(path)
                with open(os.path.join(path, limit), "w", encoding="ascii") as f:
                    f.write(str(LIMIT))
            except OSError:
                if os.path.isdir(path):
                    os.rmdir(path)
                continue
            self.path, self.peak = path, os.path.join(path, peak)
            break

    def enter(self):
        with open(os.path.join(self.path, "cgroup.procs"), "w", encoding="ascii") as f:
            f.write(str(os.getpid()))

    def close(self):
        with open(self.peak, encoding="ascii") as f:
            peak = int(f.read()) / MIB
        os.rmdir(self.path)
        return peak


def limited_run(a, source, out):
    group = Cgroup()
    if group.path:
        seconds, peak = timed(ours(a, source, "q4_0", out, False), files_of(source), group.enter)
        print(f"in a memory cgroup of {LIMIT // MIB} MiB: done in {seconds:.1f} s, peak of the group {group.close():.1f} MiB, "
              f"of the process {peak:.1f} MiB")
    else:
        import resource
        seconds, peak = timed(ours(a, source, "q4_0", out, False), files_of(source),
                                 lambda: resource.setrlimit(resource.RLIMIT_AS, (2 * LIMIT, 2 * LIMIT)))
        print(f"no memory cgroup can be made here; with 600 MiB of address space: done in {seconds:.1f} s, peak {peak:.1f} MiB")
    os.unlink(out)


def one_round(a, number, source, gguf, total, kind, search, peer):
    out = os.path.join(a.folder, "out.gguf")
    read, write = dd_speed(a.folder, max(files_of(source), key=os.path.getsize))
    lines = {}

    def run_ours():
        seconds, peak = timed(ours(a, source, kind, out, search), files_of(source))
        size = os.path.getsize(out)
        cores, disk = core_speed(a, source, kind, search), total / (total / read + size / write)
        share = total / seconds / min(cores, disk)
        lines["ours"] = (total / seconds,
                         f"ours {total / seconds / 1e9:.2f} GB/s, {seconds:.1f} s, peak {peak:.1f} MiB; disk allows "
                         f"{disk / 1e9:.2f}, cores {cores / 1e9:.2f} GB/s: {100 * share:.0f}% of the slower")
        os.unlink(out)

    def run_peer():
        seconds, peak = timed(shlex.split(peer) + ["-m", gguf, "-o", out, "--ftype", kind, "--pure", "--qbuf", "64", "-t",
                                                      str(a.threads)], [gguf], warm=a.warm)
        lines["peer"] = (total / seconds, f"peer {total / seconds / 1e9:.2f} GB/s, {seconds:.1f} s, peak {peak:.1f} MiB")
        os.unlink(out)

    order = [run_ours, run_peer] if peer else [run_ours]
    for f in order if number % 2 == 0 else order[::-1]:
        f()
    ratio = f"; ratio {lines['ours'][0] / lines['peer'][0]:.2f}" if peer else ""
    print(f"{kind}{' with search' if search else ''}, round {number + 1}: dd reads {read / 1e9:.2f}, "
          f"writes {write / 1e9:.2f} GB/s | " + " | ".join(text for _, text in lines.values()) + ratio, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--shape", choices=make_checkpoint.SHAPES, default="27b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--types", default="q8_0,q4_0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory")
    parser.add_argument("--search", action="store_true", help="ours with the search for scales, where the type has one")
    parser.add_argument("--warm", action="store_true", help="the peer's input is read into the page cache before each run")
    a = parser.parse_args()
    source = os.path.join(a.folder, f"{a.shape}-{a.layers}")
    if not os.path.exists(os.path.join(source, "tokenizer.model")):
        os.makedirs(a.folder, exist_ok=True)
        shutil.rmtree(source, ignore_errors=True)
        make_checkpoint.make(source, a.shape, a.layers)
    total = sum(os.path.getsize(f) for f in files_of(source) if f.endswith(".safetensors"))
    print(f"{a.shape} with {a.layers} layers: {total / 1e9:.2f} GB of bf16; {a.threads} threads, {os.cpu_count()} processors, load "
          f"{os.getloadavg()[0]:.1f}", flush=True)
    peer, gguf = os.environ.get("TANDEM_PEER"), os.path.join(a.folder, f"{a.shape}-{a.layers}-bf16.gguf")
    if peer and not os.path.exists(gguf):
        subprocess.run(ours(a, source, "bf16", gguf, False), check=True, stdout=subprocess.DEVNULL)
    limited_run(a, source, os.path.join(a.folder, "out.gguf"))
    for kind in a.types.split(","):
        for number in range(a.rounds):
            one_round(a, number, source, gguf, total, kind, a.search, peer)


if __name__ == "__main__":
    main()
