#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Every header compiles alone, and twice in a row, with warnings as errors. Fails when one relies on what another includes.
# Files named *_body.h are no headers but the text that the variants of a kernel share, each with its own macros.
# usage: check_headers.sh SOURCE_DIR [CC]
set -euo pipefail
root=$1 cc=${2:-cc}
cd "$root"
read -ra common <<<"$(pkg-config --cflags libuv)"
common+=(-std=c11 -D_GNU_SOURCE -I. -Wall -Wextra -Wstrict-prototypes -Wno-unused-function -Werror -fsyntax-only)

volk=no
if echo '#include <volk.h>' | "$cc" -fsyntax-only -x c - 2>/dev/null; then
    volk=yes
fi
count=0 bad=0
while IFS= read -r -d '' header; do
    header=${header#./}
    flags=("${common[@]}")
    case $(uname -m):$header in
    x86_64:*_avx2.h) flags+=(-mavx2 -mfma -mf16c) ;;
    *:gpu_worker/vk_* | *:bench/vulkan/*) [ "$volk" = yes ] || continue ;;
    x86_64:*_avx512.h) flags+=(-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni) ;;
    *:*_avx2.h | *:*_avx512.h) continue ;;
    esac
    count=$((count + 1))
    if ! printf '#include "%s"\n#include "%s"\nextern int check_headers_not_empty;\n' "$header" "$header" |
        "$cc" "${flags[@]}" -x c -; then
        echo "FAIL: '$header' does not compile alone" >&2
        bad=$((bad + 1))
    fi
done < <(find bench coordinator gpu_worker kernels loader model npu_worker proto quantizer -name '*.h' ! -name '*_body.h' -print0 | sort -z)
echo "$count headers, $bad do not stand alone"
[ "$count" -gt 20 ] && [ "$bad" -eq 0 ]
