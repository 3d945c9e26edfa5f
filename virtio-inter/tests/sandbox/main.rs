//! Tries from inside what the walls of the sandbox are there to prevent.
#![allow(unsafe_code)] // ptrace(2) and ioctl(2) have no safe wrapper.

mod calls;
mod inside;

use std::ffi::c_int;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::parent_id;
use std::path::Path;

use rustix::process::{Pid, test_kill_process};
use virtio_inter::sandbox::calls::PORT;
use virtio_inter::sandbox::{Access, Mode, Wall};
use virtio_inter_test_support::inside::{assert_passed, directory, run_again};
use virtio_inter_test_support::refuse;

use crate::inside::{behind, enter, enter_mode};

/// An error of the kernel, by its number.
#[track_caller]
fn assert_errno<T: std::fmt::Debug>(result: io::Result<T>, errno: c_int) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(errno));
}

/// The value of a field of the calling thread's status (proc_pid_status(5)).
fn status(field: &str) -> String {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

#[test]
fn files_of_the_host_cannot_be_opened() {
    behind(Wall::Files, |place| {
        for path in ["/etc/passwd", "/etc", "/dev/null", "/sys/kernel/mm"] {
            assert_errno(File::open(path), libc::EACCES);
        }
        // Nor can files be made, by whichever name.
        let aside = place.parent().unwrap().join("virtio-inter-sandbox-test");
        assert_errno(File::create(&aside), libc::EACCES);
        assert_errno(UnixListener::bind(&aside), libc::EACCES);
        let mut create = OpenOptions::new();
        let hidden = create.write(true).custom_flags(libc::O_TMPFILE).open("/");
        assert_errno(hidden, libc::EACCES);
        assert_errno(fs::create_dir(place.join("directory")), libc::EACCES);
    });
}

#[test]
fn files_of_the_own_directories_can_be_made_and_removed() {
    behind(Wall::Files, |place| {
        let (lock, socket) = (place.join("lock"), place.join("socket"));
        fs::write(&lock, "1").unwrap();
        fs::write(&lock, "2").unwrap();
        assert_eq!(fs::read(&lock).unwrap(), b"2");
        let listener = UnixListener::bind(&socket).unwrap();
        UnixStream::connect(&socket).unwrap();
        drop(listener);
        fs::rename(&socket, place.join("other")).unwrap();
        assert_eq!(fs::read_dir(place).unwrap().count(), 2);
        fs::remove_file(place.join("other")).unwrap();
        fs::remove_file(&lock).unwrap();
        // A port reads these while it runs.
        for file in ["self/status", "self/stat", "thread-self/status", "1/stat"] {
            File::open(Path::new("/proc").join(file)).unwrap();
        }
    });
}

#[test]
fn tcp_cannot_be_used() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    behind(Wall::Tcp, move |_| {
        assert_errno(TcpStream::connect(address), libc::EACCES);
        assert_errno(TcpListener::bind("127.0.0.1:1"), libc::EACCES);
    });
}

#[test]
fn abstract_sockets_of_others_cannot_be_reached() {
    let name = |pid: u32| {
        let name = format!("virtio-inter-sandbox-test-{pid}");
        SocketAddr::from_abstract_name(name).unwrap()
    };
    let outside = directory().is_none();
    let _listener = outside.then(|| UnixListener::bind_addr(&name(std::process::id())).unwrap());
    behind(Wall::AbstractSockets, |_| {
        assert_errno(UnixStream::connect_addr(&name(parent_id())), libc::EPERM);
    });
}

/// Of another port, say.
#[test]
fn sockets_in_other_directories_cannot_be_reached() {
    let name = |pid: u32| format!("/tmp/virtio-inter-sandbox-test-{pid}.sock");
    let outside = directory().is_none();
    let _listener = outside.then(|| UnixListener::bind(name(std::process::id())).unwrap());
    behind(Wall::Sockets, |place| {
        assert_errno(UnixStream::connect(name(parent_id())), libc::EACCES);
        let own = place.join("socket");
        let _listener = UnixListener::bind(&own).unwrap();
        UnixStream::connect(own).unwrap();
    });
    if outside {
        fs::remove_file(name(std::process::id())).unwrap();
    }
}

#[test]
fn processes_of_others_cannot_be_signalled() {
    behind(Wall::Signals, |_| {
        let parent = Pid::from_raw(parent_id().try_into().unwrap()).unwrap();
        assert_errno(test_kill_process(parent).map_err(Into::into), libc::EPERM);
        test_kill_process(rustix::process::getpid()).unwrap();
    });
}

/// Also as root, and of the same user.
#[test]
fn processes_of_others_cannot_be_traced() {
    behind(Wall::Files, |_| {
        let parent = parent_id();
        // SAFETY: reads and writes no memory of this process.
        let traced = unsafe { libc::ptrace(libc::PTRACE_SEIZE, parent as libc::pid_t, 0, 0) };
        assert_eq!(traced, -1);
        assert_errno(Err::<(), _>(io::Error::last_os_error()), libc::EPERM);
        for file in ["mem", "maps", "environ", "fd"] {
            let error = File::open(format!("/proc/{parent}/{file}")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{file}");
        }
    });
}

#[test]
fn devices_cannot_be_controlled() {
    let open = || OpenOptions::new().read(true).write(true).open("/dev/ptmx");
    let number = |terminal: &File| {
        let mut number: c_int = 0;
        // SAFETY: writes one int.
        match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGPTN, &raw mut number) } {
            0 => Ok(number),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let devices = open().unwrap();
    number(&devices).unwrap();
    behind(Wall::Devices, |_| {
        // Opened before.
        number(&devices).unwrap();
        assert_errno(open(), libc::EACCES);
    });
}

#[test]
fn privileges_are_given_up() {
    behind(Wall::Capabilities, |_| {
        assert_eq!(status("NoNewPrivs"), "1");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(set), "0000000000000000", "{set}");
        }
        if rustix::process::geteuid().is_root() {
            assert_eq!(status("CapBnd"), "0000000000000000");
        }
    });
}

#[test]
fn sandbox_that_is_off_has_no_wall() {
    let Some(directory) = directory() else {
        assert_passed(&run_again());
        return;
    };
    let report = enter_mode(Mode::Off, &directory);
    assert_eq!((report.walls.len(), report.missing.len()), (0, 0));
    File::open("/etc/passwd").unwrap();
    assert_eq!(status("NoNewPrivs"), "0");
}

/// As on a kernel without Landlock, or one that was not told to use it.
#[test]
fn sandbox_without_landlock_says_so_and_strict_refuses() {
    let Some(directory) = directory() else {
        assert_passed(&run_again());
        return;
    };
    refuse(libc::SYS_landlock_create_ruleset, libc::ENOSYS);
    let report = enter(&directory);
    let walls: Vec<Wall> = report.missing.iter().map(|missing| missing.wall).collect();
    let landlock = [
        Wall::Files,
        Wall::Tcp,
        Wall::Devices,
        Wall::AbstractSockets,
        Wall::Signals,
        Wall::Sockets,
    ];
    assert!(
        landlock.iter().all(|wall| walls.contains(wall)),
        "{walls:?}"
    );
    assert!(report.walls.contains(&Wall::Capabilities));
    let nothing = Access::default();
    let error = virtio_inter_sandbox::enter(Mode::Strict, &nothing, &PORT).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("tcp"), "{error}");
    assert!(error.contains("this kernel has no Landlock"), "{error}");
}
