//! Bytes through a link, as two ports use it: regions and doorbells travel over a socket.

use std::hint::black_box;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::event::epoll;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use virtio_inter_link::{
    BusyPoll, BusyPollConfig, DEFAULT_CAPACITY, Doorbell, Receiver, ReceiverPage, Region, Sender,
};

use super::measure::{Receiver as ReceiverProcess, next, phases, say_done, timed};
use super::task::{Outcome, Task};

/// Bytes after which records are published, and released, whatever the batch: otherwise one side
/// waits while the other fills the ring.
const BATCH_BYTES: usize = DEFAULT_CAPACITY as usize / 8;
/// The region, the doorbell for records and the doorbell for room.
const DESCRIPTORS: usize = 3;

pub(super) fn send(task: &Task) -> Result<Outcome> {
    let (near, far) = UnixStream::pair().context("Making a socket pair")?;
    let mut receiver = ReceiverProcess::start(task, OwnedFd::from(far))?;
    let region = Region::create(DEFAULT_CAPACITY).context("Making a region")?;
    let (data_doorbell, space_doorbell) = (Doorbell::new()?, Doorbell::new()?);
    send_descriptors(
        near.as_fd(),
        &[region.fd(), data_doorbell.as_fd(), space_doorbell.as_fd()],
    )?;
    let mut sender = Sender::new(region, data_doorbell, space_doorbell);
    let [page] = receive_descriptors(near.as_fd())?;
    sender.attach(ReceiverPage::open(page).context("Opening the receiver's page")?)?;
    let mut idle = Idle::new(sender.space_doorbell())?;
    let len = task.size as usize;
    let (memory, mut place) = (vec![1u8; task.memory()], 0);
    let outcome = timed(task, &mut receiver, |records| {
        for number in 1..=records {
            while sender.reserve(len)?.is_none() {
                // The receiver makes room of what it has seen.
                sender.publish()?;
                idle.wait(
                    &mut sender,
                    |sender| Ok(sender.reserve(len)?.is_some()),
                    |sender| Ok(sender.arm_space_doorbell(len)?),
                )?;
            }
            let at = next(&mut place, len, memory.len());
            let slot = sender.reserve(len)?.context("Room that went away")?;
            slot.slice().copy_from(&memory[at..at + len]);
            slot.commit();
            if number % u64::from(task.batch) == 0 || sender.pending() >= BATCH_BYTES {
                sender.publish()?;
            }
        }
        Ok(sender.publish()?)
    })?;
    receiver.finish()?;
    Ok(outcome)
}

/// Receives on the link whose descriptors come over standard input, a socket.
pub(super) fn receive(task: &Task, mut out: impl Write) -> Result<()> {
    let socket = std::io::stdin();
    let [region, data_doorbell, space_doorbell] = receive_descriptors(socket.as_fd())?;
    let page = ReceiverPage::create().context("Making the receiver's page")?;
    send_descriptors(socket.as_fd(), &[page.fd()])?;
    let mut receiver = Receiver::new(
        Region::open(region, DEFAULT_CAPACITY).context("Opening the region")?,
        page,
        Doorbell::from_fd(data_doorbell).context("Taking the doorbell for records")?,
        Doorbell::from_fd(space_doorbell).context("Taking the doorbell for room")?,
    );
    let mut idle = Idle::new(receiver.data_doorbell())?;
    let len = task.size as usize;
    let (mut memory, mut place) = (vec![0u8; task.memory()], 0);
    for records in phases(task) {
        let mut number = 0;
        while number < records {
            if let Some(record) = receiver.peek()? {
                let at = next(&mut place, len, memory.len());
                record.slice().copy_to(&mut memory[at..at + len]);
                record.consume();
                number += 1;
                if number % u64::from(task.batch) == 0 || receiver.pending() >= BATCH_BYTES {
                    receiver.release()?;
                }
            } else {
                receiver.release()?;
                idle.wait(
                    &mut receiver,
                    |receiver| Ok(!receiver.is_empty()?),
                    |receiver| Ok(receiver.arm_data_doorbell()?),
                )?;
            }
        }
        receiver.release()?;
        black_box(&mut memory);
        say_done(&mut out)?;
    }
    Ok(())
}

fn send_descriptors(to: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ensure!(
        ancillary.push(SendAncillaryMessage::ScmRights(fds)),
        "No room for descriptors"
    );
    sendmsg(
        to,
        &[IoSlice::new(&[0])],
        &mut ancillary,
        SendFlags::empty(),
    )
    .context("Sending descriptors")?;
    Ok(())
}

fn receive_descriptors<const N: usize>(from: BorrowedFd<'_>) -> Result<[OwnedFd; N]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        from,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .context("Receiving descriptors")?;
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    fds.try_into()
        .map_err(|fds: Vec<_>| anyhow::anyhow!("{} descriptors of {N}", fds.len()))
}

/// How a side waits: as a port's worker does.
struct Idle {
    busy_poll: BusyPoll,
    poll: OwnedFd,
}

impl Idle {
    fn new(doorbell: impl AsFd) -> Result<Self> {
        let poll =
            epoll::create(epoll::CreateFlags::CLOEXEC).context("Making an epoll instance")?;
        let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&poll, doorbell, epoll::EventData::new_u64(0), events)
            .context("Watching a doorbell")?;
        Ok(Idle {
            busy_poll: BusyPoll::of_this_thread(BusyPollConfig::default()),
            poll,
        })
    }

    /// Busy-polls if that pays, then arms the doorbell and, if that says so, sleeps until it rings.
    fn wait<T>(
        &mut self,
        side: &mut T,
        mut look: impl FnMut(&mut T) -> Result<bool>,
        arm: impl FnOnce(&mut T) -> Result<bool>,
    ) -> Result<()> {
        let idle_since = Instant::now();
        let mut seen = Ok(false);
        let found = self.busy_poll.poll(idle_since, || {
            seen = look(side);
            !matches!(seen, Ok(false))
        });
        seen?;
        if found {
            return Ok(());
        }
        if arm(side)? {
            let mut events = Vec::with_capacity(1);
            epoll::wait(
                &self.poll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            )
            .context("Waiting for a doorbell")?;
        }
        self.busy_poll.idle_ended(idle_since.elapsed());
        Ok(())
    }
}
