//! Output: tables, JSON, and text of other users made safe for a terminal.

use std::time::{Duration, SystemTime};

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

/// A number with three digits or so and a decimal prefix.
pub(crate) fn si(value: f64) -> String {
    let (scaled, prefix) = match value {
        ..1e3 => (value, ""),
        ..1e6 => (value / 1e3, "k"),
        ..1e9 => (value / 1e6, "M"),
        _ => (value / 1e9, "G"),
    };
    let digits = match scaled {
        _ if prefix.is_empty() => 0,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{scaled:.digits$}{prefix}")
}

/// A number of bytes, the same way.
pub(crate) fn bytes(number: u64) -> String {
    format!("{}B", si(number as f64))
}

/// How long ago a time was that is given in seconds since 1970. One to come is now.
pub(crate) fn time_since(now: SystemTime, time: u64) -> Duration {
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_sub(Duration::from_secs(time))
}

/// [`time_since`] in words: in one unit, rounded down.
pub(crate) fn age(now: SystemTime, time: u64) -> String {
    match time_since(now, time).as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
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

    #[test]
    fn ages_have_one_unit() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ages = [0, 59, 60, 3599, 3600, 86_399, 86_400, 500_000];
        let texts = ages.map(|seconds| age(now, 1_000_000 - seconds));
        let expected = [
            "0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "1 d", "5 d",
        ];
        assert_eq!(texts, expected);
        // A clock that was set back, or a hostile port.
        assert_eq!(age(now, u64::MAX), "0 s");
    }

    #[test]
    fn numbers_have_decimal_prefixes() {
        let texts = [0.0, 999.0, 1234.0, 56_700.0, 2.5e9].map(si);
        assert_eq!(texts, ["0", "999", "1.23k", "56.7k", "2.50G"]);
    }
}
