//! What the tests of readers share.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use virtio_inter_common::{MacAddr, MacSets};
use vm_memory::VolatileSlice;

use super::reader::TapRules;
use crate::backend::interface::{BackendSetup, RxProgress, RxRecord, RxSink, RxStatus};
use crate::features::Offloads;
use crate::frame::{FRAME_HEADER, NET_HEADER};

/// The address of port `number`.
pub(super) fn address(number: u8) -> MacAddr {
    MacAddr::new([0x52, 0x54, 0, 0, 0, number])
}

/// A record with a frame for port 0, told from others by `seed`.
pub(super) fn frame(seed: u8) -> Vec<u8> {
    let mut record = vec![0; NET_HEADER];
    record.extend(address(0).octets());
    record.extend(address(1).octets());
    record.extend([0x88, 0xb5, seed]);
    record.resize(72, 0);
    record
}

/// Of a worker of port 0.
pub(super) fn setup() -> BackendSetup {
    BackendSetup {
        index: 0,
        mac: address(0),
        allowed: MacSets::default(),
        trunk: false,
        learned: Arc::default(),
        mtu: 1500,
        counters: Arc::default(),
    }
}

/// Its reader's.
pub(super) fn context() -> TapRules {
    let setup = setup();
    TapRules {
        mac: setup.mac,
        allowed: setup.allowed,
        trunk: setup.trunk,
        listed: MacSets::default(),
        learned: setup.learned,
        mtu: setup.mtu,
        takes: Offloads::ALL,
        counters: setup.counters,
    }
}

/// A socket in place of a tap device's queue, and its far end.
pub(super) fn queue() -> (OwnedFd, UnixDatagram) {
    let (queue, far) = UnixDatagram::pair().unwrap();
    queue.set_nonblocking(true).unwrap();
    (queue.into(), far)
}

/// Takes a batch of frames.
pub(super) struct Inbox {
    left: usize,
    /// There are buffers for records of so many bytes.
    pub(super) room: usize,
    /// Of the frames that came.
    pub(super) seeds: Vec<u8>,
}

impl Inbox {
    /// For `left` frames.
    pub(super) fn of(left: usize) -> Self {
        let seeds = Vec::new();
        let room = usize::MAX;
        Inbox { left, room, seeds }
    }
}

impl RxSink for Inbox {
    fn deliver(&mut self, record: &RxRecord<'_>, _: &mut RxProgress) -> RxStatus {
        if record.bytes.len() > self.room {
            return RxStatus::TooFewBuffers;
        }
        let mut bytes = vec![0; record.bytes.len()];
        record.bytes.copy_to(&mut bytes[..]);
        self.left -= 1;
        self.seeds.push(bytes[FRAME_HEADER]);
        RxStatus::Taken
    }

    fn fill(
        &mut self,
        max_len: usize,
        read: impl FnOnce(&[VolatileSlice<'_>]) -> Option<usize>,
    ) -> RxStatus {
        if self.left == 0 {
            return RxStatus::BatchFull;
        }
        if max_len > self.room {
            return RxStatus::TooFewBuffers;
        }
        let mut buffer = vec![0; max_len];
        if read(&[VolatileSlice::from(&mut buffer[..])]).is_some() {
            self.left -= 1;
            self.seeds.push(buffer[FRAME_HEADER]);
        }
        RxStatus::Taken
    }
}
