//! When a test has to be over. Limits lie in one another: the test runner's around the nested
//! machine's, that around a test's, that around each wait. An outer one that came first would kill
//! the test before it can say what it waits for, so a wait ends at the latest with the test's own
//! limit.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a test may take, on this machine and in a nested one. The runner allows it more
/// (`.config/nextest.toml`).
pub(crate) const TEST_LIMIT: Duration = Duration::from_secs(270);
/// What telling of a failure and killing guests may take after that. In the nested machine
/// everything takes long.
pub(crate) const MARGIN: Duration = Duration::from_secs(60);

/// Of the test that began last. Those that share a process began before it, and each wait of theirs
/// has a limit as well.
static END: Mutex<Option<Instant>> = Mutex::new(None);

/// A test begins, which may take so long.
pub(crate) fn begin(limit: Duration) {
    set(Some(Instant::now() + limit));
}

fn set(end: Option<Instant>) {
    *END.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner) = end;
}

/// How long to wait where `limit` is asked for.
pub(crate) fn cut(limit: Duration) -> Duration {
    let end = *END
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    end.map_or(limit, |end| {
        limit.min(end.saturating_duration_since(Instant::now()))
    })
}

/// A limit as it is told of: with what has cut it short.
pub(crate) fn describe(asked: Duration, was: Duration) -> String {
    if was < asked {
        format!("{was:.1?}, which was all that the test's {TEST_LIMIT:?} had left of {asked:?}")
    } else {
        format!("{asked:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{machine, wait};

    #[test]
    fn limit_of_a_wait_is_cut_to_the_tests_own() {
        let start = Instant::now();
        begin(Duration::from_millis(200));
        let waited = wait::until::<()>("end of the world", Duration::from_secs(600), || Ok(None));
        set(None);
        assert!(start.elapsed() < Duration::from_secs(30));
        let text = format!("{:#}", waited.unwrap_err());
        assert!(text.contains("No end of the world within"), "{text}");
        assert!(text.contains("of 600s"), "{text}");
        assert_eq!(cut(TEST_LIMIT), TEST_LIMIT);
    }

    /// Each limit is shorter than the one around it.
    #[test]
    fn limits_of_tests_are_shorter_than_those_around_them() {
        let text = include_str!("../../.config/nextest.toml");
        let runner = |section: &str| {
            let (_, rest) = text.split_once(section).expect(section);
            let line = rest.lines().find(|line| line.starts_with("slow-timeout"));
            let line = line.expect("a limit");
            let number = |key: &str| -> u64 {
                let (_, rest) = line.split_once(key).expect(key);
                let digits = rest.trim_start_matches([' ', '=', '"']);
                let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap();
                digits[..end].parse().unwrap()
            };
            Duration::from_secs(number("period") * number("terminate-after"))
        };
        assert!(TEST_LIMIT + Duration::from_secs(20) < runner("[profile.guests]"));
        assert!(TEST_LIMIT + MARGIN <= machine::TEST_LIMIT);
        assert!(machine::longest() < runner("[[profile.guests.overrides]]"));
    }
}
