//! Limits of what guests send and get.
#![forbid(unsafe_code)]

use virtio_inter_tests::tools::{self, Iperf3};
use virtio_inter_tests::{Frontend, Group, Result, Vm, guest_test};

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
        let limit = |config: virtio_inter_tests::PortConfig| {
            config.more(&["--bandwidth", "size=125000,refill_time=100"])
        };
        group.start(bed, Frontend::Uml, limit, |config| config)?;
        group.start(bed, Frontend::Uml, |config| config, |config| config)?;
        group.ready()?;
        let [limited, other] = [&group.vms[0], &group.vms[1]];
        for (from, to, what) in [(limited, other, "sent"), (other, limited, "received")] {
            let (rate, again) = stream(from, to)?;
            eprintln!(
                "FIGURE {what}: {:.3} Mbit/s, {again:.2} of 1000 segments again",
                rate / 1e6
            );
            // Headers count as well; a machine that is busy may give less.
            assert!(rate < RATE * 1.01, "{what}: {rate}");
            assert!(rate > RATE * 0.7, "{what}: {rate}");
            assert!(again < 20.0, "{what}: {again} of 1000 segments again");
        }
        Ok(())
    });
}
