//! Parts of a list of cases, and what they have.

use crate::case::{Case, Way};
use crate::placement::{Grouping, Placement};

/// The cases for which this holds.
pub(crate) fn pick(cases: &[Case], is_it: impl Fn(&Case) -> bool) -> Vec<Case> {
    cases.iter().filter(|case| is_it(case)).cloned().collect()
}

/// All ways of cases, in the order of their first ones.
pub(crate) fn ways(cases: &[Case]) -> Vec<Way> {
    let mut all = Vec::new();
    for way in cases.iter().flat_map(|case| &case.ways) {
        if !all.contains(way) {
            all.push(*way);
        }
    }
    all
}

/// All pairs of placement and grouping, in the order of their cases.
pub(crate) fn seats(cases: &[Case]) -> Vec<(Placement, Grouping)> {
    let mut all = Vec::new();
    for case in cases {
        let seat = (case.place.placement, case.place.grouping);
        if !all.contains(&seat) {
            all.push(seat);
        }
    }
    all
}
