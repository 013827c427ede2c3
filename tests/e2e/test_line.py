# SPDX-License-Identifier: MIT
"""The line editor of a chat on a terminal: keys, characters of other alphabets, several lines in one prompt, Tab, history and its file,
a terminal of another size, and what is kept of a conversation."""
import contextlib
import json
import os
import signal
import stat
import tempfile
import termios
import threading
import time

import tandem
from tandem import check, scratch
from test_chat import Terminal

CALM = ("--temperature", "0", "--max-tokens", "2")
LEFT, HOME, END, UP, DOWN, DELETE = "\x1b[D", "\x1b[H", "\x1b[F", "\x1b[A", "\x1b[B", "\x1b[3~"


def history_file(state):
    return os.path.join(state, "tandem", "history")


def lines(state):
    with open(history_file(state), encoding="utf-8", errors="replace") as f:
        return f.read().split("\n")[:-1]


class Chat(Terminal):
    def __init__(self, *args, state=None, **keys):
        self.state = state or tempfile.mkdtemp(dir=tandem.WORK)
        super().__init__(*CALM, *args, env={"XDG_STATE_HOME": self.state, **keys.pop("env", {})}, **keys)
        self.read_until(r"(^|\n)> ")

    def keys(self, *keys):
        """Typed one after the other; the answer."""
        for k in keys:
            os.write(self.master, k.encode() if isinstance(k, str) else k)
        return self.read_until(r"\n> ")

    def heard(self, *keys):
        """What the program took for the prompt, by its history."""
        self.keys(*keys, "\n")
        return lines(self.state)[-1]

    def quit(self):
        os.write(self.master, b"/quit\n")
        self.leave(0)


def test_keys():
    with Chat() as t:
        for keys, want in (
                (("Hello", LEFT, LEFT, "X"), "HelXlo"),
                (("world", HOME, "Hello "), "Hello world"),
                (("world", "\x01", "hello ", "\x05", "!"), "hello world!"),
                (("\x1bOH" "b", "\x1b[1~", "a", END, "c", "\x1b[4~", "d"), "abcd"),
                (("keep this", LEFT * 5, "\x0b"), "keep"),
                (("one two three", "\x17", "four"), "one two four"),
                (("nothing", "\x15", "something"), "something"),
                (("lost", "\x15", "found ", "\x19"), "found lost"),
                (("abc", HOME, DELETE), "bc"),
                (("abc\x7f\x7fd",), "ad"),
                (("one two", "\x1b[1;5D", "new "), "one new two"),
                (("one two", "\x1bb", "\x1bd", "three"), "one three")):
            got = t.heard(*keys)
            check(got == want, repr(keys), "gave", repr(got), "instead of", repr(want))
        t.quit()


def test_characters():
    """Of two to four bytes, one or two columns wide, typed, deleted and walked over; also byte by byte, as a slow line brings them."""
    with Chat() as t:
        check(t.heard("Grüße", LEFT, LEFT, "\x7f", "ü", END, "!") == "Grüße!", lines(t.state))
        check(t.heard("a😀b漢字", LEFT, LEFT, "\x7f", "c") == "a😀c漢字", lines(t.state))
        check(t.heard("ÿŁøπ", HOME, "п") == "пÿŁøπ", lines(t.state))
        for byte in "é😀ø".encode():
            os.write(t.master, bytes([byte]))
            time.sleep(0.02)
        check(t.heard("") == "é😀ø", lines(t.state))
        # what is no character is no part of the prompt
        check(t.heard(b"a\xff\xfe\xc3", "b", b"\xed\xa0\x80", b"\xc2\x9b", "c") == "abc", lines(t.state))
        t.quit()


def test_several_lines():
    with Chat() as t:
        check(t.heard("first\\\n", "second\\\n", "third") == r"first\nsecond\nthird", lines(t.state))
        check(t.heard("one\x1b\ntwo") == r"one\ntwo", lines(t.state))
        check(t.heard("\x1b[200~a pasted\rtext\r\n\twith \x1b[31mcolour\x07\r\r\x1b[201~", " and more") ==
              "a pasted\\ntext\\n\twith [31mcolour and more", lines(t.state))
        check(t.heard("a \\ b\\ ") == r"a \\ b\\ ", lines(t.state))
        # all of it is one turn, and comes back as one
        check(t.heard(UP, UP, UP, UP, HOME) == r"first\nsecond\nthird", lines(t.state))
        # Ctrl-D behind a line ends the prompt, Ctrl-C drops all of it
        t.keys("left\\\n", "\x04")
        check(lines(t.state)[-1] == r"left\n", lines(t.state))
        check(t.heard("\x15/help") == "/help", lines(t.state))
        os.write(t.master, b"never\\\n")
        t.read_until(r"\n\. ")
        os.write(t.master, b"said\x03")
        t.read_until(r"\^C\n> ")
        check(t.heard("but this") == "but this" and not any("never" in l for l in lines(t.state)), lines(t.state))
        t.quit()


@contextlib.contextmanager
def written(t, data):
    """More than the terminal's buffers hold, while its output is read."""
    writer = threading.Thread(target=lambda: [os.write(t.master, data[i:i + 1024]) for i in range(0, len(data), 1024)], daemon=True)
    writer.start()
    yield
    writer.join(tandem.TIMEOUT)
    check(not writer.is_alive(), "not all of it was read")


def test_long_paste():
    """A text that no prompt may be is refused whole: none of its lines is taken for a prompt."""
    with Chat() as t:
        with written(t, b"\x1b[200~" + b"a line of some length that is pasted\r" * 30000 + b"\x1b[201~"):
            t.read_until(r"the pasted text is too long: a prompt on a terminal has at most \d+ bytes\n> ")
        check(not os.path.exists(history_file(t.state)), "part of it was a prompt")
        check(t.heard("short") == "short", lines(t.state))
        # one that just fits is one prompt; it does not fit into the context
        with written(t, b"\x1b[200~" + b"a line\r" * 9300 + b"\x1b[201~\n"):
            t.read_until(r"has (at least )?\d+ tokens.*\n.*/reset begins a new conversation\)\n> ")
        # without brackets a line ceases to grow
        with written(t, b"x" * 66000 + b"\x15short again\n"):
            t.read_until(r"short again\n(.*\n)*> ")
        check(lines(t.state)[-1] == "short again", lines(t.state)[-1][:80])
        t.quit()


def test_interrupts():
    with Chat() as t:
        t.type("half a line")
        os.write(t.master, b"\x03")
        t.read_until(r"\^C\n> ")
        check(t.heard("another") == "another", lines(t.state))
        os.write(t.master, b"\x03")
        t.read_until(r"Ctrl-C once more ends, or Ctrl-D; /help lists commands\)\n> ")
        check(t.heard("it goes on") == "it goes on", lines(t.state))
        os.write(t.master, b"\x03")
        t.read_until(r"once more ends.*\n> ")
        t.type("half")
        os.write(t.master, b"\x03")  # a line was cleared in between: the next one is a first one again
        t.read_until(r"\^C\n> ")
        t.process.send_signal(signal.SIGINT)  # the same by kill
        t.read_until(r"once more ends.*\n> ")
        t.process.send_signal(signal.SIGINT)
        t.leave(130)


def test_stopped_and_continued():
    """Ctrl-Z and fg: the prompt is drawn again, and keys do what they did, though the shell has had the terminal in its own mode."""
    with Chat() as t:
        t.type("half a line")
        edit = termios.tcgetattr(t.master)
        os.kill(t.process.pid, signal.SIGSTOP)
        os.waitpid(t.process.pid, os.WUNTRACED)
        termios.tcsetattr(t.master, termios.TCSANOW, t.mode)
        os.kill(t.process.pid, signal.SIGCONT)
        t.read_until(r"> half a line")
        check(termios.tcgetattr(t.master) == edit, "the editor's mode is gone:", termios.tcgetattr(t.master), edit)
        check(t.heard(HOME, "and ") == "and half a line", lines(t.state))
        t.quit()


def test_history():
    with Chat() as t:
        state = t.state
        for text in ("first", "second", "second", " secret", "third"):
            t.keys(text, "\n")
        check(lines(state) == ["first", "second", "third"], lines(state))
        check(t.heard(UP, UP) == "second", lines(state))
        check(t.heard(UP, UP, DOWN, "!") == "second!", lines(state))
        check(t.heard("\x12fir", "\x01") == "first", lines(state))
        mode = os.stat(history_file(state)).st_mode
        check(stat.S_IMODE(mode) == 0o600, oct(mode))
        t.quit()
    with Chat(state=state) as t:  # another start knows them
        check(t.heard(UP, UP, UP, UP) == "second", lines(state))
        with Chat(state=state) as other:  # two at once: each adds its own, none loses the other's
            for i in range(3):
                t.keys(f"one {i}\n")
                other.keys(f"other {i}\n")
            tail = lines(state)[-6:]
            check(tail == ["one 0", "other 0", "one 1", "other 1", "one 2", "other 2"], tail)
            os.write(other.master, b"\x04")
            os.write(t.master, b"\x04")
            for chat in (other, t):
                check(chat.process.wait(timeout=60) == 0, "status", chat.process.returncode)
                os.close(chat.master)


def test_history_is_bounded():
    state = tempfile.mkdtemp(dir=tandem.WORK)
    os.mkdir(os.path.join(state, "tandem"))
    with open(history_file(state), "wb") as f:
        f.write(b"".join(b"prompt %d\n" % i for i in range(1200)) + b"\xff\xfe no text\n" + b"cut sho")
    os.chmod(history_file(state), 0o600)
    with Chat(state=state) as t:
        check(t.heard("new") == "new", lines(state)[-3:])
        with open(history_file(state), "rb") as f:
            kept = f.read().split(b"\n")
        check(len(kept) == 1002 and kept[-2:] == [b"new", b""] and kept[-5] == b"prompt 1199", len(kept), kept[-5:])
        check(stat.S_IMODE(os.stat(history_file(state)).st_mode) == 0o600, "mode")
        t.quit()
    with open(history_file(state), "wb") as f:  # by its bytes, too
        f.write((b"x" * 9999 + b"\n") * 100)
    with Chat(state=state) as t:
        t.keys("new\n")
        size = os.path.getsize(history_file(state))
        check(size <= 256 << 10 and lines(state)[-2:] == ["x" * 9999, "new"], size)
        t.quit()


def test_history_off():
    with Chat(history="off") as t:
        t.keys("nobody is to know\n")
        check("nobody" in t.keys(UP, "\n"), "it is not in memory either")
        t.quit()
        check(not os.path.exists(history_file(t.state)), "a file was written")
    cfg = tandem.config(tandem.model("demo", "bf16"))
    state = tempfile.mkdtemp(dir=tandem.WORK)
    tandem.run("coordinator", "--config", cfg, *CALM, stdin="Tell me\n", env={"XDG_STATE_HOME": state})
    check(os.listdir(state) == [], "a pipe writes a history:", os.listdir(state))
    # A file that cannot be written is said once and costs nothing; a link to /dev/null is none.
    folder = os.path.join(state, "tandem")
    os.makedirs(os.path.join(folder, "history"))
    with Chat(state=state) as t:
        said = t.keys("one\n") + t.keys("two\n")
        check(said.count("history '") == 1 and "history: off" in said, said)
        t.quit()
    os.rmdir(os.path.join(folder, "history"))
    os.symlink("/dev/null", os.path.join(folder, "history"))
    with Chat(state=state) as t:
        check("history" not in t.keys("one\n"), "a complaint about /dev/null")
        t.quit()
    check(os.readlink(os.path.join(folder, "history")) == "/dev/null", "the link was replaced")


def test_resize():
    """The line is drawn anew for the new width, and what is typed goes on."""
    with Chat() as t:
        t.type("x" * 60)
        t.resize(24, 30)
        t.read_until(r"> x{28}")
        check(t.heard(HOME, "y", END, "z") == "y" + "x" * 60 + "z", lines(t.state))
        t.quit()


def test_log_at_the_prompt():
    """A warning has its own line, and what was typed stands below it at once."""
    with Chat() as t:
        t.type("half a line")
        loader = next(p for p, c in tandem.processes(t.process.pid).items() if os.path.basename(c.split(" ")[0]) == "loader")
        os.kill(loader, signal.SIGKILL)
        t.read_until(r"^\ncoordinator\[\d+\] warn supervise: .*it is started again.*\n> half a line")
        check(t.heard(HOME, "and ") == "and half a line", lines(t.state))
        t.quit()


def test_tab():
    with Chat() as t:
        check("conversation: 0 of" in t.keys("/st\t\n"), "one candidate")
        os.write(t.master, b"/s\t")
        t.read_until(r"/save   /stats +\n")
        check("conversation: 0 of" in t.keys("t\t\n"), "chosen from two")
        for name in ("saved-one.json", "saved-two.json"):
            with open(scratch(name), "w", encoding="utf-8") as f:
                json.dump({"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": "Yes."}]}, f)
        check("2 messages, " in t.keys("/lo\t", tandem.WORK + "/saved-o\t", "\n"), "a file's name")
        check(lines(t.state)[-1].strip() == f"/load {tandem.WORK}/saved-one.json", lines(t.state))
        t.keys("a prompt\t\n")
        check(lines(t.state)[-1] == "a prompt", lines(t.state))
        t.quit()


def test_save_and_load():
    path, other = scratch("story.json"), scratch("other.json")
    with Chat("--system", "Be kind.", "--max-tokens", "20") as t:
        check("needs a file" in t.keys("/save\n") and "unknown command" in t.keys("/sav x\n") and "nothing behind" in t.keys("/reset x\n"), "refusals")
        first = t.ask("Tell me a story about a cat").partition("\n(cut")[0]
        second = t.keys('Grüße 😀\\\nund "mehr"\n').partition("\n(cut")[0]
        used = t.used()
        check(f"5 messages are in '{path}'" in t.keys(f"/save {path}\n"), "not said")
        check(stat.S_IMODE(os.stat(path).st_mode) == 0o600, oct(os.stat(path).st_mode))
        with open(path, encoding="utf-8") as f:
            saved = json.load(f)
        contents = [(m["role"], m["content"].strip()) for m in saved["messages"]]
        check(saved.keys() == {"model", "messages"} and saved["model"] == "demo-bf16", saved)
        check(contents[:2] == [("system", "Be kind."), ("user", "Tell me a story about a cat")] and contents[3] == ("user", 'Grüße 😀\nund "mehr"'), contents)
        check(contents[2][1] == first and contents[4][1].endswith(second.splitlines()[-1]), contents, first, second)
        check(f"'{path}' is there already" in t.keys(f"/save {path}\n"), "not refused")
        with open(path, encoding="utf-8") as f:
            check(json.load(f) == saved, "overwritten")
        said = t.keys("/save /nowhere/at/all.json\n")
        check("'/nowhere/at/all.json' cannot be written; name a file in a folder" in said and "No such file" in said, said)
        check(f"'{tandem.WORK}/at-home.json'" in t.keys("/save ~/at-home.json \n") and os.path.exists(scratch("at-home.json")), "~")
        check(not [n for n in os.listdir(tandem.WORK) if ".tmp-" in n], os.listdir(tandem.WORK))
        third = t.ask("And then?")
        t.keys("/reset\n")
        check(t.used() == 0 and f"5 messages, {used} of" in t.keys(f"/load {path}\n") and t.used() == used, "loaded:", t.used(), used)
        check(t.ask("And then?") == third, "a loaded conversation goes on in another way")
        for text, why in (("{", "not JSON"), ("[]", "expected messages"), ('{"messages": [{"role": "user", "content": "a"}]}', "the last is the assistant's"),
                          ('{"messages": [{"role": "assistant", "content": "a"}]}', "message 1"),
                          ('{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}', "message 2"),
                          ('{"messages": [{"role": "user", "content": 1}]}', "message 1")):
            with open(other, "w", encoding="utf-8") as f:
                f.write(text)
            got = t.keys(f"/load {other}\n")
            check(why in got and other in got, text, got)
        check(t.used() > used, "a file that is refused changes the conversation")
        t.quit()


if __name__ == "__main__":
    tandem.main(globals())
