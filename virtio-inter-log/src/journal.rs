//! The systemd journal as reader of standard error: sd-daemon(3), systemd.exec(5).

use log::Level;

/// Whether standard error is the journal, which takes a line's priority from a prefix and adds the
/// time. `JOURNAL_STREAM` must match: processes inherit it whose standard error is another stream.
pub(crate) fn is_stderr() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(rustix::stdio::stderr())
        .is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Puts the prefix of a priority (syslog(3)) before each line: the journal makes an entry of each.
pub(crate) fn prefix(level: Level, text: &str) -> String {
    let priority = match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    };
    text.lines()
        .flat_map(|line| [priority, line, "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_prefix_is_on_each_line() {
        assert_eq!(prefix(Level::Error, "a\nb"), "<3>a\n<3>b\n");
        assert_eq!(prefix(Level::Warn, "a\n"), "<4>a\n");
        assert_eq!(prefix(Level::Info, "a"), "<6>a\n");
        assert_eq!(prefix(Level::Debug, "a"), "<7>a\n");
    }
}
