//! Pins: a file of the segment's owner that says which address and user each port must have.

mod common;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use common::{Net, local};
use virtio_inter_segment::JoinError;

/// Makes the file, which only its owner may write, whatever the umask.
fn pin(directory: &Path, text: &str) {
    let path = directory.join("pins");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
}

fn line(id: &str, user: &str) -> String {
    format!("{id} {} {user}\n", local(id).mac)
}

fn own_user() -> String {
    rustix::process::geteuid().as_raw().to_string()
}

/// Errors of a join, from the first to its cause.
fn reason(error: &JoinError) -> String {
    virtio_inter_common::ErrorChain(error).to_string()
}

#[test]
fn pins_keep_a_port_that_is_another_from_joining() {
    let mut net = Net::new();
    pin(net.path(), &(line("a", "*") + &line("b", "4242")));
    net.join("a");
    let files = net.files();
    let mut taken = local("a2");
    taken.mac = local("b").mac;
    let mut other_address = local("a");
    other_address.mac = local("c").mac;
    for (port, expected) in [
        (local("c"), "port c is not listed"),
        (local("b"), "port b must be of user 4242, not of"),
        (taken, "port a2 is not listed"),
        (other_address, "port a must have the address"),
    ] {
        let error = reason(&net.join_as(port).unwrap_err());
        assert!(error.contains("/pins does not let this port in"), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(net.files(), files);
}

/// The peer joined when there were none.
#[test]
fn pins_make_ports_refuse_a_peer_that_is_another() {
    let mut net = Net::new();
    net.join("a");
    net.join("b");
    net.until_meshed();
    // What is there stays, what comes is refused by both of them.
    pin(net.path(), &(line("c", &own_user()) + &line("d", "*")));
    let directory = net.path().join("pins");
    net.join("c");
    net.until("refusals", |net| {
        let refused = net.ports["c"].segment.refused();
        refused.len() == 2
    });
    for refused in net.ports["c"].segment.refused() {
        let peer = refused.peer.as_ref().map(ToString::to_string).unwrap();
        let expected = format!("port {peer} is not listed");
        assert!(refused.reason.contains(&expected), "{}", refused.reason);
    }
    // As soon as the owner says so, they get links.
    std::fs::remove_file(directory).unwrap();
    net.until_meshed();
}

#[test]
fn pins_that_cannot_be_used_let_nobody_in() {
    let mut net = Net::new();
    net.join("a");
    let path = net.path().join("pins");
    let expect = |net: &mut Net, expected: &str| {
        let error = reason(&net.join_as(local("b")).unwrap_err());
        assert!(error.contains(expected), "{error}");
    };
    pin(net.path(), "a *\n");
    expect(&mut net, "Line 1 of ");
    pin(net.path(), "* * *\n");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o664)).unwrap();
    expect(&mut net, "can be written by others than its owner");
    std::fs::remove_file(&path).unwrap();
    symlink("/dev/null", &path).unwrap();
    expect(&mut net, "is not a file");
    std::fs::remove_file(&path).unwrap();
    pin(net.path(), "* * *\n");
    net.join("b");
    net.until_meshed();
}
