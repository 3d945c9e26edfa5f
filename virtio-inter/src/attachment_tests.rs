//! Tests of the life of peers, with segments whose other members the test plays.

use std::time::Instant;

use virtio_inter_device::BusyPollConfig;
use virtio_inter_device::backend::Links;
use virtio_inter_segment::{LocalPort, Uplinks};

use super::*;
use crate::warnings::Code;

const PATIENCE: Duration = Duration::from_secs(30);

/// Number of peers.
const COUNT: usize = 16;

/// Notes the calls of its methods.
#[derive(Debug, Default)]
struct Notes {
    /// How often paths were chosen.
    choices: usize,
}

impl Role for Notes {
    fn paths<'a>(&mut self, peers: impl Iterator<Item = &'a PeerInfo> + Clone) -> Paths {
        self.choices += 1;
        Paths {
            elsewhere: peers.map(|peer| peer.key).collect(),
            ..Paths::default()
        }
    }

    fn has_links_with(&self, peer: &PeerInfo) -> bool {
        peer.uplinks.shared.is_none()
    }
}

fn local(id: &str, last: u8) -> LocalPort {
    let mac = [2, 0, 0, 0, 0, last].into();
    LocalPort::new(id.parse().unwrap(), mac)
}

/// An attachment, and `COUNT` others, of which the first one is a shared uplink.
fn attached(directory: &tempfile::TempDir) -> (Attachment<Links, Notes>, Vec<Segment>) {
    let own = local("own", 0);
    let segment = Segment::join(directory.path(), own.clone()).unwrap();
    let device = Port::new(&own, BusyPollConfig::default()).unwrap();
    let attachment = Attachment::new(&own, segment, device, Notes::default(), PATIENCE).unwrap();
    let join = |i: usize| {
        let mut other = local(&format!("other-{i}"), i as u8 + 1);
        if i == 0 {
            let (network, shared) = ("lan".parse().ok(), Some(1));
            other.uplinks = Uplinks { network, shared };
        }
        Segment::join(directory.path(), other).unwrap()
    };
    (attachment, (0..COUNT).map(join).collect())
}

/// Has all do what there is to do until `is_done`.
#[track_caller]
fn until(
    attachment: &mut Attachment<Links, Notes>,
    others: &mut [Segment],
    is_done: impl Fn(&Attachment<Links, Notes>) -> bool,
) {
    let deadline = Instant::now() + PATIENCE;
    while !is_done(attachment) {
        assert!(Instant::now() < deadline, "{:?}", attachment.role);
        for other in &mut *others {
            other.process();
        }
        attachment.handle_segment();
    }
}

#[test]
fn peers_that_are_up_together_are_added_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (mut attachment, mut others) = attached(&directory);
    until(&mut attachment, &mut others, |attachment| {
        attachment.peers.len() == COUNT
    });
    // All go through the handshake at the same pace.
    let choices = attachment.role.choices;
    assert!(choices < COUNT / 2, "{choices} for {COUNT} peers");
    for peer in attachment.peers.values() {
        let is_linked = attachment.device.traffic(peer.key).is_some();
        assert_eq!(is_linked, peer.uplinks.shared.is_none(), "{}", peer.id);
    }
    assert!(attachment.report_peers() && !attachment.report_peers());
}

#[test]
fn peers_that_leave_are_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let (mut attachment, mut others) = attached(&directory);
    until(&mut attachment, &mut others, |attachment| {
        attachment.peers.len() == COUNT
    });
    let keys: Vec<PeerKey> = attachment.peers.keys().copied().collect();
    others.truncate(COUNT - 2);
    until(&mut attachment, &mut others, |attachment| {
        attachment.peers.len() == COUNT - 2
    });
    let is_gone = |peer: &PeerInfo| ["other-14", "other-15"].contains(&peer.id.as_str());
    assert!(!attachment.peers.values().any(is_gone));
    assert!(attachment.report_peers());
    let linked = keys
        .iter()
        .filter(|key| attachment.device.traffic(**key).is_some());
    // Without the shared uplink.
    assert_eq!(linked.count(), COUNT - 3);
}

#[test]
fn violations_of_peers_are_counted_in_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let (mut attachment, mut others) = attached(&directory);
    until(&mut attachment, &mut others, |attachment| {
        attachment.peers.len() == COUNT
    });
    let keys: Vec<PeerKey> = attachment.peers.keys().copied().collect();
    for key in &keys[..2] {
        attachment.warn_of_violation(*key, "Position 7 is behind 9");
    }
    let mut warnings = attachment.diagnostics.warnings();
    let (_, warning) = warnings.find(|it| it.0 == Code::PeerViolation).unwrap();
    let id = &attachment.peers[&keys[1]].id;
    let expected = format!("Port {id} broke a rule, and its link was closed: Position 7 is behind");
    assert!(warning.text.starts_with(&expected), "{}", warning.text);
    assert_eq!(warning.count, 2);
}
