//! Resource limits (getrlimit(2)) of the port's process: raised where that is in its power, and
//! reported where they will be in its way.

use log::{debug, warn};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Prepares a port whose regions have a data area of `ring_size` bytes.
///
/// Limits that are exceeded later end in an error that names what failed. These two would end the
/// port without a word, or keep it from linking up.
pub fn prepare(ring_size: u32) {
    raise_descriptors();
    if let Some(seconds) = getrlimit(Resource::Cpu).maximum {
        warn!(
            "The kernel kills this port when it has used {seconds} s of CPU time (RLIMIT_CPU, \
             ulimit -t)"
        );
    }
    // One page of words comes before the data.
    let region = u64::from(ring_size) + rustix::param::page_size() as u64;
    if let Some(most) = getrlimit(Resource::Fsize).current
        && most < region
    {
        warn!(
            "No peer can link up: a link needs a region of {region} bytes, and files of this \
             process may have {most} (RLIMIT_FSIZE, ulimit -f)"
        );
    }
}

/// Each peer and each piece of guest memory takes descriptors: as many as the system lets us have.
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
