//! The seeds of two fuzz targets as plain tests.

#[path = "../../../fuzz/runs/link_ends.rs"]
mod link_ends;
#[path = "../../../fuzz/runs/seeds.rs"]
mod seeds;
#[path = "../../../fuzz/runs/worker.rs"]
mod worker;

use seeds::run_all;

#[test]
fn fuzz_seeds_of_link_ends_hold() {
    run_all("link_ends", link_ends::run);
}

#[test]
fn fuzz_seeds_of_worker_hold() {
    run_all("worker", worker::run);
}
