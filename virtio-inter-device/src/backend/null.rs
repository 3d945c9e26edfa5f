//! The smallest backend.

use std::convert::Infallible;

use super::interface::{Backend, RxBackend, RxSink, TxBackend, TxFrame, TxStatus};
use crate::batch::Sleep;
use crate::device::DeviceError;
use crate::poller::Poller;

/// Takes every frame and drops it; the transmit handler counts it as sent. Never has a record.
#[derive(Debug, Default, Clone, Copy)]
pub struct Null;

impl TxBackend for Null {
    fn offer<F: TxFrame>(&mut self, _frame: &F) -> Result<TxStatus, F::Error> {
        Ok(TxStatus::Sent)
    }

    fn flush(&mut self) {}

    fn enable_tx_notification(&mut self, _held: bool) -> Sleep {
        Sleep::UNTIL_NOTIFIED
    }
}

impl RxBackend for Null {
    fn receive<S: RxSink>(&mut self, _sink: &mut S) {}

    fn release(&mut self) {}

    fn enable_rx_notification(&mut self) -> bool {
        true
    }
}

impl Backend for Null {
    type Command = Infallible;
    type Answer = Infallible;

    fn handle_command(
        &mut self,
        command: Infallible,
        _poller: &Poller,
    ) -> Result<Infallible, DeviceError> {
        match command {}
    }
}
