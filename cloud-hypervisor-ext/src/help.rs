//! The program's help: Cloud Hypervisor's own with `--inter-vm` added, or, without Cloud
//! Hypervisor, this program's own.

use crate::inter_vm::{KEYS, syntax};

const FLAG: &str = "      --inter-vm <inter-vm>...";
const NAME: &str = "inter-vm";

/// Replaces Cloud Hypervisor's help if there is none. `--inter-vm` is added.
const OURS: &str = "\
Launch a VM of Cloud Hypervisor, with network devices that reach other VMs through shared memory

Usage: cloud-hypervisor-ext [OPTIONS]

Options:
      --api-socket <api-socket>
          HTTP API socket (UNIX domain socket): path=</path/to/a/file>
  -v...
          Log more: -v for information, -vv for debug messages, -vvv for all
  -h, --help
          Print help
  -V, --version
          Print version
";

const DETAILS: &str = "
The launcher starts a `virtio-inter port` for each inter-VM device, then cloud-hypervisor with all
other arguments. It shares the VM's memory with the ports (--memory shared=on), restarts a port
that dies, and ends the ports with the VM.

Environment:
  CLOUD_HYPERVISOR  Program to start. Default: cloud-hypervisor from PATH
  RUST_LOG          Log filter, in place of -v
  XDG_RUNTIME_DIR   Directory for the sockets of a VM without --api-socket. Default: /tmp

Exit status: that of cloud-hypervisor, or 128 and the number of the signal that killed it; 1 if
the VM cannot be started, 2 if the command line is wrong.
";

/// The whole help.
///
/// `stock` is the text of Cloud Hypervisor's help, or the reason why there is none, on one line.
pub fn text(stock: Result<&str, &str>) -> String {
    let mut text = with_inter_vm(stock.unwrap_or(OURS));
    text.push_str(
        "\nKeys of --inter-vm, separated by commas; values with a comma in double quotes:\n",
    );
    text.push_str(&keys());
    text.push_str(DETAILS);
    if let Err(reason) = stock {
        text.push_str(&format!(
            "\nThe options of cloud-hypervisor are not shown: {reason}\n"
        ));
    }
    text
}

/// The keys of the flag, a line each.
pub fn keys() -> String {
    let names = KEYS.map(|key| format!("{}={}", key.name, key.value));
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let mut text = String::new();
    for (name, key) in names.iter().zip(KEYS) {
        text.push_str(&format!("  {name:width$}  {}\n", key.help));
    }
    text
}

/// Adds `--inter-vm` in alphabetical order, in the layout of the other flags.
fn with_inter_vm(help: &str) -> String {
    let lines: Vec<&str> = help.lines().collect();
    let names: Vec<(usize, &str)> = lines
        .iter()
        .enumerate()
        .filter_map(|(number, line)| Some((number, flag_name(line)?)))
        .collect();
    // Short flags come after all long ones.
    let place = names
        .iter()
        .find(|(_, name)| *name > NAME)
        .map(|(number, _)| *number)
        .or_else(|| lines.iter().position(|line| line.starts_with("  -")))
        .unwrap_or(lines.len());
    let syntax = syntax();
    let mut out: Vec<String> = lines[..place].iter().map(ToString::to_string).collect();
    // If the other texts begin beside their flags, so does this one.
    let column = names
        .iter()
        .find_map(|(number, _)| text_column(lines[*number]));
    match column {
        Some(column) if column > FLAG.len() => out.push(format!("{FLAG:column$}{syntax}")),
        _ => {
            out.push(FLAG.to_owned());
            out.push(format!("          {syntax}"));
        }
    }
    out.extend(lines[place..].iter().map(ToString::to_string));
    out.join("\n") + "\n"
}

/// The name of the long flag at the start of a line.
fn flag_name(line: &str) -> Option<&str> {
    let name = line.strip_prefix("      --")?;
    Some(name.split([' ', '=', '.']).next().unwrap_or(name))
}

/// The column at which the text on a flag's line begins.
fn text_column(line: &str) -> Option<usize> {
    let flag = line.trim_start();
    let start = line.len() - flag.len();
    let gap = flag.find("  ")?;
    let text = flag[gap..].trim_start();
    (!text.is_empty()).then(|| start + flag.len() - text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_puts_the_text_below_the_flag_like_the_others() {
        let help = "Usage: x\n\nOptions:\n      --initramfs <initramfs>\n          Path\n      \
                    --kernel <kernel>\n          Path\n  -v...\n          Level\n";
        let place = help.find("      --kernel").unwrap();
        let expected = format!(
            "{}      --inter-vm <inter-vm>...\n          {}\n{}",
            &help[..place],
            syntax(),
            &help[place..]
        );
        assert_eq!(with_inter_vm(help), expected);
    }

    #[test]
    fn help_puts_the_text_beside_the_flag_like_the_others() {
        let help = "Options:\n      --initramfs <initramfs>      Path\n\
                    \x20     --landlock                   Text\n";
        let lines = with_inter_vm(help);
        let line = lines.lines().nth(2).unwrap();
        assert!(
            line.starts_with("      --inter-vm <inter-vm>...     Inter-VM"),
            "{line}"
        );
    }

    #[test]
    fn help_puts_the_flag_last_if_no_later_one_exists() {
        assert!(with_inter_vm("Options:\n      --a\n").ends_with(&format!("{}\n", syntax())));
    }

    #[test]
    fn help_without_the_stock_program_is_complete() {
        let text = text(Err("No cloud-hypervisor found"));
        let flags: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("  -") || line.starts_with("      --"))
            .collect();
        assert_eq!(
            flags,
            [
                "      --api-socket <api-socket>",
                "      --inter-vm <inter-vm>...",
                "  -v...",
                "  -h, --help",
                "  -V, --version"
            ]
        );
        for key in KEYS {
            assert!(text.contains(key.help), "{text}");
        }
        assert!(
            text.ends_with("not shown: No cloud-hypervisor found\n"),
            "{text}"
        );
        let long = text.lines().filter(|line| !line.contains(&syntax()));
        assert!(long.clone().all(|line| line.len() <= 120), "{text}");
    }
}
