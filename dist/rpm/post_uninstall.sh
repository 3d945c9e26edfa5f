# After the removal of the rpm, as dist/debian/postrm. $1 is the number of versions that stay.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
if [ "$1" = 0 ]; then
    # The users and the group stay, as files may belong to them. Not the segments of ports that were started by hand.
    rm -f /run/virtio-inter-cni/.lock
    rmdir --ignore-fail-on-non-empty /run/virtio-inter/default /run/virtio-inter \
        /run/virtio-inter-port /run/virtio-inter-cni 2>/dev/null || true
    # The tool that makes the rpm lists no directories.
    rmdir --ignore-fail-on-non-empty /usr/share/doc/virtio-inter \
        /usr/libexec/wireshark/extcap /usr/libexec/wireshark 2>/dev/null || true
fi
