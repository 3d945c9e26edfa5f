//! A user whose rights a process takes on, with its groups.

use std::ffi::CString;
use std::fmt;
use std::str::FromStr;

use nix::unistd::{User as Entry, getgrouplist};

use crate::group::Group;

/// A user that is not root. Parsed from its name or number, and a group instead of its own:
/// `NAME[:GROUP]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl User {
    /// Its number.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its group: its own, or the one that was given.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// All its groups, that one among them.
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, group) = match text.split_once(':') {
            Some((name, group)) => (name, Some(group.parse::<Group>()?.id())),
            None => (text, None),
        };
        let failed = |error| format!("the user cannot be looked up: {error}");
        // A user may have a number for a name.
        let entry = match (Entry::from_name(name).map_err(failed)?, name.parse::<u32>()) {
            (None, Ok(number)) => Entry::from_uid(number.into()).map_err(failed)?,
            (entry, _) => entry,
        };
        let Some(entry) = entry else {
            return Err("there is no such user".to_owned());
        };
        if entry.uid.is_root() {
            return Err("that user is root, who keeps all rights".to_owned());
        }
        let gid = group.unwrap_or(entry.gid.as_raw());
        let name = CString::new(entry.name.clone()).map_err(|error| error.to_string())?;
        let groups = getgrouplist(&name, gid.into()).map_err(failed)?;
        Ok(Self {
            name: entry.name,
            uid: entry.uid.as_raw(),
            gid,
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_a_name_or_a_number_with_a_group_or_its_own() {
        let parse = str::parse::<User>;
        let by_name = parse("daemon").unwrap();
        assert_eq!(parse(&by_name.uid().to_string()).unwrap(), by_name);
        assert_eq!(by_name.to_string(), "daemon");
        assert!(by_name.groups().contains(&by_name.gid()));
        let with_group = parse("daemon:1234").unwrap();
        assert_eq!(with_group.uid(), by_name.uid());
        assert_eq!(with_group.gid(), 1234);
        assert!(with_group.groups().contains(&1234));
        for (wrong, reason) in [
            ("", "no such user"),
            ("no-such-user", "no such user"),
            ("4294967294", "no such user"),
            ("daemon:no-such-group", "no such group"),
            ("daemon:", "no such group"),
            ("root", "keeps all rights"),
            ("0:1234", "keeps all rights"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }
}
