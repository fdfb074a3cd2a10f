#!/bin/busybox sh
# /init of a Linux guest: says what it runs on, then runs linuxload for good.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo "linux $(uname -r)"
for module in /modules/*.ko; do
  insmod "$module" || echo "FAULT $module does not load"
done

# The disk is there once its driver has found it, which the kernel does in its own time.
tries=0
while [ ! -b /dev/vda ] && [ "$tries" -lt 20 ]; do
  tries=$((tries + 1))
  usleep 50000
done

echo "vcpus $(nproc)"
dmesg | sed -n 's/^\[[^]]*] *\(.*Memory Encryption Features active.*\)/encryption \1/p' | head -n 1
set --
[ -b /dev/vda ] && set -- /dev/vda
[ -b /dev/vda ] && [ -c /dev/hvc0 ] && set -- /dev/vda /dev/hvc0
/bin/linuxload "$@"
poweroff -f
