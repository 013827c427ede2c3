# SPDX-License-Identifier: MIT
"""The web page in headless chromium (tests/page/test_page.mjs). Pictures of it are kept in the folder `page` of the tests' output."""
import os
import subprocess

import npm
import tandem
from http_client import Server
from tandem import check

TESTS = os.path.join(tandem.SOURCE, "tests", "page")
PICTURES = os.path.join(tandem.E2E, "page-pictures")
CHROMIUM = "/usr/bin/chromium"


def browse(server, *more):
    if not os.path.exists(CHROMIUM):
        tandem.skip(f"'{CHROMIUM}' is not there (Debian package chromium)")
    folder = npm.folder("page", TESTS)
    os.makedirs(PICTURES, exist_ok=True)
    r = subprocess.run(["node", os.path.join(TESTS, "test_page.mjs"), f"http://{server.host}:{server.port}", folder, PICTURES, *more],
                       capture_output=True, text=True, timeout=tandem.TIMEOUT)
    print(r.stdout)
    check(r.returncode == 0, r.stdout, r.stderr[-3000:])


def test_files():
    """They are those of the source, and need no key."""
    with Server(http__api_key_file=key_file()) as s:
        for path, kind, file in (("/", "text/html", "page.html"), ("/page.js", "text/javascript", "page.js"), ("/page.css", "text/css", "page.css")):
            status, headers, body = s.request("GET", path)
            check(status == 200 and headers["content-type"] == kind + "; charset=utf-8", status, headers)
            check("default-src 'none'" in headers["content-security-policy"], headers)
            with open(os.path.join(tandem.SOURCE, "coordinator", "page", file), "rb") as f:
                check(body == f.read(), path)
        check(s.request("GET", "/page.html")[0] == 401 and s.request("POST", "/", b"{}", {"Content-Type": "application/json"})[0] == 405, "else")


def key_file():
    path = tandem.scratch("keys")
    with open(path, "w", encoding="utf-8") as f:
        f.write("the-key-of-this-test\n")
    os.chmod(path, 0o600)
    return path


def test_page():
    with Server("q8_0", restarts=100) as s:
        browse(s)


def test_key():
    with Server("q8_0", http__api_key_file=key_file()) as s:
        browse(s, "the-key-of-this-test")


if __name__ == "__main__":
    tandem.main(globals())
