//! The decision records: their form, their tests, and their citations.

use std::collections::BTreeSet;

use super::markdown::code_spans;
use super::tree::Tree;

/// The directory of the records.
const DIRECTORY: &str = "docs/decisions/";

/// Words of a record below its header, at most.
const WORDS: usize = 300;

/// All findings about records, as `path: text`.
pub(super) fn findings(tree: &Tree) -> Vec<String> {
    let functions = functions(tree);
    let cited = cited(tree);
    let index = tree.text("docs/decisions/README.md");
    let mut found = Vec::new();
    let mut numbers = BTreeSet::new();
    for (path, text) in tree.ending(".md") {
        let Some(name) = path.strip_prefix(DIRECTORY) else {
            continue;
        };
        let Some(number) = number(name) else {
            continue;
        };
        if !numbers.insert(number) {
            found.push(format!("{path}: another record has the number {number}"));
        }
        let mut report = |text: String| found.push(format!("{path}: {text}"));
        let record = match Record::parse(number, text) {
            Ok(record) => record,
            Err(missing) => {
                report(missing);
                continue;
            }
        };
        let words = record.body.split_whitespace().count();
        if words > WORDS {
            report(format!("{words} words; a record has at most {WORDS}"));
        }
        for span in code_spans(&record.held_by) {
            let is_path = span.contains(['/', '.']);
            // "scheduler_…" stands for all tests whose names begin so.
            let is_test = match span.strip_suffix('…') {
                Some(start) => functions.iter().any(|name| name.starts_with(start)),
                None => functions.contains(span),
            };
            if is_path && !tree.has(span) {
                report(format!("there is no {span}, which holds it"));
            } else if !is_path && !is_test {
                report(format!("there is no test {span}"));
            }
        }
        if !record.held_by.contains(['`']) && !record.held_by.starts_with("no test") {
            report("\"Held by\" names no test and does not say \"no test\"".into());
        }
        if record.status == "accepted" && !cited.contains(number) {
            report(format!("no source file cites \"decision {number}\""));
        }
        // The index has no link in the column of the status.
        let status = record.status.split('(').next().unwrap_or_default();
        let status = status.replace(['[', ']'], "");
        let row = format!("| [{number}]({name}) | {} | {status} |", record.title);
        if !index.is_some_and(|index| index.lines().any(|line| line == row)) {
            report(format!("README.md lacks the row {row}"));
        }
    }
    let missing = cited.iter().filter(|number| !numbers.contains(*number));
    found.extend(
        missing.map(|number| format!("a source file cites decision {number}, which is missing")),
    );
    found
}

/// The number of a record, in front of its file name.
fn number(name: &str) -> Option<&str> {
    let (number, _) = name.split_once('-')?;
    is_number(number).then_some(number)
}

fn is_number(text: &str) -> bool {
    text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A record: title, header and text.
struct Record<'a> {
    title: &'a str,
    status: &'a str,
    held_by: String,
    body: &'a str,
}

impl<'a> Record<'a> {
    /// Or what is wrong with its form.
    fn parse(number: &str, text: &'a str) -> Result<Record<'a>, String> {
        let title = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix(&format!("# {number}: ")))
            .ok_or_else(|| format!("its first line is not \"# {number}: title\""))?;
        let mut parts = text.splitn(3, "\n\n").skip(1);
        let header = parts.next().unwrap_or_default();
        let (status, held_by) = header
            .strip_prefix("- Status: ")
            .and_then(|rest| rest.split_once("\n- Held by: "))
            .ok_or("its header is not \"- Status: …\" and \"- Held by: …\"")?;
        let successor = status
            .strip_prefix("superseded by [")
            .and_then(|rest| rest.split(']').next());
        if !["accepted", "void"].contains(&status) && !successor.is_some_and(is_number) {
            return Err(format!(
                "its status \"{status}\" is none of accepted, superseded by [NNNN](file), void"
            ));
        }
        Ok(Record {
            title,
            status,
            held_by: held_by.replace("\n  ", " "),
            body: parts.next().unwrap_or_default(),
        })
    }
}

/// The names of all functions.
pub(super) fn functions(tree: &Tree) -> BTreeSet<&str> {
    tree.ending(".rs")
        .flat_map(|(_, text)| text.lines())
        .filter_map(|line| {
            line.trim_start()
                .trim_start_matches("pub ")
                .strip_prefix("fn ")
        })
        .filter_map(|rest| rest.split(['(', '<']).next())
        .collect()
}

/// The numbers that sources cite, as `decision 0001`, `decisions 0001` or by a record's path.
fn cited(tree: &Tree) -> BTreeSet<&str> {
    let sources = tree.ending(".rs").chain(tree.ending(".toml"));
    sources
        // Its tests cite records of their own.
        .filter(|(path, _)| !path.starts_with("xtask/src/style"))
        .flat_map(|(_, text)| {
            let after = |word| text.split(word).skip(1);
            after("ecision ")
                .chain(after("decisions/"))
                .chain(after("ecisions "))
        })
        .filter_map(|rest| rest.get(..4))
        .filter(|number| is_number(number))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    const INDEX: &str = "| [0001](0001-a.md) | A thing | accepted |\n";
    const RECORD: &str = "# 0001: A thing\n\n\
         - Status: accepted\n- Held by: `thing_works`\n  (`a/src/`)\n\n\
         **Decision.** A thing.\n";
    const SOURCE: &str = "//! See decision 0001.\n#[test]\nfn thing_works() {}\n";

    /// The findings about one record, with an index and a source beside it.
    fn about(record: &str, index: &str, source: &str) -> Vec<String> {
        findings(&tree(&[
            ("docs/decisions/0001-a.md", record),
            ("docs/decisions/README.md", index),
            ("a/src/lib.rs", source),
        ]))
    }

    #[test]
    fn record_with_test_citation_and_row_is_accepted() {
        assert_eq!(about(RECORD, INDEX, SOURCE), [""; 0]);
        let without_a_test = RECORD.replace("`thing_works`\n  (`a/src/`)", "no test");
        assert_eq!(about(&without_a_test, INDEX, SOURCE), [""; 0]);
        let cited_by_path = SOURCE.replace("decision 0001", "`docs/decisions/0001-a.md`");
        assert_eq!(about(RECORD, INDEX, &cited_by_path), [""; 0]);
    }

    #[test]
    fn record_over_300_words_is_found() {
        let at_most = format!("{RECORD}{}", "word ".repeat(297));
        assert_eq!(about(&at_most, INDEX, SOURCE), [""; 0]);
        let over = format!("{RECORD}{}", "word ".repeat(298));
        let expected = "docs/decisions/0001-a.md: 301 words; a record has at most 300";
        assert_eq!(about(&over, INDEX, SOURCE), [expected]);
    }

    #[test]
    fn record_whose_test_is_gone_is_found() {
        let other = SOURCE.replace("thing_works", "thing_works_well");
        let expected = "docs/decisions/0001-a.md: there is no test thing_works";
        assert_eq!(about(RECORD, INDEX, &other), [expected]);
        let elsewhere = RECORD.replace("a/src/", "b/src/");
        assert_eq!(about(&elsewhere, INDEX, SOURCE).len(), 1);
        let start = RECORD.replace("thing_works", "thing_…");
        assert_eq!(about(&start, INDEX, SOURCE), [""; 0]);
        assert_eq!(
            about(&start.replace("thing_", "other_"), INDEX, SOURCE).len(),
            1
        );
        let vague = RECORD.replace("`thing_works`\n  (`a/src/`)", "a test");
        assert_eq!(about(&vague, INDEX, SOURCE).len(), 1);
    }

    #[test]
    fn record_that_no_source_cites_is_found() {
        let silent = SOURCE.replace("decision 0001", "the record");
        let expected = "docs/decisions/0001-a.md: no source file cites \"decision 0001\"";
        assert_eq!(about(RECORD, INDEX, &silent), [expected]);
        let void = RECORD.replace("accepted", "void");
        let index = INDEX.replace("accepted", "void");
        assert_eq!(about(&void, &index, &silent), [""; 0]);
        let superseded = RECORD.replace("accepted", "superseded by [0002](0002-b.md)");
        let index = INDEX.replace("accepted", "superseded by 0002");
        let found = about(&superseded, &index, &silent);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn record_that_is_cited_and_missing_is_found() {
        let both = SOURCE.replace("decision 0001", "decision 0001 and decision 0002");
        let expected = "a source file cites decision 0002, which is missing";
        assert_eq!(about(RECORD, INDEX, &both), [expected]);
    }

    #[test]
    fn record_of_another_form_is_found() {
        for (from, to) in [
            ("# 0001: ", "# 0002: "),
            ("- Status: ", "Status: "),
            ("accepted", "agreed"),
            ("accepted", "superseded by 0002"),
            ("- Held by: ", ""),
        ] {
            let found = about(&RECORD.replace(from, to), INDEX, SOURCE);
            assert_eq!(found.len(), 1, "{from} → {to}: {found:?}");
        }
        let row = about(
            RECORD,
            "| [0001](0001-a.md) | Another | accepted |\n",
            SOURCE,
        );
        assert!(
            row[0].contains("README.md lacks the row | [0001]"),
            "{row:?}"
        );
    }
}
