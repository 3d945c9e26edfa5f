# Before the removal of the rpm, as dist/debian/prerm. $1 is the number of versions that stay.
if [ "$1" = 0 ] && [ -d /run/systemd/system ]; then
    # Sockets first: one that is still there when its port has ended starts it again for a VMM that reconnects.
    systemctl stop 'virtio-inter-port@*.socket' || true
    systemctl stop 'virtio-inter-vm@*.target' 'virtio-inter-port@*.service' \
        'virtio-inter-uplink@*.service' 'virtio-inter-cni-*.service' virtio-inter-exporter.service || true
fi
if [ "$1" = 0 ] && [ -e /sys/kernel/security/apparmor/profiles ] \
    && command -v apparmor_parser >/dev/null; then
    apparmor_parser --remove /etc/apparmor.d/virtio-inter || true
fi
