//! Work of the first process: file systems, kernel modules, the loopback interface, then the
//! serving child, and the reaping of orphans for as long as the guest runs.
//!
//! A step that fails is reported on the console and skipped: a guest that lacks a module still
//! answers.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, finit_module, reboot};
use virtio_inter_agent::{DEVICE_OPTION, PORT_NAME};

/// Kernel modules in the order in which they load, one path a line. Written with the image.
const MODULE_LIST: &str = "/modules/order";
/// virtio-serial ports, and virtio consoles, come from a work queue of the kernel, some time after
/// the driver.
const DEVICE_LIMIT: Duration = Duration::from_secs(20);

/// Sets the guest up, serves the host, and stops the machine when that ends.
pub(crate) fn boot() -> ! {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        // Those in /dev are missing until it is mounted.
        let _ = fs::create_dir_all(at);
        if let Err(error) = mount(kind, at, kind, MountFlags::empty(), None) {
            eprintln!("Mounting {at}: {error}");
        }
    }
    load_modules();
    // Without duplicate address detection a new IPv6 address can be used at once, not a second
    // later.
    for path in ["conf/default/accept_dad", "conf/all/accept_dad"] {
        let path = format!("/proc/sys/net/ipv6/{path}");
        if let Err(error) = fs::write(&path, "0") {
            eprintln!("Writing {path}: {error}");
        }
    }
    match Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
    {
        Ok(status) if status.success() => {}
        other => eprintln!("Raising the loopback interface: {other:?}"),
    }
    let Err(error) = drive();
    eprintln!("{error}");
    // The host sees the end of the machine, and the reason in the console's log.
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        eprintln!("Power off: {error}");
    }
    loop {
        thread::park();
    }
}

fn load_modules() {
    let list = fs::read_to_string(MODULE_LIST).unwrap_or_default();
    for path in list.lines() {
        let loaded = File::open(path)
            .map_err(|error| error.to_string())
            .and_then(|file| finit_module(&file, c"", 0).map_err(|error| error.to_string()));
        if let Err(error) = loaded {
            eprintln!("Loading {path}: {error}");
        }
    }
}

fn drive() -> Result<Infallible, String> {
    let device = find_device().ok_or("No device to be driven by")?;
    let child = Command::new("/proc/self/exe")
        .arg("serve")
        .arg(&device)
        .spawn()
        .map_err(|error| format!("Starting the serving process: {error}"))?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() as u32 == child.id() => {
                return Err(format!("The serving process ended: {status:?}"));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(format!("Waiting for processes: {error}")),
        }
    }
}

fn find_device() -> Option<PathBuf> {
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Some(name) = command_line
        .split_whitespace()
        .find_map(|option| option.strip_prefix(DEVICE_OPTION))
    {
        let path = Path::new("/dev").join(name);
        return wait_for(|| path.exists().then(|| path.clone()));
    }
    wait_for(find_port)
}

fn wait_for(look: impl Fn() -> Option<PathBuf>) -> Option<PathBuf> {
    let start = Instant::now();
    while start.elapsed() < DEVICE_LIMIT {
        if let Some(path) = look() {
            return Some(path);
        }
        thread::sleep(Duration::from_millis(2));
    }
    None
}

fn find_port() -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let name = fs::read_to_string(entry.path().join("name")).ok()?;
            (name.trim() == PORT_NAME).then(|| Path::new("/dev").join(entry.file_name()))
        })
}
