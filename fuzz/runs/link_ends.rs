//! The two ends of a link, while the words that the other side owns are overwritten: by the input's
//! steps between two calls, and by a second thread during them.

use std::sync::atomic::{AtomicBool, Ordering};

use virtio_inter_link::{MIN_CAPACITY, Receiver, Sender, max_record};

use crate::driver::link::{CONSUMED, DATA, DATA_TARGET, PUBLISHED, SPACE_TARGET, link};
use crate::driver::{RawLink, SetOnDrop};

const WORDS: [u64; 5] = [PUBLISHED, SPACE_TARGET, CONSUMED, DATA_TARGET, DATA];

/// Runs one input.
pub(crate) fn run(input: &[u8]) {
    let Some(([count], input)) = input.split_first_chunk() else {
        return;
    };
    let (flips, steps) = input.split_at(input.len().min(4 * usize::from(count % 8)));
    // Both live longer than the thread that writes to their memory.
    let (mut sender, mut receiver, raw) = link(MIN_CAPACITY);
    let flips: Vec<Poke> = flips.chunks_exact(4).map(Poke::new).collect();
    let over = AtomicBool::new(flips.is_empty());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                flips.iter().for_each(|flip| flip.make(&raw));
            }
        });
        let _over = SetOnDrop(&over);
        call(&mut sender, &mut receiver, &raw, steps);
    });
}

/// A word and what it becomes.
struct Poke {
    offset: u64,
    value: u64,
    /// Added to what is there.
    adds: bool,
}

impl Poke {
    fn new(bytes: &[u8]) -> Self {
        let value = u64::from(u16::from_le_bytes([bytes[1], bytes[2]]));
        let word = usize::from(bytes[0] & 7);
        Poke {
            // The header of any record.
            offset: match WORDS.get(word) {
                Some(&DATA) | None => DATA + 8 * (value % (u64::from(MIN_CAPACITY) / 8)),
                Some(word) => *word,
            },
            value: match bytes[3] >> 6 {
                0 => value,
                1 => 64 * value,
                2 => value << (bytes[3] & 0x3f),
                _ => !value,
            },
            adds: bytes[0] & 8 != 0,
        }
    }

    fn make(&self, raw: &RawLink) {
        let before = if self.adds { raw.peek(self.offset) } else { 0 };
        raw.poke(self.offset, before.wrapping_add(self.value));
    }
}

/// An end that found a violation is used no more, as by its owner.
fn call(sender: &mut Sender, receiver: &mut Receiver, raw: &RawLink, mut steps: &[u8]) {
    let (mut sends, mut receives, mut closed) = (true, true, false);
    let mut bytes = vec![0; max_record(MIN_CAPACITY) as usize];
    while let Some(([step, a, b, c], rest)) = steps.split_first_chunk() {
        steps = rest;
        let len = usize::from(u16::from_le_bytes([*a, *b])) * usize::from(c % 5 + 1);
        let sent = match step & 7 {
            _ if !sends => Ok(()),
            0 | 1 if !closed => sender.reserve(len).map(|slot| {
                let Some(slot) = slot else { return };
                assert_eq!(slot.slice().len(), len);
                slot.slice().copy_from(&bytes[..len]);
                slot.commit();
            }),
            2 if !closed => sender.publish(),
            3 if !closed => sender.arm_space_doorbell(len.min(bytes.len())).map(drop),
            4 => sender.is_drained().map(drop),
            5 if !closed && *c == 0xff => {
                closed = true;
                sender.close()
            }
            _ => Ok(()),
        };
        let received = match step >> 3 & 7 {
            _ if !receives => Ok(()),
            0..=2 => receiver.peek().map(|record| {
                let Some(record) = record else { return };
                let len = record.slice().len();
                assert!(len <= bytes.len(), "{len}");
                record.slice().copy_to(&mut bytes[..len]);
                record.consume();
            }),
            3 => receiver.release(),
            4 => receiver.arm_data_doorbell().map(drop),
            5 => receiver.is_empty().map(drop),
            _ => Ok(()),
        };
        sends &= sent.is_ok();
        receives &= received.is_ok();
        if step & 0xc0 == 0xc0 {
            Poke::new(&[*a, *b, *c, *step]).make(raw);
        }
    }
}
