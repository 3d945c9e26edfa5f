//! The command line: what can be asked for, with what values, and how a mistake is told.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, Parser, Subcommand, value_parser};
use virtio_inter_device::Scheduling;
use virtio_inter_segment::{LocalPort, MAX_QUEUE_PAIRS, MIN_MTU, MacAddr, PortId};

/// Longest path of a Unix socket in bytes: `sun_path` without its terminating zero (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// Most entries of a split virtqueue (VIRTIO 1.3, 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;

/// Network between the VMs of one host, through shared memory.
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
pub struct Cli {
    /// Log more: debug messages, twice for everything. The variable RUST_LOG takes precedence.
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 100)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What this program can be.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach one VM to a segment, as a vhost-user network backend
    #[command(after_help = PORT_HELP)]
    Port(PortArgs),
}

const PORT_HELP: &str = "\
The port serves one frontend after another on its socket (Cloud Hypervisor, QEMU, User Mode Linux, DPDK's
virtio_user) until SIGTERM, SIGINT or SIGHUP; the same signal again kills it at once. The VM's memory must be
shared: --memory shared=on (Cloud Hypervisor), -object memory-backend-memfd,share=on (QEMU). A lock file
beside the socket, PATH.lock, tells a live port's socket from a dead one's, which is taken over.
Where NOTIFY_SOCKET is set (a systemd unit with Type=notify, say), it is told when the port serves.

Exit status: 0 after a signal, 1 when the port cannot run, 2 for a wrong command line.";

/// Options of `virtio-inter port`.
#[derive(Debug, Clone, Args)]
pub struct PortArgs {
    /// vhost-user socket to listen on; at most 107 bytes
    #[arg(long, value_name = "PATH", value_parser = socket_path_parser())]
    pub socket: PathBuf,
    /// Directory of the segment; it must exist, and who can write there can join
    #[arg(long, value_name = "DIR")]
    pub segment: PathBuf,
    /// Name of this port, unique on the segment: 1 to 64 letters, digits, '.', '_' or '-'
    #[arg(long, value_name = "NAME")]
    pub id: PortId,
    /// The VM's hardware address, unique on the segment: unicast, six pairs of hexadecimal digits
    #[arg(long)]
    pub mac: MacAddr,
    /// Largest IP packet, without the 14 bytes of Ethernet header: 68 to 65535 bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1500,
          value_parser = value_parser!(u16).range(i64::from(MIN_MTU)..))]
    pub mtu: u16,
    /// Queue pairs offered to the VM, each served by a thread of its own: 1 to 64. User Mode Linux needs 1,
    /// as its frontend has no control queue
    #[arg(long, value_name = "PAIRS", default_value_t = 1,
          value_parser = value_parser!(u16).range(1..=i64::from(MAX_QUEUE_PAIRS)))]
    pub queues: u16,
    /// Largest size of a queue that a frontend may choose, in descriptors: a power of two, 2 to 32768
    #[arg(long, value_name = "ENTRIES", default_value_t = 1024, value_parser = parse_queue_size)]
    pub queue_size: u16,
    /// Memory that this port shares with each queue pair of each peer, for frames on their way to it, in
    /// bytes: a power of two
    #[arg(long, value_name = "BYTES", default_value_t = virtio_inter_link::DEFAULT_CAPACITY,
          value_parser = parse_ring_size)]
    pub ring_size: u32,
    /// How much nicer than the process (nice(1)) the threads of the queues are: 0 to 19. A guest on the same CPU then has its
    /// say before it is served, which saves both many wake-ups. While that starves the threads, they are not nicer
    #[arg(long, value_name = "ADJUSTMENT", default_value_t = Scheduling::default().nice,
          value_parser = value_parser!(u8).range(0..=19))]
    pub nice: u8,
    /// How long those threads look on before they sleep, at most, in microseconds: 0 to 200. They do where work has been
    /// coming that soon, and give the CPU to whoever wants it meanwhile; with --nice 0, and before Linux 6.12, they do not
    #[arg(long, value_name = "MICROSECONDS", default_value_t = Scheduling::default().busy_poll.as_micros() as u16,
          value_parser = value_parser!(u16).range(0..=200))]
    pub busy_poll: u16,
    /// Socket on which who connects is told this port's state, peers and counters as JSON; for this user and root only
    #[arg(long, value_name = "PATH", value_parser = socket_path_parser())]
    pub status_socket: Option<PathBuf>,
}

impl PortArgs {
    /// The port as its segment is to know it.
    pub fn local_port(&self) -> LocalPort {
        LocalPort {
            id: self.id.clone(),
            mac: self.mac,
            mtu: self.mtu,
            queues: self.queues,
            ring_capacity: self.ring_size,
        }
    }

    /// How the port's queues are served.
    pub fn scheduling(&self) -> Scheduling {
        Scheduling {
            nice: self.nice,
            busy_poll: Duration::from_micros(self.busy_poll.into()),
        }
    }
}

/// Parses a command line, the program's name first.
///
/// # Errors
///
/// clap's: also for `--help` and `--version`, which are to be printed.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(arguments)
}

/// What is wrong with a command line, in one line where it is a wrong value.
pub fn explain(error: &clap::Error) -> String {
    let text = error.render().to_string();
    match error.kind() {
        // clap goes on to advertise --help; a wrong value is a wrong value.
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            text.lines().next().unwrap_or_default().to_owned()
        }
        _ => text.trim_end().to_owned(),
    }
}

fn socket_path_parser() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str().len() {
        size if size > MAX_SOCKET_PATH => Err(format!(
            "the path has {size} bytes, a Unix socket's has at most {MAX_SOCKET_PATH}"
        )),
        _ => Ok(path),
    })
}

fn parse_queue_size(text: &str) -> Result<u16, String> {
    parse_power_of_two(text, 2, MAX_QUEUE_SIZE.into())?
        .try_into()
        .map_err(|_| String::new())
}

fn parse_ring_size(text: &str) -> Result<u32, String> {
    parse_power_of_two(
        text,
        virtio_inter_link::MIN_CAPACITY,
        virtio_inter_link::MAX_CAPACITY,
    )
}

fn parse_power_of_two(text: &str, min: u32, max: u32) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|value: &u32| value.is_power_of_two() && (min..=max).contains(value))
        .ok_or_else(|| format!("a power of two from {min} to {max} is needed"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    const GOOD: [&str; 10] = [
        "virtio-inter",
        "port",
        "--socket",
        "/run/a.sock",
        "--segment",
        "/run/s",
        "--id",
        "a",
        "--mac",
        "52:54:00:00:00:01",
    ];

    fn parse_with(extra: &[&str]) -> Result<PortArgs, String> {
        let arguments = GOOD.iter().chain(extra).map(OsString::from);
        match parse(arguments) {
            Ok(Cli {
                command: Command::Port(port),
                ..
            }) => Ok(port),
            Err(error) => Err(explain(&error)),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let port = parse_with(&[]).unwrap();
        assert_eq!((port.mtu, port.queues, port.queue_size), (1500, 1, 1024));
    }

    #[test]
    fn bounds_are_inclusive() {
        for (option, value) in [
            ("--mtu", "68"),
            ("--mtu", "65535"),
            ("--queues", "1"),
            ("--queues", "64"),
            ("--queue-size", "2"),
            ("--queue-size", "32768"),
        ] {
            parse_with(&[option, value]).unwrap();
        }
    }

    #[test]
    fn wrong_values_are_told_in_one_line() {
        for (option, value, reason) in [
            ("--mtu", "67", "67 is not in 68..=65535"),
            ("--mtu", "65536", "65536 is not in 68..=65535"),
            ("--mtu", "big", "invalid digit"),
            ("--queues", "0", "0 is not in 1..=64"),
            ("--queues", "65", "65 is not in 1..=64"),
            (
                "--queue-size",
                "0",
                "a power of two from 2 to 32768 is needed",
            ),
            (
                "--queue-size",
                "1000",
                "a power of two from 2 to 32768 is needed",
            ),
            (
                "--queue-size",
                "65536",
                "a power of two from 2 to 32768 is needed",
            ),
            ("--ring-size", "1000", "a power of two from"),
        ] {
            let error = parse_with(&[option, value]).unwrap_err();
            assert!(error.contains(reason) && error.contains(option), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn wrong_names_and_addresses_are_told_in_one_line() {
        let long = "x".repeat(108);
        for (option, value, reason) in [
            ("--mac", "01:00:00:00:00:01", "multicast"),
            ("--mac", "00:00:00:00:00:00", "zero"),
            ("--mac", "52:54", "six pairs"),
            ("--id", "a/b", "'/'"),
            ("--id", "", "empty"),
            ("--socket", &long, "108 bytes"),
            ("--socket", "", "a value is required"),
        ] {
            let mut arguments = GOOD.map(OsString::from).to_vec();
            let at = GOOD
                .iter()
                .position(|argument| *argument == option)
                .unwrap();
            arguments[at + 1] = value.into();
            let error = explain(&parse(arguments).unwrap_err());
            assert!(error.contains(reason), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
