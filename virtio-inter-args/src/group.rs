//! A group of users, from its name or number.

use std::str::FromStr;

use nix::unistd::Group as Entry;

use crate::name_or_number::number;

/// The number of a group. Parsed from its name, or from the number itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(u32);

impl Group {
    /// Its number.
    pub fn id(self) -> u32 {
        self.0
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entry = Entry::from_name(text);
        let by_name = entry.map(|entry| entry.map(|group| group.gid.as_raw()));
        number("group", text, by_name).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_is_a_name_or_a_number() {
        let parse = str::parse::<Group>;
        assert_eq!(parse("root").unwrap(), parse("0").unwrap());
        assert_eq!(parse("1234").unwrap().id(), 1234);
        for wrong in ["no-such-group", "-1", "4294967295", ""] {
            parse(wrong).unwrap_err();
        }
    }
}
