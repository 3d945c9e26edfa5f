//! The session's state for the next process, and how that process resumes the session
//! (decision 0016).

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::Session;
use crate::vhost_user::session_state::SessionState;
use crate::vhost_user::vring::Vring;

impl Session {
    /// Restores the state that the former process saved.
    pub fn resume(&mut self, state: &SessionState) {
        self.resumed = true;
        self.resumed_queues = state.set_up;
        self.protocol = Protocol::from_bits_truncate(state.protocol);
        for (index, vring) in self.vrings.iter_mut().enumerate() {
            vring.enabled = state.enabled & bit(index) != 0;
        }
    }

    /// The state that the next process needs.
    pub fn state(&self) -> SessionState {
        let vrings = || self.vrings.iter().enumerate();
        let bits = |of: &dyn Fn(&Vring) -> bool| {
            let chosen = vrings().filter(|(_, vring)| of(vring));
            chosen.fold(0, |bits, (index, _)| bits | bit(index))
        };
        SessionState {
            protocol: self.protocol.bits(),
            set_up: self.resumed_queues | bits(&|vring| vring.kick.is_some()),
            enabled: bits(&|vring| vring.enabled),
        }
    }

    /// Whether the frontend considers its queues running, but this process lacks settings that only
    /// the former one received. The frontend sends all of them again on a new connection.
    pub fn needs_reconnect(&mut self) -> bool {
        if !self.resumed {
            return false;
        }
        let SessionState {
            set_up, enabled, ..
        } = self.state();
        // The frontend enables one queue after the other, and waits for a reply each time.
        if set_up == 0 || set_up & !enabled != 0 {
            return false;
        }
        let runs =
            |(index, vring): (usize, &Vring)| set_up & bit(index) == 0 || vring.running.is_some();
        // If they all run, it is an ordinary session from now on.
        self.resumed = !self.vrings.iter().enumerate().all(runs);
        self.resumed
    }
}

/// A queue's bit in a [`SessionState`]: there are at most 128.
pub(super) fn bit(index: usize) -> u128 {
    1 << index
}
