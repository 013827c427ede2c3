#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The unit files as they are installed: systemd takes every line of them, with the programs that are installed with them, and rates
# none of them as open as a service without hardening. Status 77 where there is no systemd-analyze.
# usage: check_units.sh BUILD_DIR
set -euo pipefail
build=$1
if ! command -v systemd-analyze >/dev/null; then
    echo "SKIP: check_units: systemd-analyze is not installed (Debian package systemd)"
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
dropin=tandem-coordinator.service.d/attached.conf
cmake --install "$build" --prefix "$folder/prefix" >/dev/null
mkdir "$folder/units"
cd "$folder/units"
cp "$folder"/prefix/lib/systemd/system/* .
cp -r "$folder/prefix/share/doc/tandem/examples/${dropin%/*}" .
count=$(find . -type f | wc -l)
[ "$count" -eq 6 ] || { echo "FAIL: $count unit files instead of 6" >&2; exit 1; }

# First with the drop-in, then without it.
said=$(systemd-analyze verify --man=no ./*.service ./*.target 2>&1) || { echo "FAIL: $said" >&2; exit 1; }
[ -z "$said" ] || { echo "FAIL: systemd-analyze verify: $said" >&2; exit 1; }
sed -i 's#/coordinator #/no-such-program #' "$dropin"
if systemd-analyze verify --man=no ./tandem-coordinator.service >/dev/null 2>&1; then
    echo "FAIL: systemd-analyze verify does not look at the drop-in" >&2
    exit 1
fi
rm -r "${dropin%/*}"
said=$(systemd-analyze verify --man=no ./*.service ./*.target 2>&1) || { echo "FAIL: $said" >&2; exit 1; }
[ -z "$said" ] || { echo "FAIL: systemd-analyze verify: $said" >&2; exit 1; }

# A unit that names a program which is not there, or an unknown key, must not pass: the check above can fail.
sed 's#/loader #/no-such-program #' tandem-loader.service >tandem-broken.service
if systemd-analyze verify --man=no ./tandem-broken.service >/dev/null 2>&1; then
    echo "FAIL: systemd-analyze verify accepts a program that is not there" >&2
    exit 1
fi
rm tandem-broken.service

bad=0
for unit in *.service; do
    # exposure from 0 (closed) to 100 (open); a service without hardening has 96
    if ! systemd-analyze security --offline=true --threshold=25 "./$unit" >"$folder/report" 2>&1; then
        echo "FAIL: $unit is too open:" >&2
        tail -n 3 "$folder/report" >&2
        bad=$((bad + 1))
    fi
done
echo "$count unit files, $bad too open"
[ "$bad" -eq 0 ]
