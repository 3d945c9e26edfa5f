//! Supervises a VM's processes: starts ports, then the VMM; restarts ports that die; ends the ports
//! after the VMM.
//!
//! One thread waits for the events of all of them (decision 0020). When the VMM runs, it gives up
//! what ports do not need.

use std::io;
use std::os::fd::AsFd;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use virtio_inter_common::PortId;
use virtio_inter_sandbox::supervisor::restrict_supervisor;

use crate::child::{Child, Descriptors};
use crate::control::{ClientId, Control};
use crate::control_protocol::{Reply, Request, VERSION};
use crate::device::Device;
use crate::device_factory::DeviceFactory;
use crate::inter_vm::InterVm;
use crate::port::{Change, Port, PortProgram};
use crate::report::error_lines;
use crate::restore_backoff::RestoreBackoff;
use crate::signals::{Signals, is_termination};
use crate::vm_directory::VmDirectory;

/// A VM and its ports.
#[derive(Debug)]
pub struct Supervisor {
    signals: Signals,
    vmm: Option<Child>,
    ports: Vec<Supervised>,
    control: Option<Control>,
    restore_backoff: RestoreBackoff,
    factory: DeviceFactory,
    program: PortProgram,
    // The last field: the directory is removed after the others are dropped.
    directory: VmDirectory,
}

#[derive(Debug)]
struct Supervised {
    port: Port,
    /// The client that waits for its start.
    add_client: Option<ClientId>,
    /// The clients that wait for its end.
    remove_clients: Vec<ClientId>,
}

/// How the VM ended.
#[derive(Debug)]
pub enum End {
    /// The VMM ended.
    Vmm(ExitStatus),
    /// A termination signal came before the VMM was started.
    Signal(Signal),
}

impl Supervisor {
    /// A supervisor without processes. Catches signals from now on.
    ///
    /// # Errors
    ///
    /// When a socket cannot be made.
    pub fn new(
        directory: VmDirectory,
        factory: DeviceFactory,
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
            restore_backoff: RestoreBackoff::default(),
            factory,
            program,
            directory,
        })
    }

    /// Runs ports for `devices`, then the VMM, until that ends.
    ///
    /// # Errors
    /// When a port or the VMM cannot be started. Then no process is left.
    pub fn run(mut self, devices: Vec<Device>, vmm: Command) -> anyhow::Result<End> {
        let result = self.start_and_watch(devices, vmm);
        // From now on a new VM with this API socket waits; before, it would fail.
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
        while self
            .ports
            .iter()
            .any(|supervised| !supervised.port.has_served())
        {
            if let Some(signal) = self.step()? {
                return Ok(End::Signal(signal));
            }
        }
        let program = vmm.get_program().display().to_string();
        let vmm = Child::spawn(vmm, Signal::KILL, Descriptors::Inherited)
            .with_context(|| format!("Cannot run {program}"))?;
        info!("Cloud Hypervisor is process {}", vmm.pid());
        self.vmm = Some(vmm);
        // Only ports are started from now on (decision 0111).
        restrict_supervisor().log();
        loop {
            self.step()?;
            if let Some(vmm) = &mut self.vmm
                && let Some(status) = vmm.try_wait().context("Cannot wait for the VMM")?
            {
                return Ok(End::Vmm(status));
            }
        }
    }

    fn start_port(&mut self, device: Device, add_client: Option<ClientId>) -> anyhow::Result<()> {
        let notify = self.directory.join(&format!("{}.notify", device.id));
        let port = Port::start(device, self.program.clone(), notify)?;
        self.ports.push(Supervised {
            port,
            add_client,
            remove_clients: Vec::new(),
        });
        Ok(())
    }

    /// Waits for events and handles them. Returns a termination signal that came before the VMM was
    /// started.
    fn step(&mut self) -> anyhow::Result<Option<Signal>> {
        self.wait().context("Cannot wait for events")?;
        let mut unsent = None;
        for signal in self.signals.take() {
            if is_termination(signal) {
                self.ports
                    .iter_mut()
                    .for_each(|supervised| supervised.port.vm_ends());
            }
            match &self.vmm {
                Some(vmm) => vmm.signal(signal),
                None if is_termination(signal) => unsent = Some(signal),
                None => {}
            }
        }
        self.handle_ports()?;
        self.handle_requests();
        self.restore_files();
        Ok(unsent)
    }

    /// Restores the directory and the control socket if something has removed them. Ports restore
    /// their own files.
    fn restore_files(&mut self) {
        let changed = self.signals.files_changed();
        if !self.restore_backoff.is_due(changed) {
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
        self.restore_backoff
            .done(&self.directory.join("control"), result);
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
        let ports = self
            .ports
            .iter()
            .filter_map(|supervised| supervised.port.deadline());
        let control = self.control.as_ref().and_then(Control::deadline);
        let others = self.restore_backoff.deadline().into_iter().chain(control);
        let deadline = ports.chain(others).min();
        let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match poll(&mut fds, timeout.map(timespec).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn handle_ports(&mut self) -> anyhow::Result<()> {
        let mut index = 0;
        while let Some(supervised) = self.ports.get_mut(index) {
            let change = supervised.port.process();
            // The client that added a port also gets a reply if the port ends before it serves.
            let reply = match &change {
                Change::None => None,
                Change::Ready => Some(Reply::Added(Box::new(supervised.port.info()))),
                Change::Failed(why) => Some(Reply::Error(why.clone())),
                Change::Ended => Some(Reply::Error(vec![format!(
                    "Port of {} was ended before it served",
                    supervised.port.device.id
                )])),
            };
            let add_client = supervised.add_client.take_if(|_| reply.is_some());
            let remove_clients = match change {
                Change::Ended => std::mem::take(&mut supervised.remove_clients),
                _ => Vec::new(),
            };
            if matches!(change, Change::Failed(_) | Change::Ended) {
                self.ports.remove(index);
            } else {
                index += 1;
            }
            match (change, add_client, reply) {
                (change, Some(add_client), Some(reply)) => {
                    if let Change::Failed(why) = change {
                        info!("{}", why.join(": "));
                    }
                    self.reply(add_client, &reply);
                }
                // At the start of the VM, which must not run without its devices.
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
            for client in remove_clients {
                self.reply(client, &Reply::Removed);
            }
        }
        Ok(())
    }

    fn handle_requests(&mut self) {
        let Some(control) = &mut self.control else {
            return;
        };
        for (client, request) in control.process() {
            let reply = match request {
                Request::List => Some(Reply::List {
                    version: VERSION,
                    ports: self
                        .ports
                        .iter()
                        .map(|supervised| supervised.port.info())
                        .collect(),
                }),
                Request::Add(text) => self
                    .add(&text, client)
                    .err()
                    .map(|error| Reply::Error(error_lines(error.as_ref()))),
                Request::Release(id) => Some(self.release(&id)),
                Request::Remove(id) => self.remove(&id, client),
            };
            if let Some(reply) = reply {
                self.reply(client, &reply);
            }
        }
    }

    fn reply(&mut self, client: ClientId, reply: &Reply) {
        if let Some(control) = &mut self.control {
            control.reply(client, reply);
        }
    }

    fn add(&mut self, text: &str, client: ClientId) -> anyhow::Result<()> {
        let asked = InterVm::parse(text)?;
        asked.check_without_fds()?;
        let taken: Vec<PortId> = self
            .ports
            .iter()
            .map(|supervised| supervised.port.device.id.clone())
            .collect();
        let device = self.factory.make(asked, &taken)?;
        self.start_port(device, Some(client))
    }

    fn find(&self, id: &str) -> Result<usize, Reply> {
        let has_id = |supervised: &Supervised| supervised.port.device.id.as_str() == id;
        let index = self.ports.iter().position(has_id);
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

    fn remove(&mut self, id: &str, client: ClientId) -> Option<Reply> {
        let index = match self.find(id) {
            Ok(index) => index,
            Err(error) => return Some(error),
        };
        if self.ports[index].port.end() {
            self.ports[index].remove_clients.push(client);
            return None;
        }
        self.ports.remove(index);
        Some(Reply::Removed)
    }

    /// Ends all ports, and waits for the slowest of them for a bounded time.
    fn end_ports(&mut self) {
        self.ports.retain_mut(|supervised| supervised.port.end());
        while !self.ports.is_empty() {
            let _ = self.signals.take();
            if let Err(error) = self.wait() {
                // Dropping the remaining ports kills them.
                warn!("Cannot wait for ports: {error}");
                return;
            }
            self.ports
                .retain_mut(|supervised| !matches!(supervised.port.process(), Change::Ended));
            self.handle_requests();
        }
    }
}

fn watch(signals: &Signals, directory: &VmDirectory) {
    if let Err(error) = signals.watch(directory.as_file().as_fd()) {
        info!("Cannot watch this VM's files for removal: {error}");
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
