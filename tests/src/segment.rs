//! A segment: a directory in which ports meet.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::{Result, Testbed};

/// A segment's directory, open to nobody but the user; removed with its testbed.
#[derive(Clone, Debug)]
pub struct Segment {
    path: PathBuf,
}

impl Segment {
    /// Makes a segment on the testbed.
    ///
    /// # Errors
    ///
    /// A name that is taken.
    pub fn new(bed: &Testbed, name: &str) -> Result<Self> {
        let path = bed.path(&format!("segment-{name}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("Making the segment {}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
