# SPDX-License-Identifier: MIT
"""The Debian packages that CPack makes of this build: what they say about themselves, what is in them, and that programs run from there.
packaging/debian/check installs them on a clean Debian; that needs root and a mirror, and is no part of the tests."""
import os
import re
import shutil
import subprocess

import tandem
from tandem import check, run
from test_install import programs_of

BUILD = os.path.dirname(tandem.BIN)


def output(*words, **options):
    r = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=tandem.TIMEOUT, **options)
    check(r.returncode == 0, " ".join(words), r.stdout[-2000:], r.stderr[-2000:])
    return r.stdout


def packages():
    """{name: file}, made once."""
    for tool in ("cpack", "dpkg-deb", "dpkg-shlibdeps", "file"):
        if not shutil.which(tool):
            tandem.skip(f"'{tool}' is not installed (Debian packages cmake, dpkg-dev, file)")
    folder = tandem.scratch("packages")
    if not os.path.exists(folder):
        output("cpack", "--config", os.path.join(BUILD, "CPackConfig.cmake"), "-B", folder, "-D", "CPACK_DEBIAN_COMPRESSION_TYPE=none")
        shutil.rmtree(os.path.join(folder, "_CPack_Packages"))
    return {f.partition("_")[0]: os.path.join(folder, f) for f in os.listdir(folder) if f.endswith(".deb")}


def field(deb, name):
    return output("dpkg-deb", "-f", deb, name).strip()


def version():
    return re.search(r"\d+\.\d+\.\d+", run("coordinator", "--version").stdout).group(0)


def test_says_what_it_needs():
    deb = packages()["tandem"]
    check(field(deb, "Version") == version(), field(deb, "Version"))
    depends = [d.strip().split(" ")[0] for d in field(deb, "Depends").split(",")]
    # what programs link, by dpkg-shlibdeps; what postinst runs
    for name in ("libc6", "libuv1", "libmicrohttpd12", "libseccomp2", "libsentencepiece0", "libjansson4", "systemd"):
        check(any(d.startswith(name) for d in depends), name, "is not in", depends)
    check(not any("xrt" in d or "vulkan" in d for d in depends), "drivers are loaded where they are there, and not needed:", depends)
    if re.search(r"^GLSLC:.*glslc$", output("cmake", "-LA", "-N", BUILD), re.M):
        check("mesa-vulkan-drivers" in field(deb, "Recommends"), field(deb, "Recommends"))
    check("tandem-xrt" in field(deb, "Suggests"), field(deb, "Suggests"))
    lines = field(deb, "Description").splitlines()
    check(len(lines) > 3 and all(len(l) < 80 for l in lines), lines)


def test_module_is_a_package_of_its_own():
    built = os.path.exists(os.path.join(BUILD, "lib", "tandem", "tandem_xrt.so"))
    check(("tandem-xrt" in packages()) == built, packages())
    if not built:
        tandem.skip("built without XRT")
    deb = packages()["tandem-xrt"]
    check(f"tandem (= {version()})" in field(deb, "Depends") and "libxrt" in field(deb, "Depends"), field(deb, "Depends"))
    listed = output("dpkg-deb", "-c", deb)
    check(listed.count("\n-") == 3 and "/tandem/tandem_xrt.so" in listed, listed)  # and changelog, copyright


def test_files():
    deb = packages()["tandem"]
    rows = [l.split(None, 5) for l in output("dpkg-deb", "-c", deb).splitlines()]
    for mode, owner, _, _, _, path in rows:
        check(owner == "root/root" and mode[5] != "w" and mode[8] != "w", path, mode, owner)
        check(path.startswith(("./etc/", "./usr/", "./var/")), path)
        check(("x" in mode) == (mode[0] == "d" or bool(re.match(r"\./usr/(bin|libexec/tandem)/", path))), path, mode)
    paths = {r[5] for r in rows}
    for path in ("./usr/bin/coordinator", "./usr/libexec/tandem/loader", "./etc/tandem/tandem.yaml", "./var/lib/tandem/",
                 "./usr/lib/systemd/system/tandem.target", "./usr/lib/sysusers.d/tandem.conf", "./usr/share/man/man1/coordinator.1.gz",
                 "./usr/share/doc/tandem/copyright", "./usr/share/doc/tandem/changelog.gz", "./usr/share/doc/tandem/LICENSE"):
        check(path in paths, path, "is not in the package")
    check(not any(p.endswith(".so") for p in paths), "the module is in both packages")


def test_control():
    folder = tandem.scratch("control")
    output("dpkg-deb", "-e", packages()["tandem"], folder)
    with open(os.path.join(folder, "conffiles"), encoding="utf-8") as f:
        check(f.read().split() == ["/etc/tandem/tandem.yaml"], "conffiles")
    for script in ("postinst", "prerm", "postrm"):
        path = os.path.join(folder, script)
        check(os.access(path, os.X_OK), script, "cannot be run")
        output("sh", "-n", path)
    with open(os.path.join(tandem.SOURCE, "packaging", "debian", "changelog"), encoding="utf-8") as f:
        check(f.readline().startswith(f"tandem ({version()}) "), "packaging/debian/changelog begins with another version")
    with open(os.path.join(tandem.SOURCE, "packaging", "debian", "copyright"), encoding="utf-8") as f:
        stated = re.sub(r"^ \.$", "", f.read().rpartition("License: Expat\n")[2], flags=re.M).split()
    with open(os.path.join(tandem.SOURCE, "LICENSE"), encoding="utf-8") as f:
        check(stated == ("Permission" + f.read().partition("Permission")[2]).split(), "packaging/debian/copyright is not what LICENSE says")


def test_programs_of_the_package():
    root = tandem.scratch("unpacked")
    output("dpkg-deb", "-x", packages()["tandem"], root)
    out = tandem.scratch("of-package.gguf")
    with programs_of(os.path.join(root, "usr", "bin")):
        run("quantizer", "--in", tandem.DEMO, "--out", out, "--type", "q8_0")
        r = tandem.generate(tandem.config(out), "--prompt", "Once", "--temperature", 0, "--max-tokens", 4)
        check(len(r["output_ids"]) == 4, r)
    with open(os.path.join(root, "usr", "bin", "coordinator"), "rb") as f:
        check(b".debug_info" not in f.read(), "not stripped")


if __name__ == "__main__":
    tandem.main(globals())
