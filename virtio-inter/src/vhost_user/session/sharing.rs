//! Whether a session's memory is the guest's, as far as that can be seen.

use super::Session;
use crate::vhost_user::sharing::{WAY_OUT, is_blank, maps_shared};

/// What is known of a memory table.
#[derive(Debug, Default)]
pub(super) enum Sharing {
    /// Nothing yet.
    #[default]
    Unknown,
    /// How the frontend's process maps it cannot be seen.
    Hidden,
    /// The frontend's process maps it shared.
    Shared,
    /// The guest writes elsewhere: how that was found out, and what to do.
    Private(String),
}

impl Session {
    /// Why the guest cannot be heard, if its memory is not shared.
    pub fn unshared_memory(&self) -> Option<&str> {
        match &self.sharing {
            Sharing::Private(text) => Some(text),
            Sharing::Unknown | Sharing::Hidden | Sharing::Shared => None,
        }
    }

    /// Looks how the frontend maps the memory that a queue lies in, once for each memory table.
    pub(super) fn look_at_mapping(&mut self, user: u64) {
        let (Sharing::Unknown, Some(pid)) = (&self.sharing, self.pid) else {
            return;
        };
        let file = self.memory.file_at(user);
        self.sharing = match file.and_then(|file| maps_shared(pid, user, file)) {
            None => Sharing::Hidden,
            Some(true) => Sharing::Shared,
            Some(false) => Sharing::Private(format!(
                "The guest's memory is not shared: process {pid} maps it privately, and nothing \
                 that the guest writes is seen here. {WAY_OUT}"
            )),
        };
    }

    /// Queue `index` is kicked, but its ring is blank: looks whether the guest has ever written to
    /// its memory.
    pub fn suspect_memory(&mut self, index: u16) {
        let (Sharing::Unknown | Sharing::Hidden) = self.sharing else {
            return;
        };
        let places: Vec<_> = self
            .vrings
            .iter()
            .filter_map(|vring| vring.running.zip(vring.size))
            .collect();
        // What cannot be read accuses nobody.
        if !places.is_empty() && is_blank(self.memory.parts(&places)).unwrap_or(false) {
            self.sharing = Sharing::Private(format!(
                "The guest's memory seems not to be shared: queue {index} is kicked, but nobody \
                 has ever written to the memory. {WAY_OUT}"
            ));
        }
    }
}
