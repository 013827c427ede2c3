# SPDX-License-Identifier: MIT
"""The official openai client for node, at the version that tests/http/package-lock.json pins, against a server with a key."""
import os
import shutil
import subprocess
import tempfile

import tandem
from http_client import Server
from tandem import check

TESTS = os.path.join(tandem.SOURCE, "tests", "http")


def client():
    """A folder with node_modules; kept between runs."""
    for tool in ("node", "npm"):
        if not shutil.which(tool):
            tandem.skip(f"'{tool}' is not installed (Debian packages nodejs, npm)")
    folder = os.path.join(tandem.E2E, "openai")
    lock = os.path.join(TESTS, "package-lock.json")
    kept = os.path.join(folder, "package-lock.json")
    if os.path.isdir(os.path.join(folder, "node_modules", "openai")) and open(kept, "rb").read() == open(lock, "rb").read():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(os.path.join(TESTS, name), folder)
    result = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True,
                            timeout=tandem.TIMEOUT)
    if result.returncode:
        shutil.rmtree(folder)
        tandem.skip("npm cannot fetch the openai package: " + (result.stderr.strip().splitlines() or ["no reason given"])[-1])
    return folder


def test_openai_client():
    folder = client()
    fd, path = tempfile.mkstemp(dir=tandem.WORK)
    os.write(fd, b"the-key-of-this-test\n")
    os.close(fd)
    with Server(sequences=2, http__api_key_file=path) as s:
        result = subprocess.run(["node", os.path.join(TESTS, "test_openai.mjs"), f"http://{s.host}:{s.port}/v1", "the-key-of-this-test", folder],
                                capture_output=True, text=True, timeout=tandem.TIMEOUT)
        print(result.stdout)
        check(result.returncode == 0, result.stdout, result.stderr[-2000:])


if __name__ == "__main__":
    tandem.main(globals())
