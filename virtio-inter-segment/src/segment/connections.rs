//! The connections of a segment, found by key, by the peer's id and by its address: with hundreds
//! of peers, no event makes the port look at all of them.

use std::collections::{BTreeMap, BTreeSet};

use virtio_inter_common::{MacAddr, PortId};

use crate::connection::Connection;

/// All connections. One that is changed as to its handshake is taken out for that.
#[derive(Debug, Default)]
pub(super) struct Connections {
    all: BTreeMap<u64, Connection>,
    /// Those whose handshake is not over: few.
    half_open: BTreeSet<u64>,
    /// Those of admitted peers: neither two with one id nor with one address.
    by_id: BTreeMap<PortId, u64>,
    by_mac: BTreeMap<MacAddr, u64>,
}

impl Connections {
    pub(super) fn insert(&mut self, key: u64, connection: Connection) {
        if connection.up_since().is_none() {
            self.half_open.insert(key);
        }
        if let Some(peer) = connection.peer() {
            self.by_id.insert(peer.id.clone(), key);
            self.by_mac.insert(peer.mac, key);
        }
        self.all.insert(key, connection);
    }

    pub(super) fn remove(&mut self, key: &u64) -> Option<Connection> {
        let connection = self.all.remove(key)?;
        self.half_open.remove(key);
        if let Some(peer) = connection.peer() {
            self.by_id.remove(&peer.id);
            self.by_mac.remove(&peer.mac);
        }
        Some(connection)
    }

    pub(super) fn get(&self, key: &u64) -> Option<&Connection> {
        self.all.get(key)
    }

    /// One whose handshake stays as it is.
    pub(super) fn get_mut(&mut self, key: &u64) -> Option<&mut Connection> {
        self.all.get_mut(key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Connection> {
        self.all.values()
    }

    /// The connection of an admitted peer.
    pub(super) fn with_id(&self, id: &PortId) -> Option<&Connection> {
        self.get(self.by_id.get(id)?)
    }

    /// The connection of an admitted peer.
    pub(super) fn with_mac(&self, mac: MacAddr) -> Option<&Connection> {
        self.get(self.by_mac.get(&mac)?)
    }

    /// Those whose handshake is not over, the oldest first.
    pub(super) fn half_open(&self) -> impl Iterator<Item = &Connection> {
        self.half_open.iter().filter_map(|key| self.all.get(key))
    }
}
