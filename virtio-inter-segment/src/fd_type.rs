//! Recognises the type of a descriptor that a peer sent, without calling into a file system or
//! driver.
//!
//! `fstat` or `statfs` on a file that the peer itself serves take as long as the peer likes. So
//! these come first, and what fails them is not touched further.

use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_inter_link::Doorbell;

/// Whether it is a memfd: only those have seals, and the kernel knows by itself.
pub(crate) fn is_memfd(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok()
}

/// Whether it is an eventfd, by the name that the kernel gives it; where there is no `/proc`, by
/// what the kernel says to a signal. What cannot be found out is none.
pub(crate) fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    is_eventfd_by_name(fd, "/proc/self/fd").unwrap_or_else(|| Doorbell::is_eventfd(fd))
}

fn is_eventfd_by_name(fd: BorrowedFd<'_>, directory: &str) -> Option<bool> {
    let path = format!("{directory}/{}", fd.as_raw_fd());
    let name = rustix::fs::readlink(path, Vec::new()).ok()?;
    Some(name.as_bytes() == b"anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::ErrorKind;
    use std::os::fd::AsFd;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    use virtio_inter_test_support::skip;

    use super::*;

    #[test]
    fn fd_type_is_recognised() {
        let memfd = memfd_create("x", MemfdFlags::CLOEXEC).unwrap();
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let file = File::open("/proc/self/status").unwrap();
        assert!(is_memfd(memfd.as_fd()) && !is_eventfd(memfd.as_fd()));
        assert!(is_eventfd(doorbell.as_fd()) && !is_memfd(doorbell.as_fd()));
        for other in [epoll.as_fd(), file.as_fd()] {
            assert!(!is_memfd(other) && !is_eventfd(other));
        }
    }

    /// The files in `/proc` of a port, which cannot be dumped, are root's: but for itself.
    #[test]
    fn fd_type_is_recognised_in_a_process_that_cannot_be_dumped() {
        const CHILD: &str = "VIRTIO_INTER_SEGMENT_TEST_CHILD";
        if std::env::var_os(CHILD).is_some() {
            set_dumpable_behavior(DumpableBehavior::NotDumpable).unwrap();
            fd_type_is_recognised();
            return;
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.env(CHILD, "1").args([
            "--exact",
            "fd_type::tests::fd_type_is_recognised_in_a_process_that_cannot_be_dumped",
        ]);
        if rustix::process::geteuid().is_root() {
            // Nobody, by convention.
            child.uid(65534).gid(65534);
        }
        let output = match child.output() {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                skip("no other user can run this program");
                return;
            }
            output => output.unwrap(),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
    }

    #[test]
    fn fd_type_without_proc_is_what_the_kernel_says() {
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let file = File::open("/proc/self/status").unwrap();
        assert!(Doorbell::is_eventfd(doorbell.as_fd()));
        assert!(!Doorbell::is_eventfd(epoll.as_fd()) && !Doorbell::is_eventfd(file.as_fd()));
        // No such directory, as where /proc is not mounted.
        assert!(is_eventfd_by_name(doorbell.as_fd(), "/nowhere").is_none());
    }

    /// A file cannot pass by its name.
    #[test]
    fn fd_type_is_not_taken_from_a_file_name() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("anon_inode:[eventfd]");
        let file = File::create(path).unwrap();
        assert!(!is_eventfd(file.as_fd()));
    }
}
