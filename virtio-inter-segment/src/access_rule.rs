//! The rule for who may join a segment: owner and mode of its directory.

use thiserror::Error;
use virtio_inter_common::PeerCredentials;

/// The users that may join, by owner and mode of the segment's directory.
///
/// A peer is let in if one of these is true:
/// 1. its effective user is root, our own, or the owner of the directory;
/// 2. the directory is writable for its group, and that group is the peer's effective group or
///    among its supplementary groups;
/// 3. the directory is writable for the world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccessRule {
    pub(crate) own_uid: u32,
    pub(crate) directory_uid: u32,
    pub(crate) directory_gid: u32,
    pub(crate) group_writable: bool,
    pub(crate) world_writable: bool,
}

/// The peer's user and groups do not give it the right to be on the segment.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "User {uid} (group {gid}) may not join: the directory is neither its own nor writable for it"
)]
pub(crate) struct Unauthorized {
    uid: u32,
    gid: u32,
}

impl AccessRule {
    pub(crate) fn check(&self, peer: &PeerCredentials) -> Result<(), Unauthorized> {
        let user = [0, self.own_uid, self.directory_uid].contains(&peer.uid);
        let in_group = peer.gid == self.directory_gid || peer.groups.contains(&self.directory_gid);
        if user || (self.group_writable && in_group) || self.world_writable {
            Ok(())
        } else {
            Err(Unauthorized {
                uid: peer.uid,
                gid: peer.gid,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> PeerCredentials {
        PeerCredentials {
            pid: Some(1),
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn access_rule_of_a_private_directory() {
        let rule = AccessRule {
            own_uid: 10,
            directory_uid: 20,
            directory_gid: 30,
            group_writable: false,
            world_writable: false,
        };
        for uid in [0, 10, 20] {
            assert_eq!(rule.check(&peer(uid, 99, &[])), Ok(()));
        }
        // The directory's group counts for nothing while the group may not write.
        assert!(rule.check(&peer(40, 30, &[30])).is_err());
        let message = rule.check(&peer(40, 41, &[])).unwrap_err().to_string();
        assert!(
            message.starts_with("User 40 (group 41) may not join"),
            "{message}"
        );
    }

    #[test]
    fn access_rule_of_shared_directories() {
        let mut rule = AccessRule {
            own_uid: 10,
            directory_uid: 20,
            directory_gid: 30,
            group_writable: true,
            world_writable: false,
        };
        assert!(rule.check(&peer(40, 30, &[])).is_ok());
        assert!(rule.check(&peer(40, 41, &[7, 30])).is_ok());
        assert!(rule.check(&peer(40, 41, &[7])).is_err());
        rule.group_writable = false;
        rule.world_writable = true;
        assert!(rule.check(&peer(40, 41, &[])).is_ok());
    }
}
