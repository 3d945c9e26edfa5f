//! Circles between the source files of one crate: files that use each other, directly or by way of
//! other files.
//!
//! An edge leads from a file to each file from which it names something: by a path that begins with
//! `crate`, `super`, `self` or a child module, in a `use` or elsewhere. A `pub use` is an edge only
//! for a file that itself uses the name: others depend on the file that defines what they name.
//! Code under `#[cfg(test)]` does not count. Methods have no paths: an `impl` block may be spread
//! over several files.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{self, Use};
use super::tree::Tree;

/// Crates with circles that are still to be broken. A crate leaves this list; none joins.
const CIRCULAR: &[&str] = &[];

/// A module that has a file of its own.
struct Module {
    /// Names from the root of the crate; empty for the root itself.
    path: Vec<String>,
    code: String,
    /// Names of the modules in it that have files.
    children: BTreeSet<String>,
    uses: Vec<Use>,
}

/// The modules of one target, by their files' paths.
type Modules = BTreeMap<String, Module>;

/// One line for each circle.
pub(super) fn findings(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for root in roots(tree) {
        if CIRCULAR.iter().any(|start| root.starts_with(start)) {
            continue;
        }
        let modules = modules(tree, &root);
        found.extend(circles(&edges(&modules)).into_iter().map(|circle| {
            let steps: Vec<&str> = circle
                .iter()
                .map(|file| file.rsplit_once("/src/").map_or(&**file, |(_, name)| name))
                .collect();
            let first = &circle[0];
            format!("{first}:1: files use each other: {}", steps.join(" → "))
        }));
    }
    found
}

/// The files from which libraries and programs begin.
fn roots(tree: &Tree) -> Vec<String> {
    let mut roots: Vec<String> = Vec::new();
    for (path, _) in tree.ending(".rs") {
        if path.ends_with("src/lib.rs") || path.ends_with("src/main.rs") {
            roots.push(path.to_owned());
        }
    }
    roots
}

/// The modules that are reached from the file `root`.
fn modules(tree: &Tree, root: &str) -> Modules {
    let mut found = Modules::new();
    let mut open = vec![(root.to_owned(), Vec::new())];
    while let Some((file, path)) = open.pop() {
        let Some(text) = tree.text(&file) else {
            continue;
        };
        let code = source::without_tests(&source::without_comments(text));
        let mut children = BTreeSet::new();
        for name in source::declared_modules(&code) {
            if let Some(child) = file_of(tree, &file, &name) {
                let mut inner: Vec<String> = path.clone();
                inner.push(name.clone());
                open.push((child, inner));
                children.insert(name);
            }
        }
        let uses = source::uses(&code);
        let module = Module {
            path,
            code,
            children,
            uses,
        };
        found.insert(file, module);
    }
    found
}

/// The file of the module `name` that `parent` declares.
fn file_of(tree: &Tree, parent: &str, name: &str) -> Option<String> {
    let (directory, file) = parent.rsplit_once('/')?;
    let directory = match file {
        "lib.rs" | "main.rs" | "mod.rs" => directory.to_owned(),
        _ => parent.trim_end_matches(".rs").to_owned(),
    };
    [
        format!("{directory}/{name}.rs"),
        format!("{directory}/{name}/mod.rs"),
    ]
    .into_iter()
    .find(|path| tree.text(path).is_some())
}

/// For each file those from which it uses something.
fn edges(modules: &Modules) -> BTreeMap<String, BTreeSet<String>> {
    let mut edges = BTreeMap::new();
    for (file, module) in modules {
        let mut targets = BTreeSet::new();
        let uses = module
            .uses
            .iter()
            .filter(|item| !item.public || source::names_in_code(&module.code, &item.name));
        let paths = uses
            .map(|item| item.path.clone())
            .chain(source::paths(&module.code));
        for path in paths {
            if let Some(path) = absolute(module, &path)
                && let Some(target) = resolve(modules, &path, 0)
                && target != file
            {
                targets.insert(target.to_owned());
            }
        }
        edges.insert(file.clone(), targets);
    }
    edges
}

/// A path from the root of the crate; `None` if it leads out of it.
fn absolute(module: &Module, path: &[String]) -> Option<Vec<String>> {
    let mut base = module.path.clone();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" => base.clear(),
        "self" => {}
        "super" => {
            while rest.first().is_some_and(|name| name == "super") {
                base.pop()?;
                rest = &rest[1..];
            }
            base.extend_from_slice(rest);
            return Some(base);
        }
        child if module.children.contains(child) => {
            base.extend_from_slice(rest);
            return Some(base);
        }
        _ => return None,
    }
    base.extend_from_slice(&rest[1..]);
    Some(base)
}

/// The file that defines what `path` names: through re-exports.
fn resolve<'a>(modules: &'a Modules, path: &[String], depth: usize) -> Option<&'a str> {
    let known = |prefix: &[String]| modules.iter().find(|(_, module)| module.path == prefix);
    let (len, (file, module)) = (0..=path.len())
        .rev()
        .find_map(|len| Some((len, known(&path[..len])?)))?;
    if let Some(name) = path.get(len)
        && depth < 8
    {
        let through = module.uses.iter().find(|item| item.name == *name);
        if let Some(item) = through {
            let target = absolute(module, &item.path)
                .and_then(|target| resolve(modules, &target, depth + 1));
            // None: a name of another crate, here only re-exported.
            return target.or(Some(file));
        }
    }
    Some(file)
}

/// A circle for each group of files that reach each other: the shortest through its first file.
fn circles(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = Vec::new();
    for start in edges.keys() {
        if found.iter().flatten().any(|file| file == start) {
            continue;
        }
        // Breadth first, back to the start.
        let mut from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut open = vec![start.as_str()];
        while !open.is_empty() && !from.contains_key(start.as_str()) {
            let mut next = Vec::new();
            for file in open {
                for target in edges.get(file).into_iter().flatten() {
                    if !from.contains_key(target.as_str()) {
                        from.insert(target, file);
                        next.push(target.as_str());
                    }
                }
            }
            open = next;
        }
        if !from.contains_key(start.as_str()) {
            continue;
        }
        let mut circle = vec![start.clone()];
        let mut file = from[start.as_str()];
        while file != start {
            circle.push(file.to_owned());
            file = from[file];
        }
        circle.push(start.clone());
        circle.reverse();
        found.push(circle);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        findings(&tree(files))
    }

    #[test]
    fn circle_of_two_files_is_found() {
        let root = ("a/src/lib.rs", "mod b;\nmod c;\n");
        let one_way = [
            root,
            ("a/src/b.rs", "use crate::c::{C, D};"),
            ("a/src/c.rs", ""),
        ];
        assert_eq!(found(&one_way), [""; 0]);
        let both = [root, one_way[1], ("a/src/c.rs", "fn f() -> super::b::B {}")];
        let expected = "a/src/b.rs:1: files use each other: b.rs → c.rs → b.rs";
        assert_eq!(found(&both), [expected]);
    }

    #[test]
    fn circle_of_three_files_is_found() {
        let files = [
            ("a/src/main.rs", "mod b;\nmod c; mod d;"),
            ("a/src/b.rs", "use crate::c::C;"),
            ("a/src/c/mod.rs", "use crate::d;"),
            ("a/src/d.rs", "use crate::b;"),
        ];
        let expected = "a/src/b.rs:1: files use each other: b.rs → c/mod.rs → d.rs → b.rs";
        assert_eq!(found(&files), [expected]);
    }

    #[test]
    fn circle_of_parent_and_child_is_found() {
        let child = ("a/src/b/c.rs", "use super::B;");
        let files = [
            ("a/src/lib.rs", "mod b;"),
            ("a/src/b.rs", "mod c;\nuse c::C;\nstruct B(C);"),
            child,
        ];
        assert_eq!(found(&files).len(), 1);
        let shared = ("a/src/b.rs", "mod c;\npub use c::C;\nstruct B(C);");
        assert_eq!(found(&[files[0], shared, child]).len(), 1);
        // Only declared, and implemented there.
        let files = [files[0], ("a/src/b.rs", "mod c;\nstruct B;"), child];
        assert_eq!(found(&files), [""; 0]);
    }

    #[test]
    fn circle_does_not_come_of_a_re_export() {
        let files = [
            ("a/src/lib.rs", "mod b;\npub use b::{c::C, d::D};"),
            (
                "a/src/b/mod.rs",
                "pub(crate) mod c;\npub(crate) mod d;\npub(crate) use c::C;",
            ),
            ("a/src/b/c.rs", ""),
            ("a/src/b/d.rs", "use super::C;\nfn f(_: crate::C) {}"),
        ];
        assert_eq!(found(&files), [""; 0]);
        let back = ("a/src/b/c.rs", "use crate::D;");
        assert_eq!(found(&[files[0], files[1], back, files[3]]).len(), 1);
    }

    #[test]
    fn circle_does_not_come_of_tests_and_comments() {
        let files = [
            ("a/src/lib.rs", "mod b;\nmod c;"),
            ("a/src/b.rs", "use crate::c;"),
            (
                "a/src/c.rs",
                "// crate::b::B\nconst S: &str = \"crate::b::B\";\n\
                 #[cfg(test)]\nmod tests { use crate::b::B; fn f() { '{' } }",
            ),
        ];
        assert_eq!(found(&files), [""; 0]);
    }
}
