//! `cargo xtask style`: line widths, circles between source files, decision records, the table of
//! bounds in the threat model, and links, file names and addresses in documents.
//!
//! `cargo xtask test` runs it as a step. It reads the files that git tracks or would track, and
//! reports each finding as `path:line: text`.

mod addresses;
mod bounds;
mod circles;
mod markdown;
mod records;
mod source;
mod tree;

use markdown::{code_spans, outside_code};
pub(crate) use tree::Tree;

/// Columns of a line of Rust, comments included, at most.
const RUST_COLUMNS: usize = 100;

/// Columns of a line of Markdown prose, at most.
const MARKDOWN_COLUMNS: usize = 120;

/// Written by a program: neither wrapped nor linked by hand.
const GENERATED: [&str; 2] = ["bench/REPORT.md", "bench/history/machines.md"];

/// All findings in `tree`, as `path:line: text`.
pub(crate) fn findings(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.ending(".rs") {
        for (index, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > RUST_COLUMNS {
                let line = index + 1;
                found.push(format!(
                    "{path}:{line}: {columns} columns; at most {RUST_COLUMNS}"
                ));
            }
        }
    }
    for (path, text) in tree.ending(".md") {
        if GENERATED.contains(&path) {
            continue;
        }
        for (line, prose) in prose(text) {
            if is_too_wide(prose) {
                found.push(format!(
                    "{path}:{line}: {} columns; wrap prose at {MARKDOWN_COLUMNS}",
                    prose.chars().count()
                ));
            }
        }
        found.extend(links(tree, path, text));
        found.extend(names(tree, path, text));
    }
    found.extend(records::findings(tree));
    found.extend(bounds::findings(tree));
    found.extend(addresses::findings(tree));
    found.extend(circles::findings(tree));
    found
}

/// Lines that can be wrapped: no code, no tables.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    outside_code(text).filter(|(_, line)| !line.trim_start().starts_with('|'))
}

/// Whether a line of prose has too many columns, and could be wrapped: a single link cannot.
fn is_too_wide(line: &str) -> bool {
    let content = line.trim_start_matches([' ', '-', '*', '>']);
    let only_a_link =
        content.starts_with('[') && content.ends_with(')') || !content.trim_end().contains(' ');
    line.chars().count() > MARKDOWN_COLUMNS && !only_a_link
}

/// Relative links of a document that lead to no file.
fn links(tree: &Tree, path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (line, content) in outside_code(text) {
        for rest in content.split("](").skip(1) {
            let Some((target, _)) = rest.split_once(')') else {
                continue;
            };
            let file = target.split('#').next().unwrap_or_default();
            if target.contains("://") || file.is_empty() {
                continue;
            }
            if !resolve(path, file).is_some_and(|file| tree.has(&file)) {
                found.push(format!("{path}:{line}: the link to {target} leads nowhere"));
            }
        }
    }
    found
}

/// `relative` as seen from the directory of the file `from`; `None` above the root.
fn resolve(from: &str, relative: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// Source files that a document names in code font, and that do not exist. A name may leave out
/// leading directories. The changelog may name old files. CONTRIBUTING.md also names directories.
fn names(tree: &Tree, path: &str, text: &str) -> Vec<String> {
    if path == "CHANGELOG.md" {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (line, content) in outside_code(text) {
        for name in code_spans(content) {
            let is_source = name.ends_with(".rs") && !name.contains([' ', '*', '{', '<', '…']);
            if is_source && !tree.has_ending(name) {
                found.push(format!("{path}:{line}: there is no file {name}"));
            }
            let is_directory = path == "CONTRIBUTING.md" && name.ends_with('/');
            if is_directory && !name.starts_with("target") && !tree.has(name) {
                found.push(format!("{path}:{line}: there is no directory {name}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of these files.
    pub(super) fn tree(files: &[(&str, &str)]) -> Tree {
        Tree::of(files)
    }

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        findings(&tree(files))
    }

    #[test]
    fn rust_over_100_columns_is_found() {
        let fits = format!("// {}", "ä".repeat(97));
        assert_eq!(found(&[("a.rs", &fits)]), [""; 0]);
        let expected = "a.rs:2: 101 columns; at most 100";
        assert_eq!(found(&[("a.rs", &format!("\n{fits}b\n"))]), [expected]);
    }

    #[test]
    fn prose_over_120_columns_is_found() {
        let fits = "ab ".repeat(40);
        assert_eq!(found(&[("a.md", &fits)]), [""; 0]);
        let wide = format!("# A\n\n{fits}c\n");
        let expected = "a.md:3: 121 columns; wrap prose at 120";
        assert_eq!(found(&[("a.md", &wide)]), [expected]);
        let counted_by_characters = "äö ".repeat(40);
        assert_eq!(found(&[("a.md", &counted_by_characters)]), [""; 0]);
    }

    #[test]
    fn lines_that_cannot_be_wrapped_are_left_alone() {
        let wide = "ab ".repeat(50);
        let table = format!("| {wide} |\n");
        let code = format!("```\n{wide}\n```\n");
        let address = format!("- [two words](https://example.org/{})\n", "a".repeat(120));
        for text in [table, code, address] {
            assert_eq!(found(&[("a.md", &text)]), [""; 0]);
        }
        assert_eq!(found(&[("bench/REPORT.md", &wide)]), [""; 0]);
        let behind_code = format!("```\n```\n{wide}\n");
        assert_eq!(found(&[("a.md", &behind_code)]).len(), 1);
    }

    #[test]
    fn links_to_missing_files_are_found() {
        let text = "See [b](b.md#part), [c](../README.md), [d](.) and [e](https://example.org).\n";
        let files = [("docs/a.md", text), ("docs/b.md", ""), ("README.md", "")];
        assert_eq!(found(&files), [""; 0]);
        let expected = "docs/a.md:1: the link to b.md#part leads nowhere";
        assert_eq!(found(&[files[0], files[2]]), [expected]);
        let above = ("a.md", "[a](../b.md)");
        assert_eq!(found(&[above]).len(), 1);
    }

    #[test]
    fn names_of_missing_source_files_are_found() {
        let files = [("a.md", "`src/b.rs`, `b.rs`\n"), ("c/src/b.rs", "")];
        assert_eq!(found(&files), [""; 0]);
        let expected = [
            "a.md:1: there is no file src/b.rs",
            "a.md:1: there is no file b.rs",
        ];
        assert_eq!(found(&[files[0], ("c/src/ab.rs", "")]), expected);
        assert_eq!(found(&[("CHANGELOG.md", "`b.rs`")]), [""; 0]);
        let directory = ("CONTRIBUTING.md", "`c/`, `d/`, `target/`");
        let expected = "CONTRIBUTING.md:1: there is no directory d/";
        assert_eq!(found(&[directory, files[1]]), [expected]);
    }

    #[test]
    fn tree_of_this_repository_is_read() {
        let tree = Tree::read(&crate::root::root()).unwrap();
        assert!(tree.has("xtask/src/style.rs") && tree.has("docs/decisions/"));
        assert!(!tree.has("target") && tree.ending(".rs").count() > 100);
    }
}
