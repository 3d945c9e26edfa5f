//! The calling thread gives up privileges: capabilities, and to gain any by executing a program.

use std::io;

use rustix::process::geteuid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::access::Access;

/// Needed by root where others own the directories or write to them: to make, give away and remove
/// files there, and to connect to the sockets of other users' ports.
const FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER);

/// Needed by root to list directories of others, and to connect to their sockets: a VMM's, ports'.
const CONNECT: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// No program that this thread or a descendant executes gains privileges from its file.
pub(crate) fn forbid_new() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// Drops all capabilities but those that are needed for the directories and devices.
pub(crate) fn drop_capabilities(access: &Access) -> io::Result<()> {
    let needed = needed(access, geteuid().is_root());
    bound(needed);
    let _ = clear_ambient_capability_set();
    let kept = capabilities(None)?.permitted & needed;
    set(CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    })
}

/// Drops all capabilities but these, which programs that are executed keep as far as they have them
/// now.
pub(crate) fn keep(needed: CapabilitySet) -> io::Result<()> {
    bound(needed);
    let there = capabilities(None)?;
    set(CapabilitySets {
        effective: there.effective & needed,
        permitted: there.permitted & needed,
        inheritable: there.inheritable & needed,
    })
}

/// Limits what a program gains that is executed.
fn bound(needed: CapabilitySet) {
    // Fails without CAP_SETPCAP, and for those that the kernel does not know. It is a second wall
    // only.
    for capability in CapabilitySet::all().difference(needed).iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
}

fn set(sets: CapabilitySets) -> io::Result<()> {
    let there = capabilities(None)?;
    let is_so = there.permitted == sets.permitted
        && there.effective == sets.effective
        && there.inheritable == sets.inheritable;
    // Nothing to give up: the filter of a service manager may forbid the call.
    if is_so {
        return Ok(());
    }
    Ok(set_capabilities(None, sets)?)
}

fn needed(access: &Access, is_root: bool) -> CapabilitySet {
    let mut needed = CapabilitySet::empty();
    if is_root && !access.is_roots_alone() {
        needed |= FILES;
    }
    if is_root && !access.connects_to_root() {
        needed |= CONNECT;
    }
    if is_root && access.gives_socket {
        needed |= CapabilitySet::CHOWN;
    }
    if let Some(device) = &access.device {
        needed |= device.capabilities;
    }
    needed
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::access::DeviceNeeds;

    /// What a user needs for a directory of its own: root nothing, and others what is asked for.
    fn for_own(capabilities: CapabilitySet) -> CapabilitySet {
        if geteuid().is_root() {
            CapabilitySet::empty()
        } else {
            capabilities
        }
    }

    #[test]
    fn capabilities_are_kept_for_directories_of_others_only() {
        let temp = tempfile::tempdir().unwrap();
        let mut access = Access {
            directories: vec![temp.path().to_owned()],
            ..Access::default()
        };
        fs::set_permissions(temp.path(), Permissions::from_mode(0o755)).unwrap();
        assert_eq!(needed(&access, true), for_own(FILES));
        fs::set_permissions(temp.path(), Permissions::from_mode(0o3770)).unwrap();
        assert_eq!(needed(&access, true), FILES);
        assert_eq!(needed(&access, false), CapabilitySet::empty());
        let capabilities = CapabilitySet::NET_ADMIN;
        access.device = Some(DeviceNeeds {
            files: &[],
            capabilities,
        });
        assert_eq!(needed(&access, false), capabilities);
    }

    /// A segment of others may be made at any time.
    #[test]
    fn capability_to_connect_is_kept_where_others_can_make_sockets_later() {
        let access = Access {
            lists: vec!["/run/virtio-inter".into()],
            ..Access::default()
        };
        assert_eq!(needed(&access, true), CONNECT);
        assert_eq!(needed(&access, false), CapabilitySet::empty());
    }

    #[test]
    fn capability_to_connect_is_kept_for_the_directory_of_another_users_vmm_only() {
        let temp = tempfile::tempdir().unwrap();
        let access = Access {
            connects: vec![temp.path().to_owned()],
            ..Access::default()
        };
        fs::set_permissions(temp.path(), Permissions::from_mode(0o700)).unwrap();
        assert_eq!(needed(&access, true), for_own(CONNECT));
        fs::set_permissions(temp.path(), Permissions::from_mode(0o770)).unwrap();
        assert_eq!(needed(&access, true), CONNECT);
        assert_eq!(needed(&access, false), CapabilitySet::empty());
    }
}
