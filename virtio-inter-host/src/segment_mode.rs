//! The mode of a segment's directory, of those that keep users from hurting each other.

use std::str::FromStr;

/// Permissions of a segment's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentMode(u32);

impl SegmentMode {
    /// The owner's ports alone.
    pub(crate) const OWNER: Self = Self(0o700);
    /// Those of the group's members too. Files are made with the directory's group, and nobody can
    /// remove another user's.
    pub(crate) const GROUP: Self = Self(0o3770);

    /// As chmod(2) takes it.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for SegmentMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .ok_or("an octal mode such as 3770 is needed")?;
        if mode & 0o700 != 0o700 {
            return Err(
                "the owner needs all permissions: 7 in the third place from the end".into(),
            );
        }
        if mode & 0o002 != 0 {
            return Err("every user of the host could join: name a group with --group".into());
        }
        if mode & 0o1020 == 0o020 {
            return Err(
                "members of the group could take each other's names: add the sticky bit, \
                        as in 3770"
                    .into(),
            );
        }
        Ok(Self(mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_modes_that_let_users_hurt_each_other_are_refused() {
        let parse = str::parse::<SegmentMode>;
        for right in ["700", "0750", "3770", "1770", "755"] {
            parse(right).unwrap();
        }
        for (wrong, why) in [
            ("2770", "sticky"),
            ("1777", "every user"),
            ("3570", "owner"),
            ("10000", "octal"),
            ("u=rwx", "octal"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
