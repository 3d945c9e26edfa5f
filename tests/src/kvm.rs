//! Whether this machine's `/dev/kvm` runs stock kernels. Some cannot, in spite of the device.

use std::fs::{self, OpenOptions};
use std::sync::OnceLock;

use crate::images::{Image, target};
use crate::{Kernel, Result, inside};

/// Whether KVM runs stock kernels: inside of the nested machine yes, else by `try_boot`, which is
/// called once for each boot of this machine.
pub(crate) fn runs_stock_kernels(try_boot: impl FnOnce() -> Result<()>) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        if inside::is_inside() {
            // That is what it is for.
            return true;
        }
        if OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return false;
        }
        if Image::of_kernel(Kernel::Debian12).is_err() {
            // Nothing to try with, which says nothing of KVM.
            return false;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let cache = target().join("images/kvm");
        let known = fs::read_to_string(&cache).unwrap_or_default();
        if let Some(answer) = known.strip_prefix(boot.trim()) {
            return answer.trim() == "yes";
        }
        let answer = try_boot()
            .inspect_err(|error| log::info!("KVM is not used: {error:#}"))
            .is_ok();
        let text = format!("{} {}\n", boot.trim(), if answer { "yes" } else { "no" });
        if let Err(error) = fs::write(&cache, text) {
            log::warn!("Writing {}: {error}", cache.display());
        }
        answer
    })
}
