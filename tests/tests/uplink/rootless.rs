//! All of it as an ordinary user, inside pasta (<https://passt.top>): the recipes of
//! docs/networking.md.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};

use anyhow::{Context, ensure};
use virtio_inter_tests::{
    Bridge, Frontend, Group, Nic, Port, PortConfig, Process, Result, Segment, Testbed, Vm,
    VmConfig, guest_test, port_program, skip, tools, until,
};

use crate::host::{HOST, LIMIT, dhcp, has, lease, may_make_networks, reach};

const NOBODY: u32 = 65534;
const AS_NOBODY: [&str; 6] = [
    "setpriv",
    "--reuid",
    "65534",
    "--regid",
    "65534",
    "--clear-groups",
];
const PASTA: [&str; 10] = [
    "pasta", "--quiet", "-t", "none", "-u", "none", "-T", "none", "-U", "none",
];
/// The host's own address, which pasta gives to the guest, and that of the host's gateway, by which
/// pasta leads to the host's loopback.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const TCP_PORT: u16 = 7007;
const BYTES: u64 = 5_000_000;

/// For a single guest: pasta's interface and the port's tap device on a bridge, then the port.
const FOR_ONE: &str = "ip link set lo up
ip link add br0 type bridge
ip link set pasta0 master br0 up
ip tuntap add dev vm1-up mode tap; ip link set vm1-up master br0 up
ip link set br0 up
exec \"$@\" --uplink tap=vm1-up";

/// For several: a bridge with NAT to pasta's interface, tap devices, and a DHCP server.
const FOR_SEVERAL: &str = "ip link set lo up
ip link add br0 type bridge; ip addr add 10.0.0.254/24 dev br0; ip link set br0 up
ip tuntap add dev vm1-up mode tap; ip link set vm1-up master br0 up
ip tuntap add dev vm2-up mode tap; ip link set vm2-up master br0 up
echo 1 > /proc/sys/net/ipv4/ip_forward
nft add table ip nat
nft add chain ip nat post '{ type nat hook postrouting priority 100; }'
nft add rule ip nat post ip saddr 10.0.0.0/24 masquerade
exec dnsmasq --no-daemon --conf-file=/dev/null --user=root --port=0 --interface=br0 \
    --bind-interfaces --dhcp-range=10.0.0.10,10.0.0.99 --leasefile-ro";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// A host with a default route, whatever this machine has, with a server on its loopback that
/// returns what it gets from one client, when it has all: one that returned it at once would wait
/// for the client to read, while that waits for the server to.
struct Host {
    network: Bridge,
    server: JoinHandle<io::Result<u64>>,
    /// The port's program, where an ordinary user can run it.
    program: PathBuf,
}

impl Host {
    fn new(bed: &Testbed, segment: &Segment) -> Result<Self> {
        let network = Bridge::without_bridge(1500)?;
        network.shell(&format!(
            "ip link set lo up
             ip link add wan0 type veth peer name wan1
             ip addr add {ADDRESS}/24 dev wan0
             ip link set wan0 up; ip link set wan1 up
             ip route add default via {GATEWAY}"
        ))?;
        let server = network.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, TCP_PORT)))?;
        let server = thread::spawn(move || -> io::Result<u64> {
            let (stream, _) = server.accept()?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut all = Vec::new();
            (&stream).take(BYTES).read_to_end(&mut all)?;
            (&stream).write_all(&all)?;
            Ok(all.len() as u64)
        });
        let program = bed.path("virtio-inter");
        fs::copy(port_program()?, &program).context("Copying the port's program")?;
        for path in [bed.directory(), segment.path()] {
            chown(path, Some(NOBODY), Some(NOBODY)).context("Giving away a directory")?;
        }
        Ok(Self {
            network,
            server,
            program,
        })
    }

    /// The words by which the user runs something inside pasta, with more options of that.
    fn in_pasta(&self, options: &[&str]) -> Vec<String> {
        let user = words(&[&AS_NOBODY[..], &PASTA, options, &["--"]].concat());
        [self.network.words(), user].concat()
    }

    /// The host. None: pasta cannot be run there, and the test is skipped.
    fn with_pasta(bed: &Testbed, segment: &Segment) -> Result<Option<Self>> {
        let host = Self::new(bed, segment)?;
        Ok(host.can_run_pasta().then_some(host))
    }

    /// Whether pasta can be run; if not, the test is skipped.
    fn can_run_pasta(&self) -> bool {
        let words = self.in_pasta(&[]);
        let output = Command::new(&words[0])
            .args(&words[1..])
            .arg("true")
            .output();
        let can = output.is_ok_and(|output| output.status.success());
        if !can {
            skip("an ordinary user cannot run pasta");
        }
        can
    }

    /// A port of the user's, run by these words.
    fn port(&self, bed: &Testbed, config: PortConfig, run_by: Vec<String>) -> Result<Port> {
        let config = PortConfig {
            program: Some(self.program.clone()),
            ..config
        };
        let port = Port::start(bed, config.run_by(run_by))?;
        ensure!(
            fs::metadata(port.socket())?.uid() == NOBODY,
            "Not the user's port"
        );
        Ok(port)
    }

    /// Lets a guest send data to the host's loopback, and compare what comes back. The connection
    /// is not ended by the guest: pasta of 2023 sometimes does not pass on that the other side has
    /// ended it as well.
    fn exchange_with_loopback(self, vm: &Vm, port: &Port) -> Result<()> {
        let before = port.counters()?;
        vm.shell(&format!(
            "busybox head -c {BYTES} /dev/urandom > /tmp/sent
             (busybox cat /tmp/sent; busybox sleep 60) 2> /dev/null |
                 busybox nc {GATEWAY} {TCP_PORT} > /tmp/received 2> /dev/null &
             for i in $(busybox seq 500); do
                 [ $(busybox stat -c %s /tmp/received) = {BYTES} ] && break
                 busybox sleep 0.1
             done
             busybox kill $!
             busybox cmp /tmp/sent /tmp/received"
        ))?;
        let echoed = self.server.join().ok().context("A thread that serves")?;
        ensure!(echoed? == BYTES, "Not all was echoed");
        let counters = port.counters()?.since(&before);
        ensure!(
            counters.get("uplink_tx_bytes") > BYTES && counters.get("uplink_rx_bytes") > BYTES,
            "{counters:?}"
        );
        Ok(())
    }
}

/// A guest of the user's.
fn start_guest(bed: &Testbed, name: &str, port: &Port, host: u8) -> Result<Vm> {
    let config = VmConfig::new(name, Frontend::Uml).nic(Nic::on_port(port, host));
    Vm::start(bed, config.run_by(words(&AS_NOBODY)))
}

fn can_be_tried() -> bool {
    may_make_networks() && ["pasta", "setpriv", "nsenter"].into_iter().all(has)
}

/// The guest gets an address from pasta's DHCP server, and reaches a server on the host's loopback.
#[test]
fn uplink_in_pasta_of_an_ordinary_user_of_one_uml_guest() {
    if !can_be_tried() {
        return;
    }
    guest_test(|bed| {
        let segment = Segment::new(bed, "own")?;
        let Some(host) = Host::with_pasta(bed, &segment)? else {
            return Ok(());
        };
        let within = [
            host.in_pasta(&["-I", "pasta0"]),
            words(&["sh", "-ec", FOR_ONE, "sh"]),
        ];
        let port = host.port(bed, PortConfig::new(&segment, "own", 1), within.concat())?;
        let vm = start_guest(bed, "own", &port, 1)?;
        vm.ready()?;
        ensure!(lease(&vm)? == ADDRESS, "Another address than pasta's");
        vm.shell(&format!("ip route add default via {GATEWAY}"))?;
        host.exchange_with_loopback(&vm, &port)
    });
}

/// The process that pasta has started.
fn process_in(pasta: &mut Process) -> Result<String> {
    let pid = pasta.pid();
    let children = Path::new("/proc").join(format!("{pid}/task/{pid}/children"));
    until("process in pasta", LIMIT, || {
        ensure!(pasta.is_running(), "pasta ended: {}", pasta.log());
        let children = fs::read_to_string(&children).context("Reading a process's children")?;
        let child = children.split_whitespace().next().map(str::to_owned);
        // The last that it logs once all is there.
        Ok(child.filter(|_| pasta.log().contains("DHCP, IP range")))
    })
}

/// Two guests get addresses from a DHCP server inside pasta, reach each other by links, and the
/// host's loopback by NAT.
#[test]
fn uplink_in_pasta_of_an_ordinary_user_with_dhcp_and_nat_of_uml_guests() {
    if !(can_be_tried() && has("dnsmasq") && has("nft")) {
        return;
    }
    guest_test(|bed| {
        let segment = Segment::new(bed, "own")?;
        let Some(host) = Host::with_pasta(bed, &segment)? else {
            return Ok(());
        };
        let within = host.in_pasta(&["--config-net"]);
        let within: Vec<&str> = within.iter().map(String::as_str).collect();
        let log = bed.path("pasta.log");
        let mut pasta = Command::new(within[0]);
        pasta.args(&within[1..]).args(["sh", "-ec", FOR_SEVERAL]);
        let mut pasta = Process::start("pasta", pasta, &log, &[])?;
        let target = process_in(&mut pasta)?;
        let enter = [
            "nsenter",
            "--preserve-credentials",
            "--user",
            "--net",
            "--target",
            &target,
        ];
        let enter = words(&[&AS_NOBODY[..], &enter].concat());
        let (mut ports, mut vms) = (Vec::new(), Vec::new());
        for number in [1, 2] {
            let name = format!("vm{number}");
            let uplink = format!("tap={name}-up");
            let config = PortConfig::new(&segment, &name, number).more(&["--uplink", &uplink]);
            ports.push(host.port(bed, config, enter.clone())?);
            vms.push(start_guest(bed, &name, &ports[ports.len() - 1], number)?);
        }
        let group = Group::of(segment, ports, vms);
        group.ready()?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let addresses = [dhcp(a)?, dhcp(b)?];
        for vm in [a, b] {
            reach(vm, HOST)?;
        }
        let before = group.ports[0].counters()?;
        tools::exchange(a, b, addresses[1], BYTES, LIMIT)?;
        let counters = group.ports[0].counters()?.since(&before);
        ensure!(counters.get("uplink_tx_frames") < 50, "{counters:?}");
        host.exchange_with_loopback(b, &group.ports[1])
    });
}
