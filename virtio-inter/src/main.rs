//! The port process.
fn main() {}
