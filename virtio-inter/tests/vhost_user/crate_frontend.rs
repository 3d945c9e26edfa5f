//! The `vhost` crate's own frontend, which is what Cloud Hypervisor has, on the other end.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend as CrateFrontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_inter::vhost_user::frontend::{Disconnect, Frontend};
use virtio_inter::vhost_user::session::SessionLimits;
use vmm_sys_util::eventfd::EventFd;

use crate::mock::{FEATURES, MockDevice};
use crate::rig::*;

#[test]
fn crate_frontend_is_served_from_start_to_end() {
    let (theirs, ours) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let backend = scope.spawn(|| {
            let mut device = MockDevice::new(4);
            let limits = SessionLimits {
                queue_size: 256,
                mtu: 1500,
            };
            let mut frontend = Frontend::new(ours, limits, &device).unwrap();
            loop {
                let mut fds = [PollFd::new(&frontend, PollFlags::IN)];
                poll(
                    &mut fds,
                    Some(&Timespec {
                        tv_sec: 10,
                        tv_nsec: 0,
                    }),
                )
                .unwrap();
                if let Err(ended) = frontend.process(&mut device, None) {
                    assert!(matches!(ended, Disconnect::HungUp), "{ended:?}");
                    frontend.close(&mut device);
                    return device;
                }
            }
        });
        talk(theirs);
        let device = backend.join().unwrap();
        let starts: Vec<usize> = device.queues.iter().map(|queue| queue.starts).collect();
        assert_eq!(starts, [1, 1, 0, 0]);
        assert_eq!(device.running(), [false; 4]);
        assert_eq!(device.features, Some(FEATURES));
    });
}

fn talk(socket: UnixStream) {
    let mut frontend = CrateFrontend::from_stream(socket, 4);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG));
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(frontend.get_queue_num().unwrap(), 4);
    let (_, config) = frontend
        .get_config(0, 12, VhostUserConfigFlags::WRITABLE, &[0; 12])
        .unwrap();
    assert_eq!(config, (1..=12).collect::<Vec<u8>>());
    frontend.set_features(features).unwrap();
    let memory = File::from(memfd(SIZE));
    // Like Cloud Hypervisor: the log first, and its reply read completely.
    let log = File::from(memfd(SIZE));
    let log_region = VhostUserDirtyLogRegion {
        mmap_size: SIZE,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    frontend.set_log_base(0, Some(log_region)).unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: GUEST,
        memory_size: SIZE,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
    let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    for index in 0..2 {
        frontend.set_vring_num(index, 128).unwrap();
        let user = USER + 0x8000 * index as u64;
        let config = VringConfigData {
            queue_max_size: 256,
            queue_size: 128,
            flags: 0,
            desc_table_addr: user,
            used_ring_addr: user + 0x4000,
            avail_ring_addr: user + 0x6000,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &config).unwrap();
        frontend.set_vring_base(index, 0).unwrap();
        frontend.set_vring_call(index, &call).unwrap();
        frontend.set_vring_kick(index, &kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }
    let more = File::from(memfd(SIZE));
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: GUEST + SIZE,
        memory_size: SIZE,
        userspace_addr: USER + SIZE,
        mmap_offset: 0,
        mmap_handle: more.as_fd().as_raw_fd(),
    };
    frontend.add_mem_region(&region).unwrap();
    frontend.remove_mem_region(&region).unwrap();
    // A refusal is an error of this one request.
    assert!(frontend.set_vring_num(0, 64).is_err());
    assert!(frontend.get_features().is_ok());
}
