//! Whether this machine's `/dev/kvm` runs stock kernels. Some cannot, in spite of the device.

use std::fs::{self, OpenOptions};
use std::sync::OnceLock;
use std::time::Duration;

use crate::images::{Image, target};
use crate::qemu::Accelerator;
use crate::{Frontend, Kernel, Result, Testbed, Vm, VmConfig, machine};

/// With KVM that works a guest is ready within two seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(15);

/// Boots a guest under KVM, once for each boot of this machine, and says whether it got ready.
pub fn runs_stock_kernels() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        if machine::is_inside() {
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

fn try_boot() -> Result<()> {
    let bed = Testbed::new("kvm probe")?;
    let config = VmConfig::new("probe", Frontend::Qemu(Kernel::Debian12));
    Vm::start_with(&bed, config, Some(Accelerator::Kvm))?.wait_until_ready(BOOT_LIMIT)
}
