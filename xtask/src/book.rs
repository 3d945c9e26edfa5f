//! `cargo xtask book`: the documents as one book with a search, in `target/book`.
//!
//! `docs/SUMMARY.md` has the chapters. mdBook (<https://rust-lang.github.io/mdBook/>) makes pages
//! of a copy in which each document has the place that it has in the project: links lead to the
//! same documents as there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::root::root;
use crate::tools::Tool;

const MDBOOK: Tool = Tool {
    name: "mdbook",
    version: &["--version"],
    install: &[
        "--quiet",
        "--version",
        "0.5.4",
        "--no-default-features",
        "--features",
        "search",
    ],
};

/// The list of chapters.
const SUMMARY: &str = "docs/SUMMARY.md";

/// What mdBook has to know of the book.
const CONFIGURATION: &str = "\
[book]
title = \"virtio-inter\"
language = \"en\"
src = \"src\"

[build]
build-dir = \"html\"
create-missing = false
";

/// Makes the book. Returns the path of its first page.
///
/// # Errors
///
/// When mdBook cannot be installed, or finds a fault.
pub(crate) fn make() -> Result<PathBuf> {
    let book = root().join("target").join("book");
    if book.exists() {
        fs::remove_dir_all(&book).with_context(|| format!("Removing {}", book.display()))?;
    }
    let source = book.join("src");
    for directory in ["docs", "docs/images", "docs/decisions", "bench/history"] {
        copy(directory, &source)?;
    }
    for file in [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
    ] {
        copy_file(Path::new(file), &source)?;
    }
    let summary = fs::read_to_string(root().join(SUMMARY))?;
    fs::write(source.join("SUMMARY.md"), from_root(&summary))?;
    fs::write(book.join("book.toml"), CONFIGURATION)?;
    let status = Command::new(MDBOOK.program()?)
        .arg("build")
        .arg(&book)
        .status()
        .context("Cannot run mdbook")?;
    ensure!(status.success(), "mdbook ended with {status}");
    let first = book.join("html").join("index.html");
    ensure!(first.is_file(), "mdbook made no {}", first.display());
    Ok(first)
}

/// Copies the documents of a directory of the project.
fn copy(directory: &str, to: &Path) -> Result<()> {
    let entries =
        fs::read_dir(root().join(directory)).with_context(|| format!("Listing {directory}"))?;
    for entry in entries {
        let path = Path::new(directory).join(entry?.file_name());
        let is_document = ["md", "json", "svg"]
            .into_iter()
            .any(|kind| path.extension().is_some_and(|extension| extension == kind));
        if is_document && path != Path::new(SUMMARY) {
            copy_file(&path, to)?;
        }
    }
    Ok(())
}

fn copy_file(path: &Path, to: &Path) -> Result<()> {
    let target = to.join(path);
    let failed = || format!("Copying {}", path.display());
    fs::create_dir_all(target.parent().unwrap_or(to)).with_context(failed)?;
    let text = fs::read_to_string(root().join(path)).with_context(failed)?;
    fs::write(target, to_index(&text)).with_context(failed)
}

/// A document with links as mdBook needs them: it makes `index.html` of a `README.md`, and leaves
/// links to it as they are.
fn to_index(text: &str) -> String {
    text.replace("README.md)", "index.md)")
        .replace("README.md#", "index.md#")
}

/// The list of chapters with links from the project's root in place of `docs/`.
fn from_root(summary: &str) -> String {
    summary
        .replace("](../", "](\u{0}")
        .replace("](", "](docs/")
        .replace("](docs/\u{0}", "](")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn book_links_lead_from_the_root() {
        let summary = "[A](../README.md)\n- [B](b.md)\n";
        assert_eq!(from_root(summary), "[A](README.md)\n- [B](docs/b.md)\n");
    }

    #[test]
    fn book_links_to_a_readme_lead_to_its_page() {
        let text = "[A](README.md), [b](../README.md#part), [c](c.md), `README.md`";
        let expected = "[A](index.md), [b](../index.md#part), [c](c.md), `README.md`";
        assert_eq!(to_index(text), expected);
    }

    #[test]
    fn book_has_every_document() {
        let summary = fs::read_to_string(root().join(SUMMARY)).unwrap();
        let chapters: BTreeSet<&str> = summary
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
            .collect();
        for directory in ["docs", "docs/decisions", "bench/history"] {
            for entry in fs::read_dir(root().join(directory)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let path = format!("{directory}/{name}");
                let of_docs = match path.strip_prefix("docs/") {
                    Some(path) => path.to_owned(),
                    None => format!("../{path}"),
                };
                assert!(
                    !name.ends_with(".md") || path == SUMMARY || chapters.contains(&*of_docs),
                    "{path} is in no chapter of {SUMMARY}"
                );
            }
        }
    }
}
