# SPDX-License-Identifier: MIT
"""Stages that somebody else starts: they wait for the coordinator's socket, say hello there, and end with it."""
import os
import re
import socket
import struct

import tandem
from tandem import check, left_behind, processes, scratch, start, wait_until

TOKEN = "0123456789abcdef" * 4
PREAMBLE = b"TANDEM\r\n" + struct.pack("<II", 1, 0)


def write_token(path, text=TOKEN, mode=0o600):
    with open(path + ".token", "w", encoding="utf-8") as f:
        f.write(text)
    os.chmod(path + ".token", mode)


def listen(path):
    write_token(path)
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    s.listen(1)
    s.settimeout(60)
    return s


def receive(c, n):
    data = b""
    while len(data) < n:
        piece = c.recv(n - len(data))
        check(piece, "closed after", data)
        data += piece
    return data


def hello(c):
    check(receive(c, 16) == PREAMBLE, "no preamble")
    return receive(c, struct.unpack("<I", receive(c, 4))[0])


def test_hello_and_end():
    for role, name in enumerate(tandem.STAGES):
        path = scratch(f"{name}.sock")
        process = start(name, "--stage-socket", path)  # before anybody listens
        wait_until(lambda: processes(process.pid), 30, "did not start")
        with listen(path) as s:
            c, _ = s.accept()
            with c:
                c.settimeout(60)
                body = hello(c)
                check(b"\xa4role" + bytes([role]) in body, name, body)
                check(b"\xa5token\xd9\x40" + TOKEN.encode() in body, name, body)
                c.sendall(PREAMBLE)
                with open(f"/proc/{process.pid}/status", encoding="utf-8") as f:
                    check(re.search(r"^State:\s+[SR]", f.read(), re.M), name)
        _, err = process.communicate(timeout=30)  # the socket is closed
        check(process.returncode == 0, name, process.returncode, err)
        os.unlink(path)
        os.unlink(path + ".token")
    check(not left_behind(), left_behind())


def test_refusals():
    plain = scratch("plain")
    with open(plain, "w", encoding="utf-8"):
        pass
    for words, part, status in (((scratch("nothing.sock"),), "nobody listens there, for 5000 ms; start the coordinator", 1),
                                ((plain,), "is not a socket; expected that of a coordinator", 1),
                                (("",), "0 bytes; expected the path of a socket", 1),
                                (("x" * 108,), "108 bytes; expected the path of a socket", 1),
                                ((plain, "--stage-fd", "3"), "--stage-fd and --stage-socket cannot be given together", 2)):
        r = tandem.run("loader", "--stage-socket", *words, status=status)
        tandem.one_line_error(r, part)


def test_token():
    """What stands beside the socket, and who may read it."""
    path = scratch("token.sock")
    with listen(path) as s:
        s.listen(16)
        for text, mode, part in ((TOKEN[1:], 0o600, "has 63 bytes; expected 64 hexadecimal digits"),
                                 (TOKEN.upper(), 0o600, "expected 64 hexadecimal digits"), ("", 0o600, "has 0 bytes"),
                                 (TOKEN + "0", 0o600, "has 65 bytes"), (TOKEN, 0o640, "is not a file of this user with mode 0600")):
            write_token(path, text, mode)
            tandem.one_line_error(tandem.run("loader", "--stage-socket", path, status=1), part)
        os.unlink(path + ".token")
        os.symlink(scratch("elsewhere"), path + ".token")
        tandem.one_line_error(tandem.run("loader", "--stage-socket", path, status=1), "stage token", "cannot be read")
        os.unlink(path + ".token")
        tandem.one_line_error(tandem.run("loader", "--stage-socket", path, status=1), "a coordinator that waits for stages writes it")
    os.unlink(path)


def test_another_user():
    """Nobody but the stage's own user is taken for its coordinator."""
    if os.geteuid() != 0:
        tandem.skip("only root can listen as another user")
    folder = scratch("other")
    os.mkdir(folder, 0o777)
    os.chmod(folder, 0o777)
    path = os.path.join(folder, "sock")
    write_token(path)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            s = socket.socket(socket.AF_UNIX)
            os.chdir(folder)  # whatever the folders above allow
            os.setresuid(65534, 65534, 65534)
            s.bind("sock")
            s.listen(1)
            os.write(write, b"x")
            s.accept()[0].recv(1)
        finally:
            os._exit(0)
    os.close(write)
    check(os.read(read, 1) == b"x", "the other user cannot listen")
    os.close(read)
    r = tandem.run("loader", "--stage-socket", path, status=None)
    os.waitpid(pid, 0)
    check(r.returncode == 1 and "the peer runs as user 65534; expected user 0" in r.stderr, r.returncode, r.stderr)


if __name__ == "__main__":
    tandem.main(globals())
