//! `runs/vhost_user.rs` on inputs of libFuzzer's.
#![no_main]

#[path = "../../virtio-inter/tests/vhost_user/mock.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod mock;
#[path = "../runs/vhost_user.rs"]
mod run;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| run::run(input));
