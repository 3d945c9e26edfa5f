//! The nested machine: where this machine's KVM does not run stock kernels, QEMU emulates an AMD
//! processor with SVM, on which KVM does. A test that needs KVM runs in there unchanged: the
//! machine holds this very program, the port, Cloud Hypervisor and the guests' images, and runs the
//! one test.
//!
//! It shows function, and of speed only which of two ways in it is ahead. The emulated processor is
//! not perfect: some machines hang or panic, and some guests in them triple-fault. So the harness
//! replaces a machine that does not get ready, that does not answer any more, or in which a guest
//! triple-faulted and the test failed, and reports it. A test that fails otherwise has failed.
//!
//! See decision 0010.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use virtio_inter_agent::PORT_NAME;
use virtio_inter_test_support::{note, tell};

use crate::agent::{Agent, Channel, Job, Output};
use crate::images;
use crate::inside::{INSIDE, TRIPLE_FAULTED, is_inside};
use crate::supplies::{HOST, PROGRAM, Supplies};
use crate::{Process, Result, Testbed, deadline, guest_test, skip, vm, vmm};

/// Machines tried for one test.
const TRIES: u32 = 3;
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long a test may take in there: by its own limit it ends before, and says why.
pub(crate) const TEST_LIMIT: Duration = deadline::TEST_LIMIT.saturating_add(deadline::MARGIN);
/// How often the machine is asked whether it still lives, and how long it may take to answer.
const PULSE: Duration = Duration::from_secs(20);
const PULSE_LIMIT: Duration = Duration::from_secs(60);

/// How long a test may take at most, with all machines that are tried for it.
#[cfg(test)]
pub(crate) fn longest() -> Duration {
    (BOOT_LIMIT + TEST_LIMIT + PULSE + PULSE_LIMIT) * TRIES
}

/// Runs a test that needs guests of Cloud Hypervisor: here where KVM works, else in the nested
/// machine. Without a `cloud-hypervisor` it is skipped.
///
/// # Panics
///
/// When the test fails.
#[allow(clippy::panic, reason = "this is how a test fails")]
pub fn cloud_hypervisor_test(test: impl Fn(&Testbed) -> Result<()>) {
    if vmm::program().is_none() {
        skip("no cloud-hypervisor here: set CLOUD_HYPERVISOR, or put it and ch-remote into PATH");
        return;
    }
    if is_inside() || vm::runs_stock_kernels() {
        guest_test(test);
        return;
    }
    let name = thread::current().name().unwrap_or("test").to_owned();
    let supplies = match supplies_of_test() {
        Ok(supplies) => supplies,
        Err(error) => panic!("{name}: {error:#}"),
    };
    for attempt in 1..=TRIES {
        match run_inside(&name, &supplies) {
            Ok(End::Passed) => {
                if attempt > 1 {
                    note(&format!("{} nested machines were given up", attempt - 1));
                }
                return;
            }
            Ok(End::Skipped(reason)) => {
                skip(&reason);
                return;
            }
            Ok(End::Failed) => panic!("{name} failed in the nested machine; its output is above"),
            Err(error) => tell(&format!(
                "{name}: nested machine {attempt} of {TRIES} is given up: {error:#}"
            )),
        }
    }
    panic!("{name}: no nested machine lasted long enough");
}

/// How a test ended.
enum End {
    Passed,
    Failed,
    Skipped(String),
}

fn supplies_of_test() -> Result<Supplies> {
    let tests = env::current_exe().context("Finding this program")?;
    Supplies::new(&tests, &images::port_program()?)
}

/// Runs the test of that name in a new machine. An error is the machine's.
fn run_inside(name: &str, supplies: &Supplies) -> Result<End> {
    let bed = Testbed::new(name)?;
    let start = Instant::now();
    let machine = Machine::boot(&bed, supplies)?;
    let booted = start.elapsed();
    let output = machine.run_test(name);
    tell(&format!(
        "{name}: the nested machine booted in {booted:.1?} and ran for {:.1?} more",
        start.elapsed() - booted
    ));
    verdict(&output.inspect_err(|_| bed.keep())?)
}

/// What a test's output says. An error is the machine's.
fn verdict(output: &TestOutput) -> Result<End> {
    let mut lines = output.text.lines();
    if !output.passed {
        return match lines.find(|line| line.starts_with(TRIPLE_FAULTED)) {
            Some(line) => Err(anyhow!("{line}")),
            None => Ok(End::Failed),
        };
    }
    let skipped = lines.find_map(|line| line.strip_prefix("SKIPPED "));
    Ok(match skipped.and_then(|line| line.split_once(": ")) {
        Some((_, reason)) => End::Skipped(reason.to_owned()),
        None => End::Passed,
    })
}

/// Result of a test.
struct TestOutput {
    passed: bool,
    text: String,
}

impl TestOutput {
    /// Of a test that has ended, or has not in time: what it wrote until then counts as well.
    fn new(end: Option<&Output>, text: String) -> Self {
        Self {
            passed: end.is_some_and(Output::success) && text.contains("1 passed"),
            text,
        }
    }
}

/// A running nested machine, killed when dropped.
pub struct Machine {
    process: Process,
    agent: Agent,
    console: PathBuf,
}

impl Machine {
    /// Boots a machine.
    ///
    /// # Errors
    ///
    /// A machine that is not ready within 120 s.
    pub fn boot(bed: &Testbed, supplies: &Supplies) -> Result<Self> {
        let initramfs = bed.path("machine.cpio");
        supplies
            .write_initramfs(&initramfs)
            .context("Filling the nested machine")?;
        let console = bed.path("machine.console");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            // One processor: with two, guests and machines die now and then (decision 0014). The
            // model `max` has features with which KVM's guests crash.
            .args(["-machine", "q35,hpet=off", "-accel", "tcg,thread=single"])
            .args(["-cpu", "EPYC,svm=on,npt=on", "-smp", "1", "-m", "4G"])
            .arg("-kernel")
            .arg(supplies.kernel())
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .arg("-chardev")
            .arg(format!("file,id=console,path={}", console.display()))
            .args(["-serial", "chardev:console", "-no-reboot"])
            .args(["-chardev", "socket,id=agent,fd=0"])
            .args(["-device", "virtio-serial-pci"])
            .args([
                "-device",
                &format!("virtserialport,chardev=agent,name={PORT_NAME}"),
            ]);
        let (near, far) = Channel::on_socket()?;
        command.stdin(far);
        let log = bed.path("machine.log");
        let machine = Self {
            process: Process::start("the nested machine", command, &log, &[])?,
            agent: Agent::new(near),
            console,
        };
        machine
            .agent
            .wait_for_boot(1, BOOT_LIMIT)
            .with_context(|| machine.story())?;
        // From here on it is not needed: the kernel has unpacked it.
        let _ = fs::remove_file(&initramfs);
        Ok(machine)
    }

    /// Runs the test, shows its output as it comes, and returns it.
    fn run_test(&self, name: &str) -> Result<TestOutput> {
        let arguments = ["--exact", name, "--nocapture", "--test-threads=1"];
        // The machine lives, so the test is to blame when it does not end.
        let (end, text) = self.run_for(&arguments, TEST_LIMIT, true)?;
        Ok(TestOutput::new(end.as_ref(), text))
    }

    /// Runs the machine's program, and shows its standard error as it comes, and its standard
    /// output if `shows_all`. None: it did not end within `limit`.
    ///
    /// # Errors
    ///
    /// A machine that ended, or does not answer any more.
    pub fn run(
        &self,
        arguments: &[&str],
        limit: Duration,
        shows_all: bool,
    ) -> Result<Option<Output>> {
        let (end, _) = self.run_for(arguments, limit, shows_all)?;
        Ok(end)
    }

    /// The same, and all that it wrote, also when it did not end.
    fn run_for(
        &self,
        arguments: &[&str],
        limit: Duration,
        shows_all: bool,
    ) -> Result<(Option<Output>, String)> {
        let environment = [
            format!("{INSIDE}=1"),
            format!("PATH={HOST}/bin:/bin:/usr/bin"),
            format!("LD_LIBRARY_PATH={HOST}/lib"),
            format!("CLOUD_HYPERVISOR={HOST}/bin/cloud-hypervisor"),
            format!("VIRTIO_INTER_BIN={HOST}/bin/virtio-inter"),
            format!("{}={HOST}/images", images::DIRECTORY),
            "RUST_BACKTRACE=0".to_owned(),
        ];
        let program = format!("{HOST}/bin/{PROGRAM}");
        let mut line = vec!["env"];
        line.extend(environment.iter().map(String::as_str));
        line.push(&program);
        line.extend(arguments);
        let mut job = self.agent.spawn(&line)?;
        job.close_stdin()?;
        let start = Instant::now();
        let mut shown = Shown::default();
        loop {
            let end = job.wait_for_end(PULSE);
            shown.show(&job, shows_all);
            if let Some(output) = end.with_context(|| self.story())? {
                let text = format!("{}{}", output.stdout, output.stderr);
                return Ok((Some(output), text));
            }
            self.check_pulse().with_context(|| self.story())?;
            if start.elapsed() > limit {
                let line = arguments.join(" ");
                tell(&format!("`{line}` did not end within {limit:?}"));
                shown.show(&job, shows_all);
                return Ok((None, job.stdout() + &job.stderr()));
            }
        }
    }

    /// Whether anything still runs in there.
    fn check_pulse(&self) -> Result<()> {
        let mut job = self.agent.spawn(&["true"])?;
        job.close_stdin()?;
        let output = job
            .wait(PULSE_LIMIT)
            .context("The nested machine does not answer")?;
        ensure!(output.success(), "The nested machine runs nothing any more");
        Ok(())
    }

    fn story(&self) -> String {
        let console = fs::read(&self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().map(str::trim).collect();
        format!(
            "The nested machine; its console ends: {}; QEMU wrote: {}",
            lines[lines.len().saturating_sub(8)..].join(" | "),
            self.process.log()
        )
    }
}

/// How much of a job's output was shown.
#[derive(Default)]
struct Shown {
    stdout: usize,
    stderr: usize,
}

impl Shown {
    fn show(&mut self, job: &Job, shows_all: bool) {
        let stdout = if shows_all {
            job.stdout()
        } else {
            String::new()
        };
        for (text, shown) in [(stdout, &mut self.stdout), (job.stderr(), &mut self.stderr)] {
            if let Some(new) = text.get(*shown..).filter(|new| !new.is_empty()) {
                tell(new.trim_end());
                *shown = text.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a test wrote that was too late tells whose fault that is.
    #[test]
    fn limit_of_a_machine_does_not_throw_the_text_away() {
        let late = |text: &str| verdict(&TestOutput::new(None, text.to_owned()));
        assert!(matches!(late("running 1 test\n"), Ok(End::Failed)));
        let text = format!("running 1 test\n{TRIPLE_FAULTED}of a guest: vm-a.log\n");
        let error = late(&text).err().expect("the machine's fault");
        assert!(error.to_string().contains("vm-a.log"), "{error}");
    }
}
