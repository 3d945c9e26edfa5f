//! Counters of a worker, readable by anyone. Each has one writer: the worker, or the control
//! thread.
//!
//! Each has a line below, which begins with its kind: `drop` counts frames that the worker lost,
//! `control_drop` frames that the control thread lost, and `count` anything else. Tests and tools
//! ask [`Counters::is_drop`], so the kind stands here alone. A `drop` has in brackets the reason
//! for which Linux would drop a frame like this, where one comes near: a name of
//! `dropreason-core.h` without `SKB_DROP_REASON_`. The doc comment is the description of the
//! metric, and the name decides the metric's: the prefixes `tx_`, `rx_` and `uplink_`, and the
//! suffix `_us` of a time. CONTRIBUTING.md has the steps to add one.

use std::ptr;

use crate::counter::Counter;
use crate::drops::Drops;
use crate::forbidden::Forbidden;
use crate::frame::Invalid;

macro_rules! is_drop {
    (count) => {
        false
    };
    (drop) => {
        true
    };
    (control_drop) => {
        true
    };
}

macro_rules! is_of_control_thread {
    (control_drop) => {
        true
    };
    ($other:ident) => {
        false
    };
}

/// The reason of Linux in the brackets of a counter, if it has any.
macro_rules! linux_reason {
    () => {
        None
    };
    ($linux:ident) => {
        Some(stringify!($linux))
    };
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $kind:ident $([$linux:ident])? $name:ident),* $(,)?) => {
        /// Counters of one worker since the port started, in frames unless it says otherwise.
        #[derive(Debug, Default)]
        #[repr(align(128))] // No other worker's counters on these cache lines.
        pub struct Counters {
            $($(#[doc = $doc])* pub $name: Counter,)*
            /// The last frames that were dropped for reasons that an operator can remove.
            pub drops: Drops,
        }

        /// Number of counters of lost frames.
        pub(crate) const LOSSES: usize = 0 $(+ (if is_drop!($kind) { 1 } else { 0 }))*;

        impl Counters {
            /// The names of the counters of lost frames, in the order of their declaration.
            pub fn losses() -> impl Iterator<Item = &'static str> {
                let all = [$((stringify!($name), is_drop!($kind)),)*];
                all.into_iter().filter(|(_, is_drop)| *is_drop).map(|(name, _)| name)
            }

            /// Their values, in the same order.
            pub(crate) fn loss_values(&self) -> [u64; LOSSES] {
                let mut values = [0; LOSSES];
                let all = [$((&self.$name, is_drop!($kind)),)*];
                let losses = all.iter().filter(|(_, is_drop)| *is_drop);
                for (value, (counter, _)) in values.iter_mut().zip(losses) {
                    *value = counter.get();
                }
                values
            }

            /// The index of one of these counters among them. None: it counts something else.
            pub(crate) fn loss_of(&self, counter: &Counter) -> Option<u8> {
                let all = [$((&self.$name, is_drop!($kind)),)*];
                let mut losses = all.iter().filter(|(_, is_drop)| *is_drop);
                let position = losses.position(|(loss, _)| ptr::eq(*loss, counter));
                position.map(|position| position as u8)
            }

            /// Whether the loss of this index is counted by the control thread, so that it moves
            /// while the worker is in the middle of a frame.
            pub(crate) fn is_of_control_thread(loss: usize) -> bool {
                let all = [$((is_drop!($kind), is_of_control_thread!($kind)),)*];
                let mut losses = all.iter().filter(|(is_drop, _)| *is_drop);
                losses.nth(loss).is_some_and(|(_, is_of_control)| *is_of_control)
            }

            /// Each counter's name and value, in the order of their declaration.
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }

            /// The description of the counter of this name; `None` if no counter has it.
            pub fn description(name: &str) -> Option<&'static str> {
                match name {
                    $(stringify!($name) => Some(concat!($($doc),*)),)*
                    _ => None,
                }
            }

            /// The reason for which Linux drops frames (`SKB_DROP_REASON_*`) that comes nearest to
            /// that of a counter of lost frames. None: none comes near.
            pub fn linux_reason(name: &str) -> Option<&'static str> {
                match name {
                    $(stringify!($name) => linux_reason!($($linux)?),)*
                    _ => None,
                }
            }

            /// Whether the counter of this name counts frames that were lost. False for a name that
            /// no counter has.
            pub fn is_drop(name: &str) -> bool {
                match name {
                    $(stringify!($name) => is_drop!($kind),)*
                    _ => false,
                }
            }
        }
    };
}

counters! {
    /// Frames of the guest that were sent to at least one peer, or by the uplink.
    count tx_frames,
    /// Their bytes, without the virtio header.
    count tx_bytes,
    /// From the guest: shorter than an Ethernet header, or longer than any MTU.
    drop[PKT_TOO_SMALL] tx_bad_length,
    /// From the guest: a GSO type that is unknown or was not negotiated.
    drop[DEV_HDR] tx_bad_gso_type,
    /// From the guest: a GSO size of zero, or one that makes too many segments.
    drop[DEV_HDR] tx_bad_gso_size,
    /// From the guest: a GSO frame whose `hdr_len` is longer than the frame.
    drop[DEV_HDR] tx_bad_hdr_len,
    /// From the guest: a GSO frame that is not of the kind that its GSO type says.
    drop[DEV_HDR] tx_bad_gso_frame,
    /// From the guest: a partial checksum outside of the frame, missing where GSO needs it, or not
    /// negotiated.
    drop[DEV_HDR] tx_bad_csum,
    /// From the guest: a source address that is neither the port's nor allowed, or another port's.
    drop[MAC_INVALID_SOURCE] tx_spoofed,
    /// From the guest: an IP address that its port does not list (`--ip`), as source, or in ARP or
    /// Neighbour Discovery, or such an address at another hardware address than the frame's.
    drop[IP_RPFILTER] tx_ip_spoofed,
    /// From the guest: a reply of a DHCP server, or a router's advertisement or redirect, which its
    /// port forbids (`--no-dhcp-server`).
    drop[NETFILTER_DROP] tx_dhcp_server,
    /// From the guest: what these two cannot examine, or a protocol that carries no address that is
    /// listed.
    drop[NETFILTER_DROP] tx_unexamined,
    /// From the guest: no peer has the destination address, and there is no uplink.
    drop[NO_TX_TARGET] tx_no_destination,
    /// From the guest: the link to the receiving port was full, and had held up frames for others
    /// long enough, or was not read for a second.
    drop[FULL_RING] tx_peer_stalled,
    /// From the guest: no ring could be made to the peer, or it did not take the ring.
    drop[DEV_READY] tx_no_link,
    /// From the guest: multicast for peers without a ring of which there was too much.
    drop[FULL_RING] tx_flood_lost,
    /// From the guest: the same, once for each peer whose connection had no room.
    control_drop[SOCKET_RCVBUFF] tx_flood_peer_full,
    /// From the guest: returned unsent because the queue was disabled.
    drop[DEV_READY] tx_disabled,
    /// Number of times that a full link, or a full uplink, held the transmit queue up.
    count tx_waits,
    /// Number of times that the port's rate limits held the transmit queue up.
    count tx_limited,
    /// Time in microseconds for which frames for others waited behind one for a full link or
    /// uplink.
    count tx_held_us,
    /// Frames copied aside for a slow peer so that frames for others could go on.
    count tx_spilled,
    /// Frames delivered to the guest.
    count rx_frames,
    /// Their bytes, without the virtio header.
    count rx_bytes,
    /// From a peer: shorter than an Ethernet header, or longer than any MTU.
    drop[PKT_TOO_SMALL] rx_bad_length,
    /// From a peer: an unknown GSO type.
    drop[DEV_HDR] rx_bad_gso_type,
    /// From a peer: a GSO size of zero, or one that makes too many segments.
    drop[DEV_HDR] rx_bad_gso_size,
    /// From a peer: a GSO frame whose `hdr_len` is longer than the frame.
    drop[DEV_HDR] rx_bad_hdr_len,
    /// From a peer: a GSO frame that is not of the kind that its GSO type says.
    drop[DEV_HDR] rx_bad_gso_frame,
    /// From a peer: a partial checksum outside of the frame, or missing where GSO needs it.
    drop[DEV_HDR] rx_bad_csum,
    /// From a peer: a source address that is not one of the peer's, or a destination that is not
    /// one of this port's.
    drop[MAC_INVALID_SOURCE] rx_bad_address,
    /// From a peer whose port says that it lets no such frame pass: as `tx_ip_spoofed`.
    drop[IP_RPFILTER] rx_ip_spoofed,
    /// The same: as `tx_dhcp_server`.
    drop[NETFILTER_DROP] rx_dhcp_server,
    /// The same: as `tx_unexamined`.
    drop[NETFILTER_DROP] rx_unexamined,
    /// From a peer: larger than the port's MTU, and it cannot be segmented to fit.
    drop[PKT_TOO_BIG] rx_too_long,
    /// From a peer: larger than the guest's buffer, or than all mergeable ones that it has offered
    /// for 100 ms, and not a TCP frame that can be segmented to fit. Segments count one by one.
    drop[PKT_TOO_BIG] rx_small_buffer,
    /// Frames from peers that were segmented because the guest did not negotiate the offload or has
    /// too small buffers. The segments count in `rx_frames`.
    count rx_segmented,
    /// Frames of `rx_frames` whose checksum was completed because the guest did not negotiate the
    /// offload, or for DHCP programs.
    count rx_csum_completed,
    /// From peers without a ring: multicast of which there was too much.
    control_drop[FULL_RING] rx_flood_lost,
    /// From a peer: there was no guest to take it.
    drop[DEV_READY] rx_no_guest,
    /// Number of times that frames had to wait for the guest's buffers.
    count rx_waits,
    /// Number of times that frames had to wait for the port's rate limits.
    count rx_limited,
    /// Frames of the guest, and announcements of its address, that were sent by the uplink. Those
    /// of the guest count in `tx_frames` as well.
    count uplink_tx_frames,
    /// Their bytes, without the virtio header.
    count uplink_tx_bytes,
    /// From the guest, for the uplink: its device was down or gone.
    drop[DEV_READY] uplink_tx_down,
    /// From the guest, for the uplink: its device refused the frame.
    drop uplink_tx_refused,
    /// From the guest, for the uplink: its device was full, and had held up frames for others long
    /// enough, or took nothing for a second.
    drop[FULL_RING] uplink_tx_full,
    /// Frames for the guest that came by the uplink, before they were segmented or dropped.
    count uplink_rx_frames,
    /// Their bytes, without the virtio header.
    count uplink_rx_bytes,
    /// By the uplink: for another unicast address, as a switch floods it.
    count uplink_rx_other,
    /// By the uplink: from the port's own address, returned by the network.
    count uplink_rx_own,
    /// By the uplink: its device had an error in place of the frame.
    drop uplink_rx_failed,
    /// Number of wake-ups of the worker.
    count wakeups,
    /// Number of interrupts sent to the guest.
    count interrupts,
}

impl Counters {
    /// The counter of records of a peer or tap device that are dropped for this reason.
    pub(crate) fn of_bad_record(&self, invalid: Invalid) -> &Counter {
        match invalid {
            Invalid::Short | Invalid::Long => &self.rx_bad_length,
            Invalid::Mtu => &self.rx_too_long,
            Invalid::GsoType => &self.rx_bad_gso_type,
            Invalid::GsoSize => &self.rx_bad_gso_size,
            Invalid::HeaderLength => &self.rx_bad_hdr_len,
            Invalid::GsoFrame => &self.rx_bad_gso_frame,
            Invalid::Checksum => &self.rx_bad_csum,
            Invalid::Source | Invalid::Destination => &self.rx_bad_address,
            Invalid::Guard(Forbidden::Address(_) | Forbidden::HardwareAddress(_)) => {
                &self.rx_ip_spoofed
            }
            Invalid::Guard(Forbidden::Server) => &self.rx_dhcp_server,
            Invalid::Guard(Forbidden::Unknown) => &self.rx_unexamined,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_of_losses_is_told_from_one_of_anything_else() {
        assert_eq!(Counters::losses().count(), LOSSES);
        let counters = Counters::default();
        counters.rx_no_guest.add(5);
        let at = counters.loss_of(&counters.rx_no_guest).unwrap();
        assert_eq!(Counters::losses().nth(at.into()), Some("rx_no_guest"));
        assert_eq!(counters.loss_values()[usize::from(at)], 5);
        assert_eq!(counters.loss_of(&counters.rx_frames), None);
        assert!(Counters::is_drop("rx_no_guest") && Counters::is_drop("rx_flood_lost"));
        for name in ["tx_frames", "uplink_rx_own", "no such"] {
            assert!(!Counters::is_drop(name), "{name}");
        }
    }

    #[test]
    fn counters_of_losses_are_the_rows_of_the_document_with_their_reasons_of_linux() {
        let document = include_str!("../../docs/drop-reasons.md");
        let is_row = |line: &&str| line.starts_with("| `");
        let rows: Vec<&str> = document.lines().filter(is_row).collect();
        let expected: Vec<String> = Counters::losses()
            .map(|name| {
                let linux = Counters::linux_reason(name);
                let linux = linux.map_or("–".to_owned(), |linux| format!("`{linux}`"));
                format!("| `{name}` | {linux} | ")
            })
            .collect();
        for (row, start) in rows.iter().zip(&expected) {
            assert!(row.starts_with(start), "{row} does not start with {start}");
            // Name, reason, meaning, what to do.
            let cells: Vec<&str> = row.split(" | ").collect();
            assert!(
                cells.len() == 4 && cells.iter().all(|cell| cell.len() > 1),
                "{row}"
            );
        }
        assert_eq!(rows.len(), expected.len());
    }

    #[test]
    fn only_counters_of_losses_have_a_reason_of_linux() {
        let all = Counters::default().values();
        for (name, _) in all.iter().filter(|(name, _)| !Counters::is_drop(name)) {
            assert_eq!(Counters::linux_reason(name), None, "{name}");
        }
        assert_eq!(Counters::linux_reason("tx_peer_stalled"), Some("FULL_RING"));
        assert_eq!(Counters::linux_reason("uplink_tx_refused"), None);
    }

    #[test]
    fn counter_of_the_control_thread_is_told_from_one_of_the_worker() {
        let counters = Counters::default();
        let is_of_control = |counter| {
            let loss = counters.loss_of(counter).unwrap();
            Counters::is_of_control_thread(loss.into())
        };
        assert!(is_of_control(&counters.rx_flood_lost));
        assert!(!is_of_control(&counters.rx_no_guest));
    }
}
