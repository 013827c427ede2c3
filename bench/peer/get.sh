#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Puts the peer, llama.cpp's prebuilt library from npm, into a cache outside the source tree and builds the small driver beside it.
# usage: get.sh [--installed-only]    prints "FOLDER_OF_LIBRARY DRIVER"; status 77 when the peer cannot be had
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TANDEM_PEER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tandem-peer}
package=@node-llama-cpp/linux-x64 version=3.22.1
library=$cache/npm/node_modules/$package/bins/linux-x64

if ! ls "$library"/libllama.*so >/dev/null 2>&1; then
    if [ "${1:-}" = --installed-only ]; then
        echo "peer: not installed in '$cache'; run bench/peer/get.sh once" >&2
        exit 77
    fi
    if ! command -v npm >/dev/null; then
        echo "peer: there is no npm; install the Debian package npm" >&2
        exit 77
    fi
    mkdir -p "$cache/npm"
    if ! npm install --no-save --ignore-scripts --no-audit --no-fund --prefix "$cache/npm" "$package@$version" >&2; then
        echo "peer: npm could not install $package@$version" >&2
        exit 77
    fi
fi
# A driver for each source: working trees share the cache.
driver=$cache/peer-$(cksum <"$here/peer.c" | cut -d' ' -f1)
if ! [ -x "$driver" ]; then
    ${CC:-cc} -std=c11 -O2 -Wall -Wextra -o "$driver.$$" "$here/peer.c" -ldl
    mv "$driver.$$" "$driver"
fi
echo "$library $driver"
