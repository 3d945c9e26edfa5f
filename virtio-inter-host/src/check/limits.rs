//! Limits that are nearly reached: those of a port's options, those of its process, and the host's.

use std::fs;
use std::path::Path;

use super::code::Code;
use crate::document::{Document, Limit};
use crate::text::bytes;

/// Share of a limit above which it is about to be reached, in percent.
const NEARLY_USED: u64 = 90;

/// Mappings that a ring takes in its port's process.
const MAPPINGS_OF_A_RING: u64 = 3;

/// A kind of finding, and its text.
pub(super) type Found = (Code, String);

/// What the kernel says of the host. None: it does not, or this user may not know.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// Requests for asynchronous I/O.
    aio: Option<Limit>,
    /// Open files.
    files: Option<Limit>,
    /// Threads of all processes.
    threads: Option<Limit>,
    /// Mappings that a process may have.
    max_map_count: Option<u64>,
}

impl Host {
    /// As it is now.
    pub(super) fn read() -> Self {
        Self::read_from(Path::new("/proc"))
    }

    fn read_from(proc: &Path) -> Self {
        let words = |name: &str| -> Option<Vec<String>> {
            let text = fs::read_to_string(proc.join(name)).ok()?;
            Some(text.split_whitespace().map(str::to_owned).collect())
        };
        let number = |name: &str| -> Option<u64> { words(name)?.first()?.parse().ok() };
        let files = || {
            let file_nr = words("sys/fs/file-nr")?;
            Some(Limit {
                used: file_nr.first()?.parse().ok()?,
                max: file_nr.get(2)?.parse().ok()?,
            })
        };
        let threads = || {
            // Such as 2/231: running, and all.
            let loadavg = words("loadavg")?;
            let (_, used) = loadavg.get(3)?.split_once('/')?;
            let max = number("sys/kernel/threads-max")?;
            Some(Limit {
                used: used.parse().ok()?,
                max: max.min(number("sys/kernel/pid_max")?),
            })
        };
        let aio = || {
            Some(Limit {
                used: number("sys/fs/aio-nr")?,
                max: number("sys/fs/aio-max-nr")?,
            })
        };
        Self {
            aio: aio(),
            files: files(),
            threads: threads(),
            max_map_count: number("sys/vm/max_map_count"),
        }
    }

    /// Limits that all ports share.
    pub(super) fn findings(&self) -> Vec<Found> {
        let find = |limit: Option<Limit>, code, text: &dyn Fn(u64, u64) -> String| {
            let Limit { used, max } = limit.filter(is_nearly_used)?;
            Some((code, text(used, max)))
        };
        let aio = find(self.aio, Code::AioUsedUp, &|used, max| {
            format!(
                "{used} of fs.aio-max-nr = {max} are used: ports that start later link with their \
                 own user and root only; raise it with sysctl"
            )
        });
        let files = find(self.files, Code::HostFilesUsedUp, &|used, max| {
            format!(
                "{used} of fs.file-max = {max} open files are used: without more, no port can \
                 start, be linked or serve another VMM; raise it with sysctl"
            )
        });
        let threads = find(self.threads, Code::ThreadsUsedUp, &|used, max| {
            format!(
                "{used} of {max} threads are used (the smaller one of kernel.threads-max and \
                 kernel.pid_max): without more, no port can start; raise it with sysctl"
            )
        });
        aio.into_iter().chain(files).chain(threads).collect()
    }
}

/// Limits of a port.
pub(super) fn of_port(status: &Document, host: &Host) -> Vec<Found> {
    let mut found = Vec::new();
    let limits = status.limits.unwrap_or_default();
    if is_nearly_used(&limits.peers) {
        let Limit { used, max } = limits.peers;
        let text = format!(
            "The port has {used} peers of {max}: further ones are refused; raise --max-peers"
        );
        found.push((Code::PeersUsedUp, text));
    }
    if is_nearly_used(&limits.link_memory) {
        let Limit { used, max } = limits.link_memory;
        let text = format!(
            "The rings to peers take {} of {}: frames for peers to which there is no room for a \
             ring are lost (tx_no_link); raise --max-link-memory",
            bytes(used),
            bytes(max)
        );
        found.push((Code::LinkMemoryUsedUp, text));
    }
    if is_nearly_used(&limits.rings) {
        let Limit { used, max } = limits.rings;
        let text = format!(
            "The port has {used} rings of {max}: frames for peers without one are lost \
             (tx_no_link); the limit is 8 times --max-peers, from 8192 to 20,000"
        );
        found.push((Code::RingsUsedUp, text));
    }
    let mappings = host.max_map_count.map(|max| Limit {
        used: limits.rings.used.saturating_mul(MAPPINGS_OF_A_RING),
        max,
    });
    if let Some(Limit { used, max }) = mappings.filter(is_nearly_used) {
        let text = format!(
            "The port's rings take {used} mappings of vm.max_map_count = {max}: no more rings can \
             be made soon; raise it with sysctl"
        );
        found.push((Code::MappingsUsedUp, text));
    }
    if let Some(files) = status.process.and_then(|pid| files(pid, status)) {
        found.push((Code::FilesUsedUp, files));
    }
    found
}

/// Whether a process has too few file descriptors left, and for what.
fn files(pid: u32, status: &Document) -> Option<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let max: u64 = line.split_whitespace().next()?.parse().ok()?;
    let raise = "raise the limit (LimitNOFILE=, ulimit -n)";
    // Only its own user and root may see them.
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok();
    let used = open.map_or(0, Iterator::count) as u64;
    if is_nearly_used(&Limit { used, max }) {
        return Some(format!("The port has {used} open files of {max}: {raise}"));
    }
    // A peer takes one, a ring two; the rest is for other things (docs/segment-protocol.md).
    let limits = status.limits.unwrap_or_default();
    let links = Limit {
        used: limits
            .peers
            .used
            .saturating_add(limits.rings.used.saturating_mul(2)),
        max: max / 4 * 3,
    };
    is_nearly_used(&links).then(|| {
        format!(
            "The port's links take {} file descriptors of {}, which is three quarters of its \
             limit of {max}: {raise}",
            links.used, links.max
        )
    })
}

fn is_nearly_used(limit: &Limit) -> bool {
    limit.max != 0 && limit.used.saturating_mul(100) >= limit.max.saturating_mul(NEARLY_USED)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    use serde_json::{Value, json};

    use super::*;

    fn codes(found: &[Found]) -> Vec<&'static str> {
        found.iter().map(|(code, _)| code.as_str()).collect()
    }

    fn of_status(status: Value, host: &Host) -> Vec<Found> {
        of_port(&Document::answered(&status), host)
    }

    #[test]
    fn limits_of_the_host_are_found_when_they_are_nearly_reached() {
        let proc = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = proc.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(codes(&Host::read_from(proc.path()).findings()), [""; 0]);
        for (name, text) in [
            ("sys/fs/aio-nr", "89\n"),
            ("sys/fs/aio-max-nr", "100\n"),
            ("sys/fs/file-nr", "899\t0\t1000\n"),
            ("loadavg", "0.10 0.20 0.30 2/8999 4711\n"),
            ("sys/kernel/threads-max", "20000\n"),
            ("sys/kernel/pid_max", "10000\n"),
            ("sys/vm/max_map_count", "65530\n"),
        ] {
            write(name, text);
        }
        let host = Host::read_from(proc.path());
        assert_eq!(codes(&host.findings()), [""; 0]);
        assert_eq!(host.max_map_count, Some(65_530));
        write("sys/fs/aio-nr", "90\n");
        write("sys/fs/file-nr", "900\t0\t1000\n");
        write("loadavg", "0.10 0.20 0.30 2/9000 4711\n");
        let found = Host::read_from(proc.path()).findings();
        assert_eq!(
            codes(&found),
            ["aio-used-up", "host-files-used-up", "threads-used-up"]
        );
        assert!(found[0].1.starts_with("90 of fs.aio-max-nr = 100 are used"));
        assert!(
            found[1]
                .1
                .starts_with("900 of fs.file-max = 1000 open files")
        );
        assert!(found[2].1.starts_with("9000 of 10000 threads are used"));
    }

    #[test]
    fn limits_of_the_options_are_found_when_they_are_nearly_reached() {
        let status = |peers: u64, memory: u64, rings: u64| {
            json!({"limits": {
                "peers": {"used": peers, "max": 10},
                "link_memory": {"used": memory, "max": 1_000_000},
                "rings": {"used": rings, "max": 100},
                "max_user_share": 98,
            }})
        };
        let host = Host::default();
        let of = |status| codes(&of_status(status, &host));
        assert_eq!(of(json!({})), [""; 0]);
        assert_eq!(of(status(8, 899_999, 89)), [""; 0]);
        assert_eq!(of(status(9, 0, 0)), ["peers-used-up"]);
        assert_eq!(of(status(0, 900_000, 0)), ["link-memory-used-up"]);
        assert_eq!(of(status(0, 0, 90)), ["rings-used-up"]);
        let host = Host {
            max_map_count: Some(300),
            ..host
        };
        let of = |status| codes(&of_status(status, &host));
        assert_eq!(of(status(0, 0, 89)), [""; 0]);
        assert_eq!(of(status(0, 0, 90)), ["rings-used-up", "mappings-used-up"]);
    }

    /// A process, ended with the test.
    struct Process(Child);

    impl Process {
        fn start() -> Self {
            Self(Command::new("sleep").arg("600").spawn().unwrap())
        }

        fn limit_files(&self, most: u64) {
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            let pid = Pid::from_child(&self.0);
            prlimit(Some(pid), Resource::Nofile, limit).unwrap();
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn limit_of_open_files_is_found_when_it_is_nearly_reached() {
        let process = Process::start();
        let found = |peers: u64, rings: u64| {
            let status = json!({
                "pid": process.0.id(),
                "limits": {
                    "peers": {"used": peers, "max": 1024}, "rings": {"used": rings, "max": 8192},
                },
            });
            of_status(status, &Host::default())
        };
        // It has its three standard streams at least.
        process.limit_files(1000);
        assert_eq!(codes(&found(0, 0)), [""; 0]);
        // Links may have 750.
        assert_eq!(codes(&found(100, 287)), [""; 0]);
        let found_links = found(101, 287);
        assert_eq!(codes(&found_links), ["files-used-up"]);
        assert!(
            found_links[0]
                .1
                .starts_with("The port's links take 675 file descriptors of 750"),
            "{found_links:?}"
        );
        process.limit_files(3);
        let found = found(0, 0);
        assert_eq!(codes(&found), ["files-used-up"]);
        assert!(found[0].1.contains(" open files of 3: raise"), "{found:?}");
    }
}
