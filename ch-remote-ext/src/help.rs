//! The stock program's own help, with the commands that it does not know in their places.

use cloud_hypervisor_ext::inter_vm::SYNTAX;

use crate::arguments::ADD_USAGE;

const COMMANDS: [(&str, &str); 2] = [
    (
        "add-inter-vm",
        "Add inter-VM network device; also: add-device inter-vm,<config>",
    ),
    ("inter-vm", "Show inter-VM network devices: list, show"),
];

/// How `add-inter-vm` is used.
pub(crate) fn add_inter_vm() -> String {
    format!(
        "{}\n\nPlugs in a network device, and starts its port.\n\nArguments:\n  <inter-vm_config>  {}",
        ADD_USAGE, SYNTAX
    )
}

/// Adds our commands to the list of a help text, by the alphabet; leaves a text without one alone.
pub(crate) fn with_inter_vm(help: &str) -> String {
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

/// Where on a command's line the text about it begins.
fn about_column(line: &str) -> Option<usize> {
    let name = line.trim_start();
    let gap = name.find("  ")?;
    Some(line.len() - name.len() + gap + (name[gap..].len() - name[gap..].trim_start().len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_their_places() {
        let help = "Usage\n\nCommands:\n  add-device  Add\n  add-net     Add\n  info        Info\n  nmi         Nmi\n  \
                    help        Help\n\nOptions:\n  -h\n";
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
    fn another_text_is_left_alone() {
        assert_eq!(with_inter_vm("error: no"), "error: no");
    }
}
