//! Reads Rust source as far as the checks need it: the modules that a file declares, the paths that
//! it uses.

/// One name that a `use` brings in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) path: Vec<String>,
    /// The name under which the file has it; `*` for all.
    pub(super) name: String,
    /// Whether others can name it from here.
    pub(super) public: bool,
}

/// The text without comments, and with empty string literals.
pub(super) fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(len) = raw_string(rest) {
            out.push_str("\"\"");
            len
        } else if first == '"' {
            out.push_str("\"\"");
            string(rest)
        } else if let Some(len) = character(rest) {
            out.push_str("' '");
            len
        } else {
            out.push(first);
            // A name whose last letter is an r must not make a raw string of what follows.
            let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
            let len = word.max(first.len_utf8());
            out.push_str(&rest[first.len_utf8()..len]);
            len
        };
        rest = &rest[skip..];
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of a raw string literal at the start of `text`.
fn raw_string(text: &str) -> Option<usize> {
    let start = text.strip_prefix("br").or(text.strip_prefix('r'))?;
    let hashes = start.len() - start.trim_start_matches('#').len();
    let content = start[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let len = content
        .find(&end)
        .map_or(content.len(), |at| at + end.len());
    Some(text.len() - content.len() + len)
}

/// The length of the string literal at the start of `text`.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal at the start of `text`: a lifetime has no second quote.
fn character(text: &str) -> Option<usize> {
    let content = text.strip_prefix('\'')?;
    let mut chars = content.char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        return content[2..].find('\'').map(|at| at + 4);
    }
    match chars.next()? {
        (at, '\'') => Some(at + 2),
        _ => None,
    }
}

/// Code without the items under `#[cfg(test)]` and its like.
pub(super) fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(") {
        let (before, attribute) = rest.split_at(at);
        out.push_str(before);
        let end = attribute.find(")]").map_or(attribute.len(), |end| end + 2);
        let condition = &attribute[..end];
        let of_tests = condition
            .split(|c| !is_word(c))
            .any(|word| word == "test" || word == "loom");
        if of_tests && !condition.contains("not(test") {
            rest = &attribute[end + item_len(&attribute[end..])..];
        } else {
            out.push_str(condition);
            rest = &attribute[end..];
        }
    }
    out.push_str(rest);
    out
}

/// The length of one item: to its semicolon, or to its last brace.
fn item_len(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            ';' if depth == 0 => return at + 1,
            '{' | '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '}' => {
                depth = depth.saturating_sub(1);
                // A `use` goes on after its braces.
                let ends = !code[at + 1..].trim_start().starts_with(';');
                if depth == 0 && ends {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// The names of the modules whose content is in other files.
pub(super) fn declared_modules(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for statement in code.split(';') {
        let mut words = statement.split_whitespace().rev();
        if let (Some(name), Some("mod")) = (words.next(), words.next())
            && name.chars().all(is_word)
        {
            found.push(name.to_owned());
        }
    }
    found
}

/// All names that the file's `use` statements bring in.
pub(super) fn uses(code: &str) -> Vec<Use> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let before = code[..at].trim_end();
        let public = before.ends_with("pub")
            || before.ends_with(')')
                && before.rsplit_once("pub(").is_some_and(|(_, scope)| {
                    scope.chars().all(|c| is_word(c) || c == ')' || c == ':')
                });
        let Some((tree, _)) = code[at + 4..].split_once(';') else {
            continue;
        };
        expand(tree, &[], public, &mut found);
    }
    found
}

/// Adds the names of one tree of a `use`.
fn expand(tree: &str, prefix: &[String], public: bool, found: &mut Vec<Use>) {
    let tree = tree.trim();
    if tree.is_empty() {
        return;
    }
    let mut path = prefix.to_vec();
    if let Some((head, inner)) = tree.split_once('{') {
        path.extend(names(head));
        let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
        for part in split_at_commas(inner) {
            expand(part, &path, public, found);
        }
        return;
    }
    let (full, alias) = match tree.split_once(" as ") {
        Some((full, alias)) => (full, Some(alias.trim().to_owned())),
        None => (tree, None),
    };
    path.extend(names(full));
    // `use a::{self}` names `a`.
    if path.len() > 1 && path.last().is_some_and(|name| name == "self") {
        path.pop();
    }
    let name = alias.or(path.last().cloned()).unwrap_or_default();
    found.push(Use { path, name, public });
}

fn names(path: &str) -> impl Iterator<Item = String> {
    path.split("::")
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
}

/// The parts between the commas that are in no braces.
fn split_at_commas(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let parts = text.split(move |c| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.collect()
}

/// Paths of at least two names outside of `use` statements.
pub(super) fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for statement in split_uses(code) {
        let is_part = |c: char| is_word(c) || c == ':';
        for path in statement.split(|c| !is_part(c)) {
            if path.contains("::") && !path.starts_with(':') {
                found.push(names(path).collect());
            }
        }
    }
    found
}

/// Whether the code uses this name outside of `use` statements.
pub(super) fn names_in_code(code: &str, name: &str) -> bool {
    let mut parts = split_uses(code).into_iter();
    parts.any(|part| part.split(|c| !is_word(c)).any(|word| word == name))
}

/// The code between `use` statements.
fn split_uses(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = code;
    loop {
        let at = rest
            .match_indices("use ")
            .map(|(at, _)| at)
            .find(|at| !rest[..*at].ends_with(is_word));
        let Some(at) = at else {
            found.push(rest);
            return found;
        };
        found.push(&rest[..at]);
        rest = rest[at..].split_once(';').map_or("", |(_, after)| after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<String> {
        names(text).collect()
    }

    #[test]
    fn source_loses_comments_and_literals() {
        let text = "a // x \"\n/* y */b(\"c\\\"d\", 'e', '\\'', r#\"f\"g\"#, &'h str, for\"\")";
        assert_eq!(
            without_comments(text),
            "a \nb(\"\", ' ', ' ', \"\", &'h str, for\"\")"
        );
    }

    #[test]
    fn source_loses_tests() {
        let code = "mod a;\n#[cfg(test)]\n#[path = \"\"]\nmod b;\n\
                    #[cfg(test)]\nmod c { fn f() {} }\n\
                    #[cfg(all(test, not(loom)))] use d::{e, f};\nmod g;";
        assert_eq!(without_tests(code), "mod a;\n\n\n\nmod g;");
        let other = "#[cfg(not(test))] mod a;\n#[cfg(unix)] mod b;";
        assert_eq!(without_tests(other), other);
    }

    #[test]
    fn source_names_what_it_uses() {
        let code = "pub(crate) use a::{b, c::{self, D as E}};\nuse crate::f;\nfn g() { h::i(); }";
        let uses = uses(code);
        let found: Vec<_> = uses
            .iter()
            .map(|item| (item.path.join("::"), item.name.as_str(), item.public))
            .collect();
        let expected = [
            ("a::b", "b", true),
            ("a::c", "c", true),
            ("a::c::D", "E", true),
            ("crate::f", "f", false),
        ];
        assert_eq!(
            found,
            expected.map(|(path, name, public)| (path.to_owned(), name, public))
        );
        assert_eq!(paths(code), [path("h::i")]);
    }

    #[test]
    fn source_declares_modules() {
        let code = "mod a;\npub(crate) mod b;\nmod c { }\nfn f() {}\npub mod d;";
        assert_eq!(declared_modules(code), ["a", "b", "d"]);
    }
}
