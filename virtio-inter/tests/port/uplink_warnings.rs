//! Warnings of an uplink that ports share.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::process::{Place, until};
use crate::status::{assert_documented, status};
use crate::uplink::{enter, ip, make_tap, warning, with_status};

#[test]
fn uplink_that_is_shared_warns_of_its_device_and_of_ports_that_do_not_fit() {
    if !enter() {
        return;
    }
    make_tap("up0", "");
    let place = Place::new();
    let uplink = with_status(&place, "u", place.uplink("u", "up0"));
    let now = || status(&place.path("u.status"));
    assert_eq!(now()["warnings"], serde_json::json!([]));
    let wait_for = |code: &str| {
        until(code, || warning(&now(), code).is_some());
        let text = warning(&now(), code).unwrap();
        until("it is in the log", || uplink.log().contains(&text));
        text
    };
    let wait_for_end = |code: &str| {
        until("the warning is over", || warning(&now(), code).is_none());
    };

    ip("link set up0 down");
    let text = wait_for("uplink-down");
    assert!(
        text.contains("up0 is down") && text.contains("between the segment"),
        "{text}"
    );
    assert_documented(&now());
    ip("link set up0 up");
    wait_for_end("uplink-down");

    ip("link set up0 mtu 1400");
    let text = wait_for("uplink-mtu");
    assert!(
        text.contains("1500 at this uplink, 1400 at its tap device up0"),
        "{text}"
    );
    ip("link set up0 mtu 1500");
    wait_for_end("uplink-mtu");

    ip("link delete up0");
    assert!(wait_for("uplink-down").contains("up0 is gone"));
    make_tap("up0", "");
    wait_for_end("uplink-down");

    let port = place.command("a").with("--mtu", "9000").start();
    let text = wait_for("mtu-mismatch");
    assert!(text.contains("1500 at this uplink, 9000 at a."), "{text}");
    port.end();
    wait_for_end("mtu-mismatch");

    // It wants the uplink's id, and ends.
    let (_, log) = place.command("b").with("--id", "u").fail();
    assert!(log.contains("is taken by a live port"), "{log}");
    assert!(wait_for("conflict").contains("this uplink's own id u"));

    let mode = |mode| fs::set_permissions(place.segment(), Permissions::from_mode(mode)).unwrap();
    mode(0o2770);
    wait_for("segment-not-sticky");
    mode(0o3770);
    wait_for_end("segment-not-sticky");

    // Another one is active then.
    make_tap("up1", "");
    let other = place.uplink("v", "up1").with("--priority", "200").start();
    until("it stands by", || now()["active"] == false);
    ip("link set up0 down");
    let text = wait_for("uplink-down");
    assert!(text.contains("which stands by, cannot take over"), "{text}");
    assert!(warning(&now(), "mtu-mismatch").is_none());
    other.end();
    until("it is active", || {
        warning(&now(), "uplink-down").is_some_and(|text| text.contains("between the segment"))
    });
    uplink.end();
}
