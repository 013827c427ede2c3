#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Every symbol that an object file of ours exports starts with the stem of its file: who sees a call finds the file.
# usage: check_symbols.sh BUILD_DIR
set -euo pipefail
build=$1

# Second halves of a pair that share one file with the first; the header of the file says so.
allowed() {
    case "$1:$2" in
    ring:bell_* | tokenizer:detokenizer_* | spirv_types:main) return 0 ;;
    stage_weights:stage_* | stage_data:stage_*) return 0 ;; # parts of the stage skeleton: proto/stage.h has what stages call
    schedule_admit:schedule_* | schedule_output:schedule_* | schedule_restart:schedule_*) return 0 ;; # parts of the schedule: schedule.h has all
    plan_fit:plan_*) return 0 ;; # the second half of the plan
    vk_*:vk_*) return 0 ;; # buffers, kernels, the queue: one small layer over Vulkan, its headers say which file has what
    http_*:http_* | api_*:api_*) return 0 ;; # http_impl.h and api_impl.h say which file has what
    *) return 1 ;;
    esac
}

objects=0 symbols=0 bad=0
while IFS= read -r -d '' object; do
    objects=$((objects + 1))
    stem=$(basename "$object")
    stem=${stem%.o} stem=${stem%.*}
    while read -r _ kind name; do
        case $kind in
        [TDBRC]) ;;
        *) continue ;; # weak and local ones do not collide by accident
        esac
        case $name in
        __odr_asan* | asan.* | __sanitizer* | _ZTI* | _ZTS* | _ZTV*) continue ;;
        esac
        symbols=$((symbols + 1))
        if [ "$stem" = main ] && [ "$name" = main ]; then
            continue
        fi
        if [ "${name#"$stem"}" = "$name" ] && ! allowed "$stem" "$name"; then
            echo "FAIL: '$name' in $object does not start with '$stem'" >&2
            bad=$((bad + 1))
        fi
    done < <(nm -g --defined-only "$object")
done < <(find "$build"/{coordinator,gpu_worker,kernels,loader,model,npu_worker,proto,quantizer,stage} -name '*.o' -print0 | sort -z)
echo "$objects objects, $symbols exported symbols, $bad with a foreign name"
[ "$objects" -gt 30 ] && [ "$symbols" -gt 100 ] && [ "$bad" -eq 0 ]
