//! An independent user-space virtio driver: DPDK's `virtio_user` on both sides.
//!
//! Every frame is in a capture file before it is sent, and in another when it has arrived; the two
//! must be the same.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use virtio_inter_agent::pattern::Pattern;
use virtio_inter_tests::testpmd::{Testpmd, TestpmdConfig, capture};
use virtio_inter_tests::{
    Mac, Parts, Port, PortConfig, Result, Segment, Testbed, guest_test, skip, until,
};

const LIMIT: Duration = Duration::from_secs(20);
const MTU: u16 = 9000;
/// From the shortest frame of Ethernet to the longest for the MTU, without the checksum.
const SIZES: [usize; 9] = [60, 61, 64, 128, 1000, 1514, 2049, 4096, 9014];
/// Frames that each queue pair sends.
const COUNT: usize = 1000;
/// Buffers of DPDK's usual size, 128 bytes of which stay free; and some that hold any frame.
const SMALL: u32 = 2048 + 128;
const LARGE: u32 = 9216 + 128;

/// Frames from one port to the other, each distinguishable from all others.
fn frames(from: Mac, to: Mac, queue: usize) -> Vec<Vec<u8>> {
    let mut pattern = Pattern::new(u64::from(from.0[5]) << 32 | queue as u64);
    (0..COUNT)
        .map(|number| {
            let mut frame = vec![0; SIZES[number % SIZES.len()]];
            pattern.fill(&mut frame);
            frame[..6].copy_from_slice(&to.0);
            frame[6..12].copy_from_slice(&from.0);
            // Local Experimental Ethertype 1 (IEEE 802).
            frame[12..14].copy_from_slice(&[0x88, 0xb5]);
            frame
        })
        .collect()
}

/// Two ports, and what is to be sent between them.
struct Pair {
    ports: Vec<Port>,
    /// Captures, by port and queue pair.
    sends: [Vec<PathBuf>; 2],
}

impl Pair {
    fn new(bed: &Testbed, name: &str, queues: u16) -> Result<Self> {
        Self::with_sizes(bed, name, queues, [256, 256])
    }

    /// The same with rings of these sizes.
    fn with_sizes(bed: &Testbed, name: &str, queues: u16, sizes: [u16; 2]) -> Result<Self> {
        let segment = Segment::new(bed, name)?;
        let mut ports = Vec::new();
        for (number, size) in (1..=2).zip(sizes) {
            let config = PortConfig::new(&segment, &format!("{name}{number}"), number)
                .mtu(MTU)
                .queue_size(size)
                .queues(queues);
            ports.push(Port::start(bed, config)?);
        }
        let macs = [ports[0].config().mac, ports[1].config().mac];
        let mut sends = [Vec::new(), Vec::new()];
        for (from, files) in sends.iter_mut().enumerate() {
            for queue in 0..usize::from(queues) {
                let file = bed.path(&format!("{name}{from}-{queue}.sent"));
                capture::write(&file, &frames(macs[from], macs[1 - from], queue))?;
                files.push(file);
            }
        }
        Ok(Self { ports, sends })
    }

    fn start(
        &self,
        bed: &Testbed,
        side: usize,
        driver: &str,
        buffer: u32,
        for_ever: bool,
    ) -> Result<Testpmd> {
        let port = &self.ports[side];
        let config = TestpmdConfig {
            name: port.config().id.clone(),
            driver: driver.to_owned(),
            buffer,
            sends: self.sends[side].clone(),
            for_ever,
        };
        Testpmd::start(bed, port, config)
    }

    /// Each side sends all of its frames once, and gets all of the other's, each queue pair's in
    /// order.
    fn exchange(&self, bed: &Testbed, drivers: [(&str, u32); 2]) -> Result<()> {
        let counters =
            || -> Result<_> { Ok([self.ports[0].counters()?, self.ports[1].counters()?]) };
        let before = counters()?;
        let mut sides = Vec::new();
        for (side, (driver, buffer)) in drivers.into_iter().enumerate() {
            sides.push(self.start(bed, side, driver, buffer, false)?);
        }
        for side in &mut sides {
            side.go()?;
        }
        let expected = (self.sends[0].len() * COUNT) as u64;
        until("all frames", LIMIT, || {
            let now = counters()?;
            let now = [now[0].since(&before[0]), now[1].since(&before[1])];
            for counters in &now {
                ensure!(counters.drops().is_empty(), "{counters:?}");
            }
            // The two are asked one after the other, so one may not have sent all yet when it is
            // asked.
            let all = now
                .iter()
                .all(|side| side.get("rx_frames") == expected && side.get("tx_frames") == expected);
            Ok(all.then_some(()))
        })
        .with_context(|| format!("So far: {:?}", counters()))?;
        for (side, mut testpmd) in sides.into_iter().enumerate() {
            testpmd.wait_for_frames(expected, LIMIT)?;
            for (received, sent) in testpmd.finish()?.iter().zip(&self.sends[1 - side]) {
                ensure!(
                    capture::read(received)? == capture::read(sent)?,
                    "{} is not what {} was",
                    received.display(),
                    sent.display()
                );
            }
        }
        Ok(())
    }
}

fn dpdk_test(test: impl Fn(&Testbed) -> Result<()>) {
    guest_test(|bed| match Testpmd::unavailable(bed) {
        Some(reason) => {
            skip(&reason);
            Ok(())
        }
        None => test(bed),
    });
}

/// All choices of the driver, each beside a driver that chose the opposite.
fn variants(queues: u16) {
    dpdk_test(|bed| {
        let pair = Pair::new(bed, "dpdk", queues)?;
        let mut parts = Parts::default();
        let driver = |choice: u32| {
            let bit = |shift: u32| choice >> shift & 1;
            let buffer = if bit(0) == 1 { SMALL } else { LARGE };
            let text = format!(
                "mrg_rxbuf={},in_order={},vectorized={}",
                bit(0),
                bit(1),
                bit(2)
            );
            (text, buffer)
        };
        for choice in 0..8 {
            let (left, left_buffer) = driver(choice);
            let (right, right_buffer) = driver(7 - choice);
            parts.run(
                &format!("{left} with {right}, queue pairs: {queues}"),
                || pair.exchange(bed, [(&left, left_buffer), (&right, right_buffer)]),
            );
        }
        parts.finish()
    });
}

#[test]
fn dpdk_drivers_of_all_kinds_exchange_frames() {
    variants(1);
}

#[test]
fn dpdk_drivers_of_all_kinds_exchange_frames_on_two_queue_pairs() {
    variants(2);
}

#[test]
fn dpdk_drivers_with_rings_of_unequal_sizes_exchange_frames() {
    dpdk_test(|bed| {
        let mut parts = Parts::default();
        for (number, sizes) in [[16, 1024], [1024, 64], [2048, 32], [128, 32768]]
            .into_iter()
            .enumerate()
        {
            let name = format!("{} descriptors with {}", sizes[0], sizes[1]);
            parts.run(&name, || {
                let pair = Pair::with_sizes(bed, &format!("size{number}-"), 1, sizes)?;
                // A frame of 9014 bytes takes 5 small buffers.
                pair.exchange(bed, [("", SMALL), ("mrg_rxbuf=0", LARGE)])
            });
        }
        parts.finish()
    });
}

#[test]
fn dpdk_driver_that_is_killed_comes_back() {
    dpdk_test(|bed| {
        let pair = Pair::new(bed, "dpdk", 1)?;
        for victim in [0, 1, 0] {
            let before = pair.ports[victim].counters()?;
            let mut sides = Vec::new();
            for side in 0..2 {
                // Frames that are sent repeatedly must be in one buffer each.
                sides.push(pair.start(bed, side, "", LARGE, true)?);
            }
            for side in &mut sides {
                side.go()?;
            }
            until("frames on their way", LIMIT, || {
                let moved = pair.ports[victim].counters()?.since(&before);
                Ok(
                    (moved.get("rx_frames") > 10_000 && moved.get("tx_frames") > 10_000)
                        .then_some(()),
                )
            })?;
            // The other sends on to where nobody is, then goes in the same way.
            sides.remove(victim).kill()?;
            let other = &pair.ports[1 - victim];
            let sent = other.counters()?;
            until("frames to nobody", LIMIT, || {
                Ok((other.counters()?.since(&sent).get("tx_frames") > 10_000).then_some(()))
            })?;
            sides.remove(0).kill()?;
            pair.exchange(bed, [("", SMALL), ("mrg_rxbuf=0", LARGE)])?;
        }
        Ok(())
    });
}
