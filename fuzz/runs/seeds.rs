//! The seeds of the fuzz targets as inputs of plain tests, of crates that are beside `fuzz/`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use virtio_inter_test_support::tell;

/// Runs a target on each of its seeds. Names the one that fails.
pub(crate) fn run_all(target: &str, run: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let directory = corpus.join(target);
    let mut seeds: Vec<_> = fs::read_dir(&directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .unwrap_or_else(|error| panic!("Listing {}: {error}", directory.display()));
    assert!(!seeds.is_empty(), "{} is empty", directory.display());
    seeds.sort();
    for path in seeds {
        let seed = fs::read(&path);
        let seed = seed.unwrap_or_else(|error| panic!("Reading {}: {error}", path.display()));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&seed))) {
            tell(&format!("The seed {} failed", path.display()));
            resume_unwind(panic);
        }
    }
}
