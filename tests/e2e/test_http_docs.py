# SPDX-License-Identifier: MIT
"""The documents' examples are executed: every curl of docs/HTTP.md and README.md, and the client in both."""
import json
import os
import re
import shlex
import shutil
import subprocess

import tandem
from http_client import Server
from tandem import check

PLACE = "http://127.0.0.1:8080"


def blocks(file, language):
    with open(os.path.join(tandem.SOURCE, file), encoding="utf-8") as f:
        return re.findall(rf"^```{language}\n(.*?)^```$", f.read(), re.M | re.S)


def curls():
    for file in ("docs/HTTP.md", "README.md"):
        for block in blocks(file, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("curl "):
                    yield line.partition("  # ")[0]


def test_curl():
    if not shutil.which("curl"):
        tandem.skip("'curl' is not installed")
    lines = list(curls())
    check(len(lines) >= 9, "examples are missing", lines)
    with Server(http__model_name="demo") as s:
        for line in lines:
            check(PLACE in line, "another address:", line)
            words = shlex.split(line.replace(PLACE, f"http://{s.host}:{s.port}"))
            result = subprocess.run([*words[:1], "-sS", "--fail-with-body", *words[1:]], capture_output=True, text=True, timeout=tandem.TIMEOUT)
            check(result.returncode == 0, line, result.stdout, result.stderr)
            if '"stream": true' in line:
                check(result.stdout.endswith("data: [DONE]\n\n"), line, result.stdout[-200:])
            else:
                check("error" not in json.loads(result.stdout), line, result.stdout)


def test_client():
    folder = os.path.join(tandem.E2E, "openai")
    if not shutil.which("node") or not os.path.isdir(os.path.join(folder, "node_modules", "openai")):
        tandem.skip("the openai client is not there (test_http_openai.py fetches it)")
    code, = blocks("docs/HTTP.md", "js")
    check(blocks("README.md", "js") == [code], "README.md has another one")
    check(PLACE in code and len(code.splitlines()) == 5, "five lines", code)
    with Server(http__model_name="demo") as s:
        file = os.path.join(folder, f"example-{os.getpid()}.mjs")
        with open(file, "w", encoding="utf-8") as f:
            f.write(code.replace(PLACE, f"http://{s.host}:{s.port}"))
        try:
            result = subprocess.run(["node", file], capture_output=True, text=True, timeout=tandem.TIMEOUT)
        finally:
            os.unlink(file)
        check(result.returncode == 0 and len(result.stdout) > 4, result.stdout, result.stderr[-2000:])


if __name__ == "__main__":
    tandem.main(globals())
