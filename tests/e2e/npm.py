# SPDX-License-Identifier: MIT
"""Packages of npm for tests, at the versions that a package-lock.json pins; kept between runs."""
import os
import shutil
import subprocess

import tandem


def folder(name, tests):
    """A folder with node_modules, by the lock in `tests`."""
    for tool in ("node", "npm"):
        if not shutil.which(tool):
            tandem.skip(f"'{tool}' is not installed (Debian packages nodejs, npm)")
    kept = os.path.join(tandem.E2E, name)
    lock, known = os.path.join(tests, "package-lock.json"), os.path.join(kept, "package-lock.json")
    if os.path.isdir(os.path.join(kept, "node_modules")) and open(known, "rb").read() == open(lock, "rb").read():
        return kept
    shutil.rmtree(kept, ignore_errors=True)
    os.makedirs(kept)
    for file in ("package.json", "package-lock.json"):
        shutil.copy(os.path.join(tests, file), kept)
    result = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=kept, capture_output=True, text=True,
                            timeout=tandem.TIMEOUT)
    if result.returncode:
        shutil.rmtree(kept)
        tandem.skip(f"npm cannot fetch what {tests} needs: " + (result.stderr.strip().splitlines() or ["no reason given"])[-1])
    return kept
