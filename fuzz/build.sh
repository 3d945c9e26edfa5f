#!/usr/bin/env bash
# Builds the fuzz targets with AddressSanitizer and libFuzzer's coverage, as `cargo fuzz` does.
# Options go to cargo: `fuzz/build.sh --bin worker`.
set -euo pipefail
cd "$(dirname "$0")/.."
# Sanitizers are no stable option of the compiler.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/fuzz
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
# With a target, programs of the build itself are not instrumented.
exec cargo build --release --locked --target "$(rustc -vV | sed -n 's/^host: //p')" \
    --manifest-path fuzz/Cargo.toml "$@"
