//! The pcapng file: an interface for each port, and its frames with what is known of them.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::PcapNgBlock;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::blocks::opt_common::{CommonOption, UnknownOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness};
use thiserror::Error;
use virtio_inter_device::{Counters, NET_HEADER};

use super::session::{About, Frame};

/// Bytes after which blocks are written in any case.
const BUFFER: usize = 1 << 20;
/// Options that the crate has no names for: the queue, and what became of the frame.
const EPB_QUEUE: u16 = 6;
const EPB_VERDICT: u16 = 7;
/// A verdict in the terms of Linux' traffic control, and two of them.
const VERDICT_TC: u8 = 1;
const TC_ACT_OK: u64 = 0;
const TC_ACT_SHOT: u64 = 2;
/// Directions in the flags of a frame.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Flags and GSO types of a net header (VIRTIO 1.3, 5.1.6).
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// The file cannot be written to any further.
#[derive(Debug, Error)]
#[error("Cannot write to {name}; it has the first {frames} frames")]
pub(crate) struct WriteError {
    name: String,
    frames: u64,
    #[source]
    source: io::Error,
}

impl WriteError {
    /// The reader of a pipe is gone.
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.source.kind() == ErrorKind::BrokenPipe
    }

    /// The file, or standard output.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// What the statistics of a port say in the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Statistics {
    /// Nanoseconds since 1970.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Frames that were read from its rings.
    pub(crate) read: u64,
    /// Frames that the rings had no room for.
    pub(crate) missed: u64,
    /// Frames in the file.
    pub(crate) accepted: u64,
    /// A filter chose them.
    pub(crate) is_filtered: bool,
}

/// The file, or standard output.
pub(crate) struct Output {
    writer: PcapNgWriter<Vec<u8>>,
    file: File,
    name: String,
    snaplen: usize,
    /// Bytes in the file: whole blocks.
    len: u64,
    /// Where each block in the buffer ends, and whether it is a frame.
    ends: Vec<(usize, bool)>,
    /// Frames in the file.
    frames: u64,
}

impl Output {
    /// Opens the file, which is made or emptied; only its owner may read it. `-` is standard
    /// output.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub(crate) fn open(path: &Path, snaplen: u32) -> Result<Self> {
        let (file, name) = if path == Path::new("-") {
            let own = io::stdout().as_fd().try_clone_to_owned();
            let own = own.context("Cannot write to standard output")?;
            (File::from(own), "standard output".to_owned())
        } else {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let name = path.display().to_string();
            let file = options.open(path);
            (file.with_context(|| format!("Cannot write {name}"))?, name)
        };
        let program = concat!("virtio-inter ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![
                SectionHeaderOption::OS(Cow::Borrowed("Linux")),
                SectionHeaderOption::UserApplication(Cow::Borrowed(program)),
            ],
            ..SectionHeaderBlock::default()
        };
        let writer = PcapNgWriter::with_section_header(Vec::new(), section)?;
        let ends = vec![(writer.get_ref().len(), false)];
        Ok(Self {
            writer,
            file,
            name,
            snaplen: snaplen as usize,
            len: 0,
            ends,
            frames: 0,
        })
    }

    /// Adds an interface: the next port.
    pub(crate) fn add_port(&mut self, about: &About, filter: Option<&str>) -> Result<()> {
        use InterfaceDescriptionOption as O;
        let mut options = vec![O::IfName(Cow::Borrowed(&about.name))];
        let mtu = about
            .mtu
            .map_or(String::new(), |mtu| format!("MTU {mtu}, "));
        let features = match &about.features {
            Some(features) => format!("features {}", features.join(" ")),
            None => "no guest".to_owned(),
        };
        let description = format!("virtio-inter port, {mtu}{features}");
        options.push(O::IfDescription(Cow::Owned(description)));
        if let Some(mac) = about.mac {
            options.push(O::IfMacAddr(Cow::Owned(mac.octets().to_vec())));
        }
        // Nanoseconds.
        options.push(O::IfTsResol(9));
        if let Some(filter) = filter {
            // The first byte says that it is an expression.
            let text = [&[0], filter.as_bytes()].concat();
            options.push(O::IfFilter(Cow::Owned(text)));
        }
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snaplen as u32,
            options,
        };
        self.add(block, false)
    }

    /// Adds a frame.
    pub(crate) fn add_frame(&mut self, frame: &Frame) -> Result<()> {
        use EnhancedPacketOption as O;
        let unknown = |code, value: Vec<u8>| {
            O::Common(CommonOption::Unknown(UnknownOption {
                code,
                value: Cow::Owned(value),
            }))
        };
        let direction = if frame.transmit { OUTBOUND } else { INBOUND };
        let mut options = vec![O::Flags(direction)];
        if frame.missed != 0 {
            options.push(O::DropCount(frame.missed));
        }
        options.push(unknown(EPB_QUEUE, frame.queue.to_ne_bytes().to_vec()));
        let verdict = match frame.loss {
            Some(_) => TC_ACT_SHOT,
            None => TC_ACT_OK,
        };
        let verdict = [&[VERDICT_TC][..], &verdict.to_ne_bytes()].concat();
        options.push(unknown(EPB_VERDICT, verdict));
        if let Some(comment) = comment(frame) {
            options.push(O::Common(CommonOption::Comment(Cow::Owned(comment))));
        }
        let captured = frame.bytes.len().min(self.snaplen);
        let block = EnhancedPacketBlock {
            interface_id: frame.port,
            timestamp: Duration::from_nanos(frame.time),
            original_len: frame.len,
            data: Cow::Borrowed(&frame.bytes[..captured]),
            options,
        };
        self.add(block, true)
    }

    /// Adds the statistics of a port.
    pub(crate) fn add_statistics(&mut self, port: u32, statistics: &Statistics) -> Result<()> {
        use InterfaceStatisticsOption as O;
        let mut options = vec![
            O::IsbStartTime(Duration::from_nanos(statistics.start)),
            O::IsbEndTime(Duration::from_nanos(statistics.end)),
            O::IsbIfRecv(statistics.read + statistics.missed),
            O::IsbIfDrop(statistics.missed),
        ];
        if statistics.is_filtered {
            options.push(O::IsbFilterAccept(statistics.accepted));
        }
        options.push(O::IsbUsrDeliv(statistics.accepted));
        let block = InterfaceStatisticsBlock {
            interface_id: port,
            timestamp: Duration::from_nanos(statistics.end),
            options,
        };
        self.add(block, false)
    }

    fn add<'a>(&mut self, block: impl PcapNgBlock<'a>, is_frame: bool) -> Result<()> {
        self.writer.write_pcapng_block(block)?;
        let end = self.writer.get_ref().len();
        self.ends.push((end, is_frame));
        if end >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes all blocks to the file. When that fails, the file ends with the last block that it
    /// has all of.
    ///
    /// # Errors
    ///
    /// When the file system is full, or a pipe has no reader any more.
    pub(crate) fn flush(&mut self) -> Result<(), WriteError> {
        let blocks = std::mem::take(self.writer.get_mut());
        let ends = std::mem::take(&mut self.ends);
        let mut written = 0;
        let mut result = Ok(());
        while result.is_ok() && written < blocks.len() {
            match self.file.write(&blocks[written..]) {
                Ok(0) => result = Err(ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => result = Err(error),
            }
        }
        let whole = ends.iter().take_while(|(end, _)| *end <= written);
        let (mut len, mut frames) = (0, 0);
        for (end, is_frame) in whole {
            len = *end as u64;
            frames += u64::from(*is_frame);
        }
        self.len += len;
        self.frames += frames;
        result.map_err(|source| {
            // Nothing of a pipe or device can be taken back.
            let _ = self.file.set_len(self.len);
            WriteError {
                name: self.name.clone(),
                frames: self.frames,
                source,
            }
        })
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether a value of `--write` would put the file onto a terminal.
pub(crate) fn is_terminal(path: &Path) -> bool {
    path == Path::new("-") && io::stdout().is_terminal()
}

/// What a reader of the file should know of a frame. None: nothing in particular.
fn comment(frame: &Frame) -> Option<String> {
    let loss = frame.loss.as_ref().map(|loss| {
        let linux = Counters::linux_reason(loss);
        let linux = linux.map_or_else(String::new, |linux| format!(" (Linux: {linux})"));
        format!("dropped: {loss}{linux}")
    });
    let parts = [loss, offloads(&frame.net_header)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The offload state that a net header says.
fn offloads(header: &[u8; NET_HEADER]) -> Option<String> {
    let [flags, gso_type, ..] = *header;
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let mut parts = Vec::new();
    if flags & NEEDS_CSUM != 0 {
        parts.push(format!("NEEDS_CSUM start {} offset {}", field(6), field(8)));
    }
    if gso_type != GSO_NONE {
        let kind = match gso_type & !GSO_ECN {
            GSO_TCPV4 => "TCPV4".to_owned(),
            GSO_TCPV6 => "TCPV6".to_owned(),
            GSO_UDP => "UDP".to_owned(),
            GSO_UDP_L4 => "UDP_L4".to_owned(),
            other => other.to_string(),
        };
        let ecn = if gso_type & GSO_ECN != 0 { "+ECN" } else { "" };
        parts.push(format!("GSO {kind}{ecn} size {}", field(4)));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pcap_file::pcapng::{Block, PcapNgReader};
    use rustix::pipe::pipe;

    use super::*;

    fn frame(len: usize) -> Frame {
        let mut net_header = [0; NET_HEADER];
        // NEEDS_CSUM, TCPV4, segments of 1448 bytes, checksum at 34 + 16.
        net_header[..10].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0]);
        Frame {
            time: 1_700_000_000_123_456_789,
            port: 0,
            transmit: true,
            queue: 3,
            missed: 2,
            loss: Some(Arc::from("tx_spoofed")),
            len: len as u32,
            net_header,
            bytes: vec![7; len],
        }
    }

    fn about() -> About {
        About {
            name: "web/vm1".to_owned(),
            mac: "52:54:00:00:00:01".parse().ok(),
            mtu: Some(1500),
            features: Some(vec!["CSUM".to_owned(), "MRG_RXBUF".to_owned()]),
        }
    }

    fn output(file: File) -> Output {
        let mut output = Output::open(Path::new("/dev/null"), 100).unwrap();
        output.file = file;
        output.add_port(&about(), Some("arp")).unwrap();
        output
    }

    #[test]
    fn capture_file_has_what_is_known_of_port_and_frame() {
        let mut output = output(tempfile::tempfile().unwrap());
        output.add_frame(&frame(200)).unwrap();
        let statistics = Statistics {
            start: 1_700_000_000_000_000_000,
            end: 1_700_000_001_000_000_000,
            read: 5,
            missed: 2,
            accepted: 1,
            is_filtered: true,
        };
        output.add_statistics(0, &statistics).unwrap();
        let bytes = output.writer.get_ref().clone();
        let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
        let mut blocks = Vec::new();
        while let Some(block) = reader.next_block() {
            blocks.push(block.unwrap().into_owned());
        }
        let [
            Block::InterfaceDescription(port),
            Block::EnhancedPacket(frame),
            last,
        ] = &blocks[..]
        else {
            panic!("{blocks:?}");
        };
        use InterfaceDescriptionOption as P;
        assert!(port.options.contains(&P::IfName("web/vm1".into())));
        assert!(
            port.options
                .contains(&P::IfMacAddr(vec![0x52, 0x54, 0, 0, 0, 1].into()))
        );
        let description = "virtio-inter port, MTU 1500, features CSUM MRG_RXBUF";
        assert!(port.options.contains(&P::IfDescription(description.into())));
        assert!(port.options.contains(&P::IfFilter((&b"\0arp"[..]).into())));
        assert_eq!((frame.original_len, frame.data.len()), (200, 100));
        assert_eq!(
            frame.timestamp,
            Duration::from_nanos(1_700_000_000_123_456_789)
        );
        use EnhancedPacketOption as F;
        assert!(frame.options.contains(&F::Flags(OUTBOUND)));
        assert!(frame.options.contains(&F::DropCount(2)));
        let text = "dropped: tx_spoofed (Linux: MAC_INVALID_SOURCE); NEEDS_CSUM start 34 \
                    offset 16, GSO TCPV4 size 1448";
        let comment = F::Common(CommonOption::Comment(text.into()));
        assert!(frame.options.contains(&comment), "{:?}", frame.options);
        let Block::InterfaceStatistics(statistics) = last else {
            panic!("{last:?}");
        };
        use InterfaceStatisticsOption as S;
        for option in [S::IsbIfRecv(7), S::IsbIfDrop(2), S::IsbFilterAccept(1)] {
            assert!(statistics.options.contains(&option), "{statistics:?}");
        }
    }

    /// A file that takes so many bytes: a device that is full.
    #[test]
    fn capture_file_on_a_full_device_is_an_error_that_says_what_it_has() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut output = output(full);
        output.add_frame(&frame(100)).unwrap();
        let error = output.flush().unwrap_err();
        assert_eq!(
            error.to_string(),
            "Cannot write to /dev/null; it has the first 0 frames"
        );
        assert!(!error.is_reader_gone());
    }

    #[test]
    fn capture_file_ends_with_a_whole_block_when_there_is_no_room_for_more() {
        // A pipe takes 64 KiB, and the rest of the blocks is refused, in the middle of one.
        let (reader, writer) = pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut output = output(File::from(writer));
        for _ in 0..1000 {
            output.add_frame(&frame(100)).unwrap();
        }
        let all = output.writer.get_ref().len() as u64;
        let error = output.flush().unwrap_err();
        assert_eq!(error.frames, output.frames);
        assert!(output.frames > 100 && output.frames < 1000);
        assert!(output.len < 65_536 && output.len > 65_536 - all / 1000 - 100);
        drop(reader);
        output.add_frame(&frame(100)).unwrap();
        assert!(output.flush().unwrap_err().is_reader_gone());
    }
}
