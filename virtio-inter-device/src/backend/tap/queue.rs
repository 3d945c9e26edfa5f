//! The two halves of a tap device's queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::sys;
use crate::backend::interface::{ReadError, UplinkReader, UplinkWriter, WriteError};
use crate::features::Offloads;

/// Writes frames to one queue of a tap device.
#[derive(Debug)]
pub struct TapWriter(pub(super) OwnedFd);

/// Reads frames of one queue of a tap device.
#[derive(Debug)]
pub struct TapReader(pub(super) OwnedFd);

impl UplinkWriter for TapWriter {
    #[inline]
    fn write(&mut self, pieces: &[VolatileSlice<'_>]) -> Result<(), WriteError> {
        sys::write(&self.0, pieces).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => WriteError::Full,
            // The interface is down.
            Some(Errno::IO) => WriteError::Down,
            Some(Errno::BADFD) => WriteError::Gone,
            _ => WriteError::Refused,
        })
    }

    /// Has the kernel do the other offloads before frames are read.
    fn set_offloads(&mut self, takes: Offloads) {
        let wanted = tun_offloads(takes);
        let set = |offloads| sys::set_offloads(&self.0, offloads);
        // Kernels before 6.2 know no USO, and then hand over none.
        let result = set(wanted).or_else(|_| set(wanted & !(libc::TUN_F_USO4 | libc::TUN_F_USO6)));
        if let Err(e) = result {
            // Frames that the guest does not take are adapted when they are read.
            log::debug!("Cannot set the offloads of the tap device: {e}");
        }
    }
}

impl UplinkReader for TapReader {
    #[inline]
    fn read(&mut self, pieces: &[VolatileSlice<'_>], rest: &mut [u8]) -> Result<usize, ReadError> {
        sys::read(&self.0, pieces, rest).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => ReadError::Empty,
            Some(Errno::BADFD) => ReadError::Gone,
            _ => ReadError::Failed,
        })
    }
}

impl AsFd for TapWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for TapReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `TUN_F_…` of these offloads.
fn tun_offloads(takes: Offloads) -> u32 {
    if !takes.checksum {
        return 0;
    }
    let uso = takes.udp4 && takes.udp6;
    [
        (takes.tcp4, libc::TUN_F_TSO4),
        (takes.tcp6, libc::TUN_F_TSO6),
        (takes.ecn && (takes.tcp4 || takes.tcp6), libc::TUN_F_TSO_ECN),
        (uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ]
    .into_iter()
    .filter(|(takes, _)| *takes)
    .fold(libc::TUN_F_CSUM, |all, (_, offload)| all | offload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tap_offloads_are_those_that_the_guest_takes() {
        assert_eq!(tun_offloads(Offloads::NONE), 0);
        assert_eq!(tun_offloads(Offloads::ALL), 0x6f);
        let no_checksum = Offloads {
            checksum: false,
            ..Offloads::ALL
        };
        assert_eq!(tun_offloads(no_checksum), 0);
        // The kernel knows USO for both or for none.
        let udp4 = Offloads {
            udp6: false,
            ..Offloads::ALL
        };
        assert_eq!(tun_offloads(udp4), 0xf);
    }
}
