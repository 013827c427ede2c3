# SPDX-License-Identifier: MIT
"""The official openai client for node, at the version that tests/http/package-lock.json pins, against a server with a key."""
import os
import subprocess
import tempfile

import npm
import tandem
from http_client import Server
from tandem import check

TESTS = os.path.join(tandem.SOURCE, "tests", "http")


def test_openai_client():
    folder = npm.folder("openai", TESTS)
    fd, path = tempfile.mkstemp(dir=tandem.WORK)
    os.write(fd, b"the-key-of-this-test\n")
    os.close(fd)
    with Server(sequences=2, http__api_key_file=path, http__cors="https://page.example") as s:
        result = subprocess.run(["node", os.path.join(TESTS, "test_openai.mjs"), f"http://{s.host}:{s.port}/v1", "the-key-of-this-test", folder],
                                capture_output=True, text=True, timeout=tandem.TIMEOUT)
        print(result.stdout)
        check(result.returncode == 0, result.stdout, result.stderr[-2000:])


if __name__ == "__main__":
    tandem.main(globals())
