//! A group of users, from its name or number.

use std::str::FromStr;

use nix::unistd::Group as Entry;

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
        // A group may have a number for a name.
        match Entry::from_name(text) {
            Ok(Some(group)) => return Ok(Self(group.gid.as_raw())),
            Ok(None) => {}
            Err(error) => return Err(format!("the group cannot be looked up: {error}")),
        }
        match text.parse::<u32>() {
            // The last number means "no change" to chown(2).
            Ok(number) if number != u32::MAX => Ok(Self(number)),
            _ => Err("there is no such group".to_owned()),
        }
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
