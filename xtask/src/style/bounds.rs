//! The table of bounds in the threat model: each row names tests that exist.

use super::markdown::code_spans;
use super::records::functions;
use super::tree::Tree;

const DOCUMENT: &str = "docs/threat-model.md";
/// Begins the table.
const HEADER: &str = "| what | who | at most | option | held by |";

/// All findings about the table, as `path:line: text`.
pub(super) fn findings(tree: &Tree) -> Vec<String> {
    let functions = functions(tree);
    let text = tree.text(DOCUMENT).unwrap_or_default();
    let lines = text.lines().enumerate();
    let table = lines.skip_while(|(_, line)| *line != HEADER).skip(2);
    let rows = table.take_while(|(_, line)| line.starts_with('|'));
    let mut found = Vec::new();
    for (index, row) in rows {
        let mut report = |text: &str| found.push(format!("{DOCUMENT}:{}: {text}", index + 1));
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, _, _, _, held_by] = cells[..] else {
            report("a row of the table of bounds has five cells");
            continue;
        };
        if held_by.is_empty() {
            report("no test holds the bound: write its name, or –");
        }
        for span in code_spans(held_by).filter(|span| !functions.contains(span)) {
            report(&format!("there is no test {span}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn bound_whose_test_is_gone_is_found() {
        let with = |row: &str| {
            let text = format!("# T\n\n{HEADER}\n| --- | --- | --- | --- | --- |\n{row}\n\nText\n");
            findings(&tree(&[
                (DOCUMENT, &text),
                ("a/src/lib.rs", "fn thing_is_bounded() {}\n"),
            ]))
        };
        assert_eq!(with("| a | b | 1 | – | `thing_is_bounded` |"), [""; 0]);
        assert_eq!(with("| a | b | no bound | – | – |"), [""; 0]);
        let found = with("| a | b | 1 | – | `thing_is_bounded`, `other` |");
        assert_eq!(found, ["docs/threat-model.md:5: there is no test other"]);
        assert_eq!(with("| a | b | 1 | `thing_is_bounded` |").len(), 1);
    }
}
