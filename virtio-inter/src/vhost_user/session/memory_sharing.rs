//! Whether the frontend shares the guest's memory with the port.

use super::Session;
use crate::vhost_user::unshared_memory::{ADVICE, Sharing, is_blank, maps_shared};

impl Session {
    /// The warning that the guest's memory is not shared, if so.
    pub fn unshared_memory(&self) -> Option<&str> {
        match &self.sharing {
            Sharing::Private(text) => Some(text),
            Sharing::Unknown | Sharing::Unreadable | Sharing::Shared => None,
        }
    }

    /// Checks how the frontend maps the memory that contains a queue, once for each memory table.
    pub(super) fn check_mapping(&mut self, user: u64) {
        let (Sharing::Unknown, Some(pid)) = (&self.sharing, self.pid) else {
            return;
        };
        let file = self.memory.file_at(user);
        self.sharing = match file.and_then(|file| maps_shared(pid, user, file)) {
            None => Sharing::Unreadable,
            Some(true) => Sharing::Shared,
            Some(false) => Sharing::Private(format!(
                "The guest's memory is not shared: process {pid} maps it privately, and nothing \
                 that the guest writes is seen here. {ADVICE}"
            )),
        };
    }

    /// Checks whether the guest has ever written to its memory: queue `index` is kicked, but its
    /// ring is blank.
    pub fn check_unshared_memory(&mut self, index: u16) {
        let (Sharing::Unknown | Sharing::Unreadable) = self.sharing else {
            return;
        };
        let places: Vec<_> = self
            .vrings
            .iter()
            .filter_map(|vring| vring.running.zip(vring.size))
            .collect();
        // Memory that cannot be read is no evidence.
        if !places.is_empty() && is_blank(self.memory.parts(&places)).unwrap_or(false) {
            self.sharing = Sharing::Private(format!(
                "The guest's memory seems not to be shared: queue {index} is kicked, but nobody \
                 has ever written to the memory. {ADVICE}"
            ));
        }
    }
}
