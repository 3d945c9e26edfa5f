//! Builds the guest images: a kernel and an initramfs each, from Debian packages, for x86-64.
//!
//! `target/images/` holds one directory an image, with a stamp of all its inputs; an image that is
//! up to date is kept. A new image is built beside the old one and then replaces it as a whole.
//! Unpacked packages stay in `target/images/packages/`, so that a new agent needs no new download.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use virtio_inter_agent::pattern::Checksum;
use virtio_inter_tests::cpio::Archive;

use crate::apt::{self, Apt, Mirror};
use crate::modules;
use crate::root::root;

/// Names of the files of an image.
const KERNEL: &str = "kernel";
const INITRAMFS: &str = "initramfs";
const STAMP: &str = "stamp";
const SHIM: &str = "libvirtio_inter_uml_xstate.so";

const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// The release whose programs all guests run: the first with netperf in its main section.
const USERLAND_SUITE: &str = "trixie";
const USERLAND: &[&str] = &[
    "busybox-static",
    "dash",
    "ethtool",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "keepalived",
    "netperf",
    "sockperf",
    "tcpdump",
];
const PROGRAMS: &[&str] = &[
    "dash",
    "ethtool",
    "ip",
    "iperf3",
    "keepalived",
    "netperf",
    "netserver",
    "ping",
    "sockperf",
    "ss",
    "tcpdump",
];

/// Files of packages without which their programs do not start.
const FILES: &[&str] = &["etc/keepalived/keepalived.config-opts"];

/// The inputs of one image.
struct Recipe {
    name: &'static str,
    suite: &'static str,
    /// The kernel's package.
    package: &'static str,
    /// Whether the package only depends on those that have the kernel.
    is_meta: bool,
    /// Whether the kernel is a program of this machine.
    is_uml: bool,
    modules: &'static [&'static str],
}

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "debian-12",
        suite: "bookworm",
        package: "linux-image-cloud-amd64",
        is_meta: true,
        is_uml: false,
        modules: &[
            "virtio_pci",
            "virtio_console",
            "virtio_net",
            "virtio_mem",
            "ipv6",
            "tcp_diag",
            "8021q",
        ],
    },
    Recipe {
        name: "debian-13",
        suite: "trixie",
        package: "linux-image-cloud-amd64",
        is_meta: true,
        is_uml: false,
        modules: &[
            "virtio_pci",
            "virtio_console",
            "virtio_net",
            "virtio_mem",
            "ipv6",
            "tcp_diag",
            "8021q",
        ],
    },
    // The machine in which guests run under KVM where this one's KVM does not run them.
    Recipe {
        name: "machine",
        suite: "trixie",
        package: "linux-image-cloud-amd64",
        is_meta: true,
        is_uml: false,
        modules: &[
            "virtio_pci",
            "virtio_console",
            "ipv6",
            "kvm_amd",
            "tun",
            "bridge",
            "veth",
            "vxlan",
        ],
    },
    Recipe {
        name: "uml",
        suite: "bookworm",
        package: "user-mode-linux",
        is_meta: false,
        is_uml: true,
        modules: &["virtio_net", "ipv6", "macvlan", "bridge", "veth"],
    },
];

/// The newest kernel, which has all of Landlock that the sandbox uses (from Linux 7.1 on). Only one
/// step of the tests needs it, and a mirror may not have it.
const NEWEST: Recipe = Recipe {
    name: "newest",
    suite: "trixie-backports",
    package: "linux-image-cloud-amd64",
    is_meta: true,
    is_uml: false,
    modules: &["virtio_pci", "virtio_console", "tun", "bridge", "veth"],
};

/// Text files that programs in the guest look at.
const ETC: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n\
         nobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    (
        "etc/protocols",
        "icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\n",
    ),
];

/// The directory of the images.
pub(crate) fn directory() -> PathBuf {
    root().join("target/images")
}

/// Builds the images that are missing or out of date. Returns where they are.
pub(crate) fn ensure() -> Result<PathBuf> {
    ensure_all(RECIPES)
}

/// Builds the image with the newest kernel if it is missing or out of date.
pub(crate) fn ensure_newest() -> Result<()> {
    ensure_all(&[NEWEST]).map(drop)
}

fn ensure_all(recipes: &[Recipe]) -> Result<PathBuf> {
    let directory = directory();
    fs::create_dir_all(&directory).context("Making the image directory")?;
    let lock = File::create(directory.join("lock")).context("Opening the images' lock")?;
    lock.lock()
        .context("Waiting for another build of the images")?;
    let agent = fs::read(build_agent()?).context("Reading the agent")?;
    let shim = build_shim()?;
    for recipe in recipes {
        let stamp = recipe.stamp(&agent, &shim)?;
        let place = directory.join(recipe.name);
        if fs::read_to_string(place.join(STAMP)).is_ok_and(|known| known == stamp) {
            continue;
        }
        println!("Building the image {}", recipe.name);
        let draft = directory.join(format!("{}.new", recipe.name));
        remove(&draft)?;
        fs::create_dir_all(&draft).context("Making the new image's directory")?;
        recipe
            .build(&draft, &agent, &shim)
            .with_context(|| format!("Building the image {}", recipe.name))?;
        fs::write(draft.join(STAMP), stamp).context("Writing the image's stamp")?;
        remove(&place)?;
        fs::rename(&draft, &place).context("Putting the new image into place")?;
    }
    Ok(directory)
}

fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("Removing {}", path.display()))?;
    }
    Ok(())
}

/// Builds with cargo and returns the path of what was asked for below the target directory.
fn cargo_build(arguments: &[&str], flags: Option<&str>, product: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--quiet"])
        .args(arguments)
        .current_dir(root());
    // A target directory of its own: other flags there do not rebuild the workspace.
    command.args(["--target-dir", "target/guest"]);
    if let Some(flags) = flags {
        command.env("RUSTFLAGS", flags);
    }
    let status = command.status().context("Running cargo")?;
    ensure!(
        status.success(),
        "cargo build {} failed",
        arguments.join(" ")
    );
    Ok(root().join("target/guest").join(product))
}

/// The agent is linked statically: it is started before there is anything else.
fn build_agent() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    cargo_build(
        &["--package", "virtio-inter-agent", "--target", TARGET],
        Some("-C target-feature=+crt-static -C strip=symbols"),
        &format!("{TARGET}/release/virtio-inter-agent"),
    )
}

fn build_shim() -> Result<PathBuf> {
    cargo_build(
        &["--package", "virtio-inter-uml-xstate"],
        None,
        &format!("release/{SHIM}"),
    )
}

impl Recipe {
    /// A mark of all that goes into the image; the packages' versions are those of its first build.
    fn stamp(&self, agent: &[u8], shim: &Path) -> Result<String> {
        let mut sum = Checksum::new();
        for source in [
            include_str!("image.rs"),
            include_str!("../../tests/src/cpio.rs"),
            include_str!("modules.rs"),
        ] {
            sum.update(source.as_bytes());
        }
        sum.update(agent);
        if self.is_uml {
            sum.update(&fs::read(shim).context("Reading the FP-state shim")?);
        }
        Ok(format!("{:016x}\n", sum.value()))
    }

    fn build(&self, draft: &Path, agent: &[u8], shim: &Path) -> Result<()> {
        // Another list is another directory, so that a new program is not looked for in the old
        // packages.
        let mut list = Checksum::new();
        list.update(USERLAND.join(" ").as_bytes());
        let userland = format!("{:016x}", list.value());
        let userland = unpacked(USERLAND_SUITE, &userland, |apt, packages| {
            apt.download_with_dependencies(USERLAND, packages)
        })?;
        let kernel = unpacked(self.suite, self.package, |apt, packages| {
            let real = if self.is_meta {
                packages_of_kernel(apt, self.package)?
            } else {
                vec![self.package.to_owned()]
            };
            real.iter()
                .try_for_each(|package| apt.download(package, packages))
        })?;
        let image = draft.join(KERNEL);
        fs::copy(self.kernel(&kernel)?, &image).context("Copying the kernel")?;
        fs::set_permissions(&image, fs::Permissions::from_mode(0o755))
            .context("Copying the kernel")?;
        if self.is_uml {
            fs::copy(shim, draft.join(SHIM)).context("Copying the FP-state shim")?;
        }
        let modules = modules::in_load_order(&self.module_tree(&kernel)?, self.modules)?;
        let file = File::create(draft.join(INITRAMFS)).context("Creating the initramfs")?;
        write_initramfs(file, &userland, agent, &modules)
    }

    fn kernel(&self, packages: &Path) -> Result<PathBuf> {
        if self.is_uml {
            return Ok(packages.join("usr/bin/linux.uml"));
        }
        let beside_modules = self.module_tree(packages)?.join("vmlinuz");
        if beside_modules.is_file() {
            return Ok(beside_modules);
        }
        entries(&packages.join("boot"))?
            .into_iter()
            .find(|path| {
                path.file_name()
                    .and_then(OsStr::to_str)
                    .is_some_and(|name| name.starts_with("vmlinuz-"))
            })
            .context("No vmlinuz in the kernel's package")
    }

    /// The one directory below that of the modules, named after the kernel's release.
    fn module_tree(&self, packages: &Path) -> Result<PathBuf> {
        ["usr/lib/uml/modules", "usr/lib/modules", "lib/modules"]
            .into_iter()
            .map(|path| packages.join(path))
            .find(|path| path.is_dir())
            .and_then(|path| entries(&path).ok()?.into_iter().next())
            .context("No modules in the kernel's package")
    }
}

/// The packages that have the kernel and its modules: the one on which the meta package depends, or
/// those on which that depends in turn (Debian's kernels from 7.0 on).
fn packages_of_kernel(apt: &Apt, meta: &str) -> Result<Vec<String>> {
    let kernel = apt.dependencies(meta)?;
    let kernel = kernel
        .into_iter()
        .find(|name| name.starts_with("linux-image-"));
    let kernel = kernel.with_context(|| format!("{meta} depends on no kernel"))?;
    let mut parts = apt.dependencies(&kernel)?;
    let is_part = |name: &str| {
        let mut kinds = ["linux-base-", "linux-binary-", "linux-modules-"].into_iter();
        kinds.any(|kind| name.starts_with(kind))
    };
    parts.retain(|name| is_part(name));
    if parts.is_empty() {
        parts.push(kernel);
    }
    Ok(parts)
}

/// The packages that `download` fetches from the suite, unpacked as `name`; kept from then on.
pub(crate) fn unpacked(
    suite: &str,
    name: &str,
    download: impl FnOnce(&Apt, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let name = format!("{suite}-{name}");
    let place = directory().join("packages").join(&name);
    if place.is_dir() {
        return Ok(place);
    }
    let security = format!("{suite}-security");
    let mut suites = vec![suite];
    // Backports bring their own.
    if !suite.ends_with("-backports") {
        suites.push(&security);
    }
    let mirror = Mirror::of_this_machine()?;
    let apt = Apt::isolated(&directory().join("apt").join(suite), &mirror, &suites)?;
    let packages = directory().join("packages").join(format!("{name}.debs"));
    let draft = directory().join("packages").join(format!("{name}.new"));
    remove(&packages)?;
    remove(&draft)?;
    fs::create_dir_all(&draft).context("Making the packages' directory")?;
    download(&apt, &packages)?;
    apt::unpack(&packages, &draft)?;
    remove(&packages)?;
    fs::rename(&draft, &place).context("Putting the packages into place")?;
    Ok(place)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let list =
        fs::read_dir(directory).with_context(|| format!("Listing {}", directory.display()))?;
    Ok(list
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?)
}

fn write_initramfs(
    file: File,
    userland: &Path,
    agent: &[u8],
    modules: &[modules::Module],
) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(file));
    let write = |archive: &mut Archive<BufWriter<File>>| -> Result<()> {
        for directory in [
            "bin",
            "dev",
            "etc",
            "etc/keepalived",
            "lib",
            LIBRARIES,
            "lib64",
            "modules",
            "proc",
            "run",
            "sys",
            "tmp",
        ] {
            archive.directory(directory)?;
        }
        // The kernel gives it to the first process, before anything is mounted.
        archive.character_device("dev/console", (5, 1))?;
        archive.file("init", agent)?;
        archive.symlink("bin/agent", "/init")?;
        for (path, text) in ETC {
            archive.file(path, text.as_bytes())?;
        }
        add_modules(archive, modules)?;
        add_programs(archive, userland)
    };
    write(&mut archive).context("Writing the initramfs")?;
    archive
        .finish()
        .and_then(|mut writer| writer.flush())
        .context("Writing the initramfs")
}

fn add_modules(archive: &mut Archive<impl Write>, modules: &[modules::Module]) -> Result<()> {
    let mut order = String::new();
    for module in modules {
        let path = format!("modules/{}.ko", module.name);
        archive.file(&path, &module.content)?;
        order += &format!("/{path}\n");
    }
    Ok(archive.file("modules/order", order.as_bytes())?)
}

fn add_programs(archive: &mut Archive<impl Write>, userland: &Path) -> Result<()> {
    let libraries = userland.join("usr").join(LIBRARIES);
    let mut needed = BTreeMap::new();
    for program in PROGRAMS {
        let path = ["usr/bin", "usr/sbin"]
            .iter()
            .map(|directory| userland.join(directory).join(program))
            .find(|path| path.is_file())
            .with_context(|| format!("No package has {program}"))?;
        for library in libraries_of(&path, &libraries)? {
            needed.insert(library.file_name().map(OsStr::to_owned), library);
        }
        archive.file(&format!("bin/{program}"), &read(&path)?)?;
    }
    for file in FILES {
        archive.file(file, &read(&userland.join(file))?)?;
    }
    for (name, path) in &needed {
        let name = name
            .as_deref()
            .and_then(OsStr::to_str)
            .context("A library without a name")?;
        archive.file(&format!("{LIBRARIES}/{name}"), &read(path)?)?;
    }
    archive.symlink(
        &format!("lib64/{LOADER}"),
        &format!("/{LIBRARIES}/{LOADER}"),
    )?;
    let busybox = userland.join("usr/bin/busybox");
    archive.file("bin/busybox", &read(&busybox)?)?;
    let applets = Command::new(&busybox)
        .arg("--list")
        .output()
        .context("Running busybox")?;
    // Busybox's own shell prefers its applets to the programs of the same name.
    archive.symlink("bin/sh", "dash")?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        if !["busybox", "sh"].contains(&applet) && !PROGRAMS.contains(&applet) {
            archive.symlink(&format!("bin/{applet}"), "busybox")?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Reading {}", path.display()))
}

/// The libraries that the program loads, its loader among them, as its own loader finds them.
fn libraries_of(program: &Path, libraries: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new(libraries.join(LOADER))
        .arg("--library-path")
        .arg(libraries)
        .args(["--inhibit-cache", "--list"])
        .arg(program)
        .output()
        .context("Running the guest's loader")?;
    ensure!(
        output.status.success(),
        "Listing the libraries of {} failed",
        program.display()
    );
    let mut found = vec![libraries.join(LOADER)];
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else {
            continue;
        };
        let path = Path::new(rest.split(" (").next().unwrap_or_default());
        // A library of this machine would do here and be missing in the guest.
        ensure!(
            path.starts_with(libraries) || name.contains(LOADER),
            "No package has {name}"
        );
        if path.starts_with(libraries) {
            found.push(path.to_path_buf());
        }
    }
    Ok(found)
}
