//! The user who is to own a file, from its name or number.

use std::str::FromStr;

use nix::unistd::User as Entry;

use crate::name_or_number::number;

/// The number of a user. Parsed from its name, or from the number itself, which need be no user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(u32);

impl Owner {
    /// Its number.
    pub fn id(self) -> u32 {
        self.0
    }
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entry = Entry::from_name(text);
        let by_name = entry.map(|entry| entry.map(|user| user.uid.as_raw()));
        number("user", text, by_name).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_is_a_name_or_a_number() {
        let parse = str::parse::<Owner>;
        assert_eq!(parse("root").unwrap(), parse("0").unwrap());
        assert_eq!(parse("1234").unwrap().id(), 1234);
        for wrong in ["no-such-user", "-1", "4294967295", ""] {
            parse(wrong).unwrap_err();
        }
    }
}
