//! Ports joined by links in one process, each with a guest; and peers whose side the test plays.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_net as net;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_inter_common::{Guard, MacAddr};
use virtio_inter_device::backend::{self, Backend, BackendSetup, Links, UplinkDevice};
use virtio_inter_device::{
    BusyPollConfig, Counters, Device, LinkBackend, Port, PortConfig, PortEvent, QueueSetup,
    RateLimits,
};
use virtio_inter_link::{MIN_CAPACITY, Receiver, Sender};
use virtio_inter_segment::{LocalPort, PeerInfo, PeerKey};

use super::arena::Arena;
use super::guest::{Guest, RxQueue, TxQueue};
use super::link::{RawLink, link};
use super::packet::Packet;
use super::queue::Queue;
use super::wait::{PATIENCE, wait_readable};

/// A feature bit as a mask.
pub(crate) struct Feature;

impl Feature {
    pub(crate) const CSUM: u64 = 1 << net::VIRTIO_NET_F_CSUM;
    pub(crate) const GUEST_CSUM: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM;
    pub(crate) const MTU: u64 = 1 << net::VIRTIO_NET_F_MTU;
    pub(crate) const MAC: u64 = 1 << net::VIRTIO_NET_F_MAC;
    pub(crate) const GUEST_TSO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO4;
    pub(crate) const GUEST_TSO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO6;
    pub(crate) const GUEST_ECN: u64 = 1 << net::VIRTIO_NET_F_GUEST_ECN;
    pub(crate) const HOST_TSO4: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO4;
    pub(crate) const HOST_TSO6: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO6;
    pub(crate) const HOST_ECN: u64 = 1 << net::VIRTIO_NET_F_HOST_ECN;
    pub(crate) const GUEST_USO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_USO4;
    pub(crate) const GUEST_USO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_USO6;
    pub(crate) const HOST_USO: u64 = 1 << net::VIRTIO_NET_F_HOST_USO;
    pub(crate) const MRG_RXBUF: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;
    pub(crate) const STATUS: u64 = 1 << net::VIRTIO_NET_F_STATUS;
    pub(crate) const CTRL_VQ: u64 = 1 << net::VIRTIO_NET_F_CTRL_VQ;
    pub(crate) const MQ: u64 = 1 << net::VIRTIO_NET_F_MQ;
    pub(crate) const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
    pub(crate) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
    pub(crate) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
    pub(crate) const IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;
}

/// The least that a driver can accept.
pub(crate) const LEAN: u64 = Feature::VERSION_1;

/// Address of the port with this number.
pub(crate) fn mac(number: usize) -> MacAddr {
    MacAddr::new([0x52, 0x54, 0, 0, 0, number as u8 + 1])
}

/// Busy-polling up to `limit` on a machine where nobody waits for a CPU, as far as its workers can
/// tell: this one's kernel may keep no account of that.
pub(crate) fn busy_poll(limit: Duration) -> BusyPollConfig {
    static ACCOUNT: OnceLock<(OwnedFd, &'static str)> = OnceLock::new();
    let (_, run_queues) = ACCOUNT.get_or_init(|| {
        let cpus = (0..1024).map(|cpu| format!("cpu{cpu} 0 0 0 0 0 0 0 0 0\n"));
        let account = "version 17\ntimestamp 0\n".to_owned() + &cpus.collect::<String>();
        let file = memfd_create("schedstat", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, account.as_bytes()).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        (file, path.leak())
    });
    BusyPollConfig { limit, run_queues }
}

/// What a port and its guest are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) queues: u16,
    pub(crate) mtu: u16,
    pub(crate) capacity: u32,
    /// Accepted of what is offered.
    pub(crate) features: u64,
    pub(crate) rx_size: u16,
    pub(crate) tx_size: u16,
    /// Where the rings' indices start.
    pub(crate) start: u16,
    pub(crate) busy_poll: BusyPollConfig,
    /// The port drops frames for a peer that makes no progress, or a guest with too few buffers.
    pub(crate) stall_timeout: bool,
    /// The uplink's device takes partial checksums and frames to be segmented.
    pub(crate) uplink_offload: bool,
    /// Receive buffers given at first: how many (the size at most), and of how many bytes.
    pub(crate) buffers: (usize, usize),
    /// Addresses that the guest may use beside its own, as on the command line.
    pub(crate) allowed: &'static str,
    /// IP addresses that it may have, likewise; any if empty.
    pub(crate) ip: &'static str,
    /// It may not answer as a DHCP server.
    pub(crate) no_dhcp_server: bool,
    /// It may use any that nobody else has or lists.
    pub(crate) trunk: bool,
    pub(crate) rate_limits: RateLimits,
}

impl Spec {
    fn config(&self) -> PortConfig {
        PortConfig {
            busy_poll: self.busy_poll,
            rate_limits: self.rate_limits,
        }
    }
}

impl Spec {
    /// A guest whose few buffers are smaller than frames of its MTU.
    pub(crate) fn with_small_buffers() -> Self {
        Spec {
            mtu: 1500,
            features: !Feature::MRG_RXBUF,
            buffers: (8, 1000),
            ..Spec::default()
        }
    }
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            queues: 1,
            mtu: 65535,
            capacity: MIN_CAPACITY,
            features: u64::MAX,
            rx_size: 256,
            tx_size: 256,
            start: 0,
            busy_poll: BusyPollConfig::default(),
            stall_timeout: true,
            uplink_offload: true,
            buffers: (256, 2048),
            allowed: "",
            ip: "",
            no_dhcp_server: false,
            trunk: false,
            rate_limits: RateLimits::default(),
        }
    }
}

/// A port and its guest.
pub(crate) struct Node<B: Backend = Links> {
    pub(crate) number: usize,
    pub(crate) spec: Spec,
    pub(crate) port: Port<B>,
    pub(crate) guest: Guest,
}

impl Node {
    pub(crate) fn new(number: usize, spec: Spec) -> Self {
        let port = port(number, &spec);
        Node::with_port(number, spec, port)
    }

    /// Ends the port, as a process that is killed between two batches does, and starts another on
    /// the same rings. `setups` were asked for earlier: the queues may be in other threads' hands.
    pub(crate) fn reincarnate(&mut self, setups: Vec<(u16, QueueSetup)>) {
        self.port = port(self.number, &self.spec);
        self.connect_with(setups);
    }
}

/// A peer and all rings: one for each queue pair, in order.
pub(crate) struct PeerLink {
    peer: PeerInfo,
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
}

impl PeerLink {
    fn add_to<B: LinkBackend>(self, port: &mut Port<B>) {
        let peer = self.peer;
        port.add_peer(&peer).unwrap();
        for (queue, sender) in (0..).zip(self.senders) {
            port.set_ring(peer.key, queue, 1, sender).unwrap();
        }
        for (queue, receiver) in (0..).zip(self.receivers) {
            port.add_receiver(peer.key, queue, 1, receiver).unwrap();
        }
    }
}

impl<D: UplinkDevice> Node<backend::Network<D>> {
    /// A node whose port has an uplink by this device.
    pub(crate) fn with_uplink(number: usize, spec: Spec, device: D) -> Self {
        let local = local(number, &spec);
        let (patient, plain) = (!spec.stall_timeout, !spec.uplink_offload);
        let change = |mut network: backend::Network<D>| {
            if patient {
                network = network.without_timeouts();
            }
            if plain {
                network = network.with_plain_uplink();
            }
            network
        };
        let port = Port::with_network(&local, spec.config(), Some(device), change).unwrap();
        Node::with_port(number, spec, port)
    }
}

impl<B: Backend> Node<B> {
    /// A node whose port has another backend than links.
    pub(crate) fn with_backend(
        number: usize,
        spec: Spec,
        make: impl FnMut(BackendSetup) -> B,
    ) -> Self {
        let port = Port::with_backend(&local(number, &spec), spec.config(), make).unwrap();
        Node::with_port(number, spec, port)
    }

    fn with_port(number: usize, spec: Spec, port: Port<B>) -> Self {
        let guest = boot(&spec, port.features() & spec.features);
        let mut node = Node {
            number,
            spec,
            port,
            guest,
        };
        node.start();
        node
    }

    fn start(&mut self) {
        self.connect();
        let (count, len) = self.spec.buffers;
        for rx in &mut self.guest.rx {
            rx.post(count.min(usize::from(self.spec.rx_size)), len);
        }
    }

    /// Resets the device and lets a guest with other choices take it over, with memory of its own.
    pub(crate) fn reboot(&mut self, features: u64, buffers: (usize, usize)) {
        for index in 0..self.port.queue_count() {
            self.port.stop_queue(index).unwrap();
        }
        self.port.set_memory(None).unwrap();
        self.spec.features = features;
        self.spec.buffers = buffers;
        self.guest = boot(&self.spec, self.features());
        self.start();
    }

    pub(crate) fn mac(&self) -> MacAddr {
        mac(self.number)
    }

    pub(crate) fn features(&self) -> u64 {
        self.port.features() & self.spec.features
    }

    /// Does what a transport does when a frontend comes: memory, features, queues.
    pub(crate) fn connect(&mut self) {
        self.connect_with(self.setups());
    }

    fn connect_with(&mut self, setups: Vec<(u16, QueueSetup)>) {
        let memory = Arc::clone(self.guest.arena.memory());
        self.port.set_memory(Some(memory)).unwrap();
        self.port.set_features(self.features()).unwrap();
        for (index, setup) in setups {
            self.port.start_queue(index, setup).unwrap();
            self.port.enable_queue(index, true).unwrap();
        }
    }

    /// All queues as the transport describes them to the device, by index.
    pub(crate) fn setups(&self) -> Vec<(u16, QueueSetup)> {
        let rx = self.guest.rx.iter().map(|rx| rx.queue.setup());
        let tx = self.guest.tx.iter().map(|tx| tx.queue.setup());
        rx.zip(tx)
            .flat_map(|(rx, tx)| [rx, tx])
            .enumerate()
            .map(|(index, setup)| (index as u16, setup))
            .collect()
    }

    /// Counters of the first queue pair.
    pub(crate) fn counters(&self) -> &Counters {
        self.port.counters().next().unwrap()
    }

    /// A counter summed over all queue pairs.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let value = |c: &Counters| c.values().into_iter().find(|v| v.0 == name).unwrap().1;
        self.port.counters().map(value).sum()
    }

    /// The counters of lost frames that are not zero.
    pub(crate) fn drops(&self) -> Vec<(&'static str, u64)> {
        self.port
            .counters()
            .flat_map(Counters::values)
            .filter(|(name, value)| *value != 0 && Counters::is_drop(name))
            .collect()
    }

    /// Waits for the port to tell something, and says what. Of what it tells at the same time,
    /// nothing is left.
    #[track_caller]
    pub(crate) fn wait_event(&mut self) -> PortEvent {
        self.wait_event_that(|_| true)
    }

    /// The same, for an event like that; others are ignored.
    #[track_caller]
    pub(crate) fn wait_event_that(&mut self, is_wanted: impl Fn(&PortEvent) -> bool) -> PortEvent {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(
                wait_readable(self.port.events_fd(), deadline),
                "The port does not tell it"
            );
            if let Some(event) = self.port.events().into_iter().find(&is_wanted) {
                return event;
            }
        }
    }

    /// Waits until the port tells that its uplink is gone.
    #[track_caller]
    pub(crate) fn wait_for_loss(&mut self) {
        self.wait_event_that(|event| matches!(event, PortEvent::UplinkLost));
    }

    /// A plain frame from this node's guest.
    pub(crate) fn packet(&self, to: MacAddr, len: usize, seed: u64) -> Packet {
        Packet::new(self.mac(), to, len, seed)
    }
}

fn port(number: usize, spec: &Spec) -> Port {
    let local = local(number, spec);
    if spec.stall_timeout {
        return Port::new(&local, spec.config()).unwrap();
    }
    let links = |setup| Links::new(setup).without_timeouts();
    Port::with_links(&local, spec.config(), links).unwrap()
}

/// A guest that has accepted `features`, with empty queues.
fn boot(spec: &Spec, features: u64) -> Guest {
    boot_in(Arena::new(), spec, features)
}

/// The same in this memory.
pub(crate) fn boot_in(arena: Arc<Arena>, spec: &Spec, features: u64) -> Guest {
    let event_index = features & Feature::EVENT_IDX != 0;
    let mergeable = features & Feature::MRG_RXBUF != 0;
    let queue = |size| Queue::new(&arena, size, spec.start, event_index);
    let rx = |_| RxQueue::new(&arena, queue(spec.rx_size), mergeable);
    let tx = |_| TxQueue::new(&arena, queue(spec.tx_size));
    let (rx, tx) = (
        (0..spec.queues).map(rx).collect(),
        (0..spec.queues).map(tx).collect(),
    );
    Guest { arena, rx, tx }
}

/// What a port with this number says of itself.
pub(crate) fn local(number: usize, spec: &Spec) -> LocalPort {
    let id = format!("port-{number}").parse().unwrap();
    LocalPort {
        mtu: spec.mtu,
        queues: spec.queues,
        ring_capacity: spec.capacity,
        allowed: match spec.allowed {
            "" => Default::default(),
            allowed => allowed.parse().unwrap(),
        },
        guard: Guard {
            ips: match spec.ip {
                "" => Default::default(),
                ips => ips.parse().unwrap(),
            },
            no_dhcp_server: spec.no_dhcp_server,
        },
        trunk: spec.trunk,
        ..LocalPort::new(id, mac(number))
    }
}

pub(crate) fn info(number: usize, spec: &Spec) -> PeerInfo {
    let LocalPort {
        id,
        mac,
        mtu,
        queues,
        ring_capacity,
        uplinks,
        allowed,
        guard,
        trunk,
    } = local(number, spec);
    PeerInfo {
        key: PeerKey::next(),
        id,
        mac,
        mtu,
        queues,
        ring_capacity,
        uplinks,
        allowed,
        guard,
        trunk,
        barred: Default::default(),
        away: false,
    }
}

/// A peer of a port whose side the test plays.
pub(crate) struct Peer {
    pub(crate) key: PeerKey,
    pub(crate) mac: MacAddr,
    /// One for each of the peer's queue pairs: into the port.
    pub(crate) senders: Vec<Sender>,
    pub(crate) into_port: Vec<RawLink>,
    /// One for each of the port's queue pairs: out of the port.
    pub(crate) receivers: Vec<Receiver>,
    pub(crate) from_port: Vec<RawLink>,
}

impl Peer {
    /// Attaches a peer with this number, and queues and capacity as in `spec`, to a node's port.
    pub(crate) fn attach<B: LinkBackend>(node: &mut Node<B>, number: usize, spec: &Spec) -> Self {
        Peer::attach_to(&mut node.port, &node.spec, number, spec)
    }

    /// The same to a port that is as `own` says.
    pub(crate) fn attach_to<B: LinkBackend>(
        port: &mut Port<B>,
        own: &Spec,
        number: usize,
        spec: &Spec,
    ) -> Self {
        let peer = info(number, spec);
        let mut this = Peer {
            key: peer.key,
            mac: peer.mac,
            senders: Vec::new(),
            into_port: Vec::new(),
            receivers: Vec::new(),
            from_port: Vec::new(),
        };
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for _ in 0..own.queues {
            let (sender, receiver, raw) = link(spec.capacity);
            senders.push(sender);
            this.receivers.push(receiver);
            this.from_port.push(raw);
        }
        for _ in 0..spec.queues {
            let (sender, receiver, raw) = link(own.capacity);
            receivers.push(receiver);
            this.senders.push(sender);
            this.into_port.push(raw);
        }
        let link = PeerLink {
            peer,
            senders,
            receivers,
        };
        link.add_to(port);
        this
    }

    /// Sends what is given, true or not, on the peer's first queue.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let slot = self.senders[0].reserve(bytes.len()).unwrap();
        let slot = slot.expect("The ring is full");
        slot.slice().copy_from(bytes);
        slot.commit();
        self.senders[0].publish().unwrap();
    }

    /// The next record from the port's queue pair, waiting for it.
    #[track_caller]
    pub(crate) fn receive(&mut self, pair: usize) -> Packet {
        let receiver = &mut self.receivers[pair];
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(record) = receiver.peek().unwrap() {
                let mut bytes = vec![0; record.slice().len()];
                record.slice().copy_to(&mut bytes[..]);
                record.consume();
                receiver.release().unwrap();
                return Packet::from_bytes(&bytes);
            }
            let _ = rustix::io::read(receiver.data_doorbell(), &mut [0; 8]);
            if receiver.arm_data_doorbell().unwrap() {
                assert!(
                    wait_readable(receiver.data_doorbell(), deadline),
                    "No record came"
                );
            }
        }
    }

    /// Whether there is nothing from the port's queue pair.
    pub(crate) fn is_empty(&mut self, pair: usize) -> bool {
        self.receivers[pair].is_empty().unwrap()
    }
}

/// Nodes, each joined with each.
pub(crate) struct Network {
    pub(crate) nodes: Vec<Node>,
    /// `keys[a][b]`: as whom node a knows node b.
    pub(crate) keys: Vec<Vec<Option<PeerKey>>>,
}

impl Network {
    /// Nodes numbered from 0, all joined.
    pub(crate) fn new(specs: &[Spec]) -> Self {
        let nodes = specs
            .iter()
            .enumerate()
            .map(|(i, &s)| Node::new(i, s))
            .collect();
        let keys = vec![vec![None; specs.len()]; specs.len()];
        let mut network = Network { nodes, keys };
        for a in 0..specs.len() {
            for b in 0..a {
                network.join(a, b);
            }
        }
        network
    }

    /// Joins two nodes by new links, as their segments would.
    pub(crate) fn join(&mut self, a: usize, b: usize) {
        let (spec_a, spec_b) = (self.nodes[a].spec, self.nodes[b].spec);
        let (for_a, for_b) = (info(b, &spec_b), info(a, &spec_a));
        let mut ends_a = (Vec::new(), Vec::new());
        let mut ends_b = (Vec::new(), Vec::new());
        for _ in 0..spec_a.queues {
            let (sender, receiver, _) = link(spec_b.capacity);
            ends_a.0.push(sender);
            ends_b.1.push(receiver);
        }
        for _ in 0..spec_b.queues {
            let (sender, receiver, _) = link(spec_a.capacity);
            ends_b.0.push(sender);
            ends_a.1.push(receiver);
        }
        for (at, to, peer, (senders, receivers)) in [(a, b, for_a, ends_a), (b, a, for_b, ends_b)] {
            self.keys[at][to] = Some(peer.key);
            let link = PeerLink {
                peer,
                senders,
                receivers,
            };
            link.add_to(&mut self.nodes[at].port);
        }
    }

    /// Takes two nodes apart.
    pub(crate) fn part(&mut self, a: usize, b: usize) {
        for (at, to) in [(a, b), (b, a)] {
            if let Some(key) = self.keys[at][to].take() {
                self.nodes[at].port.remove_peer(key).unwrap();
            }
        }
    }

    /// Two nodes at once.
    pub(crate) fn pair(&mut self) -> (&mut Node, &mut Node) {
        let [a, b, ..] = &mut self.nodes[..] else {
            panic!("There are no two nodes");
        };
        (a, b)
    }
}
