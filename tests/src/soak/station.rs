//! A port and its VM, and how each is started again.

use std::fs::{File, OpenOptions};
use std::io::{PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::options::Options;
use super::schedule::{STATIONS, name};
use crate::mock_vm::{MockVm, Progress};
use crate::{Port, PortConfig, Process, Result, Segment, Testbed};

/// Pause before a port that ended is started again, as its supervisor has one.
const RESTART: Duration = Duration::from_millis(50);
/// Time in which a VM ends whose standard input was closed.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Size at which a log begins again: the disk is small.
const MAX_LOG: u64 = 1 << 20;
/// Lines of a log that are shown.
const LINES: usize = 20;

/// A port and its VM.
pub(super) struct Station {
    config: PortConfig,
    vm_program: PathBuf,
    mock: MockVm,
    vm_log: PathBuf,
    progress: File,
    vm: Option<(Process, PipeWriter)>,
    /// `None`: it is to be away.
    port: Option<Port>,
    /// When the port is to be started, if it ended by itself.
    restart_at: Option<Instant>,
}

impl Station {
    /// A station with neither port nor VM.
    pub(super) fn new(
        bed: &Testbed,
        segment: &Segment,
        index: usize,
        options: &Options,
    ) -> Result<Self> {
        let (id, number) = (name(index), u8::try_from(index)?);
        let mut config = PortConfig::new(segment, &id, number);
        config.program = options.port_program.clone();
        let others = (0..STATIONS).filter(|other| *other != index);
        let progress_path = bed.path(&format!("{id}.progress"));
        let mut file = OpenOptions::new();
        file.read(true).write(true).create_new(true);
        let progress = file.open(&progress_path).context("Making a file")?;
        Progress::default().write(&progress)?;
        Ok(Self {
            vm_program: options.vm_program.clone(),
            mock: MockVm {
                number,
                others: others
                    .map(|other| Ok(u8::try_from(other)?))
                    .collect::<Result<_>>()?,
                socket: Port::future_socket(bed, &config),
                progress: progress_path,
            },
            vm_log: bed.path(&format!("{id}.log")),
            config,
            progress,
            vm: None,
            port: None,
            restart_at: None,
        })
    }

    /// Starts the port, and does not wait for it.
    pub(super) fn start_port(&mut self, bed: &Testbed) -> Result<()> {
        // The former one's process ends first.
        self.port = None;
        self.port = Some(Port::spawn(bed, self.config.clone())?);
        Ok(())
    }

    /// Chooses another program for the next port.
    pub(super) fn set_port_program(&mut self, program: &Path) {
        self.config.program = Some(program.to_owned());
    }

    pub(super) fn port(&mut self) -> Result<&mut Port> {
        self.port.as_mut().context("A port that is away")
    }

    pub(super) fn port_process(&mut self) -> Result<&mut Process> {
        Ok(self.port()?.process())
    }

    /// The processes of the port and the VM, as far as they are there.
    pub(super) fn pids(&mut self) -> impl Iterator<Item = u32> {
        let port = self.port.as_mut().map(|port| port.process().pid());
        let vm = self.vm.as_ref().map(|(vm, _)| vm.pid());
        port.into_iter().chain(vm)
    }

    /// Kills the port, which stays away.
    pub(super) fn kill_port(&mut self) -> Result<()> {
        self.port_process()?.kill()?;
        self.port = None;
        self.restart_at = None;
        Ok(())
    }

    /// Ends the port, which stays away.
    pub(super) fn end_port(&mut self) -> Result<()> {
        self.port()?.stop()?;
        self.port = None;
        Ok(())
    }

    /// Starts a port again that ended although it was not to be away.
    ///
    /// # Errors
    ///
    /// It was not allowed to end, or the VM ended.
    pub(super) fn supervise(&mut self, bed: &Testbed, may_end: bool) -> Result<()> {
        if let Some((vm, _)) = &mut self.vm
            && !vm.is_running()
        {
            bail!(
                "{} ended by itself:\n{}",
                name_of(&self.mock),
                tail(&vm.log())
            );
        }
        let Some(port) = &mut self.port else {
            return Ok(());
        };
        if port.process().is_running() {
            return Ok(());
        }
        if !may_end {
            let end = port.process().wait(Duration::ZERO)?;
            let log = tail(&port.log());
            bail!("Port {} ended by itself with {end}:\n{log}", self.config.id);
        }
        match self.restart_at {
            None => self.restart_at = Some(Instant::now() + RESTART),
            Some(at) if Instant::now() >= at => {
                self.restart_at = None;
                self.start_port(bed)?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Starts a VM.
    pub(super) fn start_vm(&mut self) -> Result<()> {
        Progress::default().write(&self.progress)?;
        let (input, writer) = std::io::pipe()?;
        let mut command = Command::new(&self.vm_program);
        command.args(self.mock.arguments()).stdin(input);
        let vm = Process::start(&name_of(&self.mock), command, &self.vm_log, &[])?;
        self.vm = Some((vm, writer));
        Ok(())
    }

    pub(super) fn vm_process(&mut self) -> Result<&mut Process> {
        let vm = self.vm.as_mut().map(|(vm, _)| vm);
        vm.context("A VM that is away")
    }

    /// Kills the VM, which stays away.
    pub(super) fn kill_vm(&mut self) -> Result<()> {
        self.vm_process()?.kill()?;
        self.vm = None;
        Ok(())
    }

    /// Ends the VM as if it shut down.
    pub(super) fn end_vm(&mut self) -> Result<()> {
        let (mut vm, input) = self.vm.take().context("A VM that is away")?;
        drop(input);
        let end = vm.wait(END_WITHIN)?;
        if !end.success() {
            let log = tail(&vm.log());
            bail!("{} ended with {end}:\n{log}", name_of(&self.mock));
        }
        Ok(())
    }

    /// Gives the VM a command.
    pub(super) fn command(&mut self, line: &str) -> Result<()> {
        let input = self.vm.as_mut().map(|(_, input)| input);
        let input = input.context("A VM that is away")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// What its VM has done.
    pub(super) fn progress(&self) -> Result<Progress> {
        Ok(Progress::read(&self.progress)?)
    }

    /// Keeps the port's log from filling the disk.
    pub(super) fn shorten_log(&self, bed: &Testbed) -> Result<()> {
        let path = bed.path(&format!("port-{}.log", self.config.id));
        if path.metadata().is_ok_and(|log| log.len() > MAX_LOG) {
            OpenOptions::new().write(true).open(path)?.set_len(0)?;
        }
        Ok(())
    }
}

fn name_of(mock: &MockVm) -> String {
    format!("VM {}", name(usize::from(mock.number)))
}

/// The end of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
