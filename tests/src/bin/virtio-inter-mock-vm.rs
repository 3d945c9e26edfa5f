//! A mock VM of the soak: see `virtio_inter_tests::mock_vm`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use virtio_inter_tests::mock_vm::MockVm;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match MockVm::parse(&arguments).and_then(|vm| vm.run()) {
        Ok(()) => ExitCode::SUCCESS,
        #[allow(clippy::print_stderr, reason = "the log of this process")]
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
