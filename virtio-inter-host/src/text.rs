//! Output: tables, JSON, and text of other users made safe for a terminal.

use anyhow::Result;
use serde::Serialize;

/// One JSON document.
///
/// # Errors
///
/// Never in practice.
pub(crate) fn json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Replaces control characters, with which another user's port could drive the reader's terminal.
pub(crate) fn safe(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Rows with a header, their columns aligned.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let cells = cells.iter().zip(widths);
        let text: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(header);
    for row in rows {
        text += &line(row.each_ref().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_aligns_its_columns() {
        let rows = [["a".into(), "1".into()], ["long".into(), "22".into()]];
        assert_eq!(table(["ID", "N"], &rows), "ID    N\na     1\nlong  22\n");
    }

    #[test]
    fn text_of_others_has_no_control_characters() {
        assert_eq!(safe("a\x1b[2J\nü"), "a\u{fffd}[2J\u{fffd}ü");
    }
}
