//! Makes Cloud Hypervisor share the VM's memory with ports: changes `--memory` and `--memory-zone`.

use thiserror::Error;

use crate::command_line::CommandLine;
use crate::options::Options;

/// The user asked for memory that is not shared.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// In `--memory`.
    #[error(
        "--inter-vm needs memory that is shared with the port, but --memory says shared=off; leave \
         it out or say shared=on"
    )]
    Off,
    /// In `--memory-zone`.
    #[error(
        "--inter-vm needs memory that is shared with the port, but --memory-zone {0} says \
         shared=off; leave it out or say shared=on"
    )]
    ZoneOff(String),
}

/// Adds `shared=on` where `shared` is not given. Huge pages are shared in any case, and with
/// `--memory size=0` the zones count. Values that Cloud Hypervisor cannot parse stay unchanged, so
/// that it reports them.
///
/// # Errors
/// When the user gave `shared=off`.
pub fn share(line: &mut CommandLine) -> Result<(), MemoryError> {
    let memory = line.texts("--memory").last().map(Options::parse_known);
    let Some(memory) = memory else {
        line.append("--memory", ["shared=on".into()]);
        return Ok(());
    };
    let Ok(memory) = memory else {
        return Ok(());
    };
    match is_shared(&memory) {
        Some(true) => {}
        Some(false) => return Err(MemoryError::Off),
        None if size_is_zero(&memory) => return share_zones(line),
        None => add_shared(line, "--memory"),
    }
    Ok(())
}

fn share_zones(line: &mut CommandLine) -> Result<(), MemoryError> {
    for zone in line.texts("--memory-zone") {
        if let Ok(options) = Options::parse_known(zone)
            && is_shared(&options) == Some(false)
        {
            let name = options.get("id").unwrap_or_else(|| zone.to_owned());
            return Err(MemoryError::ZoneOff(name));
        }
    }
    add_shared(line, "--memory-zone");
    Ok(())
}

fn add_shared(line: &mut CommandLine, flag: &str) {
    line.change(flag, |value| {
        let options = Options::parse_known(value).ok()?;
        let separator = if value.trim().is_empty() { "" } else { "," };
        is_shared(&options)
            .is_none()
            .then(|| format!("{value}{separator}shared=on"))
    });
}

/// `None` if `shared` is not given, or cannot be parsed.
fn is_shared(memory: &Options) -> Option<bool> {
    let toggle = |key| memory.toggle(key).ok().flatten();
    if toggle("hugepages") == Some(true) {
        return Some(true);
    }
    toggle("shared")
}

fn size_is_zero(memory: &Options) -> bool {
    let size = memory.get("size").unwrap_or_default();
    let digits = size.trim_end_matches(['K', 'M', 'G']);
    !digits.is_empty() && digits.bytes().all(|digit| digit == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(arguments: &[&str]) -> Result<Vec<String>, MemoryError> {
        let mut line = CommandLine::new(arguments.iter().map(Into::into));
        share(&mut line)?;
        Ok(line
            .arguments()
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect())
    }

    #[test]
    fn memory_gets_shared_on_where_it_is_not_given() {
        for (arguments, expected) in [
            (
                &["--kernel", "k"][..],
                &["--kernel", "k", "--memory", "shared=on"][..],
            ),
            (&["--memory", "size=1G"], &["--memory", "size=1G,shared=on"]),
            (&["--memory=size=1G"], &["--memory=size=1G,shared=on"]),
            (
                &["--memory", "size=1G,shared="],
                &["--memory", "size=1G,shared=,shared=on"],
            ),
            (&["--memory", ""], &["--memory", "shared=on"]),
            (
                &[
                    "--memory",
                    "size=0",
                    "--memory-zone",
                    "id=a,size=1G",
                    "id=b,size=1G,shared=on",
                ],
                &[
                    "--memory",
                    "size=0",
                    "--memory-zone",
                    "id=a,size=1G,shared=on",
                    "id=b,size=1G,shared=on",
                ],
            ),
        ] {
            assert_eq!(shared(arguments).unwrap(), expected);
        }
    }

    #[test]
    fn memory_that_is_shared_or_not_understood_stays_unchanged() {
        for arguments in [
            &["--memory", "size=1G,shared=on"][..],
            &["--memory", "size=1G,shared=TRUE"],
            &["--memory", "size=1G,hugepages=on"],
            &["--memory", "size=1G,hugepages=on,shared=off"],
            &["--memory", "size=[1G"],
            &[
                "--memory",
                "size=0",
                "--memory-zone",
                "id=a,size=1G,hugepages=on",
            ],
        ] {
            assert_eq!(shared(arguments).unwrap(), arguments);
        }
    }

    #[test]
    fn memory_with_shared_off_is_an_error() {
        assert_eq!(
            shared(&["--memory", "size=1G,shared=off"]),
            Err(MemoryError::Off)
        );
        let zones = [
            "--memory",
            "size=0",
            "--memory-zone",
            "id=a,size=1G,shared=false",
        ];
        assert_eq!(shared(&zones), Err(MemoryError::ZoneOff("a".into())));
    }
}
