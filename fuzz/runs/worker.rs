//! Both halves of a worker on rings and buffers that the input describes, which a second thread
//! changes meanwhile; and records of a peer that the input describes, on a link whose words the
//! second thread overwrites.
//!
//! The port lives on from one input to the next, as it does from one guest to the next.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_inter_device::{Device, PortEvent, QueueSetup};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::link::{CONSUMED, DATA, DATA_TARGET, PUBLISHED, SPACE_TARGET};
use crate::driver::{Node, Peer, SEAM, SetOnDrop, Spec, mac};

/// What the input describes: two queues in the first half, buffers and tables behind the seam of
/// two memory regions in the second.
const BASE: u64 = SEAM - 0x1000;
const IMAGE: usize = 0x2000;
/// Of a queue: its share, and where its rings begin.
const QUEUE: u64 = 0x400;
const AVAILABLE: u64 = 0x200;
const USED: u64 = 0x300;
const SIZE: u16 = 16;
const WORDS: [u64; 5] = [PUBLISHED, SPACE_TARGET, CONSUMED, DATA_TARGET, DATA];
/// VERSION_1.
const REQUIRED: u64 = 1 << 32;

struct State {
    node: Node,
    peer: Peer,
}

impl State {
    fn new() -> Self {
        let spec = Spec {
            buffers: (0, 0),
            rx_size: SIZE,
            tx_size: SIZE,
            stall_timeout: false,
            mtu: 9000,
            ..Spec::default()
        };
        let mut node = Node::new(0, spec);
        let peer = Peer::attach(&mut node, 1, &Spec::default());
        stop(&mut node);
        State { node, peer }
    }
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new(State::new());
}

/// Runs one input.
pub(crate) fn run(input: &[u8]) {
    STATE.with_borrow_mut(|state| run_on(state, input));
}

fn stop(node: &mut Node) {
    for index in 0..2 {
        node.port.stop_queue(index).unwrap();
    }
}

fn run_on(state: &mut State, input: &[u8]) {
    let Some((head, input)) = input.split_first_chunk::<6>() else {
        return;
    };
    let features = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let (flips, input) = input.split_at(input.len().min(4 * usize::from(head[4] % 8)));
    let flips: Vec<[u8; 4]> = flips.as_chunks().0.to_vec();
    let (records, image) = split_records(input, head[5] % 4);
    let State { node, peer } = state;
    let high = if features & 1 << 30 == 0 { 0 } else { !0 << 50 };
    let features = (REQUIRED | u64::from(features) | high) & node.port.features();
    // Some need others.
    if node.port.set_features(features).is_err() {
        return;
    }
    let memory = node.guest.arena.memory().clone();
    write_image(node, image);
    let over = AtomicBool::new(flips.is_empty());
    std::thread::scope(|scope| {
        let (into, from) = (&peer.into_port[0], &peer.from_port[0]);
        let (flips, over) = (&flips, &over);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for [low, high, value, shift] in flips {
                    let offset = u16::from_le_bytes([*low, *high]);
                    if offset < IMAGE as u16 {
                        let at = GuestAddress(BASE + u64::from(offset));
                        memory.write_obj(*value, at).unwrap();
                    } else if offset >= 0xf000 {
                        let link = if offset & 8 == 0 { into } else { from };
                        let value = u64::from(*value) << (shift & 63);
                        link.poke(WORDS[usize::from(offset & 7) % WORDS.len()], value);
                    }
                }
            }
        });
        let _over = SetOnDrop(over);
        let mut sender = Some(&mut peer.senders[0]);
        for record in &records {
            let sent = sender.as_mut().map(|sender| {
                if let Some(slot) = sender.reserve(record.len())? {
                    slot.slice().copy_from(&record[..]);
                    slot.commit();
                }
                sender.publish()
            });
            if matches!(sent, Some(Err(_))) {
                sender = None;
            }
        }
        for index in 0..2 {
            let setup = setup(node, index);
            node.port.start_queue(index, setup).unwrap();
        }
        // Each command is answered between two batches.
        for _ in 0..3 {
            for index in 0..2 {
                node.port.enable_queue(index, true).unwrap();
            }
        }
        node.guest.rx[0].queue.kick();
        node.guest.tx[0].queue.kick();
        // What the guest has sent still goes out.
        node.port.enable_queue(1, false).unwrap();
        stop(node);
    });
    let is_hit = flips.iter().any(|[_, high, ..]| *high >= 0xf0);
    finish(state, is_hit);
}

/// Reads what came out of the port, and replaces a link that was damaged.
fn finish(state: &mut State, is_hit: bool) {
    let State { node, peer } = state;
    let receiver = &mut peer.receivers[0];
    let mut is_whole = !is_hit;
    while is_whole {
        match receiver.peek() {
            Ok(Some(record)) => {
                let mut bytes = vec![0; record.slice().len()];
                record.slice().copy_to(&mut bytes[..]);
                // The sender's address is its own, and the net header as it must be.
                assert!(bytes.len() >= 26);
                assert_eq!(bytes[18..24], mac(0).octets());
                record.consume();
            }
            Ok(None) => break,
            Err(error) => panic!("The port breaks the rules of a link: {error}"),
        }
        is_whole = receiver.release().is_ok();
    }
    for event in node.port.events() {
        if let PortEvent::LinkViolation { reason, .. } = event {
            assert!(is_hit, "An honest peer is blamed: {reason}");
        }
    }
    if is_hit {
        node.port.remove_peer(peer.key).unwrap();
        *peer = Peer::attach(node, 1, &Spec::default());
    }
}

/// Records of the peer, each with its length before it, and the rest.
fn split_records(mut input: &[u8], count: u8) -> (Vec<Vec<u8>>, &[u8]) {
    let mut records = Vec::new();
    for _ in 0..count {
        let Some(([len, kind], rest)) = input.split_first_chunk() else {
            break;
        };
        let (record, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        let mut record = record.to_vec();
        if kind & 1 == 0 && record.len() >= 26 {
            record[12..18].copy_from_slice(&mac(0).octets());
            record[18..24].copy_from_slice(&mac(1).octets());
        }
        if kind & 2 != 0 {
            record.resize(record.len() + 40 * usize::from(kind >> 2), *kind);
        }
        records.push(record);
        input = rest;
    }
    (records, input)
}

/// Writes rings, tables and buffers. Addresses in the queues' own tables are put into this memory,
/// unless they end in 0xff.
fn write_image(node: &Node, image: &[u8]) {
    let mut memory = image[..image.len().min(IMAGE)].to_vec();
    memory.resize(IMAGE, 0);
    for queue in 0..2 {
        let table = &mut memory[queue * QUEUE as usize..][..16 * usize::from(SIZE)];
        for descriptor in table.as_chunks_mut::<16>().0 {
            let (address, _) = descriptor.split_first_chunk_mut::<8>().unwrap();
            if address[7] != 0xff {
                let offset = u64::from_le_bytes(*address) % (IMAGE as u64 + 0x100);
                *address = (BASE + offset).to_le_bytes();
            }
        }
    }
    node.guest.arena.write(BASE, &memory);
}

fn setup(node: &Node, index: u16) -> QueueSetup {
    let mut setup = match index {
        0 => node.guest.rx[0].queue.setup(),
        _ => node.guest.tx[0].queue.setup(),
    };
    let base = BASE + QUEUE * u64::from(index);
    setup.size = SIZE;
    setup.descriptors.0 = base;
    setup.available.0 = base + AVAILABLE;
    setup.used.0 = base + USED;
    setup
}
