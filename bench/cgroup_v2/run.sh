#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Caps by a real cgroup v2, in an emulated machine (QEMU without KVM) with a kernel of Debian and nothing but our programs, busybox and
# the demo model in its memory. Needs: qemu-system-x86, cpio, busybox-static, a kernel image (from linux-image-amd64), a build folder.
# Usage: run.sh VMLINUZ BUILD_FOLDER     Prints what the machine said; 15 minutes at most.
set -euo pipefail
[ $# = 2 ] || { echo "usage: run.sh VMLINUZ BUILD_FOLDER" >&2; exit 2; }
kernel=$1 build=$2
root=$(mktemp -d)
chmod 755 "$root"
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,proc,sys,dev,tmp,run,etc,lib,lib64}
cp /bin/busybox "$root/bin/"
cp "$build"/bin/{coordinator,loader,npu_worker,gpu_worker} "$build/tests/libhungry.so" "$root/bin/"
"$build/bin/quantizer" --in "$(dirname "$0")/../../models/demo" --out "$root/m.gguf" --type q8_0 >/dev/null
for library in $(ldd "$root"/bin/{coordinator,loader,npu_worker,gpu_worker} | grep -o '/[^ ]*\.so[^ ]*' | sort -u); do
    mkdir -p "$root$(dirname "$library")"
    cp -n "$library" "$root$library"
done
echo 'user:x:1000:1000::/tmp:/bin/sh' >"$root/etc/passwd"
cat >"$root/c.yaml" <<'CONFIG'
model: /m.gguf
context: 256
npu: {threads: 1}
gpu: {threads: 1, backend: cpu}
CONFIG
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin TANDEM_LOG=info,npu:warn,gpu:warn
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /tmp
chmod 1777 /tmp
cd /sys/fs/cgroup
echo +memory >cgroup.subtree_control
mkdir -p user/scope user/shared
echo +memory >user/cgroup.subtree_control
generate='coordinator --config /c.yaml generate --prompt Once --temperature 0 --max-tokens 4'
case_of() { # name, group, command: what it says of caps, its status, what it leaves behind
    echo "== $1"
    (echo 0 >"/sys/fs/cgroup/$2/cgroup.procs"; exec sh -c "exec $3") 2>&1 | grep -v '^$' | cut -c1-300
    ls -d /sys/fs/cgroup/tandem-* "/sys/fs/cgroup/$2"/tandem-* 2>/dev/null | sed 's/^/left behind: /'
}
case_of 'root, in the root of the hierarchy' . "$generate"
case_of 'root, in a group of its own' user/scope "$generate"
sleep 1000 & echo $! >user/shared/cgroup.procs
case_of 'root, in a group with another process' user/shared "$generate"
chown -R 1000 user/scope
case_of 'a user, in a delegated group' user/scope "su -s /bin/sh user -c 'exec $generate'"
case_of 'a user, in a group that is not delegated' user/shared "su -s /bin/sh user -c 'exec $generate'"
export LD_PRELOAD=/bin/libhungry.so HUNGRY=npu_worker HUNGRY_AFTER_MS=3000
case_of 'a stage that takes memory without end' user/scope 'coordinator --config /c.yaml bench --prompt-tokens 16 --gen-tokens 200'
unset LD_PRELOAD
case_of 'what each process held' user/scope "coordinator --config /c.yaml bench --prompt-tokens 16 --gen-tokens 4 --repetitions 1"
uname -r
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc 2>/dev/null | gzip -1 >"$root.cpio.gz")
trap 'rm -rf "$root" "$root.cpio.gz"' EXIT
timeout 900 qemu-system-x86_64 -cpu max -smp 2 -m 2048 -nographic -no-reboot -kernel "$kernel" -initrd "$root.cpio.gz" \
    -append 'console=ttyS0 quiet panic=-1 oops=panic' </dev/null | tr -d '\r'
