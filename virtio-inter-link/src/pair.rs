//! A link whose two ends are in this process.
#![forbid(unsafe_code)]

use std::io;

use thiserror::Error;

use crate::doorbell::Doorbell;
use crate::receiver::Receiver;
use crate::region::{ReceiverPage, Region, RegionError};
use crate::sender::Sender;
use crate::violation::Violation;

/// Why a link within this process could not be made.
#[derive(Debug, Error)]
pub enum PairError {
    /// There is no memory or descriptor for its files.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// There is no descriptor for its doorbells.
    #[error("Cannot create a doorbell")]
    Doorbell(#[from] io::Error),
    /// Never: nobody else writes to its files.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// A link with a data area of `capacity` bytes between two threads of this process.
///
/// # Errors
///
/// When the kernel refuses memory or descriptors.
pub fn pair(capacity: u32) -> Result<(Sender, Receiver), PairError> {
    pair_with(capacity, Doorbell::new()?)
}

/// The same, with a data doorbell that may have other uses.
///
/// # Errors
///
/// As [`pair`].
pub fn pair_with(capacity: u32, data_doorbell: Doorbell) -> Result<(Sender, Receiver), PairError> {
    let region = Region::create(capacity)?;
    let theirs = Region::open(region.fd().try_clone_to_owned()?, capacity)?;
    let page = ReceiverPage::create()?;
    let answer = ReceiverPage::open(page.fd().try_clone_to_owned()?)?;
    let space_doorbell = Doorbell::new()?;
    let receiver = Receiver::new(
        theirs,
        page,
        data_doorbell.try_clone()?,
        space_doorbell.try_clone()?,
    );
    let mut sender = Sender::new(region, data_doorbell, space_doorbell);
    sender.attach(answer)?;
    Ok((sender, receiver))
}
