//! `runs/worker.rs` on inputs of libFuzzer's.
#![no_main]

#[path = "../../virtio-inter-device/tests/driver/mod.rs"]
mod driver;
#[path = "../runs/worker.rs"]
mod run;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| run::run(input));
