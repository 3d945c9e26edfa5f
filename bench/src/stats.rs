//! Medians with their spread, and the order in which ways take turns.

/// Statistics of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// None of no values, or of one that is no number.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// The items in another order in each round, so that none always comes first or after the same one.
pub fn rotated<T: Copy>(items: &[T], round: usize) -> Vec<T> {
    let mut order = items.to_vec();
    if !order.is_empty() {
        let by = round % order.len();
        order.rotate_left(by);
        // Every other time backwards: else each would always follow the same one.
        if (round / order.len()) % 2 == 1 {
            order.reverse();
        }
    }
    order
}

/// A value with three digits that count, or all before the point.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        value if value >= 0.0995 || value == 0.0 => 2,
        value if value >= 0.00995 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_in_the_middle_and_the_spread_around_it() {
        let spread = |values: &[f64]| Spread::of(values).unwrap();
        let odd = spread(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 8.0]).median, 3.0);
        assert_eq!(spread(&[5.0]).median, 5.0);
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn order_puts_each_way_first_equally_often_and_after_each_other() {
        let orders: Vec<Vec<u8>> = (0..6).map(|round| rotated(&[1, 2, 3], round)).collect();
        for item in 1..=3 {
            let firsts = orders.iter().filter(|order| order[0] == item).count();
            assert_eq!(firsts, 2, "{orders:?}");
        }
        assert_ne!(orders[0], orders[3]);
        assert!(rotated::<u8>(&[], 3).is_empty());
    }

    #[test]
    fn numbers_show_three_digits_that_count() {
        let shown = [0.0, 0.012_34, 0.5, 5.678, 9.996, 12.34, 99.96, 15432.1].map(number);
        let expected = [
            "0.00", "0.012", "0.50", "5.68", "10.0", "12.3", "100", "15432",
        ];
        assert_eq!(shown, expected);
    }
}
