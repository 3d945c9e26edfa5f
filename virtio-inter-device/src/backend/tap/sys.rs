//! The system calls of tap devices, none of which has a safe wrapper.
#![allow(
    unsafe_code,
    reason = "frames move straight between tap and guest memory, and ioctl sets tap devices up"
)]

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_ulong, ifreq, iovec};
use smallvec::SmallVec;
use vm_memory::VolatileSlice;

/// Largest number of pieces for one frame (`UIO_MAXIOV`, less one for what does not fit them).
pub(super) const MAX_PIECES: usize = 1023;
/// Number of pieces that need no allocation.
const PIECES: usize = 96;
/// The endianness of the net header is little, whatever the processor's (VIRTIO 1.3, 5.1.6).
const LITTLE_ENDIAN: c_int = 1;

/// Reads one frame into `pieces`, and into `rest` what does not fit there.
pub(super) fn read(
    fd: &impl AsFd,
    pieces: &[VolatileSlice<'_>],
    rest: &mut [u8],
) -> io::Result<usize> {
    let mut vectors: SmallVec<[iovec; PIECES]> = pieces.iter().map(vector).collect();
    vectors.push(iovec {
        iov_base: rest.as_mut_ptr().cast(),
        iov_len: rest.len(),
    });
    let count = vectors.len() as c_int; // At most `MAX_PIECES` and one.
    // SAFETY: the vectors are the slices, which are writable memory and borrowed until the call
    // returns, as is `rest`. Others may change the slices' memory at the same time: no reference
    // to it exists, and the kernel makes none.
    let len = unsafe { libc::readv(fd.as_fd().as_raw_fd(), vectors.as_ptr(), count) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// Writes `pieces` as one frame.
pub(super) fn write(fd: &impl AsFd, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
    let vectors: SmallVec<[iovec; PIECES]> = pieces.iter().map(vector).collect();
    let count = vectors.len() as c_int; // At most `MAX_PIECES`.
    // SAFETY: the vectors are the slices, which are borrowed until the call returns. Others may
    // change their memory at the same time: the kernel copies whatever it finds there.
    let len = unsafe { libc::writev(fd.as_fd().as_raw_fd(), vectors.as_ptr(), count) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn vector(slice: &VolatileSlice<'_>) -> iovec {
    let memory = slice.ptr_guard_mut();
    iovec {
        iov_base: memory.as_ptr().cast(),
        iov_len: memory.len(),
    }
}

/// Attaches a descriptor of /dev/net/tun to a device as one of its queues.
pub(super) fn attach(fd: &impl AsFd, name: &str, flags: c_int) -> io::Result<()> {
    // The bits are those of an unsigned field.
    let mut request = request(name, |ifru| ifru.ifru_flags = flags as i16);
    with_request(fd, libc::TUNSETIFF, &mut request)
}

/// Name and flags of the device to which a descriptor is attached.
pub(super) fn attached(fd: &impl AsFd) -> io::Result<(String, c_int)> {
    let mut request = request("", |_| {});
    with_request(fd, libc::TUNGETIFF, &mut request)?;
    let name = request.ifr_name.iter().map(|byte| *byte as u8);
    let name: Vec<u8> = name.take_while(|byte| *byte != 0).collect();
    // SAFETY: the kernel has filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((
        String::from_utf8_lossy(&name).into_owned(),
        c_int::from(flags as u16),
    ))
}

/// Sets the size of the net header, and its endianness.
pub(super) fn set_header(fd: &impl AsFd, size: c_int) -> io::Result<()> {
    for (request, value) in [
        (libc::TUNSETVNETHDRSZ, size),
        (libc::TUNSETVNETLE, LITTLE_ENDIAN),
    ] {
        // SAFETY: both requests read an int, which lives until the call returns.
        check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw const value) })?;
    }
    Ok(())
}

/// Sets the offloads that the reader of the device takes (`TUN_F_…`).
pub(super) fn set_offloads(fd: &impl AsFd, offloads: u32) -> io::Result<()> {
    let offloads = c_ulong::from(offloads);
    // SAFETY: the request's argument is a number, not a pointer.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
}

/// The requests that a socket answers, in the type that ioctl(2) has in each C library.
#[allow(
    clippy::unnecessary_cast,
    reason = "the constants' types differ by C library"
)]
const GET_FLAGS: libc::Ioctl = libc::SIOCGIFFLAGS as libc::Ioctl;
#[allow(
    clippy::unnecessary_cast,
    reason = "the constants' types differ by C library"
)]
const GET_MTU: libc::Ioctl = libc::SIOCGIFMTU as libc::Ioctl;

/// Flags of an interface (`IFF_…`), asked for by any socket of its network namespace.
pub(super) fn interface_flags(socket: &impl AsFd, name: &str) -> io::Result<c_int> {
    let mut request = request(name, |_| {});
    with_request(socket, GET_FLAGS, &mut request)?;
    // SAFETY: the kernel has filled in the flags.
    Ok(c_int::from(unsafe { request.ifr_ifru.ifru_flags } as u16))
}

/// MTU of an interface in bytes, asked for in the same way.
pub(super) fn interface_mtu(socket: &impl AsFd, name: &str) -> io::Result<c_int> {
    let mut request = request(name, |_| {});
    with_request(socket, GET_MTU, &mut request)?;
    // SAFETY: the kernel has filled in the MTU.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

/// A request about an interface, whose name is at most 15 bytes long, with one field set.
fn request(name: &str, set: impl FnOnce(&mut libc::__c_anonymous_ifr_ifru)) -> ifreq {
    // SAFETY: `ifreq` is numbers, arrays of numbers and a pointer that is not used here: zero is a
    // value of each.
    let mut request: ifreq = unsafe { zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    set(&mut request.ifr_ifru);
    request
}

fn with_request(fd: &impl AsFd, number: libc::Ioctl, request: &mut ifreq) -> io::Result<()> {
    // SAFETY: all requests made here read and write an `ifreq`, which is borrowed until the call
    // returns.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number, &raw mut *request) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
