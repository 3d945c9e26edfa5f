//! A service manager that programs notify (sd_notify(3)).

use std::io;
use std::os::unix::net::UnixDatagram;

use crate::process::{Place, TIMEOUT};

pub(crate) struct ServiceManager {
    pub(crate) socket: UnixDatagram,
}

impl ServiceManager {
    /// One that listens at `notify` of the place, and waits for [`TIMEOUT`] at most.
    pub(crate) fn new(place: &Place) -> Self {
        let socket = UnixDatagram::bind(place.path("notify")).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { socket }
    }

    /// The next notification.
    pub(crate) fn hear(&self) -> String {
        self.try_hear().unwrap()
    }

    /// The same. `WouldBlock`: nothing, in that time.
    pub(crate) fn try_hear(&self) -> io::Result<String> {
        let mut text = [0; 4096];
        let size = self.socket.recv(&mut text)?;
        Ok(String::from_utf8(text[..size].to_vec()).unwrap())
    }

    /// Takes all notifications that have come.
    pub(crate) fn hear_all(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.try_hear().is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }
}
