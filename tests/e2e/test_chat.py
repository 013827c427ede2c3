# SPDX-License-Identifier: MIT
"""The bare call on a terminal: a conversation with turns, its commands, an interrupted answer, and every way to leave."""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

import tandem
from tandem import check, config, left_behind, model


class Terminal:
    """A coordinator on a pseudo-terminal, as in a user's shell. command: what runs instead of a chat with a configuration of `keys`."""

    def __init__(self, *args, command=None, term="xterm-256color", env=None, **keys):
        self.master, slave = pty.openpty()
        self.resize(24, 80)
        self.mode = termios.tcgetattr(self.master)
        self.process = subprocess.Popen(
            command or tandem.command("coordinator", "--config", config(model("demo", "bf16"), **keys), *args), stdin=slave, stdout=slave,
            stderr=slave, env=tandem.environment(TERM=term, HOME=tandem.WORK, **(env or {})), start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:  # a test failed in the middle: nothing of it may trouble the next
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def read_until(self, pattern):
        """What came up to and with the pattern."""
        end = time.monotonic() + tandem.TIMEOUT
        while not (found := re.search(pattern, self.text)):
            check(time.monotonic() < end, f"{pattern!r} did not come:", self.text[-800:])
            if select.select([self.master], [], [], 1)[0]:
                try:
                    piece = os.read(self.master, 65536)
                except OSError:  # the other side is gone
                    piece = b""
                check(piece, f"ended before {pattern!r}:", self.text[-800:])
                self.text = (self.text + piece.decode("utf-8")).replace("\r\n", "\n")
                self.text = re.sub(r"\x1b\[\?2004[hl]", "", self.text)  # what says how to paste
        before, self.text = self.text[:found.end()], self.text[found.end():]
        return before

    def type(self, text):
        os.write(self.master, text.encode())
        self.read_until(re.escape(text.rstrip("\n\x03\x04")))  # the terminal's echo

    def ask(self, text):
        self.type(text + "\n")
        return self.read_until(r"\n> ").removesuffix("\n> ").strip()

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def used(self):
        return int(re.search(r"conversation: (\d+) of", self.ask("/stats")).group(1))

    def leave(self, status, alone=True):
        """alone: nothing else of the test runs."""
        try:
            while os.read(self.master, 65536):
                pass
        except OSError:
            pass
        check(termios.tcgetattr(self.master) == self.mode, "the terminal is not as it was:", termios.tcgetattr(self.master), self.mode)
        os.close(self.master)
        code = self.process.wait(timeout=60)
        check(code == status, f"status {code} instead of {status}")
        check(not alone or not left_behind(), left_behind())


def stage(t, name):
    return next(pid for pid, line in tandem.processes(t.process.pid).items() if os.path.basename(line.split(" ")[0]) == name)


def one_turn(ids, text):
    """The conversation that went before with one more turn, and the answer, by way of `generate`."""
    cfg = config(model("demo", "bf16"))
    options = ("--temperature", 0, "--max-tokens", 40)
    prompt = tandem.generate(cfg, "--chat", "--prompt", text, "--max-tokens", 1)["prompt_ids"]
    prompt = ids + prompt[1 if ids else 0:]
    answer = tandem.generate(cfg, "--ids", tandem.ids_text(prompt), *options)
    newline = tandem.run_json("coordinator", "--config", cfg, "tokenize", "--text", "\n", "--json")["ids"]
    return prompt + answer["output_ids"] + [9] + newline, answer["text"].strip()  # 9: <end_of_turn>


def test_turns_and_commands():
    ids_1, answer_1 = one_turn([], "Tell me a story about a cat")
    ids_2, answer_2 = one_turn(ids_1, "What did it see?")
    with Terminal("--temperature", "0", "--max-tokens", "40") as t:
        turns_and_commands(t, ids_1, answer_1, ids_2, answer_2)


def turns_and_commands(t, ids_1, answer_1, ids_2, answer_2):
    t.read_until(r"\n> ")
    check(t.used() == 0, "a conversation before the first turn")
    first = t.ask("Tell me a story about a cat")
    first = first.partition("\n(cut after 40 tokens")[0]
    check(first == answer_1, f"first turn: {first!r} instead of {answer_1!r}")
    check(t.used() == len(ids_1), "tokens after one turn:", t.used(), "instead of", len(ids_1))
    second = t.ask("What did it see?")
    second = second.partition("\n(cut after")[0]
    check(second == answer_2, f"second turn: {second!r} instead of {answer_2!r}")
    check(t.used() == len(ids_2), "tokens after two turns:", t.used(), "instead of", len(ids_2))
    stats = t.ask("/stats")
    check(all(name in stats for name in ("coordinator", *tandem.STAGES)), stats)
    check("/reset" in t.ask("/nonsense"), "an unknown command is not answered")
    check(t.ask("") == "", "an empty line says something")
    t.ask("/reset")
    check(t.used() == 0, "/reset left tokens")
    check(t.ask("Tell me a story about a cat").startswith(first), "the same first turn, another answer")
    t.type("/quit\n")
    t.leave(0)


def test_end_of_input():
    with Terminal("--temperature", "0", "--max-tokens", "5") as t:
        t.read_until(r"\n> ")
        t.type("\x04")
        t.leave(0)


def test_interrupt():
    """Ctrl-C during an answer ends the answer; the conversation goes on. At the empty prompt the second one ends the program."""
    # So hot that the end of the turn is as likely as any other token: an answer of seconds.
    with Terminal("--temperature", "50", "--top-k", "0", "--top-p", "1", "--max-tokens", "900", "--seed", "4") as t:
        t.read_until(r"\n> ")
        t.type("Tell me a long story\n")
        t.read_until(r"\S+ \S+ ")
        t.type("\x03")
        t.read_until(r"\n> ")
        used = t.used()
        check(10 < used < 900, "tokens after an interrupted answer:", used)
        t.type("And then?\n")
        t.read_until(r"\S+ \S+ ")
        t.type("\x03")
        t.read_until(r"\n> ")
        check(t.used() > used, "the second turn is not in the conversation")
        t.type("\x03")
        t.read_until(r"once more ends.*\n> ")
        t.type("\x03")
        t.leave(128 + signal.SIGINT)


def test_warnings():
    """What is logged in the middle of an answer, or at the prompt, has lines of its own; the text goes on below."""
    options = ("--temperature", "50", "--top-k", "0", "--top-p", "1", "--max-tokens", "1500", "--seed", "4")
    with Terminal(*options) as t:
        t.read_until(r"\n> ")
        want = t.ask("Tell me a long story")
        t.type("/quit\n")
        t.leave(0)
    with Terminal(*options) as t:
        t.read_until(r"\n> ")
        os.kill(stage(t, "loader"), signal.SIGKILL)
        said = t.read_until(r"it is started again.*\n")
        worker = stage(t, "gpu_worker")  # looking for it takes time that the answer does not leave
        t.type("Tell me a long story\n")
        said += t.read_until(r"\S+ \S+ \S+ ")
        os.kill(worker, signal.SIGKILL)
        said += t.read_until(r"\n> ").removesuffix("\n> ")
        warned = re.findall(r"^(.*)coordinator\[\d+\] warn supervise: .*\n", said, flags=re.M)
        check(warned == ["", ""], "not on lines of their own:", said)
        text = re.sub(r"^coordinator\[\d+\] warn supervise: .*\n", "", said, flags=re.M)
        check("".join(text.split()) == "".join(want.split()), text, want)
        t.type("/quit\n")
        t.leave(0)


def test_dumb_terminal():
    """One that cannot move its cursor: the kernel edits the line, and Ctrl-C at the prompt ends the program."""
    with Terminal("--temperature", "0", "--max-tokens", "5", term="dumb") as t:
        t.read_until(r"\n> ")
        check("\x1b" not in t.ask("Tell me a story"), "escape sequences on a dumb terminal")
        check(t.used() > 5, "nothing was said")
        os.write(t.master, b"half a line\x03")
        t.leave(128 + signal.SIGINT)


def test_signals_at_the_prompt():
    for number in (signal.SIGTERM, signal.SIGHUP):
        with Terminal() as t:
            t.read_until(r"\n> ")
            t.type("half a line")
            t.process.send_signal(number)
            t.leave(128 + number)


def test_full_context():
    """An answer that meets the end of the context says so, and /reset makes room."""
    with Terminal("--temperature", "1.5", "--max-tokens", "1900", "--seed", "1", context=64) as t:
        t.read_until(r"\n> ")
        said = ""
        for _ in range(8):
            said = t.ask("Tell me a long story about a dog that runs and runs")
            if "/reset" in said:
                break
        check("/reset" in said, "no word about the full context:", said)
        t.ask("/reset")
        check(t.used() == 0, "/reset left tokens")
        t.type("/quit\n")
        t.leave(0)


if __name__ == "__main__":
    tandem.main(globals())
