#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The unit files of packaging/systemd: systemd takes every line of them, with the programs of this build, and rates none of them
# as open as a service without hardening. Status 77 where there is no systemd-analyze.
# usage: check_units.sh SOURCE_DIR BIN_DIR
set -euo pipefail
source=$1 bin=$2
if ! command -v systemd-analyze >/dev/null; then
    echo "SKIP: check_units: systemd-analyze is not installed (Debian package systemd)"
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
count=0
dropin=tandem-coordinator.service.d/attached.conf
mkdir "$folder/${dropin%/*}"
for unit in "$source"/packaging/systemd/*.service "$source"/packaging/systemd/*.target "$source/packaging/systemd/$dropin"; do
    sed "s#/opt/tandem/bin/#$bin/#" "$unit" >"$folder/${unit#"$source/packaging/systemd/"}"
    count=$((count + 1))
done
[ "$count" -eq 6 ] || { echo "FAIL: $count unit files instead of 6" >&2; exit 1; }
cd "$folder"

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
    if ! systemd-analyze security --offline=true --threshold=25 "./$unit" >report 2>&1; then
        echo "FAIL: $unit is too open:" >&2
        tail -n 3 report >&2
        bad=$((bad + 1))
    fi
done
echo "$count unit files, $bad too open"
[ "$bad" -eq 0 ]
