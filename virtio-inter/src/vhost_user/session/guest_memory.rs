//! Changes of a session's memory table and dirty log.

use std::sync::Arc;

use log::Level;
use virtio_inter_common::log_limited;
use virtio_inter_device::{Device, DirtyLog};

use super::{CHANGES, Session};
use crate::vhost_user::error::RequestError;
use crate::vhost_user::memory_table::MemoryTable;
use crate::vhost_user::unshared_memory::Sharing;

impl Session {
    /// Replaces the memory table. A running queue continues if its guest addresses are the same;
    /// otherwise it stops, and starts when the new table contains its ring.
    pub(super) fn set_memory(
        &mut self,
        table: MemoryTable,
        device: &mut dyn Device,
    ) -> Result<(), RequestError> {
        for index in 0..self.device_queues() {
            let vring = &self.vrings[usize::from(index)];
            let Some(place) = vring.running else { continue };
            let moved = vring
                .ready()
                .and_then(|ready| table.translate(index, ready.size, &ready.addresses).ok());
            if moved != Some(place) {
                self.stop(index, device)?;
            }
        }
        device.set_memory(table.device_memory(self.active_log()))?;
        self.memory = table;
        self.sharing = Sharing::default();
        self.warn_of_short_log();
        self.update_queues(device);
        Ok(())
    }

    /// The log to which the device writes, if logging is on.
    pub(super) fn active_log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref().filter(|_| self.logs_all)
    }

    /// Turns logging on or off, or changes the log. On return the device no longer writes to the
    /// former log.
    pub(super) fn set_log(
        &mut self,
        log: Option<Arc<DirtyLog>>,
        logs_all: bool,
        device: &mut dyn Device,
    ) -> Result<(), RequestError> {
        let active = log.as_ref().filter(|_| logs_all);
        device.set_memory(self.memory.device_memory(active))?;
        (self.log, self.logs_all) = (log, logs_all);
        self.warn_of_short_log();
        Ok(())
    }

    fn warn_of_short_log(&self) {
        if let Some(log) = self.active_log()
            && log.end() < self.memory.end()
        {
            log_limited!(
                CHANGES,
                Level::Warn,
                "The migration log ends at guest address {:#x}, memory at {:#x}: writes beyond it \
                 are not logged",
                log.end(),
                self.memory.end()
            );
        }
    }
}
