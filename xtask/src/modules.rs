//! Kernel modules of a guest, in the order of their dependencies.
//!
//! Debian's kernel packages have no `modules.dep` (it is made when they are installed), so the
//! dependencies are read from the modules themselves.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// A module, ready to load.
pub(crate) struct Module {
    /// Its name, with underscores.
    pub(crate) name: String,
    /// The uncompressed object file.
    pub(crate) content: Vec<u8>,
}

/// The modules `wanted` of the kernel whose modules are in `tree`, each after those on which it
/// depends. Modules that are built into that kernel are left out.
pub(crate) fn in_load_order(tree: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    collect(tree, &mut files).with_context(|| format!("Listing {}", tree.display()))?;
    let built_in = fs::read_to_string(tree.join("modules.builtin"))
        .context("Reading the list of built-in modules")?;
    let built_in: Vec<String> = built_in
        .lines()
        .filter_map(|line| name_of(Path::new(line)))
        .collect();
    let mut order = Vec::new();
    for name in wanted {
        add(name, &files, &built_in, &mut order)?;
    }
    Ok(order)
}

fn add(
    name: &str,
    files: &HashMap<String, PathBuf>,
    built_in: &[String],
    order: &mut Vec<Module>,
) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(path) = files.get(name) else {
        ensure!(
            built_in.iter().any(|known| known == name),
            "The kernel has no module {name}"
        );
        return Ok(());
    };
    let content = read(path)?;
    for dependency in dependencies(&content) {
        add(&dependency, files, built_in, order)?;
    }
    order.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

fn collect(directory: &Path, files: &mut HashMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some(name) = name_of(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// The module's name if the path is one's: the kernel takes hyphens for underscores.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name().and_then(OsStr::to_str)?;
    let stem = file
        .strip_suffix(".xz")
        .unwrap_or(file)
        .strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension() != Some(OsStr::new("xz")) {
        return fs::read(path).with_context(|| format!("Reading {}", path.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("Running xz")?;
    if !output.status.success() {
        bail!(
            "Unpacking {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// The names in the `depends=` entry of the module's `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[start + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_depend_on_and_once() {
        let tree = std::env::temp_dir().join(format!("modules-{}", std::process::id()));
        fs::create_dir_all(tree.join("kernel")).unwrap();
        let write = |name: &str, depends: &str| {
            let content = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(tree.join("kernel").join(name), content).unwrap();
        };
        write("net-top.ko", "middle,base");
        write("middle.ko", "base");
        write("base.ko", "");
        fs::write(tree.join("modules.builtin"), "kernel/inside.ko\n").unwrap();
        let order = in_load_order(&tree, &["net_top", "inside"]).unwrap();
        let names: Vec<&str> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["base", "middle", "net_top"]);
        assert!(in_load_order(&tree, &["absent"]).is_err());
        fs::remove_dir_all(tree).unwrap();
    }
}
