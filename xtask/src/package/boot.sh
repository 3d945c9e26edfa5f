# Boots the Debian system in the directory $1 as a container: its process 1 is systemd. What it has
# of the host's are a few devices; process numbers, network, mounts and control groups are its own.
# Runs as root, in a mount namespace of its own.
mount --bind "$1" "$1"
cd "$1"
# Fresh, as after a boot.
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t cgroup2 cgroup2 mnt
# Of runs that were killed.
for old in mnt/virtio-inter-check.*; do
    if [ -d "$old" ] && ! kill -0 "${old##*.}" 2>/dev/null; then
        find "$old" -depth -type d -exec rmdir {} + || true
    fi
done
group=mnt/virtio-inter-check.$$
mkdir "$group"
# It ends as if by an interrupt when it is switched off.
trap : INT
# The control groups that systemd makes in there.
trap 'find "$group" -depth -type d -exec rmdir {} +' EXIT
sh -ec '
    echo $$ >"$1/cgroup.procs"
    exec unshare --cgroup --pid --ipc --uts --net --mount --fork --kill-child sh -ec "$2"' \
    sh "$group" '
    umount mnt
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs dev
    mkdir dev/pts dev/shm dev/net
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    for device in null zero full random urandom tty net/tun; do
        : >"dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    mount --move . /
    exec env -i container=virtio-inter PATH=/usr/sbin:/usr/bin \
        chroot . /lib/systemd/systemd systemd.wants=check.service'
