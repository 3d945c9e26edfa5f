//! Passes the bytes between a guest's agent and whichever QEMU has the guest: libvirt starts a new
//! one for a guest that is restored or moves, and each connects to one socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::Result;
use crate::agent::Channel;

/// Listens for the QEMUs of one guest on `socket`, and returns the agent's end.
pub(super) fn start(socket: &Path) -> Result<Channel> {
    let listener = UnixListener::bind(socket).context("Listening for a guest's channel")?;
    let (channel, far) = Channel::on_socket()?;
    let mut agent = UnixStream::from(far);
    thread::spawn(move || {
        // The next one may connect before the former has ended, and is served then.
        for vmm in listener.incoming().map_while(std::result::Result::ok) {
            if pass(&mut agent, vmm).is_none() {
                return;
            }
        }
    });
    Ok(channel)
}

/// Passes bytes until the QEMU is gone; `None`: the agent's end is.
fn pass(agent: &mut UnixStream, mut vmm: UnixStream) -> Option<()> {
    let mut buffer = [0; 4096];
    loop {
        let mut fds = [
            PollFd::new(&*agent, PollFlags::IN),
            PollFd::new(&vmm, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return None,
            Ok(_) => {}
        }
        let [from_agent, from_vmm] = fds.map(|fd| !fd.revents().is_empty());
        if from_vmm {
            // An error is an end, too: that QEMU was killed.
            match vmm.read(&mut buffer).unwrap_or(0) {
                0 => return Some(()),
                len => agent.write_all(&buffer[..len]).ok()?,
            }
        }
        if from_agent {
            let len = agent.read(&mut buffer).ok().filter(|len| *len > 0)?;
            if vmm.write_all(&buffer[..len]).is_err() {
                return Some(());
            }
        }
    }
}
