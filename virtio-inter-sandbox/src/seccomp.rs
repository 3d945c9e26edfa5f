//! Filters of system calls (seccomp(2)), by what a thread does.
//!
//! The filter of the first thread is built first, and threads inherit it. A thread of another role
//! adds the filter of its role when it starts: with several, a call must pass all of them.

mod calls;

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::sync::OnceLock;

use libc::c_long;
use log::warn;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as ArgLen, SeccompCmpOp as Op,
    SeccompCondition as Condition, SeccompFilter, SeccompRule, apply_filter,
    apply_filter_all_threads,
};
use thiserror::Error;
use virtio_inter_common::thread_role::{self, Role};

pub use self::calls::{Arguments, COMMON, Call, HELPER, START, UNIX, call};
use self::calls::{NAMESPACES, UNSEEN};
use crate::mode::Mode;
use crate::report::{Report, Wall};

/// The system calls that a program's threads make, beside those of every program.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// Of the first thread, and of those that it starts and that enter no role.
    pub first: &'static [&'static [Call]],
    /// Of threads that move frames.
    pub worker: &'static [&'static [Call]],
}

/// Calls that fail in workers and helpers instead of ending the process: those of a panic that
/// wants to name lines of the program, and of a log line that wants a thread to write it.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_clone,
    libc::SYS_getcwd,
    libc::SYS_openat,
    libc::SYS_readlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

/// Why there is no filter.
#[derive(Debug, Error)]
pub(crate) enum FilterError {
    #[error("no filter can be made: {0}")]
    Build(#[from] BackendError),
    #[error("the kernel takes no filter: {0}")]
    Apply(#[from] seccompiler::Error),
}

/// Filters of threads that start later.
#[derive(Debug)]
struct Filters {
    refused: BpfProgram,
    worker: BpfProgram,
    helper: BpfProgram,
}

static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Filters the calls of this thread, and of those that it starts from now on.
pub(crate) fn restrict(mode: Mode, calls: &Calls, report: &mut Report) {
    let result = match enter(mode, calls) {
        Ok(()) if mode == Mode::Log => Err("forbidden calls are only logged".to_owned()),
        result => result.map_err(|error| error.to_string()),
    };
    report.add(Wall::SystemCalls, result);
}

fn enter(mode: Mode, calls: &Calls) -> Result<(), FilterError> {
    let filters = Filters {
        refused: refusal(REFUSED, libc::EACCES)?,
        worker: allow(mode, &[&[COMMON, UNSEEN], calls.worker].concat())?,
        helper: allow(mode, &[COMMON, HELPER, UNSEEN])?,
    };
    // Its arguments are in memory, where a filter cannot see them. C libraries then use clone.
    apply_filter(&refusal(&[libc::SYS_clone3], libc::ENOSYS)?)?;
    let first = [&[COMMON, HELPER, START, UNSEEN], calls.first].concat();
    apply_filter(&allow(mode, &first)?)?;
    if FILTERS.set(filters).is_ok() {
        thread_role::on_start(enter_role);
        virtio_inter_log::on_thread_start(|| enter_role(Role::Helper));
    }
    Ok(())
}

/// Adds the filter of a role in a thread that starts.
fn enter_role(role: Role) {
    let Some(filters) = FILTERS.get() else {
        return;
    };
    let filter = match role {
        Role::Worker => &filters.worker,
        Role::Helper => &filters.helper,
    };
    // The second one forbids filters.
    let result = apply_filter(&filters.refused).and_then(|()| apply_filter(filter));
    if let Err(error) = result {
        warn!("A thread has no filter of its own for system calls: {error}");
    }
}

/// Refuses these calls, and arguments of others, to all threads of this process and those that it
/// starts from now on: they fail with EPERM.
#[allow(
    clippy::unnecessary_cast,
    reason = "the constants' types differ by C library"
)]
pub(crate) fn refuse(calls: &[c_long]) -> Result<(), FilterError> {
    let mut rules: BTreeMap<_, Vec<SeccompRule>> =
        calls.iter().map(|call| (*call, Vec::new())).collect();
    let rule = |argument: u8, op: Op, value: u64| {
        SeccompRule::new(vec![Condition::new(argument, ArgLen::Dword, op, value)?])
    };
    // All sockets but Unix sockets.
    rules.insert(
        libc::SYS_socket,
        vec![rule(0, Op::Ne, libc::AF_UNIX as u64)?],
    );
    // Input of a terminal, from whoever shares it.
    rules.insert(
        libc::SYS_ioctl,
        vec![rule(1, Op::Eq, libc::TIOCSTI as u64)?],
    );
    let namespaces = NAMESPACES.iter().map(|flag| {
        let flag = u64::from(flag.cast_unsigned());
        rule(0, Op::MaskedEq(flag), flag)
    });
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    let errno = libc::EPERM.cast_unsigned();
    let refused = program(rules, SeccompAction::Allow, SeccompAction::Errno(errno))?;
    apply_filter_all_threads(&refusal(&[libc::SYS_clone3], libc::ENOSYS)?)?;
    Ok(apply_filter_all_threads(&refused)?)
}

/// A filter by which these calls fail and all others pass.
fn refusal(calls: &[libc::c_long], errno: i32) -> Result<BpfProgram, BackendError> {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    program(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
    )
}

/// A filter that lets only these calls pass.
fn allow(mode: Mode, lists: &[&[Call]]) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<_, Vec<SeccompRule>> = BTreeMap::new();
    for call in lists.iter().copied().flatten() {
        let new = rules_of(call)?;
        match rules.get_mut(&call.number) {
            // No rule: all arguments.
            Some(rules) if rules.is_empty() || new.is_empty() => rules.clear(),
            Some(rules) => rules.extend(new),
            None => drop(rules.insert(call.number, new)),
        }
    }
    // Where a worker or helper asks for a call that only fails, the other filter answers.
    for call in REFUSED {
        rules.entry(*call).or_default();
    }
    // The first filter answers this one.
    rules.insert(libc::SYS_clone3, Vec::new());
    let otherwise = match mode {
        Mode::Log => SeccompAction::Log,
        _ => SeccompAction::KillProcess,
    };
    program(rules, otherwise, SeccompAction::Allow)
}

fn program(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, matching, ARCH.try_into()?)?.try_into()
}

/// The rules of a call, one of which has to hold; none: all arguments are allowed.
fn rules_of(call: &Call) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |argument: u8, op: Op, value: u64| {
        // Kernel and C library use half of a register for what is an int.
        SeccompRule::new(vec![Condition::new(argument, ArgLen::Dword, op, value)?])
    };
    match call.arguments {
        Arguments::Any => Ok(Vec::new()),
        Arguments::OneOf(argument, values) => values
            .iter()
            .map(|value| rule(argument, Op::Eq, *value))
            .collect(),
        Arguments::Masked(argument, mask, value) => {
            Ok(vec![rule(argument, Op::MaskedEq(mask), value)?])
        }
        Arguments::OwnProcess => Ok(vec![rule(0, Op::Eq, u64::from(std::process::id()))?]),
    }
}
