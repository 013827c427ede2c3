# SPDX-License-Identifier: MIT
"""What `cmake --install` leaves: the layout, programs that find each other wherever the tree was moved to, texts that name the place of
the installation, a configuration that is not written over, and man pages that say what --help says."""
import contextlib
import json
import os
import re
import shutil
import subprocess

import tandem
from tandem import check, config, golden_json, ids_text, model, one_line_error, run
from test_npu import simulated

BUILD = os.path.dirname(tandem.BIN)
PAGES = {"coordinator": "man1/coordinator.1", "quantizer": "man1/quantizer.1", "loader": "man8/tandem-loader.8",
         "npu_worker": "man8/tandem-npu_worker.8", "gpu_worker": "man8/tandem-gpu_worker.8", "client": "man8/tandem-client.8"}
UNITS = ["tandem-coordinator.service", "tandem-gpu-worker.service", "tandem-loader.service", "tandem-npu-worker.service", "tandem.target"]


def install(prefix, destdir=None):
    env = {**os.environ, **({"DESTDIR": destdir} if destdir else {})}
    done = subprocess.run(["cmake", "--install", BUILD, "--prefix", prefix], env=env, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=tandem.TIMEOUT)
    check(done.returncode == 0, "cmake --install:", done.stderr)
    return done.stdout


def files(folder):
    return sorted(os.listdir(folder))


def moved():
    """A tree that lies elsewhere than where it was installed; nothing is left at the place that it knew."""
    path = tandem.scratch("moved")
    if not os.path.exists(path):
        install(tandem.scratch("first"))
        os.rename(tandem.scratch("first"), path)
    return path


@contextlib.contextmanager
def programs_of(folder):
    before, tandem.BIN = tandem.BIN, folder
    try:
        yield
    finally:
        tandem.BIN = before


def module(prefix):
    for folder, _, names in os.walk(prefix):
        if "tandem_xrt.so" in names:
            return os.path.join(folder, "tandem_xrt.so")
    return None


def test_layout():
    prefix = moved()
    check(files(os.path.join(prefix, "bin")) == ["coordinator", "quantizer"], files(os.path.join(prefix, "bin")))
    check(files(os.path.join(prefix, "libexec", "tandem")) == sorted(["client", *tandem.STAGES]), files(os.path.join(prefix, "libexec", "tandem")))
    check(files(os.path.join(prefix, "lib", "systemd", "system")) == UNITS, files(os.path.join(prefix, "lib", "systemd", "system")))
    for path in ("etc/tandem/tandem.yaml", "lib/sysusers.d/tandem.conf", "share/tandem/grafana/tandem.json", "share/doc/tandem/LICENSE",
                 "share/doc/tandem/README.md", "share/doc/tandem/docs/OPERATIONS.md",
                 "share/doc/tandem/examples/tandem-coordinator.service.d/attached.conf",
                 "share/bash-completion/completions/coordinator", "share/bash-completion/completions/quantizer"):
        check(os.path.isfile(os.path.join(prefix, path)), path, "is not installed")
    check((module(prefix) is None) == (module(os.path.join(BUILD, "lib")) is None), "the module of XRT:", module(prefix))


def test_links_of_documents():
    folder = os.path.join(moved(), "share", "doc", "tandem")
    seen = 0
    for name in ["README.md"] + [os.path.join("docs", f) for f in files(os.path.join(folder, "docs")) if f.endswith(".md")]:
        with open(os.path.join(folder, name), encoding="utf-8") as f:
            for link in re.findall(r"\]\(([^)#:]+\.(?:md|png))[^)]*\)", f.read()):
                seen += 1
                check(os.path.exists(os.path.join(folder, os.path.dirname(name), link)), name, "names", link)
    check(seen > 10, f"only {seen} links found")


def test_golden_text_from_a_moved_tree():
    prompt = golden_json("demo_greedy.json")["prompts"][0]
    with programs_of(os.path.join(moved(), "bin")):
        out = tandem.scratch("installed.gguf")
        run("quantizer", "--in", tandem.DEMO, "--out", out, "--type", "bf16")
        cfg = config(out)
        r = tandem.generate(cfg, "--ids", ids_text(prompt["prompt_ids"]), "--temperature", 0, "--max-tokens", len(prompt["output_ids"]))
        check(r["text"] == prompt["output_text"], r["text"], "instead of", prompt["output_text"])
        # from elsewhere, through a link: the kernel knows where the program lies
        link = tandem.scratch("link")
        os.symlink(os.path.join(moved(), "bin", "coordinator"), link)
        shown = subprocess.run([link, "--config", cfg, "generate", "--prompt", "Once", "--temperature", "0", "--max-tokens", "4"],
                               cwd="/", env=tandem.environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=tandem.TIMEOUT)
        check(shown.returncode == 0, shown.stderr.decode())


def test_module_of_a_moved_tree():
    """npu_worker reads its module from lib below Landlock: sandbox and loading agree where it is."""
    if not module(moved()):
        tandem.skip("built without XRT")
    cfg = config(model("demo", "bf16"), **simulated())
    with programs_of(os.path.join(moved(), "bin")):
        r = tandem.generate(cfg, "--prompt", "Once", "--temperature", 0, "--max-tokens", 4)
        worker = next(p for p in r["processes"] if p["name"] == "npu_worker")
        check(worker["backend"].startswith("xrt npu_sim"), worker)
    with programs_of(os.path.join(moved(), "libexec", "tandem")):
        where = module(moved())
        os.rename(where, where + ".away")
        one_line_error(run("npu_worker", "--list-devices", status=None), "'" + where + "' is not there", "built without XRT", "tandem-xrt")
        os.rename(where + ".away", where)


def test_missing_stage():
    """The error says where was looked, and what lies in bin under the name of a stage is not taken for it."""
    tree = tandem.scratch("broken")
    shutil.copytree(moved(), tree)
    stage = os.path.join(tree, "libexec", "tandem", "loader")
    os.unlink(stage)
    mark = tandem.scratch("was-run")
    with open(os.path.join(tree, "bin", "loader"), "w", encoding="utf-8") as f:
        f.write(f"#!/bin/sh\ntouch {mark}\n")
    os.chmod(f.name, 0o755)
    cfg = config(model("demo", "bf16"))
    with programs_of(os.path.join(tree, "bin")):
        one_line_error(run("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--max-tokens", 1, status=None),
                       f"'{stage}' is not there", "install")
        check(not os.path.exists(mark), "a program of another was run")
        shutil.rmtree(os.path.join(tree, "libexec"))
        os.unlink(os.path.join(tree, "bin", "loader"))
        one_line_error(run("coordinator", "--config", cfg, "generate", "--prompt", "Once", "--max-tokens", 1, status=None),
                       f"'{os.path.dirname(stage)}'", f"'{tree}/bin/")
    shutil.rmtree(tree)


def test_staged_for_usr():
    """DESTDIR is where files are put, and stands in none of them; /etc belongs to /usr. A configuration that is there stays."""
    stage = tandem.scratch("stage")
    install("/usr", stage)
    path = os.path.join(stage, "etc", "tandem", "tandem.yaml")
    for folder, _, names in os.walk(stage):
        for name in names:
            with open(os.path.join(folder, name), "rb") as f:
                data = f.read()
            check(b"\x7fELF" in data[:4] or stage.encode() not in data, os.path.join(folder, name), "names", stage)
    commands = []
    for unit in UNITS[:4]:
        with open(os.path.join(stage, "usr", "lib", "systemd", "system", unit), encoding="utf-8") as f:
            commands += re.findall("^ExecStart=(.*)$", f.read(), re.M)
    check(sorted(c.split(" ")[0] for c in commands) == ["/usr/bin/coordinator", *(f"/usr/libexec/tandem/{s}" for s in sorted(tandem.STAGES))],
          commands)
    check(any(c == "/usr/bin/coordinator --config /etc/tandem/tandem.yaml serve" for c in commands), commands)
    with open(os.path.join(tandem.SOURCE, "packaging", "Containerfile"), encoding="utf-8") as f:  # the image runs the same
        words = json.loads(re.search(r"^CMD (\[.*\])$", f.read(), re.M).group(1))
    check("/usr/bin/" + " ".join(words) in commands, words, commands)
    with open(path, "a", encoding="utf-8") as f:
        f.write("# mine\n")
    check("Kept: " + path in install("/usr", stage), "not said that the configuration was kept")
    with open(path, encoding="utf-8") as f:
        check(f.read().endswith("# mine\n"), "the configuration was written over")
    shutil.rmtree(stage)


def test_installed_configuration():
    """It is taken as it is, but for the model, and `serve` finds an address in it."""
    path = os.path.join(moved(), "etc", "tandem", "tandem.yaml")
    plan = tandem.run_json("coordinator", "--config", path, "--set", "model=" + model("demo", "bf16"), "plan", "--json")
    check(len(plan["processes"]) == 4, plan)
    with open(path, encoding="utf-8") as f:
        check("listen: 127.0.0.1:8080," in f.read(), path, "has no address")
    one_line_error(run("coordinator", "--config", path, "plan", status=None), "/var/lib/tandem/model.gguf")


def plain(page):
    """A page as text of one line, without what troff needs."""
    text = re.sub(r"^\.[A-Z]+ ?", "", page, flags=re.M)
    for code, char in (("\\(aq", "'"), ("\\(ti", "~"), ("\\(ha", "^"), ("\\-", "-"), ("\\&", ""), ("\\fB", "`"), ("\\fR", "`"), ("\\e", "\\")):
        text = text.replace(code, char)
    return " ".join(text.split())


def test_man_pages():
    for program, name in PAGES.items():
        path = os.path.join(moved(), "share", "man", name)
        with open(path, encoding="utf-8") as f:
            page = f.read()
        shown = plain(page)
        text = run(program, "--help").stdout
        commands = re.findall(r"^  ([a-z][a-z-]+)  ", text.partition("Commands:")[2].partition("\n\n")[0], re.M)
        check((len(commands) >= 12) == (program == "coordinator"), program, commands)
        own = [run(program, c, "--help").stdout.partition("Options of every command:")[0] for c in commands]
        words = 0
        for line in "\n".join([text, *own]).splitlines():
            line = re.sub(r"^Usage: ", "", line).strip()
            # a term and its text are two lines of the page, and a heading is in capitals
            for piece in re.split(r"  +", line):
                if piece.endswith(":") or piece.startswith("Exit status") or re.fullmatch(r"[a-z ]+\.", piece):
                    continue
                words += len(piece.split())
                short = " ".join(piece.split()[1:-1])  # its first letter may be a capital there, its end another line
                check(short in shown, f"{name} lacks '{piece}'")
        check(words > 100, program, words)
        for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"):
            check(re.search(rf'^\.SH "?{heading}"?$', page, re.M), name, "has no", heading)
        for other in PAGES.values():
            other = os.path.basename(other).partition(".")[0]
            check(other in shown, name, "does not name", other)


def test_man_pages_are_well_formed():
    checkers = [c for c in (["mandoc", "-Tlint"], ["groff", "-man", "-ww", "-z", "-Tutf8"]) if shutil.which(c[0])]
    if not checkers:
        tandem.skip("neither mandoc nor groff is installed")
    broken = tandem.scratch("broken.1")
    with open(broken, "w", encoding="utf-8") as f:
        f.write(".TH X 1 2026-01-01\n.SH NAME\nx \\- y\n.NOSUCH\n\\fQtext\n")
    for checker in checkers:
        for name in PAGES.values():
            r = subprocess.run([*checker, os.path.join(moved(), "share", "man", name)], capture_output=True, text=True, timeout=60)
            check(r.returncode == 0 and not r.stdout and not r.stderr, checker, name, r.stdout, r.stderr)
        r = subprocess.run([*checker, broken], capture_output=True, text=True, timeout=60)
        check(r.stdout or r.stderr, checker, "finds nothing in a broken page")


if __name__ == "__main__":
    tandem.main(globals())
