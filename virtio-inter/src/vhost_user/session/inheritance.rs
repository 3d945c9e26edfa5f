//! What a session that a former process began is continued with, and what the next one is told
//! (decision 0016).

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::Session;
use crate::vhost_user::record::SessionRecord;
use crate::vhost_user::vring::Vring;

impl Session {
    /// Goes on with what the frontend set up with a former process, as far as that is known.
    pub fn inherit(&mut self, record: &SessionRecord) {
        self.inherited = true;
        self.inherited_queues = record.set_up;
        self.protocol = Protocol::from_bits_truncate(record.protocol);
        for (index, vring) in self.vrings.iter_mut().enumerate() {
            vring.enabled = record.enabled & bit(index) != 0;
        }
    }

    /// What a next process would have to know.
    pub fn record(&self) -> SessionRecord {
        let vrings = || self.vrings.iter().enumerate();
        let bits = |of: &dyn Fn(&Vring) -> bool| {
            let chosen = vrings().filter(|(_, vring)| of(vring));
            chosen.fold(0, |bits, (index, _)| bits | bit(index))
        };
        SessionRecord {
            protocol: self.protocol.bits(),
            set_up: self.inherited_queues | bits(&|vring| vring.kick.is_some()),
            enabled: bits(&|vring| vring.enabled),
        }
    }

    /// Whether the frontend has done all for its queues to run, and they cannot for lack of what a
    /// former process was told. It does so again on a new connection.
    pub fn lacks_inheritance(&mut self) -> bool {
        if !self.inherited {
            return false;
        }
        let SessionRecord {
            set_up, enabled, ..
        } = self.record();
        // One after the other is enabled, and the frontend is to be answered each time.
        if set_up == 0 || set_up & !enabled != 0 {
            return false;
        }
        let runs =
            |(index, vring): (usize, &Vring)| set_up & bit(index) == 0 || vring.running.is_some();
        // From here on it is a session like any other.
        self.inherited = !self.vrings.iter().enumerate().all(runs);
        self.inherited
    }
}

/// A queue's bit in a [`SessionRecord`]: there are at most 128.
pub(super) fn bit(index: usize) -> u128 {
    1 << index
}
