//! `runs/offload.rs` on inputs of libFuzzer's.
#![no_main]

#[path = "../runs/offload.rs"]
mod run;

use libfuzzer_sys::fuzz_target;
use virtio_inter_device::{Offloads, fuzzing};

fuzz_target!(|input: &[u8]| run::run(input));
