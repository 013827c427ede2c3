# SPDX-License-Identifier: MIT
"""Two minutes of bench/soak: mixed requests against one pipeline, and prompts one after the other through the bare call. Memory of
every process is flat after it has warmed up, nothing leaks, every answer is the same whenever it is given."""
import json
import subprocess
import threading

import soak
import tandem
from tandem import check, config, left_behind, model, start

# Sanitizers look for leaks at the end; what they hold meanwhile says nothing.
SECONDS = 10 if tandem.SANITIZE else 120


def end(process, rows, said=None):
    out, err = said or process.communicate(timeout=tandem.TIMEOUT)
    err = err.decode()
    check(process.returncode == 0, "status", process.returncode, err)
    check("Sanitizer" not in err and "runtime error" not in err, err)
    check(not left_behind(), left_behind())
    if not tandem.SANITIZE:
        print(soak.judge(rows))
    return out


def test_mixed_requests():
    process = start("bench_soak", config(model("demo", "q8_0")), SECONDS)
    told = json.loads(end(process, soak.watch(process, 0.25)))
    print(f"  {told}")
    check(told["finished"] > 0 and told["tokens"] > 0, told)
    if not tandem.SANITIZE:  # with them a loaded machine gets through a few requests only
        check(told["finished"] > 20 and told["cancelled"] + told["refused"] > 0 and told["tokens"] > 100, told)


def test_prompts_on_a_pipe():
    """The same few prompts over and over, short and long: each answer comes again as it came first."""
    prompts = ["Tell me a story about a cat", "What is a dog?", "Once upon a time there was a garden. " * 60, "Why?"]
    rounds = 2 if tandem.SANITIZE else 60
    process = start("coordinator", "--config", config(model("demo", "q4_0")), "--temperature", "0", "--max-tokens", "40",
                    stdin=subprocess.PIPE)
    rows = []
    watcher = threading.Thread(target=lambda: rows.extend(soak.watch(process, 0.1)))
    watcher.start()
    out, err = process.communicate("\n".join(prompts * rounds).encode(), timeout=tandem.TIMEOUT)
    watcher.join()
    end(process, rows, (out, err))
    check(len(out) > 100 * rounds and out == out[:len(out) // rounds] * rounds, "answers differ:", out[:2000])


if __name__ == "__main__":
    tandem.main(globals())
