//! Ports with an uplink, and without a guest the uplink of others.

use virtio_inter_link::BusyPollConfig;
use virtio_inter_segment::LocalPort;

use super::config::PortConfig;
use super::{Port, take_doorbell_resource};
use crate::backend::{Network, Relay, UplinkBackend, UplinkDevice};
use crate::device::DeviceError;

impl<D: UplinkDevice> Port<Network<D>> {
    /// The same, with an uplink: a device of which each worker gets a queue. Without `uplink` the
    /// port has none.
    ///
    /// # Errors
    ///
    /// When a thread or a descriptor cannot be created.
    pub fn with_uplink(
        local: &LocalPort,
        config: impl Into<PortConfig>,
        uplink: Option<D>,
    ) -> Result<Self, DeviceError> {
        Port::with_network(local, config, uplink, |network| network)
    }

    /// The same, with the network side of each queue pair changed.
    ///
    /// # Errors
    ///
    /// As [`Port::with_uplink`].
    pub fn with_network(
        local: &LocalPort,
        config: impl Into<PortConfig>,
        uplink: Option<D>,
        change: impl Fn(Network<D>) -> Network<D>,
    ) -> Result<Self, DeviceError> {
        take_doorbell_resource()?;
        let mut queues = uplink.into_iter().flat_map(D::into_queues);
        Port::with_flood(local, config, |setup, flood| {
            let mut network = change(Network::new(setup, queues.next()));
            if let Some((sender, receiver)) = flood {
                network.set_flood(sender, receiver);
            }
            network
        })
    }
}

impl<D: UplinkDevice> Port<Relay<D>> {
    /// A port without a guest: the uplink of other ports, with a queue of its device for each
    /// worker. It carries nothing before [`Port::set_paths`]. `offload`: the device's switch takes
    /// partial checksums, and frames to be segmented.
    ///
    /// # Errors
    ///
    /// When a thread or a descriptor cannot be created.
    pub fn relay(
        local: &LocalPort,
        busy_poll: BusyPollConfig,
        uplink: D,
        offload: bool,
    ) -> Result<Self, DeviceError> {
        take_doorbell_resource()?;
        let mut port = Port::with_flood(local, busy_poll, |setup, flood| {
            let mut relay = Relay::new(setup, !offload);
            if let Some((sender, receiver)) = flood {
                relay.set_flood(sender, receiver);
            }
            relay
        })?;
        port.set_uplink(uplink)?;
        Ok(port)
    }
}

impl<B: UplinkBackend> Port<B> {
    /// Replaces the uplink's device, which is gone, by another one, with a queue for each worker.
    ///
    /// # Errors
    ///
    /// When a worker does not answer.
    pub fn set_uplink(&mut self, device: B::Device) -> Result<(), DeviceError> {
        self.generation += 1;
        for (worker, queue) in self.workers.iter().zip(device.into_queues()) {
            worker.ask_backend(B::set_uplink(queue, self.generation))?;
        }
        self.steer()
    }
}
