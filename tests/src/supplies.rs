//! Contents of a nested machine: its kernel, and the files of this machine that it is given.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::cpio::Archive;
use crate::images::Image;
use crate::{Kernel, Result, vmm};

/// Directory of the files given to the machine …
pub(crate) const HOST: &str = "/host";
/// … and what it calls the program that is to run there.
pub(crate) const PROGRAM: &str = "program";

/// Contents of a machine.
pub struct Supplies {
    image: Image,
    /// Where they are here, by their path in there.
    files: BTreeMap<String, PathBuf>,
}

impl Supplies {
    /// The contents of a machine in which Cloud Hypervisor runs: `program`, the port's program,
    /// Cloud Hypervisor and the guests' images.
    ///
    /// # Errors
    ///
    /// A file that the user did not build.
    pub fn new(program: &Path, port: &Path) -> Result<Self> {
        Ok(Self {
            image: Image::of_machine()?,
            files: contents(program, port)?,
        })
    }

    /// The contents of a machine with the newest kernel of Debian's backports: `program`, and
    /// `others`, each with its path in there.
    ///
    /// # Errors
    ///
    /// An image that the user did not build, or a program without its libraries.
    pub fn of_newest_kernel(program: &Path, others: &[(String, PathBuf)]) -> Result<Self> {
        let mut files = BTreeMap::new();
        add_program(&mut files, &format!("{HOST}/bin/{PROGRAM}"), program)?;
        for (name, path) in others {
            add_program(&mut files, name, path)?;
        }
        Ok(Self {
            image: Image::of_newest_kernel()?,
            files,
        })
    }

    pub(crate) fn kernel(&self) -> &Path {
        &self.image.kernel
    }

    /// Writes an initramfs with the image's files and these: Linux takes several archives one
    /// after the other.
    pub(crate) fn write_initramfs(&self, target: &Path) -> io::Result<()> {
        let mut writer = BufWriter::new(File::create(target)?);
        io::copy(&mut File::open(&self.image.initramfs)?, &mut writer)?;
        let mut archive = Archive::new(writer);
        let mut made: Vec<PathBuf> = Vec::new();
        for (name, source) in &self.files {
            let path = Path::new(name.trim_start_matches('/'));
            let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
            parents.reverse();
            for parent in parents {
                let text = parent.to_string_lossy();
                if !text.is_empty() && !made.iter().any(|known| known == parent) {
                    archive.directory(&text)?;
                    made.push(parent.to_path_buf());
                }
            }
            archive.file(&path.to_string_lossy(), &fs::read(source)?)?;
        }
        archive.finish()?.flush()
    }
}

/// Adds a program and the libraries that it loads.
fn add_program(files: &mut BTreeMap<String, PathBuf>, name: &str, program: &Path) -> Result<()> {
    for (library, path) in libraries(program)? {
        files.insert(format!("{HOST}/lib/{library}"), path);
    }
    files.insert(name.to_owned(), program.to_path_buf());
    Ok(())
}

/// Files given to the machine, by path.
fn contents(program: &Path, port: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let cloud_hypervisor = vmm::program().context("No cloud-hypervisor")?;
    let mut files = BTreeMap::new();
    let mut programs = vec![
        (PROGRAM, program.to_path_buf()),
        ("virtio-inter", port.to_path_buf()),
        ("cloud-hypervisor", cloud_hypervisor),
        ("ch-remote", vmm::remote_program()?),
    ];
    // The launcher and its like, where they were built.
    for name in ["cloud-hypervisor-ext", "ch-remote-ext"] {
        let path = port.with_file_name(name);
        if path.is_file() {
            programs.push((name, path));
        }
    }
    for (name, path) in programs {
        add_program(&mut files, &format!("{HOST}/bin/{name}"), &path)?;
    }
    for (path, is_program) in qemu_files() {
        let name = path.display().to_string();
        if is_program {
            add_program(&mut files, &name, &path)?;
        } else {
            files.insert(name, path);
        }
    }
    let uml = Image::of_uml()?;
    for file in [uml.kernel, uml.initramfs, uml.shim] {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        files.insert(format!("{HOST}/images/uml/{name}"), file);
    }
    for kernel in [Kernel::Debian12, Kernel::Debian13] {
        let image = Image::of_kernel(kernel)?;
        let name = kernel.image_name();
        files.insert(format!("{HOST}/images/{name}/kernel"), image.kernel);
        files.insert(format!("{HOST}/images/{name}/initramfs"), image.initramfs);
    }
    Ok(files)
}

/// QEMU and what it loads when it starts, as far as it is here; true: a program.
fn qemu_files() -> Vec<(PathBuf, bool)> {
    let firmware = ["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin"];
    let places = ["/usr/share/qemu", "/usr/share/seabios"];
    let mut files = vec![(PathBuf::from("/usr/bin/qemu-system-x86_64"), true)];
    for place in places {
        files.extend(firmware.map(|name| (Path::new(place).join(name), false)));
    }
    // Interfaces have a boot image, which nobody boots from.
    files.push(("/usr/lib/ipxe/qemu/efi-virtio.rom".into(), false));
    files.retain(|(path, _)| path.is_file());
    files
}

/// The libraries that a program of this machine loads, except those that all programs in the
/// machine have.
fn libraries(program: &Path) -> Result<Vec<(String, PathBuf)>> {
    const IMAGE: [&str; 9] = [
        "libc.so.6",
        "libm.so.6",
        "libdl.so.2",
        "librt.so.1",
        "libpthread.so.0",
        "libresolv.so.2",
        "libgcc_s.so.1",
        "libstdc++.so.6",
        "ld-linux-x86-64.so.2",
    ];
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("Running ldd")?;
    let mut found = Vec::new();
    // A program without libraries makes ldd fail, which says nothing.
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else {
            continue;
        };
        let path = rest.split(" (").next().unwrap_or_default();
        if !IMAGE.contains(&name) {
            ensure!(
                path.starts_with('/'),
                "{} needs {name}, which is not here",
                program.display()
            );
            found.push((name.to_owned(), path.into()));
        }
    }
    Ok(found)
}
