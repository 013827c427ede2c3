#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# cmake/xrt.cmake: one build folder follows XILINX_XRT from one XRT to another, remembers it, and takes the library of the headers
# alone. The XRTs are folders with empty files.
# usage: check_xrt_place.sh SOURCE_DIR
set -euo pipefail
source=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder"/{project,uuid/uuid} "$folder"/{old,new}/{include/xrt,lib}
touch "$folder"/{old,new}/include/xrt/xrt_kernel.h "$folder"/{old,new}/lib/libxrt_coreutil.so "$folder/new/include/xrt/xrt_hw_context.h"
cat >"$folder/project/CMakeLists.txt" <<EOF
cmake_minimum_required(VERSION 3.20)
project(place C)
include($source/cmake/xrt.cmake)
message(STATUS "found: \${TANDEM_HAVE_XRT} \${TANDEM_XRT_FLAVOUR} \${XRT_LIBRARY} \${TANDEM_XRT_WHY}")
EOF

# expect WHAT PATTERN [ENVIRONMENT...]
expect() {
    local what=$1 pattern=$2 said
    shift 2
    said=$(env -u XILINX_XRT "$@" cmake -S "$folder/project" -B "$folder/build" -DUUID_INCLUDE="$folder/uuid" 2>&1) ||
        { echo "FAIL: $what: $said" >&2; exit 1; }
    [[ $said == *"$pattern"* ]] || { echo "FAIL: $what: '$pattern' is not in: $said" >&2; exit 1; }
}

expect "the first" "found: ON load_xclbin $folder/old/lib/libxrt_coreutil.so" XILINX_XRT="$folder/old"
expect "another one" "found: ON hw_context $folder/new/lib/libxrt_coreutil.so" XILINX_XRT="$folder/new"
expect "the first again, which is told" "XRT: '$folder/old/include' takes the place of '$folder/new/include'" XILINX_XRT="$folder/old"
expect "from a shell without it" "found: ON load_xclbin $folder/old/lib/libxrt_coreutil.so"
expect "a folder with libraries alone" "found: ON load_xclbin $folder/old/lib/libxrt_coreutil.so" XILINX_XRT="$folder/uuid"
rm "$folder/new/lib/libxrt_coreutil.so"
expect "headers without a library" "was not found below '$folder/new', where XRT's headers are" XILINX_XRT="$folder/new"
