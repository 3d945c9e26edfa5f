//! What a mock VM has done so far, in a file that another process reads at any time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Most VMs, numbered from 0.
pub const MAX_VMS: usize = 8;

const FIELDS: usize = 8;
const PEER_FIELDS: usize = 4;
const WORDS: usize = FIELDS + MAX_VMS * PEER_FIELDS;

/// The streams with one other VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerProgress {
    /// Frames of data that came in, each once and in order.
    pub delivered: u64,
    /// When the last of them came, in nanoseconds of the monotonic clock; 0: none of this
    /// incarnation.
    pub last_delivery: u64,
    /// Longest time between two of them, in nanoseconds.
    pub worst_gap: u64,
}

/// What a mock VM has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Names its incarnation.
    pub epoch: u64,
    /// Connections to its port that it has set up.
    pub sessions: u64,
    /// Frames that came in.
    pub received: u64,
    /// Frames that went out.
    pub sent: u64,
    /// Times that a window was sent again.
    pub retries: u64,
    /// Frames that came while an earlier one was missing.
    pub missing: u64,
    /// Frames that came again.
    pub repeated: u64,
    /// Frames from or for a former incarnation.
    pub stale: u64,
    /// By the number of the other VM.
    pub peers: [PeerProgress; MAX_VMS],
}

impl Progress {
    /// Writes it to the beginning of a file.
    ///
    /// # Errors
    ///
    /// No room, for a file that was never written.
    pub fn write(&self, file: &File) -> io::Result<()> {
        let own = [
            self.epoch,
            self.sessions,
            self.received,
            self.sent,
            self.retries,
            self.missing,
            self.repeated,
            self.stale,
        ];
        let peers = self.peers.iter();
        let peers = peers.flat_map(|peer| [peer.delivered, peer.last_delivery, peer.worst_gap, 0]);
        let words = own.into_iter().chain(peers);
        let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
        file.write_all_at(&bytes, 0)
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// A file that was never written.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; 8 * WORDS];
        file.read_exact_at(&mut bytes, 0)?;
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        }
        let mut peers = [PeerProgress::default(); MAX_VMS];
        for (peer, words) in peers
            .iter_mut()
            .zip(words[FIELDS..].chunks_exact(PEER_FIELDS))
        {
            *peer = PeerProgress {
                delivered: words[0],
                last_delivery: words[1],
                worst_gap: words[2],
            };
        }
        Ok(Self {
            epoch: words[0],
            sessions: words[1],
            received: words[2],
            sent: words[3],
            retries: words[4],
            missing: words[5],
            repeated: words[6],
            stale: words[7],
            peers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mock_vm_progress_is_read_as_it_was_written() {
        let file = tempfile::tempfile().unwrap();
        Progress::read(&file).unwrap_err();
        let mut progress = Progress {
            epoch: 1,
            sessions: 2,
            received: 3,
            sent: 4,
            retries: 5,
            missing: 6,
            repeated: 7,
            stale: 8,
            ..Progress::default()
        };
        progress.peers[MAX_VMS - 1] = PeerProgress {
            delivered: 9,
            last_delivery: 10,
            worst_gap: 11,
        };
        progress.write(&file).unwrap();
        assert_eq!(Progress::read(&file).unwrap(), progress);
    }
}
