//! The user who is to own a file, from its name or number.

use std::str::FromStr;

use nix::unistd::User as Entry;

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
        // A user may have a number for a name.
        match Entry::from_name(text) {
            Ok(Some(user)) => return Ok(Self(user.uid.as_raw())),
            Ok(None) => {}
            Err(error) => return Err(format!("the user cannot be looked up: {error}")),
        }
        match text.parse::<u32>() {
            // The last number means "no change" to chown(2).
            Ok(number) if number != u32::MAX => Ok(Self(number)),
            _ => Err("there is no such user".to_owned()),
        }
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
