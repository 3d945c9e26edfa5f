//! Results of tests in the output of a harness: nextest, or cargo's own.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

/// The result of a test: name, passed, time.
pub(super) type TestResult = (String, bool, Duration);

/// Passes a harness's lines on and picks out the results.
pub(super) fn read_results(stream: impl Read) -> Vec<TestResult> {
    let mut results = Vec::new();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        println!("{line}");
        results.extend(result_in(&line));
    }
    results
}

/// The result in a line of nextest (`PASS [   0.005s] crate::binary test`) or of cargo's harness
/// (`test name ... ok`).
pub(super) fn result_in(line: &str) -> Option<TestResult> {
    let line = line.trim_start();
    if let Some(rest) = line.strip_prefix("test ")
        && let Some((name, end)) = rest.split_once(" ... ")
    {
        let passed = match end {
            "ok" => true,
            "FAILED" => false,
            _ => return None,
        };
        return Some((name.to_owned(), passed, Duration::ZERO));
    }
    let (status, rest) = line.split_once('[')?;
    let passed = match status.trim() {
        "PASS" => true,
        "FAIL" | "TIMEOUT" | "ABORT" | "SIGABRT" | "SIGSEGV" | "SIGKILL" | "SIGBUS" => false,
        _ => return None,
    };
    let (time, name) = rest.split_once(']')?;
    let seconds = time.trim_matches(['>', 's', ' ']).parse().ok()?;
    // Nextest may number its lines: `(  1/20) crate::binary test`.
    let name = name.trim();
    let name = match name.split_once(')') {
        Some((count, name)) if count.starts_with('(') => name.trim(),
        _ => name,
    };
    Some((name.to_owned(), passed, Duration::from_secs_f64(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_harnesses_are_understood() {
        let nextest = "        PASS [   0.005s] ( 1/20) virtio-inter-link::ring a::b";
        let expected = (
            "virtio-inter-link::ring a::b".into(),
            true,
            Duration::from_millis(5),
        );
        assert_eq!(result_in(nextest), Some(expected));
        assert!(!result_in("     TIMEOUT [>  60.002s] krate test").unwrap().1);
        assert!(!result_in("        FAIL [   1.000s] krate test").unwrap().1);
        assert_eq!(
            result_in("test a::b ... ok"),
            Some(("a::b".into(), true, Duration::ZERO))
        );
        assert!(!result_in("test a::b ... FAILED").unwrap().1);
        assert_eq!(result_in("        SLOW [> 60.000s] krate test"), None);
        assert_eq!(result_in("     Summary [   0.1s] 3 tests run"), None);
        assert_eq!(result_in("test result: ok. 3 passed"), None);
    }
}
