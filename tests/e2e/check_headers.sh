#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Every header compiles alone, and twice in a row, with all warnings as errors. Fails when one relies on what another includes.
# usage: check_headers.sh SOURCE_DIR [CC]
set -euo pipefail
root=$1 cc=${2:-cc}
cd "$root"
read -ra flags <<<"$(pkg-config --cflags libuv)"
count=0 bad=0
while IFS= read -r -d '' header; do
    header=${header#./}
    count=$((count + 1))
    if ! printf '#include "%s"\n#include "%s"\nextern int check_headers_not_empty;\n' "$header" "$header" |
        "$cc" -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wstrict-prototypes -Werror -fsyntax-only -I. "${flags[@]}" -x c -; then
        echo "FAIL: '$header' does not compile alone" >&2
        bad=$((bad + 1))
    fi
done < <(find bench coordinator gpu_worker kernels loader model npu_worker proto quantizer -name '*.h' -print0 | sort -z)
echo "$count headers, $bad do not stand alone"
[ "$count" -gt 20 ] && [ "$bad" -eq 0 ]
