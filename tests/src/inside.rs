//! What a program has to know that runs in the nested machine ([`crate::Machine`]).

use std::env;

use virtio_inter_test_support::tell;

/// Set for what runs in the machine.
pub(crate) const INSIDE: &str = "VIRTIO_INTER_INSIDE";

/// Whether this program runs in the nested machine.
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Prefix of the line in which the machine reports a guest that triple-faulted.
pub(crate) const TRIPLE_FAULTED: &str = "TRIPLE FAULT ";

/// Inside, when a test has failed: reports the guests that triple-faulted, by Cloud Hypervisor's
/// own messages.
pub(crate) fn tell_triple_faults(logs: &[(String, String)]) {
    for (name, log) in logs {
        if log.contains("Guest likely triple-faulted") {
            tell(&format!(
                "{TRIPLE_FAULTED}of a guest of the emulated machine: {name}"
            ));
        }
    }
}
