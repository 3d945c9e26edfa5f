//! Sizes and numbers of entries, in Cloud Hypervisor's syntax: `65536`, `64K`, `1M`.

use thiserror::Error;

/// Suffixes and the power of two that each stands for.
const SUFFIXES: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// Why a value is no size.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Not a number with at most one suffix.
    #[error("'{0}' is not a whole number, with or without a suffix K, M, G or T")]
    Syntax(String),
    /// It does not fit 64 bits.
    #[error("'{0}' is too large")]
    TooLarge(String),
}

/// Reads a size. K, M, G and T stand for 2^10, 2^20, 2^30 and 2^40.
///
/// # Errors
///
/// When it is no number, or too large for 64 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let (digits, shift) = SUFFIXES
        .iter()
        .find_map(|(suffix, shift)| Some((text.strip_suffix(*suffix)?, *shift)))
        .unwrap_or((text, 0));
    // u64::from_str also takes a sign.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SizeError::Syntax(text.to_owned()));
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// Writes a size in the shortest form that [`parse_size`] reads: 524288 as `512K`.
pub fn format_size(size: u64) -> String {
    SUFFIXES
        .iter()
        .rev()
        .find(|(_, shift)| size != 0 && size.trailing_zeros() >= *shift)
        .map_or_else(
            || size.to_string(),
            |(suffix, shift)| format!("{}{suffix}", size >> shift),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_takes_suffixes_of_powers_of_1024() {
        for (text, size) in [
            ("0", 0),
            ("1500", 1500),
            ("1K", 1 << 10),
            ("64K", 64 << 10),
            ("1M", 1 << 20),
            ("3G", 3 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
            assert_eq!(parse_size(&format_size(size)), Ok(size), "{text}");
        }
        assert_eq!(format_size(1 << 19), "512K");
        assert_eq!(format_size(1500), "1500");
    }

    #[test]
    fn size_that_is_no_number_is_refused() {
        for text in [
            "", "K", "1k", "1KB", "1 K", "+1", "-1", "0x10", "1.5M", "1MM", "big",
        ] {
            let error = parse_size(text).unwrap_err();
            assert_eq!(error, SizeError::Syntax(text.to_owned()));
        }
        for text in ["16777216T", "99999999999999999999"] {
            let error = parse_size(text).unwrap_err();
            assert_eq!(error, SizeError::TooLarge(text.to_owned()));
        }
    }
}
