//! Makes warnings about the guest of a port, and about peers, uplinks and dropped frames of a port
//! or of an uplink that ports share. They name the conflicting values and the solution.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::SystemTime;

use virtio_inter_common::{MacAddr, MacSets, PortId};
use virtio_inter_device::{Counters, DropReason};
use virtio_inter_segment::{LocalPort, MAX_TRUNK_ADDRESSES, PeerInfo, PeerKey, RefusedPeer};

use crate::uplink::UplinkStatus;
use crate::warnings::{Code, Warning, Warnings};

/// Maximum number of addresses of peers that left: a guest continues to send to them for a while.
const MAX_FORMER: usize = 64;
/// Maximum number of peers that a warning names.
const MAX_NAMED: usize = 5;

const PORT: &str = "port";
const UPLINK: &str = "uplink";

const ONE_LIST: &str = "Take it out of the list, or give that port another --mac";
const ONE_MTU: &str = "Give all ports of the segment, and their guests, one MTU";

/// The warnings of a port or shared uplink, and the state from which they are made.
#[derive(Debug)]
pub struct Diagnostics {
    /// What its texts call it: a port or an uplink.
    kind: &'static str,
    id: PortId,
    mac: MacAddr,
    allowed: MacSets,
    trunk: bool,
    mtu: u16,
    warnings: Warnings,
    /// Drops seen so far, by queue pair and reason.
    seen: BTreeMap<(usize, Code), u64>,
    /// Addresses of peers that left.
    former: VecDeque<MacAddr>,
    last_refused_source: Option<MacAddr>,
    /// The address of [`Code::NoDestination`].
    lost_destination: Option<MacAddr>,
    /// Number of refusals of peers with the same name or address, and the time of the last one.
    conflicts: (u64, Option<SystemTime>),
    /// Number of links that were closed because peers broke rules.
    violations: u64,
}

impl Diagnostics {
    /// The diagnostics of a new port or shared uplink, without warnings.
    pub fn new(local: &LocalPort) -> Self {
        Self {
            kind: match local.uplinks.shared {
                Some(_) => UPLINK,
                None => PORT,
            },
            id: local.id.clone(),
            mac: local.mac,
            allowed: local.allowed.clone(),
            trunk: local.trunk,
            mtu: local.mtu,
            warnings: Warnings::default(),
            seen: BTreeMap::new(),
            former: VecDeque::new(),
            last_refused_source: None,
            lost_destination: None,
            conflicts: (0, None),
            violations: 0,
        }
    }

    /// All current warnings.
    pub fn warnings(&self) -> impl Iterator<Item = (Code, &Warning)> {
        self.warnings.iter()
    }

    /// The source address of the guest's last frame with an address other than the port's.
    pub fn last_refused_source(&self) -> Option<MacAddr> {
        self.last_refused_source
    }

    /// Sets or clears the warning that the guest's memory is not shared; `unshared` is its text.
    pub fn memory(&mut self, unshared: Option<&str>) {
        self.warnings.set(Code::MemoryNotShared, unshared);
    }

    /// Sets or clears the warning that a queue cannot start; `waits` is its text.
    pub fn queues(&mut self, waits: Option<&str>) {
        self.warnings.set(Code::QueueWaits, waits);
    }

    /// Sets or clears the warning that users who may join the segment can also remove the files of
    /// other ports there.
    pub fn segment_mode(&mut self, segment: &Path, lets_others_remove: bool) {
        let path = segment.display();
        let subject = path.to_string();
        if !lets_others_remove {
            self.warnings.clear(Code::SegmentNotSticky, &subject);
            return;
        }
        let text = format!(
            "Everybody who may write to {path} can remove the sockets of other ports there and \
             take their names: set its sticky bit (chmod +t {path})"
        );
        self.warnings
            .raise(Code::SegmentNotSticky, &subject, 1, text);
    }

    /// Sets or clears the warning that a file is missing by which others find this port.
    pub fn lost_file(&mut self, path: &Path, why: Option<&str>) {
        let path = path.display().to_string();
        let Some(why) = why else {
            self.warnings.clear(Code::FileLost, &path);
            return;
        };
        let text = format!(
            "Something removed or replaced {path}: nobody finds this {} there any more, existing \
             connections stay. It cannot be made again now: {why}",
            self.kind
        );
        self.warnings.raise(Code::FileLost, &path, 1, text);
    }

    /// Sets or clears the warning that the port's status cannot be read in the segment's directory.
    pub fn no_status(&mut self, path: &Path, why: Option<&str>) {
        let effect = format!("Nobody finds this {}'s status", self.kind);
        self.no_socket(path, &effect, why);
    }

    /// Sets or clears the warning that the port's frames cannot be captured.
    pub fn no_capture(&mut self, path: &Path, why: Option<&str>) {
        self.no_socket(path, "Nobody can capture this port's frames", why);
    }

    fn no_socket(&mut self, path: &Path, effect: &str, why: Option<&str>) {
        let path = path.display().to_string();
        let Some(why) = why else {
            self.warnings.clear(Code::FileLost, &path);
            return;
        };
        let text = format!("{effect} at {path}, frames pass: {why}");
        self.warnings.raise(Code::FileLost, &path, 1, text);
    }

    /// Notes a new link with a peer.
    pub fn linked(&mut self, peer: &PeerInfo) {
        self.former.retain(|mac| *mac != peer.mac);
        if self.lost_destination == Some(peer.mac) {
            self.warnings.clear(Code::NoDestination, "");
        }
    }

    /// Warns that the link with a peer was closed because the peer broke a rule.
    pub fn violation(&mut self, peer: &PortId, reason: &str) {
        self.violations += 1;
        let text = format!(
            "Port {peer} broke a rule, and its link was closed: {reason}. There may be a link \
             again after a pause. A port does so if it is hostile or has a fault: see its log"
        );
        let count = self.violations;
        self.warnings.raise(Code::PeerViolation, "", count, text);
    }

    /// Notes that the link with a peer has ended.
    pub fn left(&mut self, peer: &PeerInfo) {
        if self.former.len() == MAX_FORMER {
            self.former.pop_front();
        }
        self.former.push_back(peer.mac);
    }

    /// The port has this uplink, or this is an uplink's device: warns if it cannot carry frames, or
    /// not all of them. `is_active`: frames are to be carried, an uplink does not stand by.
    pub fn uplink(&mut self, uplink: &UplinkStatus<'_>, is_active: bool) {
        match uplink.problem() {
            Some(problem) => {
                let effect = match self.kind {
                    UPLINK if is_active => "nothing passes between the segment and its network",
                    UPLINK => "this uplink, which stands by, cannot take over",
                    _ => "the guest reaches the ports of the segment only",
                };
                let text = format!("{problem}. Until then {effect}");
                let frames = self.count(Code::UplinkDown);
                self.warnings.raise(Code::UplinkDown, "", frames, text);
            }
            None => self.warnings.clear(Code::UplinkDown, ""),
        }
        match uplink.mtu {
            Some(mtu) if mtu < u32::from(self.mtu) => {
                let device = match self.kind {
                    UPLINK => "tap device",
                    _ => "uplink",
                };
                let text = format!(
                    "MTU mismatch: {} at this {}, {mtu} at its {device} {}, whose network drops \
                     larger packets. Give both one MTU",
                    self.mtu,
                    self.kind,
                    uplink.name()
                );
                self.warnings.raise(Code::UplinkMtu, "", 1, text);
            }
            _ => self.warnings.clear(Code::UplinkMtu, ""),
        }
    }

    /// Peers came or went: warns of what does not go together.
    pub fn peers(&mut self, peers: &BTreeMap<PeerKey, PeerInfo>) {
        if self.kind == UPLINK {
            // It has frames of all addresses, and no other uplink has any of it.
            return self.mtus(peers.values().filter(|peer| peer.uplinks.shared.is_none()));
        }
        self.mtus(peers.values());
        self.allowed(peers.values());
    }

    /// Warns of addresses that ports list beside their own although they are another port's.
    fn allowed<'a>(&mut self, peers: impl Iterator<Item = &'a PeerInfo> + Clone) {
        let names = |peers: &mut dyn Iterator<Item = &'a PeerInfo>| {
            let mut names: Vec<&str> = peers.map(|peer| peer.id.as_str()).collect();
            names.sort_unstable();
            (names.len() as u64, list(&names))
        };
        let own = self.allowed.clone();
        let lists = |sets: &MacSets, mac| sets.exact().any(|listed| listed == mac);
        let (count, ports) = names(&mut peers.clone().filter(|peer| lists(&own, peer.mac)));
        let text = format!(
            "This port's --allow-mac has the address of {ports}, which keeps it: frames of the \
             guest from that address are dropped. {ONE_LIST}"
        );
        self.set(Code::AllowedMacTaken, "own", count, text);
        let mac = self.mac;
        let (count, ports) = names(&mut peers.filter(|peer| lists(&peer.allowed, mac)));
        let text = format!(
            "The --allow-mac of {ports} has this port's address {mac}, which stays here: frames \
             of others from it are dropped. {ONE_LIST}"
        );
        self.set(Code::AllowedMacTaken, "peers", count, text);
    }

    /// Sets a warning of `count` peers, or clears it if that is 0.
    fn set(&mut self, code: Code, subject: &str, count: u64, text: String) {
        match count {
            0 => self.warnings.clear(code, subject),
            _ => self.warnings.raise(code, subject, count, text),
        }
    }

    /// Warns of peers with another MTU.
    fn mtus<'a>(&mut self, peers: impl Iterator<Item = &'a PeerInfo>) {
        let mut others: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
        for peer in peers.filter(|peer| peer.mtu != self.mtu) {
            others.entry(peer.mtu).or_default().push(peer.id.as_str());
        }
        self.warnings.retain(Code::MtuMismatch, |subject| {
            subject.parse().is_ok_and(|mtu| others.contains_key(&mtu))
        });
        for (mtu, mut names) in others {
            names.sort_unstable();
            let (own, smaller, kind) = (self.mtu, self.mtu.min(mtu), self.kind);
            let count = names.len() as u64;
            let names = list(&names);
            let text = format!(
                "MTU mismatch: {own} at this {kind}, {mtu} at {names}. Packets of more than \
                 {smaller} bytes between them are dropped unless they can be segmented, and their \
                 sender is not told. {ONE_MTU}"
            );
            self.warnings
                .raise(Code::MtuMismatch, &mtu.to_string(), count, text);
        }
    }

    /// Warns of refused peers with the same name or address.
    pub fn refused(&mut self, refused: &[RefusedPeer]) {
        let conflicts = refused.iter().filter(|peer| peer.is_conflict);
        let is_own_id = |peer: &&RefusedPeer| peer.peer.as_ref() == Some(&self.id);
        let (own_id, others): (Vec<_>, Vec<_>) = conflicts.partition(is_own_id);
        let all = || own_id.iter().chain(&others);
        let count = all().map(|peer| peer.count).sum();
        let seen = (count, all().map(|peer| peer.when).max());
        if seen == self.conflicts {
            return;
        }
        self.conflicts = seen;
        // Its process has ended: a port's id is the name of its socket.
        let turned_away = own_id.first().map(|peer| {
            format!(
                "Another port was started with this {}'s own id {} and was turned away: give it \
                 an id (--id) and an address (--mac) of its own",
                self.kind,
                describe(peer)
            )
        });
        let texts = [conflict(&others, self.kind), turned_away];
        let texts: Vec<String> = texts.into_iter().flatten().collect();
        self.set(Code::Conflict, "", count, texts.join(". "));
    }

    /// Checks the workers' counts of dropped frames. Returns whether they have increased.
    pub fn drops<'a>(
        &mut self,
        counters: impl Iterator<Item = &'a Counters>,
        peers: &BTreeMap<PeerKey, PeerInfo>,
    ) -> bool {
        let mut latest: BTreeMap<Code, DropReason> = BTreeMap::new();
        for (pair, counters) in counters.enumerate() {
            for (reason, count) in counters.drops.iter() {
                let code = code(reason);
                if self.seen.insert((pair, code), count) != Some(count) {
                    latest.insert(code, reason);
                }
            }
        }
        for (code, reason) in &latest {
            self.dropped(*reason, self.count(*code), peers);
        }
        !latest.is_empty()
    }

    /// Number of frames that were dropped for this reason, on all queue pairs.
    fn count(&self, code: Code) -> u64 {
        let of_code = self.seen.iter().filter(|((_, of), _)| *of == code);
        of_code.map(|(_, count)| count).sum()
    }

    /// Warns of `count` dropped frames. `reason` is that of the last one.
    fn dropped(&mut self, reason: DropReason, count: u64, peers: &BTreeMap<PeerKey, PeerInfo>) {
        let find = |address| peers.values().find(|peer| peer.mac == address);
        let name = |address: MacAddr| match find(address) {
            Some(peer) => format!("peer {} ({address})", peer.id),
            None => format!("the former peer with {address}"),
        };
        let (mac, mtu) = (self.mac, self.mtu);
        let text = match reason {
            DropReason::ForeignSource(source) => {
                self.last_refused_source = Some(source);
                match find(source) {
                    Some(peer) if self.allowed.contains(source) => format!(
                        "The guest sends frames from {source}, which is the address of port {}: \
                         they are dropped, although --allow-mac has it. Give one of them another \
                         address",
                        peer.id
                    ),
                    _ if self.trunk => format!(
                        "The guest sends frames from {source}, which another port has or lists, or \
                         which the segment's owner has pinned to one, or which is one more than \
                         the {MAX_TRUNK_ADDRESSES} addresses that a trunk may use at a time: they \
                         are dropped"
                    ),
                    _ => format!(
                        "The guest sends frames from {source}, but this port's address is {mac}: \
                         they are dropped. Start the VM with the port's address (mac=), or the \
                         port with that of the VM (--mac); if the guest has more addresses, as \
                         with a bridge, macvlan or VRRP, list them (--allow-mac); bonding needs \
                         fail_over_mac=active"
                    ),
                }
            }
            DropReason::ForeignIp(address) => format!(
                "The guest claims the IP address {address}, which --ip does not list: its frames \
                 with that one are dropped. Add it to the list if the guest may have it; a \
                 link-local IPv6 address has to be listed unless it is made of the MAC address"
            ),
            DropReason::ForeignNeighbor(address) => format!(
                "The guest says by ARP or Neighbour Discovery that an IP address is at {address}, \
                 but the frame is from another address: such frames are dropped (--ip)"
            ),
            DropReason::DhcpServer => "The guest answers as a DHCP server, or advertises itself \
                                       as a router: such frames are dropped (--no-dhcp-server). \
                                       Start the port without that if the guest is to be one"
                .to_owned(),
            DropReason::Unexamined => "The guest sends frames that cannot be examined, or of a \
                                       protocol without a listed address: they are dropped. With \
                                       --ip, only IPv4, IPv6 and ARP pass, behind at most two \
                                       VLAN tags"
                .to_owned(),
            DropReason::PeerGuard(address) => format!(
                "The port of {} says that it guards its guest (--ip, --no-dhcp-server), but passes \
                 on what that forbids: such frames are dropped here. Is the port's process \
                 compromised?",
                name(address)
            ),
            // The log says when this peer left.
            DropReason::NoDestination(address) if self.former.contains(&address) => return,
            // The peer has joined since.
            DropReason::NoDestination(address) if find(address).is_some() => return,
            DropReason::NoDestination(address) => {
                self.lost_destination = Some(address);
                format!(
                    "The guest sends frames to {address}, which no port of the segment has: they \
                     are dropped. A guest is reached by its port's address, and by one that it \
                     chose or that is behind it only if its port's --allow-mac has that"
                )
            }
            DropReason::PeerStalled(address) => format!(
                "The guest of {} takes no frames, or very few: those for it are dropped. Is it \
                 paused, hung or short of CPU time?",
                name(address)
            ),
            // `uplink` warns of it, with this count.
            DropReason::UplinkDown => return,
            DropReason::UplinkFull => "The tap device of the uplink takes no frames, or very \
                few: those for it are dropped. Is its queueing discipline stopped, or its send \
                buffer (TUNSETSNDBUF) too small?"
                .to_owned(),
            DropReason::TooLong { from, packet } => format!(
                "A packet of {packet} bytes from {} is larger than this port's MTU {mtu} and not \
                 to be segmented: such packets are dropped, and their sender is not told. \
                 {ONE_MTU}",
                name(from)
            ),
            DropReason::SmallBuffer { frame, buffer } => format!(
                "A frame of {frame} bytes does not fit the guest's receive buffers of {buffer}: \
                 such are dropped. Let the guest's driver have mergeable buffers \
                 (VIRTIO_NET_F_MRG_RXBUF; mrg_rxbuf=on in QEMU) or larger ones, or lower the \
                 segment's MTU"
            ),
        };
        self.warnings.raise(code(reason), "", count, text);
    }
}

/// The conflict with a peer that is there, and the number of such peers.
fn conflict(peers: &[&RefusedPeer], kind: &str) -> Option<String> {
    // Always names the same peer, not the latest one, so that the text stays the same.
    let peer = peers.iter().min_by_key(|peer| (&peer.peer, peer.by_peer))?;
    let (who, reason) = (describe(peer), &peer.reason);
    let mut what = if peer.by_peer {
        format!("Port {who} refuses this {kind}: \"{reason}\"")
    } else {
        format!("This {kind} refuses port {who}: {reason}")
    };
    let all: BTreeSet<_> = peers.iter().map(|peer| &peer.peer).collect();
    if all.len() > 1 {
        what = format!("{what}; the same with {} more", all.len() - 1);
    }
    Some(format!(
        "{what}. Ports with one address or one name exchange no frames: give each an address \
         (--mac) and a name (--id) of its own"
    ))
}

/// The name and process of a peer without a link, as text.
fn describe(peer: &RefusedPeer) -> String {
    let name = peer.peer.as_ref().map_or("(unnamed)", PortId::as_str);
    match peer.pid {
        Some(pid) => format!("{name} (process {pid})"),
        None => name.to_owned(),
    }
}

fn code(reason: DropReason) -> Code {
    match reason {
        DropReason::ForeignSource(_) => Code::ForeignSource,
        DropReason::ForeignIp(_) => Code::ForeignIp,
        DropReason::ForeignNeighbor(_) => Code::ForeignNeighbor,
        DropReason::DhcpServer => Code::DhcpServer,
        DropReason::Unexamined => Code::NotExamined,
        DropReason::PeerGuard(_) => Code::PeerGuard,
        DropReason::NoDestination(_) => Code::NoDestination,
        DropReason::PeerStalled(_) => Code::PeerStalled,
        DropReason::UplinkDown => Code::UplinkDown,
        DropReason::UplinkFull => Code::UplinkFull,
        DropReason::TooLong { .. } => Code::PacketTooLong,
        DropReason::SmallBuffer { .. } => Code::BufferTooSmall,
    }
}

/// The first names, and the number of further ones.
fn list(names: &[&str]) -> String {
    let named = names[..names.len().min(MAX_NAMED)].join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
