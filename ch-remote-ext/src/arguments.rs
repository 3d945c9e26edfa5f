//! The command line: what of it is ours, and what is the stock program's.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::anyhow;
use cloud_hypervisor_ext::report::Failure;

/// The kind of device that stands before its options in `add-device`.
const KIND: &str = "inter-vm";

/// How a device is plugged in.
pub(crate) const ADD_USAGE: &str =
    "Usage: ch-remote-ext --api-socket <api-socket> add-inter-vm <inter-vm_config>";

/// The arguments, and what was found among them.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// As they came.
    pub(crate) all: Vec<OsString>,
    pub(crate) api_socket: Option<PathBuf>,
    asks: Asks,
    /// The subcommand and what follows it.
    command: Vec<OsString>,
}

#[derive(Debug, PartialEq, Eq)]
enum Asks {
    Command,
    Help,
    Version,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Help,
    Version,
    /// How `add-inter-vm` is used.
    AddHelp,
    /// A device, by what may follow `--inter-vm`.
    Add(String),
    /// A device that may be ours.
    Remove(String),
    /// A VM that may have devices of ours, from a file, or `-`.
    Create(String),
    /// A snapshot, which the stock program takes once the ports stand still.
    Snapshot,
    /// `inter-vm` and what follows it.
    InterVm(Vec<OsString>),
    PassOn,
}

impl Arguments {
    /// Reads arguments, without the program's name.
    pub(crate) fn new(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let all: Vec<OsString> = arguments.into_iter().collect();
        let (mut api_socket, mut asks) = (None, Asks::Command);
        let mut rest = all.iter();
        let mut command = Vec::new();
        while let Some(argument) = rest.next() {
            match argument.to_str() {
                Some("--api-socket") => api_socket = rest.next().map(PathBuf::from),
                // Options of the D-Bus interface, which have a value too.
                Some("--dbus-service-name" | "--dbus-object-path") => {
                    rest.next();
                }
                Some("-h" | "--help") => asks = Asks::Help,
                Some("-V" | "--version") => asks = Asks::Version,
                Some(text) if text.starts_with("--api-socket=") => {
                    api_socket = text.split_once('=').map(|(_, path)| path.into());
                }
                Some(text) if text.starts_with('-') => {}
                _ => {
                    command.push(argument.clone());
                    command.extend(rest.by_ref().cloned());
                }
            }
        }
        if all.is_empty() || (command == ["help"] && asks == Asks::Command) {
            asks = Asks::Help;
        }
        Self {
            all,
            api_socket,
            asks,
            command,
        }
    }

    /// What is asked for.
    ///
    /// # Errors
    ///
    /// When a command of ours lacks something.
    pub(crate) fn action(&self) -> Result<Action, Failure> {
        match self.asks {
            Asks::Help => return Ok(Action::Help),
            Asks::Version => return Ok(Action::Version),
            Asks::Command => {}
        }
        let (name, rest) = match self.command.split_first() {
            Some((name, rest)) => (name.to_str().unwrap_or_default(), rest),
            None => return Ok(Action::PassOn),
        };
        let only = match rest {
            [only] => only.to_str(),
            _ => None,
        };
        Ok(match (name, only) {
            ("add-device", Some(text)) if text == KIND => Action::Add(String::new()),
            ("add-device", Some(text)) if text.starts_with("inter-vm,") => {
                Action::Add(text[KIND.len() + 1..].to_owned())
            }
            ("help", Some("add-inter-vm")) | ("add-inter-vm", Some("-h" | "--help")) => {
                Action::AddHelp
            }
            ("help", Some(KIND)) => Action::InterVm(vec![KIND.into(), "--help".into()]),
            ("add-inter-vm", Some(text)) if !text.starts_with('-') => Action::Add(text.to_owned()),
            ("add-inter-vm", _) => {
                return Err(Failure::usage(anyhow!(ADD_USAGE)));
            }
            ("remove-device", Some(id)) if !id.starts_with('-') => Action::Remove(id.to_owned()),
            ("create", Some(path)) if path == "-" || !path.starts_with('-') => {
                Action::Create(path.to_owned())
            }
            ("create", None) if rest.is_empty() => Action::Create("-".to_owned()),
            ("snapshot", Some(url)) if !url.starts_with('-') => Action::Snapshot,
            (KIND, _) => Action::InterVm(self.command.clone()),
            _ => Action::PassOn,
        })
    }

    /// The API socket, for what cannot be done without.
    ///
    /// # Errors
    ///
    /// When it was not given.
    pub(crate) fn api_socket(&self) -> Result<PathBuf, Failure> {
        match &self.api_socket {
            Some(path) if path != OsStr::new("") => Ok(path.clone()),
            _ => Err(Failure::usage(anyhow!(
                "Inter-VM devices need --api-socket <api-socket>"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(words: &[&str]) -> Action {
        Arguments::new(words.iter().map(OsString::from))
            .action()
            .unwrap()
    }

    #[test]
    fn ours_and_theirs() {
        for (words, expected) in [
            (&[][..], Action::Help),
            (&["help"], Action::Help),
            (&["--help"], Action::Help),
            (&["--api-socket", "a", "-V"], Action::Version),
            (&["--api-socket", "a", "info"], Action::PassOn),
            (&["--api-socket", "--help"], Action::PassOn),
            (&["info", "--help"], Action::PassOn),
            (&["help", "add-device"], Action::PassOn),
            (&["add-device", "path=/x"], Action::PassOn),
            (&["add-device", "inter-vmx"], Action::PassOn),
            (&["add-device"], Action::PassOn),
            (&["add-device", "inter-vm"], Action::Add(String::new())),
            (
                &["add-device", "inter-vm,segment=a"],
                Action::Add("segment=a".into()),
            ),
            (
                &["add-inter-vm", "segment=a"],
                Action::Add("segment=a".into()),
            ),
            (&["help", "add-inter-vm"], Action::AddHelp),
            (&["add-inter-vm", "--help"], Action::AddHelp),
            (
                &["help", "inter-vm"],
                Action::InterVm(vec!["inter-vm".into(), "--help".into()]),
            ),
            (&["remove-device", "x"], Action::Remove("x".into())),
            (&["remove-device"], Action::PassOn),
            (&["remove-device", "--help"], Action::PassOn),
            (&["snapshot", "file:///x"], Action::Snapshot),
            (&["snapshot", "--help"], Action::PassOn),
            (&["create"], Action::Create("-".into())),
            (&["create", "/x"], Action::Create("/x".into())),
            (&["--dbus-service-name", "create", "info"], Action::PassOn),
        ] {
            assert_eq!(action(words), expected, "{words:?}");
        }
        assert!(matches!(action(&["inter-vm", "list"]), Action::InterVm(_)));
        let missing = Arguments::new(["add-inter-vm".into()])
            .action()
            .unwrap_err();
        assert_eq!(missing.status, 2);
    }

    #[test]
    fn the_api_socket() {
        let socket = |words: &[&str]| Arguments::new(words.iter().map(OsString::from)).api_socket;
        assert_eq!(socket(&["--api-socket", "/a", "info"]), Some("/a".into()));
        assert_eq!(socket(&["--api-socket=/a", "info"]), Some("/a".into()));
        assert_eq!(socket(&["info", "--api-socket", "/a"]), None);
    }
}
