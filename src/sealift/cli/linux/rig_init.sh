#!/bin/busybox sh
# /init of the rig: this machine's file system with a layer of memory above it, and one command in it. See rig.py.
# Standard output, standard error and the exit status of the command leave through virtio serial ports, and so does a
# beat that every CPU must take part in.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
  insmod "$module" || echo "rig: $module does not load"
done

fail() {
  echo "rig: $1"
  poweroff -f
}

mkdir -p /below /above /root
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /below || fail "no file system over 9p"
mount -t tmpfs tmpfs /above
mkdir /above/changes /above/work
mount -t overlay -o lowerdir=/below,upperdir=/above/changes,workdir=/above/work overlay /root || fail "no overlay"
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount --bind /dev /root/dev
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs tmpfs /root/run
mkdir -p /root/run/home
chmod 1777 /root/dev/shm /root/run
ifconfig lo 127.0.0.1 up
hostname rig
cp /command /root/run/command

# Each port's name is a link to its device. Pipes lead there, since a port can be opened only once.
for port in /sys/class/virtio-ports/*; do
  ln -s "/dev/${port##*/}" "/$(cat "$port/name")"
done
[ -c /status ] || fail "no virtio serial ports"
mkfifo /out.pipe /err.pipe
cat /out.pipe >/out &
out=$!
cat /err.pipe >/err &
err=$!
while :; do
  for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
    taskset -c "${cpu##*/cpu}" true
  done
  echo
  sleep 5
done >/beat &
chroot /root /bin/sh /run/command </dev/null >/out.pipe 2>/err.pipe
echo $? >/status
wait "$out" "$err"
poweroff -f
