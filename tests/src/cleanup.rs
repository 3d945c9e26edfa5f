//! Clean-up that has to happen however the process ends.
//!
//! Owners undo their own things when they are dropped. A signal that ends the process drops nobody,
//! so each thing is registered here as well, and a thread undoes all registered things before it
//! lets the process end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cgroupfs;

/// Something to undo.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Kill the process and its group.
    Kill(Pid),
    /// Delete the network namespace, and with it the devices in it.
    DeleteNamespace(String),
    /// Remove the directory.
    Remove(PathBuf),
    /// Remove the directory of control groups; their processes go to the group `home`.
    RemoveGroup {
        /// The directory.
        directory: PathBuf,
        /// Another group.
        home: PathBuf,
    },
}

impl Action {
    fn run(&self) {
        match self {
            Self::Kill(pid) => {
                // Either may be gone already, which is what is wanted.
                let _ = kill_process_group(*pid, Signal::KILL);
                let _ = kill_process(*pid, Signal::KILL);
            }
            Self::DeleteNamespace(name) => {
                if let Err(error) = Command::new("ip").args(["netns", "delete", name]).output() {
                    log::warn!("Deleting the network namespace {name}: {error}");
                }
            }
            Self::Remove(path) => {
                if let Err(error) = std::fs::remove_dir_all(path) {
                    log::warn!("Removing {}: {error}", path.display());
                }
            }
            Self::RemoveGroup { directory, home } => cgroupfs::remove(directory, home),
        }
    }
}

struct Registry {
    next: u64,
    actions: BTreeMap<u64, Action>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    next: 0,
    actions: BTreeMap::new(),
});
static WATCH: Once = Once::new();

/// Runs its action when dropped, or when the process is ended by a signal.
#[derive(Debug)]
pub(crate) struct Registration {
    number: u64,
}

impl Registration {
    pub(crate) fn new(action: Action) -> Self {
        WATCH.call_once(watch);
        let mut registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        registry.next += 1;
        let number = registry.next;
        registry.actions.insert(number, action);
        Self { number }
    }

    /// Forgets the action: it was done, or is not wanted any more.
    pub(crate) fn cancel(&self) {
        self.take();
    }

    fn take(&self) -> Option<Action> {
        REGISTRY
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .actions
            .remove(&self.number)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(action) = self.take() {
            action.run();
        }
    }
}

/// Returns at once, except while a signal ends this process: later failures come from killed
/// guests, and are not worth reporting.
pub fn stop_here_if_ending() {
    drop(REGISTRY.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Ends the process on SIGINT, SIGTERM and SIGHUP, with the latest things undone first.
fn watch() {
    let mut signals = match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        Ok(signals) => signals,
        Err(error) => {
            log::warn!("Watching for signals: {error}");
            return;
        }
    };
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // The lock is kept: nothing new is to be started.
            let registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
            for action in registry.actions.values().rev() {
                action.run();
            }
            std::process::exit(128 + signal);
        }
    });
}
