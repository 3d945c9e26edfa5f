//! A device that does nothing but remember what it was told, and insist on the order that it relies
//! on.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_inter_device::{Device, DeviceError, GuestMemory, QueueSetup};

/// VERSION_1, EVENT_IDX, MRG_RXBUF, MAC, MTU, CSUM.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 15 | 1 << 5 | 1 << 3 | 1;

#[derive(Debug, Default)]
pub(crate) struct MockQueue {
    pub(crate) setup: Option<QueueSetup>,
    pub(crate) enabled: bool,
    /// How often it was started.
    pub(crate) starts: usize,
}

#[derive(Debug)]
pub(crate) struct MockDevice {
    pub(crate) queues: Vec<MockQueue>,
    pub(crate) features: Option<u64>,
    pub(crate) memory: Option<Arc<GuestMemory>>,
    /// How often it was announced.
    pub(crate) announced: usize,
    config: Vec<u8>,
}

impl MockDevice {
    pub(crate) fn new(queues: usize) -> Self {
        Self {
            queues: (0..queues).map(|_| MockQueue::default()).collect(),
            features: None,
            memory: None,
            announced: 0,
            config: (1..=12).collect(),
        }
    }

    pub(crate) fn running(&self) -> Vec<bool> {
        self.queues
            .iter()
            .map(|queue| queue.setup.is_some() && queue.enabled)
            .collect()
    }

    fn queue(&mut self, index: u16) -> &mut MockQueue {
        &mut self.queues[usize::from(index)]
    }
}

impl Device for MockDevice {
    fn queue_count(&self) -> u16 {
        self.queues.len().try_into().unwrap()
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn set_features(&mut self, acked: u64) -> Result<(), DeviceError> {
        assert_eq!(acked & !FEATURES, 0, "features that were not offered");
        assert!(
            self.queues.iter().all(|queue| queue.setup.is_none()),
            "queues run"
        );
        self.features = Some(acked);
        Ok(())
    }

    fn set_memory(&mut self, memory: Option<Arc<GuestMemory>>) -> Result<(), DeviceError> {
        self.memory = memory;
        Ok(())
    }

    fn start_queue(&mut self, index: u16, setup: QueueSetup) -> Result<(), DeviceError> {
        assert!(
            self.features.is_some(),
            "queue {index} starts before features are known"
        );
        assert!(self.memory.is_some(), "queue {index} starts without memory");
        let queue = self.queue(index);
        assert!(queue.setup.is_none(), "queue {index} is started twice");
        queue.setup = Some(setup);
        queue.enabled = false;
        queue.starts += 1;
        Ok(())
    }

    fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        assert!(
            self.queue(index).setup.is_some(),
            "queue {index} does not run"
        );
        self.queue(index).enabled = enabled;
        Ok(())
    }

    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) -> Result<(), DeviceError> {
        self.queue(index)
            .setup
            .as_mut()
            .expect("a running queue")
            .call = call;
        Ok(())
    }

    fn set_kick(&mut self, index: u16, kick: OwnedFd) -> Result<(), DeviceError> {
        self.queue(index)
            .setup
            .as_mut()
            .expect("a running queue")
            .kick = kick;
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<u16, DeviceError> {
        self.queue(index).setup = None;
        // Any value that differs from the frontend's.
        Ok(100 + index)
    }

    fn announce(&mut self) -> Result<usize, DeviceError> {
        self.announced += 1;
        Ok(1)
    }
}
