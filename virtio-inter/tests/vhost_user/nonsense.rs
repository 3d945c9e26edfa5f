//! Well-framed nonsense: any request, any payload, any descriptors, in sessions some of which got
//! somewhere before.

use std::os::fd::{AsFd, BorrowedFd};

use virtio_inter_device::Device;

use crate::malformed::FIXED;
use crate::rig::*;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Bytes from a fixed seed, so that a failure can be repeated (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next()).unwrap() % bound
    }
}

/// Talks nonsense until the session ends of it, or forty times.
fn talk<D: Device>(rig: &mut Rig<D>, random: &mut Random) {
    let fds = [memfd(SIZE), event(), memfd(SIZE)];
    for _ in 0..40 {
        let (code, size) = match random.below(4) {
            0 => (random.below(50) as u32, random.below(80)),
            _ => FIXED[random.below(FIXED.len())],
        };
        let mut body: Vec<u8> = (0..size)
            .map(|_| {
                if random.below(3) == 0 {
                    random.next() as u8
                } else {
                    0
                }
            })
            .collect();
        match code {
            SET_MEM_TABLE if random.below(2) == 0 => {
                body = table(&[(random.next() & 0xfff000, SIZE, USER, 0)]);
            }
            SET_VRING_ADDR if random.below(2) == 0 => {
                body = addresses(random.below(2) as u32, USER + (random.next() & 0xffff0));
            }
            SET_VRING_NUM | SET_VRING_ENABLE if random.below(2) == 0 => {
                body = state(random.below(2) as u32, 1 << random.below(10));
            }
            _ => {}
        }
        let attached: Vec<BorrowedFd<'_>> = (0..random.below(3))
            .map(|_| fds[random.below(fds.len())].as_fd())
            .collect();
        let flags = VERSION | if random.below(2) == 0 { NEED_REPLY } else { 0 };
        rig.send(code, flags, &body, &attached);
        if rig.process().is_err() {
            return;
        }
        let session = rig.frontend.as_mut().unwrap().session_mut();
        session.check_unshared_memory(random.below(2) as u16);
        while rig.reply().is_some() {}
    }
    rig.hang_up();
}

/// The mock panics if it is driven wrongly; descriptors must not pile up.
#[test]
fn nonsense_leaks_nothing() {
    let mut random = Random(0x5eed);
    let mut before = 0;
    for round in 0..500 {
        if round == 10 {
            before = descriptors();
        }
        let mut rig = if random.below(2) == 0 {
            Rig::new(2)
        } else {
            Rig::running()
        };
        talk(&mut rig, &mut random);
        assert_eq!(rig.device.running(), [false, false]);
        assert!(rig.device.memory.is_none());
    }
    // Other tests of this program run at the same time; a leak would be hundreds.
    assert!(
        descriptors() < before + 100,
        "{before} descriptors became {}",
        descriptors()
    );
}

/// The same with the real device, and rings full of nonsense.
#[test]
fn nonsense_does_not_harm_the_device() {
    let mut random = Random(0xdead);
    let mut port = port("nonsense");
    for _ in 0..200 {
        let mut rig = Rig::with_device(port);
        let memory = memfd(SIZE);
        for _ in 0..200 {
            let at = random.next() & 0x1fffe;
            rustix::io::pwrite(&memory, &(random.next() as u16).to_ne_bytes(), at).unwrap();
        }
        if random.below(3) > 0 {
            rig.bring_up(memory.as_fd());
        }
        talk(&mut rig, &mut random);
        port = rig.device;
    }
    // It still works.
    let mut rig = Rig::with_device(port);
    rig.bring_up(memfd(SIZE).as_fd());
    assert_eq!(rig.ask(GET_VRING_BASE, &state(0, 0)), state(0, 0));
}
