//! Resource limits (getrlimit(2)) of the port's process: raises the soft limit of descriptors, and
//! warns of limits that the port will exceed.

use log::{debug, warn};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Prepares the limits for a port whose regions have a data area of `ring_size` bytes.
///
/// A port that exceeds other limits logs an error that names the cause. RLIMIT_CPU kills it
/// without a message, and RLIMIT_FSIZE prevents rings.
pub fn prepare(ring_size: u32) {
    raise_descriptors();
    if let Some(seconds) = getrlimit(Resource::Cpu).maximum {
        warn!(
            "The kernel kills this port when it has used {seconds} s of CPU time (RLIMIT_CPU, \
             ulimit -t)"
        );
    }
    let Some(most) = getrlimit(Resource::Fsize).current else {
        return;
    };
    // One page of words comes before the data.
    let region = |capacity: u32| u64::from(capacity) + rustix::param::page_size() as u64;
    let (least, largest) = (region(virtio_inter_link::SMALL_CAPACITY), region(ring_size));
    if most < least {
        warn!(
            "No frame can be sent to a peer: a ring needs a region of {least} bytes, and files of \
             this process may have {most} (RLIMIT_FSIZE, ulimit -f)"
        );
    } else if most < largest {
        warn!(
            "Rings to peers cannot grow to the ring size: that needs regions of {largest} bytes, \
             and files of this process may have {most} (RLIMIT_FSIZE, ulimit -f)"
        );
    }
}

/// Raises the soft limit of descriptors to the hard limit: each peer and each memory region of the
/// guest needs some.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => match limit.current {
            Some(most) => debug!("Up to {most} file descriptors"),
            None => debug!("No limit on file descriptors"),
        },
        Err(error) => warn!("Cannot raise the number of file descriptors: {error}"),
    }
}
