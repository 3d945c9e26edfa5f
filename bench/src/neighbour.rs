//! A busy neighbour: a program that keeps every CPU busy, as another service of the host would.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use virtio_inter_tests::{ControlGroup, ControlGroups, Process, Testbed, until};

/// How long a loop may take to get its first time on a CPU.
const STARTED_WITHIN: Duration = Duration::from_secs(10);

/// A loop on each CPU; it ends when dropped.
pub struct Neighbour {
    loops: Vec<Process>,
    _group: Option<ControlGroup>,
    _bed: Testbed,
}

impl Neighbour {
    /// Starts a loop on each of `cpus`, all in one group of their own if there are `groups`, else
    /// in the session of this process. `program` is `virtio-inter-bench`.
    ///
    /// # Errors
    ///
    /// A program that cannot be started, or gets no time.
    pub fn start(program: &Path, cpus: &[usize], groups: Option<&ControlGroups>) -> Result<Self> {
        let bed = Testbed::new("the busy neighbour")?;
        let group = groups.map(|groups| groups.make("neighbour")).transpose()?;
        let mut loops = Vec::new();
        for cpu in cpus {
            let name = format!("loop{cpu}");
            let mut command = Command::new(program);
            command.arg("spin").stdin(Stdio::null());
            let process = Process::start(&name, command, &bed.path(&name), &[*cpu])?;
            if let Some(group) = &group {
                group.add(&process)?;
            }
            loops.push(process);
        }
        until("the busy neighbour runs", STARTED_WITHIN, || {
            let has_run = |process: &Process| Ok(process.cpu_time()? > Duration::ZERO);
            let runs = loops.iter().map(has_run).collect::<Result<Vec<bool>>>()?;
            Ok(runs.iter().all(|runs| *runs).then_some(()))
        })?;
        Ok(Self {
            loops,
            _group: group,
            _bed: bed,
        })
    }

    /// Its loops.
    pub fn loops(&self) -> &[Process] {
        &self.loops
    }
}
