//! Addresses that move: who sent last from each address that ports may use beside their own.
//!
//! One table for all workers of a port, which read and change it without waiting for each other.
//! Nothing ages: who stops sending keeps an address until somebody else sends from it
//! (decision 0072).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rustix::time::{ClockId, clock_gettime};
use virtio_inter_common::MacAddr;

/// Buckets of the table: an address can be in one of them only.
const BUCKETS: usize = 128;
/// Addresses that a bucket holds.
const SLOTS: usize = 8;
/// Time in milliseconds for which a port that has sent from an address keeps it although it comes
/// from the network: that may be the port's own frame, on its way back.
const HOLD: u32 = 1000;
/// Bits of an address.
const ADDRESS: u32 = 48;

/// Who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder(u16);

impl Holder {
    /// The port's own guest.
    pub(crate) const OWN: Holder = Holder(1);
    /// Somebody behind an uplink.
    pub(crate) const NETWORK: Holder = Holder(2);

    /// Those of peers, each of which has one for its time.
    const PEERS: std::ops::Range<u16> = 3..u16::MAX;
}

/// The numbers that peers have.
#[derive(Debug, Default)]
pub(crate) struct Holders(BTreeSet<u16>);

impl Holders {
    /// One that no peer has. None: there are never as many peers.
    pub(crate) fn take(&mut self) -> Option<Holder> {
        let next = self.0.last().map_or(Holder::PEERS.start, |last| last + 1);
        let is_free = |number: &u16| !self.0.contains(number);
        let mut free = (next..Holder::PEERS.end).chain(Holder::PEERS.filter(is_free));
        let number = free.next()?;
        self.0.insert(number);
        Some(Holder(number))
    }

    /// The peer of this number is gone.
    pub(crate) fn release(&mut self, holder: Holder) {
        self.0.remove(&holder.0);
    }
}

/// The addresses of one bucket.
#[derive(Debug, Default)]
struct Bucket {
    /// Address and, in the upper 16 bits, its holder. 0: nothing.
    slots: [AtomicU64; SLOTS],
    /// Milliseconds of a clock at which the holder was heard last.
    heard: [AtomicU32; SLOTS],
    /// A worker adds an address.
    is_changing: AtomicBool,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Learned {
    buckets: Box<[Bucket]>,
    /// Which of several equal slots is given up next.
    turn: AtomicUsize,
}

impl Default for Learned {
    fn default() -> Self {
        Learned {
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
            turn: AtomicUsize::new(0),
        }
    }
}

// All accesses are relaxed: a slot is one word, and says all of its own.
impl Learned {
    /// Who sent from an address last. None: nobody, as far as is known.
    pub(crate) fn find(&self, address: MacAddr) -> Option<Holder> {
        let (bucket, bits) = self.bucket(address);
        let words = bucket.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        words.filter(|word| *word & mask() == bits).find_map(holder)
    }

    /// `by` sends from an address.
    pub(crate) fn learn(&self, by: Holder, address: MacAddr) {
        self.learn_at(by, address, now());
    }

    /// An address comes from the network. A port that has just sent from it keeps it.
    pub(crate) fn hear_network(&self, address: MacAddr) {
        self.hear_network_at(address, now());
    }

    /// Time in milliseconds since somebody sent from an address. None: it is not known to be there.
    pub(crate) fn silent_for(&self, by: Holder, address: MacAddr) -> Option<u32> {
        let (bucket, bits) = self.bucket(address);
        let wanted = bits | u64::from(by.0) << ADDRESS;
        let slots = bucket.slots.iter().zip(&bucket.heard);
        let mut of_it = slots.filter(|(slot, _)| slot.load(Ordering::Relaxed) == wanted);
        let (_, heard) = of_it.next()?;
        Some(now().wrapping_sub(heard.load(Ordering::Relaxed)))
    }

    /// Forgets everything of somebody who does not send any more.
    pub(crate) fn forget(&self, by: Holder) {
        for slot in self.buckets.iter().flat_map(|bucket| &bucket.slots) {
            let word = slot.load(Ordering::Relaxed);
            if holder(word) == Some(by) {
                replace(slot, word, 0);
            }
        }
    }

    fn learn_at(&self, by: Holder, address: MacAddr, now: u32) {
        let (bucket, bits) = self.bucket(address);
        let wanted = bits | u64::from(by.0) << ADDRESS;
        for (slot, heard) in bucket.slots.iter().zip(&bucket.heard) {
            let word = slot.load(Ordering::Relaxed);
            if word != 0 && word & mask() == bits {
                if word != wanted {
                    replace(slot, word, wanted);
                }
                heard.store(now, Ordering::Relaxed);
                return;
            }
        }
        self.add(bucket, by, wanted, now);
    }

    fn hear_network_at(&self, address: MacAddr, now: u32) {
        let (bucket, bits) = self.bucket(address);
        for (slot, heard) in bucket.slots.iter().zip(&bucket.heard) {
            let word = slot.load(Ordering::Relaxed);
            if word & mask() == bits
                && holder(word).is_some_and(|by| by != Holder::NETWORK)
                && now.wrapping_sub(heard.load(Ordering::Relaxed)) < HOLD
            {
                return;
            }
        }
        self.learn_at(Holder::NETWORK, address, now);
    }

    /// Adds an address. If another worker adds one to the bucket at this moment, a later frame does
    /// it.
    #[cold]
    fn add(&self, bucket: &Bucket, by: Holder, wanted: u64, now: u32) {
        if bucket.is_changing.swap(true, Ordering::Acquire) {
            return;
        }
        if let Some(slot) = self.choose(bucket, by) {
            bucket.heard[slot].store(now, Ordering::Relaxed);
            bucket.slots[slot].store(wanted, Ordering::Relaxed);
        }
        bucket.is_changing.store(false, Ordering::Release);
    }

    /// The slot for another address of `by`: an empty one, or one of who has most of the bucket,
    /// so that nobody takes all of it, whatever addresses are used. None: each has one.
    fn choose(&self, bucket: &Bucket, by: Holder) -> Option<usize> {
        let holders: [Option<Holder>; SLOTS] =
            std::array::from_fn(|slot| holder(bucket.slots[slot].load(Ordering::Relaxed)));
        if let Some(empty) = holders.iter().position(Option::is_none) {
            return Some(empty);
        }
        let count = |of: Option<Holder>| holders.iter().filter(|other| **other == of).count();
        let own = count(Some(by));
        let others = holders.iter().filter(|other| **other != Some(by));
        let (most, of) = others
            .map(|other| (count(*other), *other))
            .max()
            .unwrap_or_default();
        let victim = if own != 0 && own + 1 > most {
            Some(by)
        } else if most > 1 {
            of
        } else {
            return None;
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % count(victim);
        (0..SLOTS).filter(|slot| holders[*slot] == victim).nth(turn)
    }

    /// The bucket of an address, and its bits.
    fn bucket(&self, address: MacAddr) -> (&Bucket, u64) {
        let [a, b, c, d, e, f] = address.octets();
        let bits = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        // Fibonacci hashing: the upper bits of the product depend on all of the address.
        let hash = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BUCKETS.ilog2());
        (&self.buckets[hash as usize], bits)
    }
}

fn mask() -> u64 {
    (1 << ADDRESS) - 1
}

fn holder(word: u64) -> Option<Holder> {
    let number = (word >> ADDRESS) as u16;
    (number != 0).then_some(Holder(number))
}

/// Unless another worker was faster.
fn replace(slot: &AtomicU64, former: u64, word: u64) {
    let _ = slot.compare_exchange(former, word, Ordering::Relaxed, Ordering::Relaxed);
}

/// Milliseconds of a clock that the kernel keeps in memory: to read it is no system call.
fn now() -> u32 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    (time.tv_sec as u32)
        .wrapping_mul(1000)
        .wrapping_add(time.tv_nsec as u32 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Holder = Holder(3);
    const B: Holder = Holder(4);

    fn mac(number: u32) -> MacAddr {
        let [a, b, c, d] = number.to_be_bytes();
        MacAddr::new([2, 0, a, b, c, d])
    }

    #[test]
    fn holders_of_peers_differ_and_come_back() {
        let mut holders = Holders::default();
        let all: Vec<Holder> = std::iter::from_fn(|| holders.take()).collect();
        assert_eq!(all.len(), Holder::PEERS.len());
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert!(!all.contains(&Holder::OWN) && !all.contains(&Holder::NETWORK));
        holders.release(all[7]);
        assert_eq!(holders.take(), Some(all[7]));
        assert_eq!(holders.take(), None);
    }

    #[test]
    fn learned_address_is_at_who_sent_last() {
        let table = Learned::default();
        assert_eq!(table.find(mac(0)), None);
        for by in [A, B, Holder::OWN, A] {
            table.learn(by, mac(1));
            assert_eq!(table.find(mac(1)), Some(by));
        }
        table.learn(B, mac(2));
        table.forget(A);
        assert_eq!([table.find(mac(1)), table.find(mac(2))], [None, Some(B)]);
    }

    #[test]
    fn learned_address_moves_to_the_network_unless_it_may_be_an_echo() {
        let table = Learned::default();
        // Also when the clock overflows.
        let start = u32::MAX - 10;
        table.learn_at(A, mac(1), start);
        let later = start.wrapping_add(HOLD - 1);
        let hear = |now| {
            table.hear_network_at(mac(1), now);
            table.find(mac(1))
        };
        assert_eq!(hear(later), Some(A));
        // Heard once more.
        table.learn_at(A, mac(1), later);
        let last = later.wrapping_add(HOLD);
        assert_eq!(hear(last - 1), Some(A));
        assert_eq!(hear(last), Some(Holder::NETWORK));
        table.learn_at(B, mac(1), last);
        assert_eq!(table.find(mac(1)), Some(B));
    }

    #[test]
    fn learned_addresses_of_one_port_take_no_room_of_others() {
        let table = Learned::default();
        table.learn(B, mac(0));
        for number in 1..100_000 {
            table.learn(A, mac(number));
        }
        assert_eq!(table.find(mac(0)), Some(B));
        let of_a = || (1..100_000).filter(|number| table.find(mac(*number)) == Some(A));
        assert_eq!(of_a().count(), BUCKETS * SLOTS - 1);
        // They give way to those of another port, up to half of the room.
        for number in 100_000..200_000 {
            table.learn(B, mac(number));
        }
        let count = of_a().count();
        assert!((BUCKETS * SLOTS / 2 - BUCKETS..=BUCKETS * SLOTS / 2 + BUCKETS).contains(&count));
        // The latest are known.
        assert_eq!(table.find(mac(199_999)), Some(B));
    }
}
