//! A system call that the kernel refuses, as if it had none.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// Has a system call fail with this error number from now on, in this thread and in the threads and
/// processes that it starts.
///
/// # Panics
///
/// When seccomp is not available.
pub fn refuse(call: libc::c_long, error: i32) {
    let filter = SeccompFilter::new(
        [(call, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(error.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    apply_filter(&program).unwrap();
}
