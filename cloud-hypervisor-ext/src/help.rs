//! Cloud Hypervisor's own help, with the flag that it does not know in its place.

use crate::inter_vm::SYNTAX;

const FLAG: &str = "      --inter-vm <inter-vm>...";
const NAME: &str = "inter-vm";

/// Adds `--inter-vm` where it belongs by the alphabet, in the layout that the other flags have.
pub fn with_inter_vm(help: &str) -> String {
    let lines: Vec<&str> = help.lines().collect();
    let names: Vec<(usize, &str)> = lines
        .iter()
        .enumerate()
        .filter_map(|(number, line)| Some((number, flag_name(line)?)))
        .collect();
    let place = names
        .iter()
        .find(|(_, name)| *name > NAME)
        .map_or(lines.len(), |(number, _)| *number);
    let mut out: Vec<String> = lines[..place].iter().map(ToString::to_string).collect();
    // Where texts begin beside the flags, there is more after a flag than its values.
    let column = names
        .iter()
        .find_map(|(number, _)| text_column(lines[*number]));
    match column {
        Some(column) if column > FLAG.len() => out.push(format!("{FLAG:column$}{SYNTAX}")),
        _ => {
            out.push(FLAG.to_owned());
            out.push(format!("          {SYNTAX}"));
        }
    }
    out.extend(lines[place..].iter().map(ToString::to_string));
    out.join("\n") + "\n"
}

/// The name of the long flag that a line begins with.
fn flag_name(line: &str) -> Option<&str> {
    let name = line.strip_prefix("      --")?;
    Some(name.split([' ', '=', '.']).next().unwrap_or(name))
}

/// Where on the line of a flag its text begins.
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
    fn on_a_line_of_its_own_where_the_others_are() {
        let help = "Usage: x\n\nOptions:\n      --initramfs <initramfs>\n          Path\n      \
                    --kernel <kernel>\n          Path\n  -v...\n          Level\n";
        let place = help.find("      --kernel").unwrap();
        let expected = format!(
            "{}      --inter-vm <inter-vm>...\n          {SYNTAX}\n{}",
            &help[..place],
            &help[place..]
        );
        assert_eq!(with_inter_vm(help), expected);
    }

    #[test]
    fn beside_it_where_the_others_are() {
        let help = "Options:\n      --initramfs <initramfs>      Path\n      --landlock                   Text\n";
        let lines = with_inter_vm(help);
        let line = lines.lines().nth(2).unwrap();
        assert!(
            line.starts_with("      --inter-vm <inter-vm>...     Inter-VM"),
            "{line}"
        );
    }

    #[test]
    fn at_the_end_where_no_later_one_is() {
        assert!(with_inter_vm("Options:\n      --a\n").ends_with(&format!("{SYNTAX}\n")));
    }
}
