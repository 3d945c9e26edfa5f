//! Watches over a VM's processes: starts ports, then the VMM; starts ports again that die; ends them with the VM.
//!
//! One thread, which waits for everything at once and never for one thing alone.
//!
//! See decision 0020.

use std::io;
use std::os::fd::AsFd;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use virtio_inter_common::PortId;

use crate::child::{Child, Descriptors};
use crate::control::{Caller, Control};
use crate::device::Device;
use crate::inter_vm::InterVm;
use crate::port::{Change, Port, PortProgram};
use crate::protocol::{Reply, Request, VERSION};
use crate::report::chain;
use crate::signals::{Signals, asks_for_the_end};
use crate::start::Factory;
use crate::upkeep::Upkeep;
use crate::vm_directory::VmDirectory;

/// A VM and its ports.
#[derive(Debug)]
pub struct Supervisor {
    signals: Signals,
    vmm: Option<Child>,
    ports: Vec<Supervised>,
    control: Option<Control>,
    upkeep: Upkeep,
    factory: Factory,
    program: PortProgram,
    // Last: removed when the others are gone.
    directory: VmDirectory,
}

#[derive(Debug)]
struct Supervised {
    port: Port,
    /// Who waits for its start.
    adder: Option<Caller>,
    /// Who waits for its end: several may ask for it.
    removers: Vec<Caller>,
}

/// How the whole ended.
#[derive(Debug)]
pub enum End {
    /// The VMM ended.
    Vmm(ExitStatus),
    /// A signal asked for it before there was a VMM.
    Signal(Signal),
}

impl Supervisor {
    /// A supervisor of nothing yet. Signals are caught from here on.
    ///
    /// # Errors
    ///
    /// When a socket cannot be made.
    pub fn new(
        directory: VmDirectory,
        factory: Factory,
        program: PortProgram,
    ) -> anyhow::Result<Self> {
        let signals = Signals::catch().context("Cannot catch signals")?;
        watch(&signals, &directory);
        let control = directory
            .is_beside_api_socket()
            .then(|| {
                let path = directory.join("control");
                Control::listen(&path)
                    .with_context(|| format!("Cannot listen on {}", path.display()))
            })
            .transpose()?;
        Ok(Self {
            signals,
            vmm: None,
            ports: Vec::new(),
            control,
            upkeep: Upkeep::default(),
            factory,
            program,
            directory,
        })
    }

    /// Runs ports for `devices`, then the VMM, until that ends.
    ///
    /// # Errors
    ///
    /// When a port or the VMM cannot be started. Nothing runs any more then.
    pub fn run(mut self, devices: Vec<Device>, vmm: Command) -> anyhow::Result<End> {
        let result = self.start_and_watch(devices, vmm);
        // The next VM of this API socket waits from here on, where it would complain before.
        if let Some(control) = &mut self.control {
            control.close();
        }
        self.end_ports();
        result
    }

    fn start_and_watch(&mut self, devices: Vec<Device>, vmm: Command) -> anyhow::Result<End> {
        for device in devices {
            self.start_port(device, None)?;
        }
        while self.ports.iter().any(|one| !one.port.is_proven()) {
            if let Some(signal) = self.step()? {
                return Ok(End::Signal(signal));
            }
        }
        let program = vmm.get_program().display().to_string();
        let vmm = Child::spawn(vmm, Signal::KILL, Descriptors::Inherited)
            .with_context(|| format!("Cannot run {program}"))?;
        info!("Cloud Hypervisor is process {}", vmm.pid());
        self.vmm = Some(vmm);
        loop {
            self.step()?;
            if let Some(vmm) = &mut self.vmm
                && let Some(status) = vmm.try_wait().context("Cannot wait for the VMM")?
            {
                return Ok(End::Vmm(status));
            }
        }
    }

    fn start_port(&mut self, device: Device, adder: Option<Caller>) -> anyhow::Result<()> {
        let notify = self.directory.join(&format!("{}.notify", device.id));
        let port = Port::start(device, self.program.clone(), notify)?;
        self.ports.push(Supervised {
            port,
            adder,
            removers: Vec::new(),
        });
        Ok(())
    }

    /// Waits for something to happen and sees to it; a signal that nobody could be sent asks for the end.
    fn step(&mut self) -> anyhow::Result<Option<Signal>> {
        self.wait().context("Cannot wait for events")?;
        let mut unsent = None;
        for signal in self.signals.take() {
            if asks_for_the_end(signal) {
                self.ports.iter_mut().for_each(|one| one.port.vm_ends());
            }
            match &self.vmm {
                Some(vmm) => vmm.signal(signal),
                None if asks_for_the_end(signal) => unsent = Some(signal),
                None => {}
            }
        }
        self.heed_ports()?;
        self.heed_callers();
        self.keep_files();
        Ok(unsent)
    }

    /// Makes the directory and the control socket again if something has removed them. Ports do so
    /// with theirs.
    fn keep_files(&mut self) {
        let changed = self.signals.files_changed();
        if !self.upkeep.is_due(changed) {
            return;
        }
        let directory = self.directory.restore();
        if let Ok(true) = directory {
            watch(&self.signals, &self.directory);
        }
        let result = directory.map_err(anyhow::Error::from).and_then(|made| {
            let control = match &mut self.control {
                Some(control) => control.restore().context("Cannot listen")?,
                None => false,
            };
            Ok(made || control)
        });
        self.upkeep.done(&self.directory.join("control"), result);
    }

    fn wait(&self) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if let Some(vmm) = &self.vmm {
            fds.push(PollFd::new(vmm, PollFlags::IN));
        }
        for Supervised { port, .. } in &self.ports {
            if let Some(notify) = port.notify_fd() {
                fds.push(PollFd::from_borrowed_fd(notify, PollFlags::IN));
            }
            if let Some(process) = port.process_fd() {
                fds.push(PollFd::from_borrowed_fd(process, PollFlags::IN));
            }
        }
        for (fd, writing) in self.control.iter().flat_map(Control::watched) {
            let flags = if writing {
                PollFlags::IN | PollFlags::OUT
            } else {
                PollFlags::IN
            };
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let ports = self.ports.iter().filter_map(|one| one.port.deadline());
        let deadline = ports.chain(self.upkeep.deadline()).min();
        let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match poll(&mut fds, timeout.map(timespec).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn heed_ports(&mut self) -> anyhow::Result<()> {
        let mut index = 0;
        while let Some(one) = self.ports.get_mut(index) {
            let change = one.port.process();
            // Of one that is ended before it serves, its adder hears too.
            let reply = match &change {
                Change::None => None,
                Change::Ready => Some(Reply::Added(Box::new(one.port.info()))),
                Change::Failed(why) => Some(Reply::Error(why.clone())),
                Change::Ended => Some(Reply::Error(vec![format!(
                    "Port of {} was ended before it served",
                    one.port.device.id
                )])),
            };
            let adder = one.adder.take_if(|_| reply.is_some());
            let removers = match change {
                Change::Ended => std::mem::take(&mut one.removers),
                _ => Vec::new(),
            };
            if matches!(change, Change::Failed(_) | Change::Ended) {
                self.ports.remove(index);
            } else {
                index += 1;
            }
            match (change, adder, reply) {
                (change, Some(adder), Some(reply)) => {
                    if let Change::Failed(why) = change {
                        info!("{}", why.join(": "));
                    }
                    self.reply(adder, &reply);
                }
                // At the start of the VM, without whose devices it is not to start.
                (Change::Failed(why), None, _) if self.vmm.is_none() => {
                    return Err(why
                        .into_iter()
                        .rev()
                        .fold(None, |error: Option<anyhow::Error>, line| {
                            Some(match error {
                                None => anyhow!(line),
                                Some(error) => error.context(line),
                            })
                        })
                        .unwrap_or_else(|| anyhow!("Cannot start a port")));
                }
                (Change::Failed(why), ..) => warn!("{}", why.join(": ")),
                _ => {}
            }
            for remover in removers {
                self.reply(remover, &Reply::Removed);
            }
        }
        Ok(())
    }

    fn heed_callers(&mut self) {
        let Some(control) = &mut self.control else {
            return;
        };
        for (caller, request) in control.process() {
            let reply = match request {
                Request::List => Some(Reply::List {
                    version: VERSION,
                    ports: self.ports.iter().map(|one| one.port.info()).collect(),
                }),
                Request::Add(text) => self
                    .add(&text, caller)
                    .err()
                    .map(|error| Reply::Error(chain(error.as_ref()))),
                Request::Release(id) => Some(self.release(&id)),
                Request::Remove(id) => self.remove(&id, caller),
            };
            if let Some(reply) = reply {
                self.reply(caller, &reply);
            }
        }
    }

    fn reply(&mut self, caller: Caller, reply: &Reply) {
        if let Some(control) = &mut self.control {
            control.reply(caller, reply);
        }
    }

    fn add(&mut self, text: &str, caller: Caller) -> anyhow::Result<()> {
        let asked = InterVm::parse(text)?;
        let taken: Vec<PortId> = self
            .ports
            .iter()
            .map(|one| one.port.device.id.clone())
            .collect();
        let device = self.factory.make(asked, &taken)?;
        self.start_port(device, Some(caller))
    }

    fn find(&self, id: &str) -> Result<usize, Reply> {
        let is_it = |one: &Supervised| one.port.device.id.as_str() == id;
        let index = self.ports.iter().position(is_it);
        index.ok_or_else(|| Reply::Error(vec![format!("There is no port of {id}")]))
    }

    fn release(&mut self, id: &str) -> Reply {
        match self.find(id) {
            Ok(index) => {
                self.ports[index].port.release();
                Reply::Released
            }
            Err(error) => error,
        }
    }

    fn remove(&mut self, id: &str, caller: Caller) -> Option<Reply> {
        let index = match self.find(id) {
            Ok(index) => index,
            Err(error) => return Some(error),
        };
        if self.ports[index].port.end() {
            self.ports[index].removers.push(caller);
            return None;
        }
        self.ports.remove(index);
        Some(Reply::Removed)
    }

    /// Ends all ports. Takes as long as the slowest of them, but not for ever.
    fn end_ports(&mut self) {
        self.ports.retain_mut(|one| one.port.end());
        while !self.ports.is_empty() {
            let _ = self.signals.take();
            if let Err(error) = self.wait() {
                // What is left is killed when it is dropped.
                warn!("Cannot wait for ports: {error}");
                return;
            }
            self.ports
                .retain_mut(|one| !matches!(one.port.process(), Change::Ended));
            self.heed_callers();
        }
    }
}

fn watch(signals: &Signals, directory: &VmDirectory) {
    if let Err(error) = signals.watch(directory.as_file().as_fd()) {
        info!("What is removed of this VM's files goes unnoticed: {error}");
    }
}

fn timespec(time: Duration) -> Timespec {
    // Rounded up to the next microsecond, so that the deadline has passed.
    let time = time + Duration::from_micros(1);
    Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
