//! `runs/wire.rs` on inputs of libFuzzer's.
#![no_main]

#[path = "../runs/wire.rs"]
mod run;

use libfuzzer_sys::fuzz_target;
use virtio_inter_segment::fuzzing;

fuzz_target!(|input: &[u8]| run::run(input));
