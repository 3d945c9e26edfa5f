//! A libvirtd of a test's own. Its file system is that of Debian 13's packages, which `cargo xtask
//! test` has unpacked beside the images: nothing of it is installed, and nothing on this machine is
//! changed. It runs in namespaces of its own for mounts, processes and the host's name, so two of
//! them are two hosts to libvirt, and each takes its guests with it when it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::{Process, Result, Testbed, images, is_root, process, wait};

/// How long libvirtd may take to start: it asks QEMU what it can do.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a command of virsh may take, moving a guest included.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// The unpacked packages.
const PACKAGES: &str = "trixie-libvirt";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Makes the daemon's file system and runs it: the packages, the image directory, the packages'
/// root, and the name of the host. What is written goes to memory.
const RUN: &str = r#"
place=$1 images=$2 packages=$3 name=$4 bed=$5
echo "$name" >/proc/sys/kernel/hostname
mkdir "$place/system"
mount -t tmpfs tmpfs "$place/system"
cd "$place/system"
mkdir upper work root
mount -t overlay -o "lowerdir=$packages,upperdir=upper,workdir=work" overlay root
mount --rbind /dev root/dev
mount --bind /sys root/sys
mount -t proc proc root/proc
mkdir -p "root$bed" "root$images" root/var/log/libvirt root/run root/tmp
mount --bind "$bed" "root$bed"
mount --bind "$images" "root$images"
mount --bind "$place/log" root/var/log/libvirt
# As the packages' scripts would.
cp root/usr/share/base-passwd/passwd.master root/etc/passwd
cp root/usr/share/base-passwd/group.master root/etc/group
echo "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin" >>root/etc/passwd
printf 'libvirt-qemu:x:64055:\nkvm:x:64056:\nlibvirt:x:64057:\n' >>root/etc/group
cp "$place/qemu.conf" root/etc/libvirt/qemu.conf
# The others need a firewall and devices of the host, and no guest here uses them.
for driver in root/usr/lib/*/libvirt/connection-driver/*; do
    case $driver in *_qemu.so) ;; *) rm "$driver" ;; esac
done
# The shell stays, as the first process has to wait for those that lose their parents.
chroot root /usr/sbin/libvirtd --config "$place/libvirtd.conf" --pid-file /run/libvirtd.pid &
wait $!
"#;

/// All that is of the host is off: users, control groups, security modules, mount namespaces.
const QEMU_CONF: &str = "\
user = \"root\"
group = \"root\"
dynamic_ownership = 0
remember_owner = 0
security_driver = \"none\"
cgroup_controllers = []
namespaces = []
stdio_handler = \"file\"
";

/// A running libvirtd, ended with its guests when dropped.
pub struct Libvirt {
    packages: PathBuf,
    place: PathBuf,
    process: Process,
}

impl Libvirt {
    /// Why this machine cannot run one; `None`: it can.
    pub fn missing() -> Option<String> {
        if !is_root() {
            return Some("libvirt in namespaces of its own needs root".to_owned());
        }
        if packages().is_none() {
            return Some("libvirt is not unpacked: run `cargo xtask setup`".to_owned());
        }
        let probe = "mount -t tmpfs t /tmp && cd /tmp && mkdir upper work root && mount -t overlay \
                     -o lowerdir=/usr,upperdir=upper,workdir=work overlay root";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        let output = command.arg(probe).output();
        match output {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(format!(
                "no overlay file system here: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )),
            Err(error) => Some(format!("no unshare here: {error}")),
        }
    }

    /// Starts one whose host has this name.
    ///
    /// # Errors
    ///
    /// No packages, or one that does not answer in time.
    pub fn start(bed: &Testbed, name: &str) -> Result<Self> {
        let packages = packages().context("libvirt is not unpacked")?;
        let place = bed.path(&format!("libvirt-{name}"));
        fs::create_dir_all(place.join("log")).context("Making libvirt's directory")?;
        fs::write(place.join("qemu.conf"), QEMU_CONF).context("Writing qemu.conf")?;
        fs::write(place.join("libvirtd.conf"), configuration(&place, name))
            .context("Writing libvirtd.conf")?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--uts", "--pid", "--fork", "--kill-child"])
            .args(["--propagation", "private", "sh", "-ec", RUN, "sh"])
            .arg(&place)
            .arg(fs::canonicalize(images::directory()).context("No images")?)
            .arg(&packages)
            .arg(name)
            .arg(bed.directory())
            .stdin(process::no_input().context("Opening an empty input")?);
        let log = bed.path(&format!("libvirtd-{name}.log"));
        let process = Process::start(&format!("libvirtd {name}"), command, &log, &[])?;
        let mut libvirt = Self {
            packages,
            place,
            process,
        };
        let socket = libvirt.socket();
        wait::until("socket of libvirtd", START_LIMIT, || {
            let log = libvirt.process.log();
            ensure!(libvirt.process.is_running(), "It ended: {log}");
            Ok(socket.exists().then_some(()))
        })?;
        libvirt.virsh(bed, &["version"])?;
        Ok(libvirt)
    }

    fn socket(&self) -> PathBuf {
        self.place.join("libvirt-sock")
    }

    /// By which virsh connects to it.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// The command `virsh` of the packages, by their own loader.
    pub(super) fn command(&self) -> Command {
        let libraries = self.packages.join(LIBRARIES);
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command
            .args(["--inhibit-cache", "--library-path"])
            .arg(&libraries)
            .arg(self.packages.join("usr/bin/virsh"))
            .args(["--connect", &self.uri()])
            .env("LC_ALL", "C");
        command
    }

    /// Runs a command of virsh, and returns what it wrote.
    ///
    /// # Errors
    ///
    /// A command that fails, or takes longer than two minutes.
    pub fn virsh(&self, bed: &Testbed, arguments: &[&str]) -> Result<String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("virsh {}", arguments.join(" "));
        let mut command = self.command();
        command
            .args(arguments)
            .stdin(process::no_input().context("Opening an empty input")?);
        let log = bed.path(&format!("virsh-{number}.log"));
        let mut process = Process::start(&name, command, &log, &[])?;
        let status = process
            .wait(COMMAND_LIMIT)
            .with_context(|| format!("libvirtd wrote: {}", self.process.log()))?;
        let text = process.log();
        ensure!(
            status.success(),
            "{name}: {}; libvirtd wrote: {}",
            text.trim(),
            self.process.log().trim()
        );
        Ok(text)
    }
}

/// The unpacked packages, if they are there.
fn packages() -> Option<PathBuf> {
    let place = images::directory().join("packages").join(PACKAGES);
    let place = fs::canonicalize(place).ok()?;
    place.join("usr/sbin/libvirtd").is_file().then_some(place)
}

/// libvirtd's configuration. Hosts are told apart by their names and ids.
fn configuration(place: &Path, name: &str) -> String {
    let number: u32 = name.bytes().map(u32::from).sum();
    let place = place.display();
    format!(
        "unix_sock_dir = \"{place}\"\nunix_sock_group = \"root\"\nunix_sock_rw_perms = \"0700\"\n\
         auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n\
         host_uuid = \"00000000-0000-4000-8000-{number:012}\"\nlog_outputs = \"3:stderr\"\n"
    )
}
