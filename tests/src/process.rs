//! A process of the testbed: its log, its end, its place on the CPUs.
#![allow(
    unsafe_code,
    reason = "asks the kernel, between fork and exec, to end the child with its parent"
)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, set_parent_process_death_signal,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::cleanup::{Action, Registration};
use crate::{Result, deadline, dump, wait};

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Unit of processor time in /proc: Linux shows 100 ticks a second, whatever its own tick.
const TICK: Duration = Duration::from_millis(10);

/// The same command, run by another one: its words come behind `words`, if there are any.
pub(crate) fn run_by(words: &[String], command: Command) -> Command {
    let Some((program, arguments)) = words.split_first() else {
        return command;
    };
    let mut outer = Command::new(program);
    outer
        .args(arguments)
        .arg(command.get_program())
        .args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        outer.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// A running program, killed with all that it started when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    registration: Registration,
}

/// A request to the spawning thread.
struct Request {
    command: Command,
    cpus: Vec<usize>,
    reply: std::sync::mpsc::SyncSender<io::Result<Child>>,
}

impl Process {
    /// Starts `command`, bound to `cpus` if there are any. Standard output and standard error are
    /// appended to `log`; standard input is the command's own, else empty.
    ///
    /// # Errors
    ///
    /// A log that cannot be written, a program that cannot be started, CPUs that do not exist.
    pub fn start(name: &str, mut command: Command, log: &Path, cpus: &[usize]) -> Result<Self> {
        let file = open_log(log)?;
        let twin = file.try_clone().context("Opening a log twice")?;
        command.stdout(file).stderr(twin);
        Self::spawn(name, command, log, cpus)
    }

    /// The same with another standard output: only standard error is added to `log`.
    ///
    /// # Errors
    ///
    /// As for [`Process::start`].
    pub(crate) fn start_with_output(
        name: &str,
        mut command: Command,
        log: &Path,
        cpus: &[usize],
        output: impl Into<Stdio>,
    ) -> Result<Self> {
        command.stdout(output).stderr(open_log(log)?);
        Self::spawn(name, command, log, cpus)
    }

    fn spawn(name: &str, mut command: Command, log: &Path, cpus: &[usize]) -> Result<Self> {
        command.process_group(0);
        let child = spawn(command, cpus).with_context(|| format!("Starting {name}"))?;
        log::debug!("Started {name} as process {}", child.id());
        let registration = Registration::new(Action::Kill(Pid::from_child(&child)));
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_path_buf(),
            registration,
        })
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process, not to those that it started.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("Sending {signal:?} to {}", self.name))
    }

    /// Kills the process and all that it started, with SIGKILL, and waits for its end.
    ///
    /// # Errors
    ///
    /// A process that is still there after 10 s.
    pub fn kill(&mut self) -> Result<()> {
        if self
            .child
            .try_wait()
            .context("Asking for a process's end")?
            .is_none()
        {
            let pid = Pid::from_child(&self.child);
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            let _ = kill_process(pid, Signal::KILL);
            // Also when the test has no time left.
            if self.end_within(KILL_LIMIT)?.is_none() {
                bail!("{} did not end within {KILL_LIMIT:?}", self.name);
            }
        }
        Ok(())
    }

    /// Waits for the end of the process, not beyond the test's own limit.
    ///
    /// # Errors
    ///
    /// A process that runs for longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let within = deadline::cut(limit);
        if let Some(status) = self.end_within(within)? {
            return Ok(status);
        }
        dump::tell_all(&format!("waiting for the end of {}", self.name));
        let within = deadline::describe(limit, within);
        bail!("{} did not end within {within}", self.name);
    }

    /// None: it still runs after `limit`.
    fn end_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        // Waiting for the process itself needs no polling, yet has no limit; its descriptor has.
        if let Ok(descriptor) = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()) {
            let start = Instant::now();
            loop {
                let left = limit.saturating_sub(start.elapsed());
                let left = Timespec::try_from(left).context("A limit without end")?;
                match poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&left)) {
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error).context("Waiting for a process"),
                    Ok(_) => break,
                }
            }
        }
        let status = self
            .child
            .try_wait()
            .context("Asking for a process's end")?;
        if status.is_some() {
            // Those that it started may outlive it.
            let _ = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            self.registration.cancel();
        }
        Ok(status)
    }

    /// Whether the process has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Binds all threads of the process, and of those that it started, to `cpus`.
    ///
    /// # Errors
    ///
    /// CPUs that do not exist, a process that is gone.
    pub fn pin(&self, cpus: &[usize]) -> Result<()> {
        let set = cpu_set(cpus);
        for pid in family(self.pid()) {
            for entry in fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let number = entry.file_name().to_string_lossy().parse().ok();
                if let Some(thread) = number.and_then(Pid::from_raw) {
                    sched_setaffinity(Some(thread), &set)
                        .with_context(|| format!("Binding {} to CPUs {cpus:?}", self.name))?;
                }
            }
        }
        Ok(())
    }

    /// The process's output since the log was begun.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    }

    /// Waits for `text` in what the process wrote after the first `from` bytes of its log.
    ///
    /// # Errors
    ///
    /// No such text within `limit`, or a process that ends without it.
    pub fn wait_for_log(&mut self, text: &str, from: usize, limit: Duration) -> Result<()> {
        let what = format!("\"{text}\" from {}", self.name);
        wait::until(&what, limit, || {
            let running = self.is_running();
            let log = self.log();
            if log.get(from..).is_some_and(|new| new.contains(text)) {
                return Ok(Some(()));
            }
            if running {
                Ok(None)
            } else {
                Err(anyhow!("{} ended:\n{log}", self.name))
            }
        })
    }

    /// Resident memory of the process, in bytes; memory that several processes share is divided
    /// among them, and counted once however often it is mapped.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub fn proportional_memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("Reading {path}"))?;
        let kib: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"))
            .context("No Pss among a process's mappings")?
            .parse()
            .context("Reading a process's memory")?;
        Ok(kib * 1024)
    }

    /// Memory of the process that is resident, in bytes.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub fn resident_memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).with_context(|| format!("Reading {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .context("No VmRSS in a process's status")?
            .parse()
            .context("Reading a process's memory")?;
        Ok(kib * 1024)
    }

    /// Time that all threads of the process spent on CPUs so far, in steps of 10 ms.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.pid(), 2)
    }

    /// The same of the process, all that it started, and of what these had started and seen end.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub fn family_cpu_time(&self) -> Result<Duration> {
        let mut sum = cpu_time(self.pid(), 4)?;
        for pid in family(self.pid()).into_iter().skip(1) {
            // One that ended meanwhile is in its parent's sum from now on.
            sum += cpu_time(pid, 4).unwrap_or_default();
        }
        Ok(sum)
    }

    /// Time that the kernel's own threads for deferred network work spent on CPUs so far, in steps
    /// of 10 ms.
    pub fn softirq_threads_cpu_time() -> Duration {
        static THREADS: OnceLock<Vec<u32>> = OnceLock::new();
        let threads = THREADS.get_or_init(|| {
            let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
            processes
                .filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok())
                .filter(|pid| {
                    fs::read_to_string(format!("/proc/{pid}/comm"))
                        .is_ok_and(|name| name.starts_with("ksoftirqd/"))
                })
                .collect()
        });
        threads
            .iter()
            .map(|pid| cpu_time(*pid, 2).unwrap_or_default())
            .sum()
    }

    /// Number of times the process's threads went to sleep by themselves so far: each has woken up
    /// as often.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub fn sleeps(&self) -> Result<u64> {
        let path = format!("/proc/{}/task", self.pid());
        let mut sum = 0;
        for thread in fs::read_dir(&path).with_context(|| format!("Listing {path}"))? {
            let path = thread.context("Listing threads")?.path().join("status");
            let status =
                fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))?;
            let count = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
                .context("No count of switches in a thread's status")?;
            sum += count
                .trim()
                .parse::<u64>()
                .context("Reading a thread's switches")?;
        }
        Ok(sum)
    }

    /// Number of files that the process has open.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub fn open_files(&self) -> Result<usize> {
        let path = format!("/proc/{}/fd", self.pid());
        Ok(fs::read_dir(&path)
            .with_context(|| format!("Listing {path}"))?
            .count())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            log::warn!("{error:#}");
        }
    }
}

fn open_log(log: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("Opening {}", log.display()))
}

/// The first of the four times in a process's status: user, system, and both again for children
/// that have ended and were waited for (proc(5), fields 14 to 17).
fn cpu_time(pid: u32, count: usize) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("Reading {path}"))?;
    // The second field, a name in brackets, may hold anything.
    let fields = stat
        .rsplit_once(')')
        .context("No name in a process's status")?
        .1;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(count)
        .map(str::parse::<u64>)
        .sum::<std::result::Result<_, _>>()
        .context("Reading a process's time")?;
    Ok(TICK * u32::try_from(ticks).context("Reading a process's time")?)
}

/// The process and its descendants.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(pid) = family.get(next) {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            family.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    family
}

fn cpu_set(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    set
}

/// Starts a program from a thread that lives as long as this process: the kernel's "end it with its
/// parent" means the parent's thread.
fn spawn(command: Command, cpus: &[usize]) -> Result<Child> {
    static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = channel::<Request>();
        thread::spawn(move || {
            for mut request in requests {
                // Nobody waits any more if this fails, and the child is killed as nobody owns it.
                let _ = request
                    .reply
                    .send(spawn_here(&mut request.command, &request.cpus));
            }
        });
        sender
    });
    let (reply, answer) = sync_channel(1);
    let request = Request {
        command,
        cpus: cpus.to_vec(),
        reply,
    };
    spawner
        .send(request)
        .map_err(|_| anyhow!("The spawning thread is gone"))?;
    Ok(answer.recv().context("The spawning thread is gone")??)
}

fn spawn_here(command: &mut Command, cpus: &[usize]) -> io::Result<Child> {
    // SAFETY: between fork and exec only one prctl system call is made, which takes no lock and no
    // memory.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    if cpus.is_empty() {
        return command.spawn();
    }
    // The child inherits this thread's CPUs, and so do all of its threads.
    let before = sched_getaffinity(None)?;
    sched_setaffinity(None, &cpu_set(cpus))?;
    let child = command.spawn();
    sched_setaffinity(None, &before)?;
    child
}

/// An empty standard input, for commands that are given none.
pub(crate) fn no_input() -> io::Result<Stdio> {
    Ok(File::open("/dev/null")?.into())
}
