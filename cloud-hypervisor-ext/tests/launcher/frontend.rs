//! The VMM's end of a device, made with the crate that Cloud Hypervisor has for it, and in its
//! order (v53, `virtio-devices/src/vhost_user`): what it asks for when a VM is made, when the
//! guest's driver starts, and at a pause.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{Result, VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::harness::TIMEOUT;

const QUEUES: usize = 2;
const SIZE: u64 = 1 << 20;
/// Address of the memory in the VMM.
const USER: u64 = 0x7f00_0000_0000;
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::LOG_SHMFD);
/// VERSION_1 and PROTOCOL_FEATURES.
const FEATURES: u64 = 1 << 32 | 1 << 30;

pub(crate) struct MockVmm {
    frontend: Frontend,
    connection: UnixStream,
    socket: PathBuf,
    memory: File,
    events: Vec<EventFd>,
}

impl MockVmm {
    /// A VM is made.
    pub(crate) fn new(socket: &Path) -> Self {
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, SIZE).unwrap();
        let (frontend, connection) = connect(socket);
        let mut vmm = Self {
            frontend,
            connection,
            socket: socket.to_owned(),
            memory: memory.into(),
            events: (0..2 * QUEUES).map(|_| EventFd::new(0).unwrap()).collect(),
        };
        vmm.negotiate().unwrap();
        assert_eq!(vmm.frontend.get_queue_num().unwrap(), QUEUES as u64);
        vmm
    }

    fn negotiate(&mut self) -> Result<()> {
        self.frontend.set_owner()?;
        let offered = self.frontend.get_features()?;
        assert_eq!(FEATURES & !offered, 0);
        self.frontend.set_protocol_features(PROTOCOL)?;
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        Ok(())
    }

    /// The guest's driver starts.
    pub(crate) fn activate(&mut self) -> Result<()> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: SIZE,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.memory.as_raw_fd(),
        };
        self.frontend.set_features(FEATURES)?;
        self.frontend.set_mem_table(&[region])?;
        for index in 0..QUEUES {
            self.frontend.set_vring_num(index, 256)?;
        }
        for index in 0..QUEUES {
            let start = USER + 0x8000 * index as u64;
            let config = VringConfigData {
                queue_max_size: 256,
                queue_size: 256,
                flags: 0,
                desc_table_addr: start,
                used_ring_addr: start + 0x4000,
                avail_ring_addr: start + 0x6000,
                log_addr: None,
            };
            self.frontend.set_vring_addr(index, &config)?;
            self.frontend.set_vring_base(index, 0)?;
            let [call, kick] = [&self.events[2 * index], &self.events[2 * index + 1]];
            self.frontend.set_vring_call(index, call)?;
            self.frontend.set_vring_kick(index, kick)?;
        }
        self.enable(true)
    }

    /// The VM is paused, or resumed.
    pub(crate) fn enable(&mut self, enabled: bool) -> Result<()> {
        (0..QUEUES).try_for_each(|index| self.frontend.set_vring_enable(index, enabled))
    }

    /// The guest's driver is unbound.
    pub(crate) fn reset(&mut self) -> Result<()> {
        for index in 0..QUEUES {
            self.frontend.set_vring_enable(index, false)?;
            self.frontend.get_vring_base(index)?;
        }
        Ok(())
    }

    /// Waits for the end of the connection, as while the VM runs and the driver with it.
    #[track_caller]
    pub(crate) fn wait_for_its_end(&self) {
        let limit = Timespec {
            tv_sec: TIMEOUT.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&self.connection, PollFlags::empty())];
        assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "waited in vain");
    }

    /// Its reaction to that end.
    pub(crate) fn connect_again(&mut self) -> Result<()> {
        (self.frontend, self.connection) = connect(&self.socket);
        self.negotiate()?;
        self.activate()
    }
}

fn connect(socket: &Path) -> (Frontend, UnixStream) {
    let connection = UnixStream::connect(socket).unwrap();
    let frontend = Frontend::from_stream(connection.try_clone().unwrap(), QUEUES as u64);
    (frontend, connection)
}
