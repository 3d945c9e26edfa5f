//! Limits of what guests send and get, and guards on what they claim.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use virtio_inter_tests::tools::{self, Iperf3};
use virtio_inter_tests::{Frontend, Group, PortConfig, Result, Vm, guest_test, note, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// 10 Mbit/s, in bits a second.
const RATE: f64 = 10e6;

/// Throughput of TCP from a guest to another, and segments that were sent again, of 1,000.
fn stream(from: &Vm, to: &Vm) -> Result<(f64, f64)> {
    let how = Iperf3 {
        seconds: 4,
        ..Iperf3::default()
    };
    let throughput = tools::iperf3(from, to, to.nic(0).ipv4(), how)?;
    let segments = throughput.bits_per_second * f64::from(how.seconds) / 8.0 / 1448.0;
    let again = throughput.retransmits as f64 * 1000.0 / segments;
    Ok((throughput.bits_per_second, again))
}

/// TCP gets what a limit leaves, in both directions, and loses next to nothing by it.
#[test]
fn rate_limit_of_a_guest_is_what_tcp_gets() {
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        let limit =
            |config: PortConfig| config.more(&["--bandwidth", "size=125000,refill_time=100"]);
        group.start(bed, Frontend::Uml, limit, |config| config)?;
        group.start(bed, Frontend::Uml, |config| config, |config| config)?;
        group.ready()?;
        let [limited, other] = [&group.vms[0], &group.vms[1]];
        for (from, to, what) in [(limited, other, "sent"), (other, limited, "received")] {
            let (rate, again) = stream(from, to)?;
            note(&format!(
                "FIGURE {what}: {:.3} Mbit/s, {again:.2} of 1000 segments again",
                rate / 1e6
            ));
            // Headers count as well; a machine that is busy may give less.
            assert!(rate < RATE * 1.01, "{what}: {rate}");
            assert!(rate > RATE * 0.7, "{what}: {rate}");
            assert!(again < 20.0, "{what}: {again} of 1000 segments again");
        }
        Ok(())
    });
}

/// Whether an answer comes.
fn answers(from: &Vm, to: IpAddr) -> Result<bool> {
    let report = tools::ping(from, to, tools::Ping::default())?;
    Ok(report.received != 0)
}

/// A guest with a guard is reached as any other, but neither by an address that it takes nor by one
/// that another guest has.
#[test]
fn guard_of_a_guest_keeps_it_to_its_addresses() {
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        let guard = |config: PortConfig| {
            let arguments = ["--ip", "10.0.0.1,fd00::1", "--no-dhcp-server"];
            config.more(&arguments)
        };
        group.start(bed, Frontend::Uml, guard, |config| config)?;
        for _ in 0..2 {
            group.start(bed, Frontend::Uml, |config| config, |config| config)?;
        }
        group.ready()?;
        group.all_reach_all(&[0, 1, 2])?;
        let [guarded, other, third] = [&group.vms[0], &group.vms[1], &group.vms[2]];
        assert_eq!(group.ports[0].counters()?.drops().len(), 0);

        let name = guarded.interface(0)?;
        for (address, options) in [("10.0.0.77", ""), ("fd00::77", "nodad")] {
            let add = format!("ip address add {address} dev {name} {options}");
            guarded.shell(&add)?;
            assert!(!answers(other, address.parse()?)?, "{address}");
        }
        // It says that it is the third one.
        let third_address = third.nic(0).ipv4();
        let other_address = other.nic(0).ipv4();
        guarded.shell(&format!(
            "ip address add {third_address} dev {name}; \
             ping -c 3 -W 1 -I {third_address} {other_address} || true"
        ))?;
        until("dropped claims", PATIENCE, || {
            let drops = group.ports[0].counters()?;
            Ok((drops.get("tx_ip_spoofed") > 0).then_some(()))
        })?;
        assert!(answers(other, third_address.into())?);
        assert!(answers(other, guarded.nic(0).ipv4().into())?);
        Ok(())
    });
}
