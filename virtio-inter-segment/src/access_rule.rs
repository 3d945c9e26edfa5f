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
///
/// Where this process cannot ring a doorbell without risk, only 1. without the directory's owner
/// counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccessRule {
    pub(crate) own_uid: u32,
    pub(crate) directory_uid: u32,
    pub(crate) directory_gid: u32,
    pub(crate) group_writable: bool,
    pub(crate) world_writable: bool,
    /// A hostile peer could block this process.
    pub(crate) own_user_only: bool,
}

/// The peer's user and groups do not give it the right to be on the segment.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Unauthorized {
    /// By owner and mode of the directory.
    #[error(
        "User {uid} (group {gid}) may not join: the directory is neither its own nor writable for \
         it"
    )]
    Directory { uid: u32, gid: u32 },
    /// It is another user, and could block this process.
    #[error(
        "User {uid} may not join: this port got no asynchronous I/O (fs.aio-max-nr), and without \
         it links with its own user and root only"
    )]
    OtherUser { uid: u32 },
}

impl AccessRule {
    pub(crate) fn check(&self, peer: &PeerCredentials) -> Result<(), Unauthorized> {
        if self.own_user_only && ![0, self.own_uid].contains(&peer.uid) {
            return Err(Unauthorized::OtherUser { uid: peer.uid });
        }
        let user = [0, self.own_uid, self.directory_uid].contains(&peer.uid);
        let in_group = peer.gid == self.directory_gid || peer.groups.contains(&self.directory_gid);
        if user || (self.group_writable && in_group) || self.world_writable {
            Ok(())
        } else {
            Err(Unauthorized::Directory {
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
            own_user_only: false,
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
            own_user_only: false,
        };
        assert!(rule.check(&peer(40, 30, &[])).is_ok());
        assert!(rule.check(&peer(40, 41, &[7, 30])).is_ok());
        assert!(rule.check(&peer(40, 41, &[7])).is_err());
        rule.group_writable = false;
        rule.world_writable = true;
        assert!(rule.check(&peer(40, 41, &[])).is_ok());
    }

    #[test]
    fn access_rule_of_a_port_that_can_be_blocked() {
        let rule = AccessRule {
            own_uid: 10,
            directory_uid: 20,
            directory_gid: 30,
            group_writable: true,
            world_writable: true,
            own_user_only: true,
        };
        for uid in [0, 10] {
            assert_eq!(rule.check(&peer(uid, 99, &[])), Ok(()));
        }
        // Not even the owner of the directory.
        for uid in [20, 40] {
            let refused = rule.check(&peer(uid, 30, &[])).unwrap_err();
            assert_eq!(refused, Unauthorized::OtherUser { uid });
        }
    }
}
