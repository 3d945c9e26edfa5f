//! The program's help: the stock program's own with the added commands, or, without a stock
//! program, this program's own.

use cloud_hypervisor_ext::help::keys;
use cloud_hypervisor_ext::inter_vm::syntax;

use crate::arguments::{ADD_USAGE, Extended};

const COMMANDS: [(&str, &str); 2] = [
    (
        "add-inter-vm",
        "Add inter-VM network device; also: add-device inter-vm,<config>",
    ),
    ("inter-vm", "Show inter-VM network devices: list, show"),
];

/// Replaces the stock program's help if there is none. The added commands are inserted.
const OURS: &str = "\
Control a running VM of Cloud Hypervisor that cloud-hypervisor-ext started

Usage: ch-remote-ext --api-socket <api-socket> <COMMAND>

Commands:
  add-device     Add device: inter-vm,<config> an inter-VM network device
  create         Create VM from a JSON configuration, with its inter-VM network devices
  remove-device  Remove device, and end its port
  snapshot       Snapshot VM, unless a port may still write the guest's memory
  help           Print this message or the help of the given command

Options:
      --api-socket <api-socket>  HTTP API socket path (UNIX domain socket)
  -h, --help                     Print help
  -V, --version                  Print version
";

const DETAILS: &str = "
Environment:
  CH_REMOTE  Program that runs all other commands. Default: ch-remote from PATH

Exit status: 0, or that of ch-remote; 1 if a command fails, 2 if the command line is wrong.
";

/// The whole help.
///
/// `stock` is the text of the stock program's help, or the reason why there is none, on one line.
pub(crate) fn text(stock: Result<&str, &str>) -> String {
    let mut text = with_inter_vm(stock.unwrap_or(OURS));
    text.push_str(DETAILS);
    if let Err(reason) = stock {
        text.push_str(&missing("The commands", reason));
    }
    text
}

/// Says that a part of the stock program's help is missing.
pub(crate) fn missing(what: &str, reason: &str) -> String {
    format!("\n{what} of ch-remote are not shown: {reason}\n")
}

/// The help of `add-inter-vm`.
pub(crate) fn add_inter_vm() -> String {
    format!(
        "Add an inter-VM network device to the VM, and start its port\n\n{ADD_USAGE}\n\n\
         Arguments:\n  <inter-vm_config>  {}\n\n\
         Keys, separated by commas; values with a comma in double quotes:\n{}",
        syntax(),
        keys()
    )
}

/// The help of a command that is extended here: the stock program's, and the difference.
pub(crate) fn extended(command: Extended, stock: Result<&str, &str>) -> String {
    let ours = match command {
        Extended::AddDevice => {
            "add-device inter-vm,<config> adds an inter-VM network device and starts its port; \
             see: ch-remote-ext help add-inter-vm"
        }
        Extended::RemoveDevice => {
            "For an inter-VM network device, remove-device <id> also ends its port, once the guest \
             has released the device."
        }
        Extended::Create => {
            "create [<file>] adds the inter-VM network devices for which cloud-hypervisor-ext has \
             ports, and shares the VM's memory."
        }
        Extended::Snapshot => {
            "snapshot <url> is refused while a port of a paused VM may still write the guest's \
             memory."
        }
    };
    match stock {
        Ok(text) => format!("{}\n\n{ours}\n", text.trim_end()),
        Err(reason) => {
            let usage = format!(
                "Usage: ch-remote-ext --api-socket <api-socket> {} …",
                command.name()
            );
            format!("{usage}\n\n{ours}\n{}", missing("The options", reason))
        }
    }
}

/// Inserts the added commands into the list of a help text, in alphabetical order. A text without a
/// list stays unchanged.
fn with_inter_vm(help: &str) -> String {
    let mut lines: Vec<String> = help.lines().map(str::to_owned).collect();
    let Some(start) = lines.iter().position(|line| line == "Commands:") else {
        return help.to_owned();
    };
    for (name, about) in COMMANDS {
        let list = lines.iter().skip(start + 1);
        let end = start + 1 + list.take_while(|line| line.starts_with("  ")).count();
        let column = lines[start + 1..end]
            .iter()
            .find_map(|line| about_column(line));
        let place = (start + 1..end)
            .find(|number| {
                lines[*number].trim() > name || lines[*number].trim().starts_with("help ")
            })
            .unwrap_or(end);
        let width = column.unwrap_or(0).max(name.len() + 4);
        let flag = format!("  {name}");
        lines.insert(place, format!("{flag:width$}{about}"));
    }
    lines.join("\n") + "\n"
}

/// The column at which the text on a command's line begins.
fn about_column(line: &str) -> Option<usize> {
    let name = line.trim_start();
    let gap = name.find("  ")?;
    Some(line.len() - name.len() + gap + (name[gap..].len() - name[gap..].trim_start().len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_added_commands_in_order() {
        let help = "Usage\n\nCommands:\n  add-device  Add\n  add-net     Add\n  \
                    info        Info\n  nmi         Nmi\n  help        Help\n\nOptions:\n  -h\n";
        let with = with_inter_vm(help);
        let names: Vec<&str> = with
            .lines()
            .skip(3)
            .take(7)
            .map(|line| line.split_whitespace().next().unwrap())
            .collect();
        assert_eq!(
            names[..6],
            [
                "add-device",
                "add-inter-vm",
                "add-net",
                "info",
                "inter-vm",
                "nmi"
            ]
        );
        assert!(with.contains("\n  inter-vm    Show"), "{with}");
    }

    #[test]
    fn help_without_the_stock_program_is_complete() {
        let text = text(Err("No ch-remote found"));
        let commands: Vec<&str> = text
            .lines()
            .skip_while(|line| *line != "Commands:")
            .skip(1)
            .take_while(|line| line.starts_with("  "))
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(
            commands,
            [
                "add-device",
                "add-inter-vm",
                "create",
                "inter-vm",
                "remove-device",
                "snapshot",
                "help"
            ]
        );
        assert!(
            text.contains("--api-socket") && text.contains("CH_REMOTE"),
            "{text}"
        );
        assert!(text.ends_with("not shown: No ch-remote found\n"), "{text}");
    }

    #[test]
    fn help_without_a_list_stays_unchanged() {
        assert_eq!(with_inter_vm("error: no"), "error: no");
    }
}
