//! A list of sets of addresses, as options and handshakes carry it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Sets in order, each once. Clones share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetList<T>(Arc<[T]>);

impl<T: Copy + Ord> SetList<T> {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        &self.0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = T> {
        self.0.iter().copied()
    }

    /// Parses sets that commas separate. `twice`: the error for a set that is there twice. `check`
    /// is asked with the number of sets so far, after each.
    pub(crate) fn parse<E>(
        text: &str,
        twice: impl Fn(T) -> E,
        check: impl Fn(usize) -> Result<(), E>,
    ) -> Result<Self, E>
    where
        T: FromStr<Err = E>,
    {
        let mut sets = Vec::new();
        for item in text.split(',') {
            let set: T = item.trim().parse()?;
            if sets.contains(&set) {
                return Err(twice(set));
            }
            sets.push(set);
            check(sets.len())?;
        }
        Ok(sets.into_iter().collect())
    }
}

impl<T> Default for SetList<T> {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

/// All sets, however many, without duplicates.
impl<T: Ord> FromIterator<T> for SetList<T> {
    fn from_iter<I: IntoIterator<Item = T>>(sets: I) -> Self {
        let mut sets: Vec<T> = sets.into_iter().collect();
        sets.sort_unstable();
        sets.dedup();
        Self(sets.into())
    }
}

/// The format that is parsed.
impl<T: fmt::Display> fmt::Display for SetList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, set) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            write!(f, "{separator}{set}")?;
        }
        Ok(())
    }
}
