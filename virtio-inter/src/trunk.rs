//! The addresses that the guest of a trunk uses: learned from its frames, told to peers, and
//! forgotten when nothing is sent from them any more. Decision 0074.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use log::{Level, info};
use virtio_inter_common::{ErrorChain, LogLimit, MacAddr, log_limited};
use virtio_inter_segment::{MAX_TRUNK_ADDRESSES, Segment};

use crate::timer::Timer;
use crate::uplink::PortDevice;

/// Time after which an address is forgotten from which nothing was sent, as a bridge does.
const MAX_AGE: Duration = Duration::from_secs(300);
/// Time between two looks for such addresses.
const CHECK: Duration = Duration::from_secs(30);

/// Limits the log lines about addresses, which guests choose.
static LINES: LogLimit = LogLimit::new(Duration::from_secs(1), 20);

/// Readable as a descriptor when [`Trunk::forget_old`] is to be called.
#[derive(Debug)]
pub(crate) struct Trunk {
    addresses: BTreeSet<MacAddr>,
    check: Timer,
}

impl Trunk {
    /// No address is known.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for a timer.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            addresses: BTreeSet::new(),
            check: Timer::new()?,
        })
    }

    /// The addresses that are known.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = MacAddr> {
        self.addresses.iter().copied()
    }

    /// Learns addresses, as far as there is room.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn learn(
        &mut self,
        new: &[MacAddr],
        device: &mut PortDevice,
        segment: &mut Segment,
    ) -> io::Result<()> {
        if new.is_empty() {
            return Ok(());
        }
        for address in new {
            if self.addresses.len() < MAX_TRUNK_ADDRESSES && self.addresses.insert(*address) {
                log_limited!(LINES, Level::Info, "The guest uses {address}");
            }
        }
        self.check.set(CHECK)?;
        self.tell(device, segment);
        Ok(())
    }

    /// Forgets addresses from which nothing was sent for long, or that are elsewhere now.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn forget_old(
        &mut self,
        device: &mut PortDevice,
        segment: &mut Segment,
    ) -> io::Result<()> {
        self.check.clear();
        let before = self.addresses.len();
        let is_used = |address: &MacAddr| {
            let silent = device.silent_for(*address);
            silent.is_some_and(|silent| silent < MAX_AGE)
        };
        self.addresses.retain(is_used);
        if self.addresses.len() != before {
            let count = before - self.addresses.len();
            info!("{count} address(es) are not used by the guest any more");
            self.tell(device, segment);
        }
        if !self.addresses.is_empty() {
            self.check.set(CHECK)?;
        }
        Ok(())
    }

    fn tell(&self, device: &mut PortDevice, segment: &mut Segment) {
        if let Err(error) = device.set_used(&self.addresses) {
            log_limited!(LINES, Level::Error, "Addresses: {}", ErrorChain(&error));
        }
        let all: Vec<MacAddr> = self.addresses().collect();
        segment.set_addresses(&all);
    }
}

impl AsFd for Trunk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.check.as_fd()
    }
}
