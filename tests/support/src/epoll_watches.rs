//! An eventfd that takes long to signal, because very many epoll instances watch it.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// What watches an eventfd, for as long as it lives.
#[derive(Debug)]
pub struct Watches {
    _duplicates: Vec<OwnedFd>,
    _instances: Vec<OwnedFd>,
}

/// Watches an eventfd `side` times `side` times, by as many duplicates and epoll instances.
///
/// # Errors
///
/// Why that cannot be, to be reported as the reason for a skip: the user has too few watches or
/// descriptors.
pub fn watch(eventfd: BorrowedFd<'_>, side: usize) -> Result<Watches, String> {
    let why = |e: rustix::io::Errno| format!("{} epoll watches cannot be had: {e}", side * side);
    let duplicates: Vec<OwnedFd> = (0..side)
        .map(|_| rustix::io::fcntl_dupfd_cloexec(eventfd, 0).map_err(why))
        .collect::<Result<_, _>>()?;
    let instances: Vec<OwnedFd> = (0..side)
        .map(|_| epoll::create(CreateFlags::CLOEXEC).map_err(why))
        .collect::<Result<_, _>>()?;
    for instance in &instances {
        for duplicate in &duplicates {
            let data = EventData::new_u64(0);
            epoll::add(instance, duplicate, data, EventFlags::IN).map_err(why)?;
        }
    }
    Ok(Watches {
        _duplicates: duplicates,
        _instances: instances,
    })
}
