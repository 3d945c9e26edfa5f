//! The files of the working tree.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Paths of all files, with the text of those that the checks read.
pub(crate) struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    /// The files of the working tree below `root` that git does not ignore.
    ///
    /// # Errors
    ///
    /// When git cannot list the files.
    pub(crate) fn read(root: &Path) -> Result<Tree> {
        let output = Command::new("git")
            .current_dir(root)
            .args(["ls-files", "-z", "--cached", "--others"])
            .arg("--exclude-standard")
            .output()
            .context("Cannot run git")?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("git ls-files failed: {}", message.trim());
        }
        let files = String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            // A file that was deleted and is still in the index does not exist.
            .filter(|path| root.join(path).is_file())
            .map(|path| {
                let checked = [".rs", ".md", ".toml"]
                    .iter()
                    .any(|ending| path.ends_with(ending));
                let text = match checked {
                    true => fs::read_to_string(root.join(path))
                        .with_context(|| format!("Cannot read {path}"))?,
                    false => String::new(),
                };
                Ok((path.to_owned(), text))
            })
            .collect::<Result<_>>()?;
        Ok(Tree { files })
    }

    /// Path and text of each file whose name ends with `ending`.
    pub(super) fn ending(&self, ending: &str) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter(move |(path, _)| path.ends_with(ending))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The content of the file `path`.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// Whether `path` is a file or a directory.
    pub(super) fn has(&self, path: &str) -> bool {
        let directory = format!("{}/", path.trim_end_matches('/'));
        path.is_empty()
            || self.files.contains_key(path)
            || self.files.keys().any(|file| file.starts_with(&directory))
    }

    /// Whether a file's path is `path`, or ends with it at a directory's boundary.
    pub(super) fn has_ending(&self, path: &str) -> bool {
        let ending = format!("/{path}");
        self.files.contains_key(path) || self.files.keys().any(|file| file.ends_with(&ending))
    }

    /// A tree of these files.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Tree {
        Tree {
            files: files
                .iter()
                .map(|&(path, text)| (path.to_owned(), text.to_owned()))
                .collect(),
        }
    }
}
