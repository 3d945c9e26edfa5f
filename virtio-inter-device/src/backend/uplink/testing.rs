//! What the tests of uplinks share.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use rustix::io::Errno;
use virtio_inter_common::{MacAddr, MacSets};
use vm_memory::VolatileSlice;

use super::read_queue::ReadRules;
use crate::backend::interface::{
    BackendSetup, ReadError, RxProgress, RxRecord, RxSink, RxStatus, UplinkDevice, UplinkQueue,
    UplinkReader, UplinkWriter, WriteError,
};
use crate::features::Offloads;
use crate::frame::{FRAME_HEADER, MAX_RECORD, NET_HEADER};

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

/// Of the queues that it reads.
pub(super) fn rules() -> ReadRules {
    let setup = setup();
    ReadRules {
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

/// A device whose queue is a socket that keeps the boundaries of records.
pub(super) struct Socket(UplinkQueue<Socket>);

pub(super) struct Writer(OwnedFd);

pub(super) struct Reader(pub(super) OwnedFd);

impl UplinkDevice for Socket {
    const MAX_PIECES: usize = usize::MAX;

    type Writer = Writer;
    type Reader = Reader;

    fn into_queues(self) -> Vec<UplinkQueue<Self>> {
        vec![self.0]
    }
}

impl UplinkWriter for Writer {
    fn write(&mut self, pieces: &[VolatileSlice<'_>]) -> Result<(), WriteError> {
        let mut record = Vec::new();
        for piece in pieces {
            let at = record.len();
            record.resize(at + piece.len(), 0);
            piece.copy_to(&mut record[at..]);
        }
        match rustix::io::write(&self.0, &record) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN) => Err(WriteError::Full),
            Err(_) => Err(WriteError::Refused),
        }
    }
}

impl UplinkReader for Reader {
    fn read(&mut self, pieces: &[VolatileSlice<'_>], rest: &mut [u8]) -> Result<usize, ReadError> {
        let mut record = vec![0; MAX_RECORD];
        let len = match rustix::io::read(&self.0, &mut record[..]) {
            Ok(len) => len,
            Err(Errno::AGAIN) => return Err(ReadError::Empty),
            Err(_) => return Err(ReadError::Failed),
        };
        let mut bytes = &record[..len];
        for piece in pieces {
            let (first, others) = bytes.split_at(bytes.len().min(piece.len()));
            piece.copy_from(first);
            bytes = others;
        }
        rest[..bytes.len()].copy_from_slice(bytes);
        Ok(len)
    }
}

impl AsFd for Writer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A queue of such a device, and its far end.
pub(super) fn queue() -> (UplinkQueue<Socket>, UnixDatagram) {
    let (queue, far) = UnixDatagram::pair().unwrap();
    queue.set_nonblocking(true).unwrap();
    let reader = Reader(queue.try_clone().unwrap().into());
    ((Writer(queue.into()), reader), far)
}

/// Takes a batch of frames.
pub(super) struct Inbox {
    left: usize,
    /// What follows after them.
    pub(super) when_full: RxStatus,
    /// There are buffers for records of so many bytes.
    pub(super) room: usize,
    /// Frames that each record becomes that had to wait.
    pub(super) segments: u32,
    /// Of the frames that came.
    pub(super) seeds: Vec<u8>,
}

impl Inbox {
    /// For `left` frames.
    pub(super) fn of(left: usize) -> Self {
        Inbox {
            left,
            when_full: RxStatus::BatchFull,
            room: usize::MAX,
            segments: 1,
            seeds: Vec::new(),
        }
    }
}

impl RxSink for Inbox {
    fn deliver(&mut self, record: &RxRecord<'_>, progress: &mut RxProgress) -> RxStatus {
        if record.bytes.len() > self.room {
            return RxStatus::TooFewBuffers;
        }
        let mut bytes = vec![0; record.bytes.len()];
        record.bytes.copy_to(&mut bytes[..]);
        while progress.segments < self.segments {
            if self.left == 0 {
                return self.when_full;
            }
            self.left -= 1;
            self.seeds.push(bytes[FRAME_HEADER]);
            progress.segments += 1;
        }
        RxStatus::Taken
    }

    fn fill(
        &mut self,
        max_len: usize,
        read: impl FnOnce(&[VolatileSlice<'_>]) -> Option<usize>,
    ) -> RxStatus {
        if self.left == 0 {
            return self.when_full;
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
