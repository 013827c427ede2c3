# SPDX-License-Identifier: MIT
"""Every event of --fault, through the coordinator. What a run makes of a failure is in `ends`: without restarts it ends with an error
that says which stage failed and how; with them, the default, the stage is started again for that reason and the text is the same."""
import re
import signal

import tandem
from tandem import check, config, left_behind, model, start
from test_lifecycle import finish

ASK = ("generate", "--prompt", "Once upon a time", "--temperature", "0", "--max-tokens", "40")


UNDISTURBED = []


def ask(*faults, status=None, **keys):
    words = [w for f in faults for w in ("--fault", f)]
    return tandem.run("coordinator", "--config", config(model("demo", "q8_0"), npu__threads=2, **keys), *ASK, *words, status=status)


def undisturbed():
    if not UNDISTURBED:
        UNDISTURBED.append(ask(status=0).stdout)
    return UNDISTURBED[0]


def happened(result, fault):
    said = re.findall(rf"(\w+)\[\d+\] warn fault: '{re.escape(fault)}' happens now, (.*)", result.stderr)
    check(said and all(s[0] == fault.split(":")[0] for s in said), f"{fault} did not happen:", result.stderr)
    return [s[1] for s in said]


def ends(fault, *words, again=True):
    """The run, with what it says in the end; and where the stage may be started again, nothing but time is lost. What fails at the
    first start would fail again, unless a signal ended it; and a request whose reads fail has failed."""
    result = ask(fault, restarts=0)
    happened(result, fault)
    last = result.stderr.splitlines()[-1]
    check(result.returncode == 1 and last.startswith("coordinator: error: "), fault, result.returncode, result.stderr)
    for word in words:
        check(word in last, f"{fault}: '{word}' is missing in:", last)
    result = ask(fault)
    happened(result, fault)
    if not again or (fault.endswith("@start") and not any("signal" in w for w in words)):
        check(result.returncode == 1, fault, result.returncode, result.stderr)
        return
    check(result.returncode == 0 and result.stdout == undisturbed(), fault, result.returncode, result.stdout, result.stderr)
    again = [line for line in result.stderr.splitlines() if "it is started again" in line]
    check(again and all(word in again[0] for word in words), fault, again)


def test_ends_of_processes():
    for stage in tandem.STAGES:
        for when in ("@start", "@3"):
            ends(f"{stage}:abort{when}", f"{stage} (pid ", "signal 6")
            ends(f"{stage}:segv{when}", f"{stage} (pid ", "signal 11")
            ends(f"{stage}:exit{when}", f"{stage} (pid ", "status 3")


def test_moments():
    check(happened(ask("gpu_worker:exit@layer=5"), "gpu_worker:exit@layer=5") == ["with chunk 6, layer 5"], "layer")
    check(happened(ask("npu_worker:exit@100"), "npu_worker:exit@100") == ["with chunk 100, layer 3"], "chunk")


def test_corruption():
    for stage, other in (("loader", "npu_worker"), ("npu_worker", "gpu_worker"), ("gpu_worker", "npu_worker")):
        ends(f"{stage}:corrupt-slot@7", f"{other} (pid ", "magic 0xb4b1b7bc; expected 0x4b4e4843")
        ends(f"{stage}:corrupt-message@3", f"{stage} (pid ", "frame of 4294967295 bytes")
        ends(f"{stage}:corrupt-message@start", f"{stage} (pid ", "frame of 4294967295 bytes")
    ends("gpu_worker:corrupt-slot@layer=11", "magic")  # what it sends to the coordinator
    for stage in tandem.STAGES:  # one that goes on with it is ended, not only who reads it
        result = ask(f"{stage}:corrupt-slot@p=1")
        check(result.returncode == 0 and result.stdout == undisturbed(), stage, result.returncode, result.stderr)
        check(f"{stage} (pid " in result.stderr and "could make no sense of; it is started again (restart 1)" in result.stderr,
              result.stderr)


def test_reads():
    ends("loader:eio@3", "cannot read", "Input/output error", again=False)
    ends("loader:short-read@3", "the file was cut while open", again=False)
    ends("loader:eio@start", "loader (pid ", "cannot read", "Input/output error")
    ends("loader:short-read@start", "loader (pid ", "the file was cut while open")


def test_reads_in_a_pipe():
    """Of several prompts on a pipe the one whose read failed is told, after what there was of its answer; the others have theirs."""
    cfg = config(model("demo", "q8_0"))
    prompts = [f"Tell me a story about a {animal}" for animal in ("cat", "dog", "bird")]
    options = ("--temperature", "0", "--max-tokens", "8")
    alone = [tandem.run("coordinator", "--config", cfg, *options, stdin=p + "\n").stdout for p in prompts]
    for fault, failed, begun in (("loader:eio@6", 0, True), ("loader:eio@9", 1, False)):  # with its fifth token; with its prompt
        r = tandem.run("coordinator", "--config", cfg, *options, "--fault", fault, stdin="\n".join(prompts) + "\n", status=1)
        happened(r, fault)
        errors = tandem.sentences(r.stderr)
        check(f"standard input, line {failed + 1}: " in errors[-2] and "Input/output error" in errors[-2], errors)
        check("1 of 3 prompts have no answer, or not all of it" in errors[-1], errors)
        before, after = "".join(alone[:failed]), "".join(alone[failed + 1:])
        check(r.stdout.startswith(before) and r.stdout.endswith(after), fault, r.stdout, alone)
        part = r.stdout[len(before):len(r.stdout) - len(after)]
        check(part[-1:] == "\n" and alone[failed].startswith(part[:-1]) and len(part) < len(alone[failed]) if begun else part == "",
              fault, part, alone[failed])


def test_device():
    for stage in ("npu_worker", "gpu_worker"):
        ends(f"{stage}:device-lost@30", f"{stage} (pid ", "the device is lost")
        ends(f"{stage}:device-lost@start", f"{stage} (pid ", "the device is lost")


def test_memory():
    if tandem.SANITIZE:
        tandem.skip("sanitizers take memory of their own; caps are not meant for them")
    for stage in tandem.STAGES:
        ends(f"{stage}:oom@3", f"{stage} (pid ", "it needed more than its cap of", f"raise 'memory.{stage}'")


def test_messages():
    ends("npu_worker:drop-message@start", "npu_worker: SEGMENT_END with count 12; 11 were announced")


def test_hang():
    """A chunk that takes 20 times as long as is usual; and before that is known, the run can be ended."""
    for stage in tandem.STAGES:
        fault = f"{stage}:hang@150" if stage != "loader" else "loader:hang@20"
        result = ask(fault, status=0)
        happened(result, fault)
        check(result.stdout == undisturbed() and f"{stage} (pid " in result.stderr and "hangs: chunk" in result.stderr, result.stderr)
    for fault in ("loader:hang@2", "npu_worker:hang@start", "gpu_worker:hang@9", "loader:drop-message@start"):
        process = start("coordinator", "--config", config(model("demo", "q8_0")), *ASK, "--fault", fault)
        said = process.stderr.readline().decode("utf-8", "replace")
        while said and "happens now" not in said:
            said = process.stderr.readline().decode("utf-8", "replace")
        check(said, fault, "did not happen")
        process.send_signal(signal.SIGTERM)
        _, err = finish(process)
        check(process.returncode == 143, fault, process.returncode, err)
        check(not left_behind(), left_behind())


def test_hang_at_the_first_start():
    """It is found, and the stage is started again; one that always hangs ends the run when the limit of restarts is reached."""
    faults = [f"{stage}:hang@start" for stage in tandem.STAGES]
    r = ask(*faults, status=0)
    for fault in faults:
        happened(r, fault)
        check(re.search(fault.split(":")[0] + r" \(pid \d+\) hangs: it has not answered for .* it is started again", r.stderr), r.stderr)
    check(r.stdout == undisturbed(), r.stdout)
    fault = "gpu_worker:hang@start:always"
    r = ask(fault, status=1, restarts=1)
    check(len(happened(r, fault)) == 2, r.stderr)
    last = r.stderr.splitlines()[-1]
    check("gpu_worker (pid " in last and "hangs: " in last and "after 1 restart without progress ('restarts')" in last, last)


def test_lost_chunk():
    """A chunk that a stage takes and does not pass on: nobody is busy then, and the books of the rings say who it was."""
    for stage, when in (("loader", 3), ("npu_worker", 30), ("gpu_worker", 36)):
        ends(f"{stage}:drop-chunk@{when}", f"{stage} (pid ", "lost 1 chunk: it took ", "see 'deadlines'")


def test_slow():
    """Only time is lost; and chance is the same for the same seed."""
    want = ask(status=0)
    check("fault" not in want.stderr, want.stderr)
    fault = "gpu_worker:slow@p=0.02,seed=7"
    slow = ask(fault, status=0)
    check(slow.stdout == want.stdout, "another text:", slow.stdout)
    first, second = happened(slow, fault), happened(ask(fault, status=0), fault)
    check(first == second, first, second)
    check(3 <= len(first) <= 30, first)


def test_several():
    both = ask("npu_worker:slow@5", "loader:slow@1", "npu_worker:exit@layer=9")
    for fault in ("npu_worker:slow@5", "loader:slow@1", "npu_worker:exit@layer=9"):
        happened(both, fault)
    check("npu_worker (pid " in both.stderr and "status 3" in both.stderr, both.stderr)


def test_bad_words():
    for fault, word in (("npu_worker:die@1", "event 'die'"), ("npu:exit@1", "stage 'npu'"), ("npu_worker:exit@0", "moment '0'")):
        r = ask(fault)
        tandem.one_line_error(r, word, "expected")
        check(r.returncode == 2, r.returncode)
    for fault, words in (("gpu_worker:exit@layer=12", "layer 12; expected at most 11"), ("npu_worker:slow@layer=99:always", "at most 11"),
                         ("loader:exit@layer=1", "expected layer=0")):
        tandem.one_line_error(ask("npu_worker:slow@layer=11", fault), f"fault '{fault}': ", words)
    r = tandem.run("coordinator", "--config", config(model("demo", "q8_0")), "plan", "--fault", "npu_worker:exit@1", status=2)
    check("'--fault' does not belong to 'plan'" in r.stderr, r.stderr)


if __name__ == "__main__":
    tandem.main(globals())
