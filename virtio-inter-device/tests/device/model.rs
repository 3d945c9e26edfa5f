//! Two drivers that do anything that they may, against a model of what must come of it.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::driver::{
    Feature, HEADER, LEAN, Network, Node, PATIENCE, Packet, Shape, Spec, adapted, mac, until,
};

/// Of both ports: some segments are to be cut smaller than they ask for.
const MTU: u16 = 3000;

/// What a frame is, beyond its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Broadcast,
    PartialChecksum,
    Segmented,
    Spoofed,
    ForNobody,
    BadHeader,
    Short,
}

#[derive(Debug, Clone)]
enum Action {
    /// Puts a frame into the transmit queue.
    Send {
        kind: Kind,
        len: usize,
        cuts: Vec<usize>,
        indirect: bool,
    },
    /// Shows it all to the device.
    Publish,
    /// Gives chains of receive buffers, all alike.
    Post {
        count: usize,
        lens: Vec<usize>,
        indirect: bool,
    },
    /// Takes everything that must have arrived.
    Receive,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        8 => Just(Kind::Plain),
        2 => Just(Kind::Broadcast),
        3 => Just(Kind::PartialChecksum),
        3 => Just(Kind::Segmented),
        1 => Just(Kind::Spoofed),
        1 => Just(Kind::ForNobody),
        1 => Just(Kind::BadHeader),
        1 => Just(Kind::Short),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let len = prop_oneof![60usize..200, 200usize..3000, Just(1514)];
    let cuts = vec(0usize..200, 0..6);
    prop_oneof![
        6 => (kind(), len, cuts, any::<bool>())
            .prop_map(|(kind, len, cuts, indirect)| Action::Send { kind, len, cuts, indirect }),
        2 => Just(Action::Publish),
        3 => (1usize..12, vec(1usize..1200, 1..4), any::<bool>())
            .prop_map(|(count, lens, indirect)| Action::Post { count, lens, indirect }),
        2 => Just(Action::Receive),
    ]
}

/// What the receiving guest accepted.
fn features() -> impl Strategy<Value = u64> {
    let optional = [
        Feature::MRG_RXBUF,
        Feature::EVENT_IDX,
        Feature::GUEST_CSUM,
        Feature::GUEST_CSUM | Feature::GUEST_TSO4,
        Feature::GUEST_CSUM | Feature::GUEST_TSO4 | Feature::GUEST_ECN,
        Feature::GUEST_CSUM | Feature::GUEST_TSO6,
        Feature::GUEST_CSUM | Feature::GUEST_USO4 | Feature::GUEST_USO6,
    ];
    proptest::sample::subsequence(optional.to_vec(), 0..=7)
        .prop_map(|some| some.into_iter().fold(LEAN, |all, one| all | one))
}

/// What must come of it all.
#[derive(Default)]
struct Model {
    features: u64,
    /// In the transmit queue, and shown to nobody.
    added: VecDeque<(Kind, Packet)>,
    /// Taken by the port and not yet delivered.
    under_way: VecDeque<Packet>,
    /// What becomes of the first of them.
    parts: VecDeque<Packet>,
    /// Bytes of each chain of receive buffers that the device has.
    buffers: VecDeque<usize>,
    /// To be found by the driver: the frame, and bytes in each chain.
    delivered: VecDeque<(Packet, Vec<u32>)>,
    /// Frames that each counter must have counted.
    no_destination: u64,
    spoofed: u64,
    bad_header: u64,
    bad_length: u64,
    small_buffer: u64,
}

impl Model {
    fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }

    fn publish(&mut self) {
        for (kind, packet) in std::mem::take(&mut self.added) {
            match kind {
                Kind::Plain | Kind::Broadcast | Kind::PartialChecksum | Kind::Segmented => {
                    self.under_way.push_back(packet);
                }
                Kind::Spoofed => {
                    self.spoofed += 1;
                }
                Kind::ForNobody => {
                    self.no_destination += 1;
                }
                Kind::BadHeader => {
                    self.bad_header += 1;
                }
                Kind::Short => {
                    self.bad_length += 1;
                }
            }
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        loop {
            if self.parts.is_empty() {
                let (Some(packet), Some(&buffer)) = (self.under_way.front(), self.buffers.front())
                else {
                    return;
                };
                self.parts = self.parts_of(packet, buffer).into();
                self.under_way.pop_front();
            }
            let packet = &self.parts[0];
            let (mut left, mut lens) = (packet.len(), Vec::new());
            for &buffer in &self.buffers {
                lens.push(buffer.min(left) as u32);
                left -= buffer.min(left);
                if left == 0 || !self.has(Feature::MRG_RXBUF) {
                    break;
                }
            }
            if left != 0 {
                if self.has(Feature::MRG_RXBUF) || lens.is_empty() {
                    return;
                }
                self.small_buffer += 1;
                self.parts.pop_front();
                continue;
            }
            self.buffers.drain(..lens.len());
            let packet = self.parts.pop_front().unwrap();
            self.delivered
                .push_back((packet.in_buffers(lens.len() as u16), lens));
        }
    }

    /// Frames wait for buffers.
    fn is_waiting(&self) -> bool {
        !self.under_way.is_empty() || !self.parts.is_empty()
    }

    /// What the guest gets of a frame when its next chain of buffers holds `buffer` bytes.
    fn parts_of(&self, packet: &Packet, buffer: usize) -> Vec<Packet> {
        let parts = adapted(packet, self.features, MTU);
        let is_segmented = parts.len() > 1 || parts[0].header[1] != 0;
        if parts[0].len() <= buffer || self.has(Feature::MRG_RXBUF) || !is_segmented {
            return parts;
        }
        // Cut, whatever the guest takes; TCP to what the buffer holds, if it holds any of it.
        let udp = packet.header[1] == 5;
        let v6 = packet.frame[12] == 0x86;
        let headers = if v6 { 74 } else { 54 };
        let mtu = if udp || buffer <= HEADER + headers {
            MTU
        } else {
            MTU.min((buffer - HEADER - 14) as u16)
        };
        adapted(packet, self.features & (LEAN | Feature::GUEST_CSUM), mtu)
    }
}

fn packet(kind: Kind, len: usize, seed: u64) -> Packet {
    let plain = |to, len| Packet::new(mac(0), to, len, seed);
    match kind {
        Kind::Plain => plain(mac(1), len),
        Kind::Broadcast => plain([0xff; 6].into(), len),
        Kind::PartialChecksum => plain(mac(1), len).with_checksum(34, 16),
        Kind::Segmented => {
            let (gso_type, size) = [(1, 1448), (4, 700), (0x81, 300), (5, 1400)][seed as usize % 4];
            plain(mac(1), len.max(80)).segmented(gso_type, size)
        }
        Kind::Spoofed => Packet::new(mac(1), mac(0), len, seed),
        Kind::ForNobody => plain(mac(99), len),
        Kind::BadHeader => plain(mac(1), len).with_checksum(len as u16 - 1, 0),
        Kind::Short => plain(mac(1), 14).truncated(len % 14),
    }
}

/// Does one thing to the guests, if they and the link have room for it, and to the model. Says
/// whether frames wait for buffers then.
fn perform(action: Action, seed: u64, a: &mut Node, b: &mut Node, model: &mut Model) -> bool {
    let shape = |indirect| {
        if indirect {
            Shape::Indirect
        } else {
            Shape::Direct
        }
    };
    match action {
        Action::Send {
            kind,
            len,
            cuts,
            indirect,
        } => {
            let packet = packet(kind, len, seed);
            // Well within what a link holds: what happens beyond depends on time.
            let waiting = model.added.len() + model.under_way.len();
            if waiting < 50 && a.guest.tx[0].add(&packet, &cuts, shape(indirect)) {
                model.added.push_back((kind, packet));
            }
        }
        Action::Publish => {
            a.guest.tx[0].queue.publish();
            model.publish();
        }
        Action::Post {
            count,
            mut lens,
            indirect,
        } => {
            // The first buffer of a frame holds its header (VIRTIO 1.3, 5.1.6.3).
            lens[0] += HEADER;
            // Some descriptors are kept for the end.
            for _ in 0..count {
                if b.guest.rx[0].queue.room(1, Shape::Direct) > 100
                    && b.guest.rx[0].add(&lens, shape(indirect))
                {
                    model.buffers.push_back(lens.iter().sum());
                }
            }
            b.guest.rx[0].queue.publish();
            model.deliver();
        }
        Action::Receive => {
            while let Some((packet, lens)) = model.delivered.pop_front() {
                let received = b.guest.rx[0]
                    .receive_within(PATIENCE)
                    .expect("No frame came");
                assert_eq!(received.packet, packet);
                assert_eq!(received.buffers, lens);
            }
        }
    }
    model.is_waiting()
}

fn run(features: u64, start: u16, actions: Vec<Action>) {
    let sender = Spec {
        start,
        mtu: MTU,
        ..Spec::default()
    };
    let receiver = Spec {
        features,
        buffers: (0, 0),
        ..sender
    };
    let mut network = Network::new(&[sender, receiver]);
    let (a, b) = network.pair();
    b.guest.rx[0].refill = false;
    let mut model = Model {
        features,
        ..Model::default()
    };
    for (seed, action) in (0..).zip(actions) {
        perform(action, seed, a, b, &mut model);
    }
    // Everything that is still somewhere has to come out, then a last frame.
    let post = |count| Action::Post {
        count,
        lens: vec![4000],
        indirect: true,
    };
    let last = Action::Send {
        kind: Kind::Plain,
        len: 100,
        cuts: Vec::new(),
        indirect: false,
    };
    let mut finish = |action| perform(action, 1 << 40, a, b, &mut model);
    finish(Action::Publish);
    finish(Action::Receive);
    // A small buffer may have made a frame thousands.
    while finish(post(60)) {
        finish(Action::Receive);
    }
    for action in [
        Action::Receive,
        last,
        Action::Publish,
        post(1),
        Action::Receive,
    ] {
        finish(action);
    }
    assert!(model.added.is_empty() && !model.is_waiting());
    assert_eq!(b.guest.rx[0].queue.in_flight(), model.buffers.len());
    a.guest.tx[0].finish();
    // The last frame itself may find a buffer that is too small: nothing tells of that but the
    // counter.
    until("drops are counted", || {
        b.count("rx_small_buffer") >= model.small_buffer
    });
    b.guest.rx[0].expect_nothing();

    let counted = |node: &Node, name| node.count(name);
    assert_eq!(counted(a, "tx_spoofed"), model.spoofed);
    assert_eq!(counted(a, "tx_no_destination"), model.no_destination);
    assert_eq!(counted(a, "tx_bad_csum"), model.bad_header);
    assert_eq!(counted(a, "tx_bad_length"), model.bad_length);
    assert_eq!(counted(a, "tx_peer_stalled"), 0);
    assert_eq!(counted(b, "rx_small_buffer"), model.small_buffer);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        // Milliseconds: a failure may be a frame that is waited for in vain.
        max_shrink_time: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn drivers_get_what_the_model_says(
        features in features(),
        start in prop_oneof![Just(0u16), Just(65_500), any::<u16>()],
        actions in vec(action(), 1..120),
    ) {
        run(features, start, actions);
    }
}
