//! A session's memory: the table that the frontend hands over, and the log of what is written there.

use std::sync::Arc;

use log::Level;
use virtio_inter_common::log_limited;
use virtio_inter_device::{Device, DirtyLog, GuestMemory};

use super::sharing::Sharing;
use super::{CHANGES, Session};
use crate::vhost_user::error::Refusal;
use crate::vhost_user::memory::MemoryTable;

impl Session {
    /// Takes a new memory table over. Running queues go on where they are; one whose ring has moved is
    /// started again there, one whose ring has gone waits until it is back.
    pub(super) fn set_memory(
        &mut self,
        table: MemoryTable,
        device: &mut dyn Device,
    ) -> Result<(), Refusal> {
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
        device.set_memory(logged(&table, self.active_log()))?;
        self.memory = table;
        self.sharing = Sharing::default();
        self.warn_of_short_log();
        self.settle_all(device);
        Ok(())
    }

    /// Where the device is to note what it writes.
    pub(super) fn active_log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref().filter(|_| self.logs_all)
    }

    /// Begins to log, ends it, or goes on in another log: when this returns the former is written no more.
    pub(super) fn set_log(
        &mut self,
        log: Option<Arc<DirtyLog>>,
        logs_all: bool,
        device: &mut dyn Device,
    ) -> Result<(), Refusal> {
        let active = log.as_ref().filter(|_| logs_all);
        device.set_memory(logged(&self.memory, active))?;
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
                "The migration log ends at guest address {:#x}, memory at {:#x}: writes beyond are not noted",
                log.end(),
                self.memory.end()
            );
        }
    }
}

/// The memory as the device is to have it.
pub(super) fn logged(table: &MemoryTable, log: Option<&Arc<DirtyLog>>) -> Option<Arc<GuestMemory>> {
    let memory = table.memory()?;
    Some(Arc::new(match log {
        Some(log) => memory.logged(Arc::clone(log)),
        None => memory,
    }))
}
