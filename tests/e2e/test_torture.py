# SPDX-License-Identifier: MIT
"""A hundred kills of random stages at random moments, by bench/torture/torture.py; 1,000 of them are run by hand."""
import os
import sys

import tandem
from tandem import check, model

sys.path.insert(0, os.path.join(tandem.SOURCE, "bench", "torture"))
import restart  # noqa: E402
import torture  # noqa: E402


def test_a_hundred_kills():
    words = ["--bin", tandem.BIN, "--model", model("demo", "q8_0"), "--kills", "20" if tandem.SANITIZE else "100", "--seed", "4", "--tokens", "150",
             "--set", "npu: {threads: 1}", "--set", "gpu: {threads: 1}"]
    words += ["--no-memory"] if tandem.SANITIZE else []
    check(torture.main(words) == 0, "see above")


def test_restarts_read_no_weights():
    """bench/torture/restart.py, a few kills of each worker; a loader that reads the file anew is noticed."""
    words = [model("demo", "q8_0"), "--bin", tandem.BIN, "--kills", "3", "--tokens", "400"]
    check(restart.main(words) == 0, "see above")
    read = restart.Bench.read
    restart.Bench.read = staticmethod(lambda p: read(p) + 10**7 * (p.count("it is started again") > 0))
    try:
        check(restart.main(words) == 1, "10 MB more are not noticed")
    finally:
        restart.Bench.read = staticmethod(read)


def test_growth_is_seen():
    """Of any process that is looked at, against itself and no other."""
    held = {"fds": 20, "memfds": 10, "threads": 2, "private_kib": 2000}
    flat = {("coordinator", 1, "1"): [held, held], ("npu_worker", 2, "1"): [held, {**held, "private_kib": 6000}],
            ("coordinator", 3, "2"): [{**held, "fds": 60}, {**held, "fds": 60}], ("loader", 2, "2"): [{**held, "memfds": 30}]}
    more = {"fds": 23, "memfds": 11, "threads": 3, "private_kib": 20000}
    wrong = [(stage, {k: v}) for stage in ("coordinator", *torture.STAGES) for k, v in more.items()]
    t = torture.Torture(torture.parse(["--model", "none"]))
    try:
        t.looks = dict(flat)
        t.judge_growth()
        for name, grown in wrong:
            # Neither the first process nor the last: those between count as well.
            t.looks = {("coordinator", 4, "0"): [held, held], (name, 5, "3"): [held, held, {**held, **grown}], **flat}
            try:
                t.judge_growth()
            except torture.Wrong as e:
                check(f"{name} (pid 5)" in str(e) and next(iter(grown)) in str(e), name, grown, e)
            else:
                check(False, name, grown, "passes")
    finally:
        t.close()


if __name__ == "__main__":
    tandem.main(globals())
