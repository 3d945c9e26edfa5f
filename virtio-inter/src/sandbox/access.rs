//! The files that a port or uplink needs once it runs, from its command line.

use std::path::Path;

use virtio_inter_sandbox::{Access, directory_of};

use crate::cli::{PortArgs, UplinkArgs};
use crate::uplink::UplinkArg;

/// What a port needs.
pub fn of_port(arguments: &PortArgs) -> Access {
    let mut access = of_segment(&arguments.segment);
    match &arguments.socket {
        Some(socket) if arguments.client => {
            access.connects.push(directory_of(socket).to_owned());
        }
        Some(socket) => add_directory_of(&mut access, socket),
        // With --fd it has no use for a path.
        None => {}
    }
    if let Some(socket) = &arguments.status_socket {
        add_directory_of(&mut access, socket);
    }
    access.device = arguments.uplink.as_ref().map(UplinkArg::needs);
    access.gives_socket = arguments.socket_group.is_some();
    access
}

/// What an uplink needs that ports share.
pub fn of_uplink(arguments: &UplinkArgs) -> Access {
    let mut access = of_segment(&arguments.segment);
    if let Some(socket) = &arguments.status_socket {
        add_directory_of(&mut access, socket);
    }
    access.device = Some(arguments.device().needs());
    access
}

/// What each member of a segment needs.
fn of_segment(segment: &Path) -> Access {
    let mut access = Access {
        directories: vec![segment.to_owned()],
        // Busy polling (schedstat), whether another process is exiting (PID/stat, PID/status), and
        // the signals that this one ignores.
        reads_proc: true,
        ..Access::default()
    };
    // Like the segment: of the path as it is written.
    if let Ok(path) = std::path::absolute(segment) {
        access
            .parents
            .push(path.parent().unwrap_or(&path).to_owned());
    }
    access
}

fn add_directory_of(access: &mut Access, file: &Path) {
    let directory = directory_of(file);
    if !access.directories.iter().any(|there| there == directory) {
        access.directories.push(directory.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use super::*;
    use crate::cli::{Command, parse};

    fn access_with(extra: &[&str]) -> Access {
        let fixed = "virtio-inter port --socket /run/vm/net --segment /run/s --id a \
                     --mac 52:54:00:00:00:01";
        let words = fixed.split_whitespace().chain(extra.iter().copied());
        match parse(words.map(OsString::from)).unwrap().command {
            Command::Port(port) => of_port(&port),
            _ => unreachable!("it is the command of a port"),
        }
    }

    #[test]
    fn sandbox_of_a_client_lets_it_make_no_file_beside_the_vmms_socket() {
        let (of_vmm, of_segment) = (PathBuf::from("/run/vm"), PathBuf::from("/run/s"));
        let listens = access_with(&[]);
        assert_eq!(listens.directories, [of_segment.clone(), of_vmm.clone()]);
        assert_eq!(listens.connects, [""; 0].map(PathBuf::from));
        let client = access_with(&["--client"]);
        assert_eq!(client.directories, [of_segment]);
        assert_eq!(client.connects, [of_vmm]);
    }

    #[test]
    fn sandbox_of_a_port_that_was_given_its_socket_has_no_directory_for_it() {
        let words = "virtio-inter port --fd 3 --segment /run/s --id a --mac 52:54:00:00:00:01";
        let cli = parse(words.split(' ').map(OsString::from)).unwrap();
        let Command::Port(port) = cli.command else {
            unreachable!("it is the command of a port")
        };
        let access = of_port(&port);
        assert_eq!(access.directories, [PathBuf::from("/run/s")]);
        assert_eq!(access.connects, [""; 0].map(PathBuf::from));
    }
}
