# After the installation or an upgrade of the rpm, as dist/debian/postinst.
systemd-sysusers virtio-inter.conf || exit 1
# Without a running systemd, as in a container, the directory is made at the next boot.
systemd-tmpfiles --create virtio-inter.conf virtio-inter-package.conf || true
if [ -e /sys/kernel/security/apparmor/profiles ] && command -v apparmor_parser >/dev/null; then
    # Before units of this version are started; holds for those that run, too.
    apparmor_parser --replace --skip-cache /etc/apparmor.d/virtio-inter || true
fi
if [ -d /run/systemd/system ]; then
    # Running ports keep the old program until they are restarted: their VMs use them.
    systemctl daemon-reload || true
fi
