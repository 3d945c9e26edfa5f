# Runs in the booted system of the package's check, as the service check.service. The last line is
# the result. Mock VMs exchange streams of hashed data through the ports, units of the package.
exec >/root/units.log 2>&1 </dev/null
trap 'test "$done" || echo "UNITS FAILED"; systemctl poweroff --force --force' EXIT
set -eE
# Not for the commands of a substitution, whose output is used.
trap 'test "$BASH_SUBSHELL" != 0 || show_state "Line $LINENO: $BASH_COMMAND"' ERR

show_state() {
    echo "$1"
    systemctl list-units --all --no-pager 'virtio-inter*' || true
    journalctl --no-pager --lines 60 || true
}

wait_for() {
    for try in $(seq 240); do
        eval "$1" && return
        sleep 0.25
    done
    echo "Waited in vain for: $1"
    return 1
}

pid_of() {
    systemctl show --property MainPID --value "virtio-inter-$1"
}

# A VM: its number, those of the others, and its port's socket.
start_vm() {
    sleep infinity | /root/mock-vm "$1" "$2" "$3" "/run/vm$1.progress" &
    wait_for "test -s /run/vm$1.progress"
}

# The word at that place of a VM's progress (tests/src/mock_vm/progress.rs).
word_of() {
    od --address-radix=n --format=u8 --skip-bytes=$(($2 * 8)) --read-bytes=8 "/run/vm$1.progress" \
        | tr --delete ' '
}

sessions_of() {
    word_of "$1" 1
}

# Frames of data that the first VM got from the second, in order and each once.
delivered() {
    word_of "$1" $((8 + 4 * $2))
}

wait_for_data() {
    local before=$(delivered 1 2) back=$(delivered 2 1)
    wait_for "test $(($before + 200)) -lt \$(delivered 1 2) -a $(($back + 200)) -lt \$(delivered 2 1)"
}

# Waits until another process than $2 is the one of a unit.
wait_for_other() {
    wait_for "new=\$(pid_of $1); test \"\$new\" != 0 -a \"\$new\" != $2"
}

# Files of the package, or made by it. systemd keeps directories of units below /run/systemd.
files() {
    find / /run -xdev \( -path /root -o -path /run/systemd \) -prune \
        -o -name '*virtio-inter*' -print
}

ip link set lo up
test -z "$(files)"
dpkg --install /root/older.deb
mkdir -p /etc/virtio-inter
for vm in 1 2 3 4 5 6; do
    echo "OPTIONS=--segment default --mac 02:76:69:00:00:0$vm" >/etc/virtio-inter/vm$vm.conf
done
systemctl start virtio-inter-port@vm1 virtio-inter-port@vm2
# Units of the type "notify": they have said that they are ready.
test "$(systemctl show --property Type --value virtio-inter-port@vm1)" = notify
test "$(systemctl is-active virtio-inter-port@vm1 virtio-inter-port@vm2 | uniq)" = active
start_vm 1 2 /run/virtio-inter-port/vm1/vhost.sock
start_vm 2 1 /run/virtio-inter-port/vm2/vhost.sock
wait_for_data
echo "UNITS: two VMs exchange data"

# An upgrade leaves running ports alone: they have the old program until they are restarted. It
# replaces configuration files that nobody has changed.
old=$(pid_of port@vm1)
grep -q '^# Of the older version' /etc/apparmor.d/virtio-inter
dpkg --install /root/virtio-inter.deb
test -z "$(grep '^# Of the older version' /etc/apparmor.d/virtio-inter)"
test "$(pid_of port@vm1)" = "$old"
case $(readlink /proc/$old/exe) in *" (deleted)") ;; *) false ;; esac
wait_for_data
for how in "systemctl kill --signal=KILL" "systemctl restart"; do
    old=$(pid_of port@vm1)
    $how virtio-inter-port@vm1
    wait_for_other port@vm1 "$old"
    wait_for_data
done
# systemd has kept the connection: the next process could tell the VMM to connect again.
journalctl --unit virtio-inter-port@vm1 | grep -q "asked to connect again"
echo "UNITS: data is exchanged after an upgrade, a kill and a restart of a port"

# A process that hangs is killed and started again; one that reports to the watchdog is not.
test "$(systemctl show --property WatchdogUSec --value virtio-inter-port@vm2)" = 1min
mkdir -p /run/systemd/system/virtio-inter-port@vm2.service.d
printf '[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n' \
    >/run/systemd/system/virtio-inter-port@vm2.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart virtio-inter-port@vm2
old=$(pid_of port@vm2)
sleep 5
test "$(pid_of port@vm2)" = "$old"
kill -STOP "$old"
wait_for_other port@vm2 "$old"
wait_for_data
echo "UNITS: a port that hung was started again by the watchdog"

# The ports of a VM start before it, and stop with it, by a target of theirs.
state_of() {
    systemctl is-active "$@" | uniq | tr '\n' ' '
}
mkdir -p /run/systemd/system/virtio-inter-vm@both.target.d
sed 's/virtio-inter-port@NAME.service/virtio-inter-port@vm5.service virtio-inter-port@vm6.service/' \
    /usr/share/doc/virtio-inter/vm.conf >/run/systemd/system/virtio-inter-vm@both.target.d/vm.conf
cat >/run/systemd/system/both.service <<END
[Unit]
Wants=virtio-inter-vm@both.target
After=virtio-inter-vm@both.target
PropagatesStopTo=virtio-inter-vm@both.target
[Service]
ExecStartPre=test -S /run/virtio-inter-port/vm5/vhost.sock -a -S /run/virtio-inter-port/vm6/vhost.sock
ExecStart=sleep infinity
END
systemctl daemon-reload
for unit in both.service virtio-inter-vm@both.target; do
    systemctl start $unit
    test "$(state_of $unit virtio-inter-port@vm5 virtio-inter-port@vm6)" = "active "
    old=$(pid_of port@vm6)
    systemctl restart virtio-inter-port@vm5
    test "$(pid_of port@vm6)" = "$old"
    systemctl stop $unit
    wait_for 'test "$(state_of virtio-inter-vm@both.target virtio-inter-port@vm5 virtio-inter-port@vm6)" = "inactive "'
done
test "$(state_of virtio-inter-port@vm1)" = "active "
# It ends with the package, too.
systemctl start virtio-inter-vm@both.target
echo "UNITS: ports of a VM started and stopped with it"

# The socket of a socket unit, which is there before the port.
cp /usr/share/doc/virtio-inter/virtio-inter-port@.socket /etc/systemd/system/
mkdir -p /etc/systemd/system/virtio-inter-port@vm3.service.d
cp /usr/share/doc/virtio-inter/socket-activation.conf \
    /etc/systemd/system/virtio-inter-port@vm3.service.d/
systemctl daemon-reload
systemctl start virtio-inter-port@vm3.socket
test "$(stat -c '%a %G' /run/virtio-inter-port/vm3.sock)" = "660 virtio-inter"
test "$(pid_of port@vm3)" = 0
start_vm 3 4 /run/virtio-inter-port/vm3.sock
wait_for 'test "$(sessions_of 3)" -gt 0'
wait_for "virtio-inter show default/vm3 2>/dev/null | grep -q 'peer: vm1'"
echo "UNITS: a VM has connected to the socket of a socket unit"

# A port with an uplink of its own, and an uplink of the segment.
ip tuntap add tap4 mode tap vnet_hdr user virtio-inter
ip tuntap add tap5 mode tap vnet_hdr user virtio-inter-uplink
# Without IPv6, whose frames mock VMs do not know.
ip link set tap4 addrgenmode none up
ip link set tap5 addrgenmode none up
echo "OPTIONS=--segment default --mac 02:76:69:00:00:04 --uplink tap=tap4" \
    >/etc/virtio-inter/vm4.conf
echo "OPTIONS=--segment default --tap tap5" >/etc/virtio-inter/up.conf
mkdir -p /etc/systemd/system/virtio-inter-port@vm4.service.d
cp /usr/share/doc/virtio-inter/uplink.conf /etc/systemd/system/virtio-inter-port@vm4.service.d/
systemctl daemon-reload
systemctl start virtio-inter-port@vm4 virtio-inter-uplink@up virtio-inter-exporter
wait_for "virtio-inter show default/vm1 | grep -q 'peer: vm4'"
metrics() {
    exec 3<>/dev/tcp/127.0.0.1/9477
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
    cat <&3
}
wait_for "(metrics) 2>/dev/null | grep -q '^virtio_inter_up{.*vm4.*} 1'"
echo "UNITS: a port and a segment have uplinks, and the exporter has metrics of all"
for unit in port@vm1 port@vm3 port@vm4 uplink@up exporter; do
    systemd-analyze security --no-pager --threshold=15 "virtio-inter-$unit.service" >/run/exposure \
        || { cat /run/exposure; false; }
    test "$(pid_of "$unit")" != 0
    echo "UNITS: exposure of $unit:$(tail --lines 1 /run/exposure | grep --only-matching ' [0-9.]* [A-Z]*')"
done

# Metrics by a socket for all users, and by a file that only its user changes.
test "$(systemctl show --property Type,WatchdogUSec --value virtio-inter-exporter | xargs)" = "notify 1min"
echo "OPTIONS=--listen unix:/run/virtio-inter-exporter/metrics.sock" >/etc/virtio-inter/exporter.conf
systemctl restart virtio-inter-exporter
cat >/root/connect.pl <<'END'
use Socket;
socket(my $client, AF_UNIX, SOCK_STREAM, 0) or die $!;
connect($client, sockaddr_un("/run/virtio-inter-exporter/metrics.sock")) or die $!;
syswrite($client, "GET /metrics HTTP/1.0\r\n\r\n");
print while <$client>;
END
setpriv --reuid nobody --regid nogroup --clear-groups perl </root/connect.pl >/run/metrics
grep -q '^virtio_inter_up{.*vm1.*} 1' /run/metrics
rm /etc/virtio-inter/exporter.conf
systemd-sysusers --inline 'u prometheus -'
install -d -o prometheus /var/lib/prometheus /var/lib/prometheus/node-exporter
mkdir -p /run/systemd/system/virtio-inter-exporter.service.d
cp /usr/share/doc/virtio-inter/exporter-textfile.conf /run/systemd/system/virtio-inter-exporter.service.d/
systemctl daemon-reload
systemctl restart virtio-inter-exporter
file=/var/lib/prometheus/node-exporter/virtio-inter.prom
test "$(stat -c '%a %U' $file)" = "644 prometheus"
grep -q '^virtio_inter_up{.*vm1.*} 1' $file
systemd-analyze security --no-pager --threshold=15 virtio-inter-exporter.service >/dev/null
rm -r /run/systemd/system/virtio-inter-exporter.service.d
systemctl daemon-reload
systemctl restart virtio-inter-exporter
rm $file
echo "UNITS: the exporter serves by a socket for all users, and writes a file for node exporter"

# Ports of the CNI plug-in are transient units.
echo '{ "cniVersion": "1.1.0", "name": "pods", "segment": "default" }' >/root/cni.json
cni() {
    CNI_COMMAND=$1 CNI_CONTAINERID=pod CNI_NETNS=/run/netns/pod CNI_IFNAME=$2 \
        /usr/lib/cni/virtio-inter-cni </root/cni.json
}
units_of() {
    systemctl list-units --all --no-legend --plain "virtio-inter-cni-pod-$1-*" | cut -d ' ' -f 1
}
cni ADD eth0 >/root/result.json
cni ADD eth1 >/root/result.json
unit=$(units_of eth0)
unit=${unit#virtio-inter-}
wait_for "virtio-inter show default/vm1 | grep -q 'peer: pod-eth0-'"
old=$(pid_of "$unit")
kill -KILL "$old"
wait_for_other "$unit" "$old"
cni DEL eth0
test -z "$(units_of eth0)"
test "$(systemctl is-active "$(units_of eth1)")" = active
echo "UNITS: the CNI plug-in has started, and ended, a port that was restarted meanwhile"

# All are stopped when the package is removed, although VMs try to connect.
test "$(pidof mock-vm | wc -w)" = 3
dpkg --remove virtio-inter
test -z "$(systemctl list-units --no-legend 'virtio-inter*')"
test -z "$(pidof virtio-inter)"
echo "UNITS: removed; no process is left"
# What users made is theirs.
rm -r /run/virtio-inter-cni /etc/virtio-inter /etc/systemd/system/virtio-inter-port@*
dpkg --purge virtio-inter
test -z "$(files)" || { files; false; }
echo "UNITS: purged; no file is left"
done=1
echo "UNITS OK"
