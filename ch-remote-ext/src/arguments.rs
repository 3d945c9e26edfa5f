//! Parses the command line, as far as it concerns inter-VM devices.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::anyhow;
use cloud_hypervisor_ext::report::Failure;
use virtio_inter_args::{check_socket_path, is_typing_error};

/// The kind of device, before its options in `add-device`.
const KIND: &str = "inter-vm";

/// The added commands.
const COMMANDS: [&str; 2] = ["add-inter-vm", KIND];

/// Options before the command.
const OPTIONS: [&str; 5] = [
    "--api-socket",
    "--dbus-service-name",
    "--dbus-object-path",
    "--help",
    "--version",
];

/// The usage line of `add-inter-vm`.
pub(crate) const ADD_USAGE: &str =
    "Usage: ch-remote-ext --api-socket <api-socket> add-inter-vm <inter-vm_config>";

/// The parsed arguments.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// All arguments.
    pub(crate) all: Vec<OsString>,
    pub(crate) api_socket: Option<PathBuf>,
    asks: Asks,
    /// An option that does not exist, and the one that was probably meant.
    mistyped: Option<(String, &'static str)>,
    /// The subcommand and its arguments.
    command: Vec<OsString>,
}

#[derive(Debug, PartialEq, Eq)]
enum Asks {
    Command,
    Help,
    Version,
}

/// The action that the arguments request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Help,
    Version,
    /// Print the help of `add-inter-vm`.
    AddHelp,
    /// Print the help of an extended command.
    ExtendedHelp(Extended),
    /// Add a device; the text is a value of `--inter-vm`.
    Add(String),
    /// Remove a device, which may be an inter-VM device.
    Remove(String),
    /// Create a VM, which may have inter-VM devices, from a file or `-`.
    Create(String),
    /// Take a snapshot, if the ports have stopped.
    Snapshot,
    /// Run `inter-vm` with these arguments.
    InterVm(Vec<OsString>),
    /// Run the stock program.
    PassOn,
}

/// A command of the stock program that this one extends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extended {
    AddDevice,
    RemoveDevice,
    Create,
    Snapshot,
}

impl Extended {
    const ALL: [Self; 4] = [
        Self::AddDevice,
        Self::RemoveDevice,
        Self::Create,
        Self::Snapshot,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AddDevice => "add-device",
            Self::RemoveDevice => "remove-device",
            Self::Create => "create",
            Self::Snapshot => "snapshot",
        }
    }

    fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.name() == name)
    }
}

impl Arguments {
    /// Parses arguments, without the program's name.
    pub(crate) fn new(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let all: Vec<OsString> = arguments.into_iter().collect();
        let (mut api_socket, mut asks, mut mistyped) = (None, Asks::Command, None);
        let mut rest = all.iter();
        let mut command = Vec::new();
        while let Some(argument) = rest.next() {
            match argument.to_str() {
                Some("--api-socket") => api_socket = rest.next().map(PathBuf::from),
                // Options of the D-Bus interface have a value, too.
                Some("--dbus-service-name" | "--dbus-object-path") => {
                    rest.next();
                }
                Some("-h" | "--help") => asks = Asks::Help,
                Some("-V" | "--version") => asks = Asks::Version,
                Some(text) if text.starts_with("--api-socket=") => {
                    api_socket = text.split_once('=').map(|(_, path)| path.into());
                }
                Some(text) if text.starts_with('-') => {
                    let name = text.split('=').next().unwrap_or(text);
                    let meant = OPTIONS
                        .into_iter()
                        .find(|known| is_typing_error(name, known));
                    mistyped = mistyped.or(meant.map(|known| (name.to_owned(), known)));
                }
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
            mistyped,
            command,
        }
    }

    /// The subcommand.
    pub(crate) fn command(&self) -> Option<&OsStr> {
        self.command.first().map(OsString::as_os_str)
    }

    /// The requested action.
    ///
    /// # Errors
    /// When the arguments of an added command are wrong.
    pub(crate) fn action(&self) -> Result<Action, Failure> {
        match self.asks {
            Asks::Help => return Ok(Action::Help),
            Asks::Version => return Ok(Action::Version),
            Asks::Command => {}
        }
        if let Some((given, meant)) = &self.mistyped {
            return Err(unexpected("argument", given, meant));
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
            ("help", _) => self.help_of(rest),
            ("add-inter-vm", Some("-h" | "--help")) => Action::AddHelp,
            (changed, Some("-h" | "--help")) if let Some(command) = Extended::find(changed) => {
                Action::ExtendedHelp(command)
            }
            ("add-device", Some(text)) if text == KIND => Action::Add(String::new()),
            ("add-device", Some(text)) if text.starts_with("inter-vm,") => {
                Action::Add(text[KIND.len() + 1..].to_owned())
            }
            ("add-device", Some(text)) if is_typing_error(kind_of(text), KIND) => {
                return Err(unexpected("kind of device", kind_of(text), KIND));
            }
            ("add-inter-vm", Some(text)) if !text.starts_with('-') => Action::Add(text.to_owned()),
            ("add-inter-vm", _) => {
                return Err(Failure::usage(anyhow!(
                    "add-inter-vm takes one argument\n{ADD_USAGE}"
                )));
            }
            ("remove-device", Some(id)) if !id.starts_with('-') => Action::Remove(id.to_owned()),
            ("create", Some(path)) if path == "-" || !path.starts_with('-') => {
                Action::Create(path.to_owned())
            }
            ("create", None) if rest.is_empty() => Action::Create("-".to_owned()),
            ("snapshot", Some(url)) if !url.starts_with('-') => Action::Snapshot,
            (KIND, _) => Action::InterVm(self.command.clone()),
            _ => match COMMANDS
                .into_iter()
                .find(|known| is_typing_error(name, known))
            {
                Some(known) => return Err(unexpected("command", name, known)),
                None => Action::PassOn,
            },
        })
    }

    /// The action of `help` with a command.
    fn help_of(&self, words: &[OsString]) -> Action {
        let Some((name, rest)) = words.split_first() else {
            return Action::Help;
        };
        let name = name.to_str().unwrap_or_default();
        match Extended::find(name) {
            Some(command) if rest.is_empty() => Action::ExtendedHelp(command),
            _ if name == KIND => {
                let mut words = words.to_vec();
                words.push("--help".into());
                Action::InterVm(words)
            }
            _ if name == "add-inter-vm" => Action::AddHelp,
            _ => Action::PassOn,
        }
    }

    /// The API socket, for actions that require it.
    ///
    /// # Errors
    ///
    /// When it was not given.
    pub(crate) fn api_socket(&self) -> Result<PathBuf, Failure> {
        match &self.api_socket {
            Some(path) => match check_socket_path(path) {
                Ok(()) => Ok(path.clone()),
                Err(error) => Err(Failure::usage(anyhow!("--api-socket: {error}"))),
            },
            None => Err(Failure::usage(anyhow!(
                "Inter-VM devices need --api-socket <api-socket>"
            ))),
        }
    }
}

fn unexpected(what: &str, given: &str, meant: &str) -> Failure {
    Failure::usage(anyhow!(
        "unexpected {what} '{given}' found; a similar one exists: '{meant}'"
    ))
}

/// The kind of a device, before its options.
fn kind_of(text: &str) -> &str {
    text.split(',').next().unwrap_or(text)
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
    fn arguments_are_split_into_own_and_stock_commands() {
        for (words, expected) in [
            (&[][..], Action::Help),
            (&["help"], Action::Help),
            (&["--help"], Action::Help),
            (&["--api-socket", "a", "-V"], Action::Version),
            (&["--api-socket", "a", "info"], Action::PassOn),
            (&["--api-socket", "--help"], Action::PassOn),
            (&["info", "--help"], Action::PassOn),
            (&["help", "info"], Action::PassOn),
            (
                &["help", "add-device"],
                Action::ExtendedHelp(Extended::AddDevice),
            ),
            (
                &["create", "--help"],
                Action::ExtendedHelp(Extended::Create),
            ),
            (&["add-device", "path=/x"], Action::PassOn),
            (&["add-device", "vfio"], Action::PassOn),
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
            (&["snapshot", "file:///x"], Action::Snapshot),
            (
                &["snapshot", "--help"],
                Action::ExtendedHelp(Extended::Snapshot),
            ),
            (
                &["remove-device", "--help"],
                Action::ExtendedHelp(Extended::RemoveDevice),
            ),
            (
                &["help", "inter-vm", "list"],
                Action::InterVm(vec!["inter-vm".into(), "list".into(), "--help".into()]),
            ),
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
    fn typing_errors_are_usage_errors_with_a_suggestion() {
        for (words, suggestion) in [
            (
                &["--api-sokcet", "/a", "inter-vm", "list"][..],
                "'--api-socket'",
            ),
            (&["--api-soket=/a", "inter-vm", "list"], "'--api-socket'"),
            (&["intervm", "list"], "'inter-vm'"),
            (&["add-intervm", "segment=a"], "'add-inter-vm'"),
            (&["add-device", "inter-vn,segment=a"], "'inter-vm'"),
        ] {
            let arguments = Arguments::new(words.iter().map(OsString::from));
            let failure = arguments.action().unwrap_err();
            assert_eq!(failure.status, 2);
            let text = failure.error.to_string();
            assert!(text.contains(suggestion), "{text}");
        }
    }

    #[test]
    fn api_socket_that_is_empty_or_looks_abstract_is_a_usage_error() {
        for path in ["", "@a"] {
            let words = ["--api-socket", path, "inter-vm", "list"];
            let arguments = Arguments::new(words.map(OsString::from));
            let failure = arguments.api_socket().unwrap_err();
            assert_eq!(failure.status, 2);
            assert!(failure.error.to_string().contains("--api-socket"));
        }
    }

    #[test]
    fn api_socket_is_read_before_the_command_only() {
        let socket = |words: &[&str]| Arguments::new(words.iter().map(OsString::from)).api_socket;
        assert_eq!(socket(&["--api-socket", "/a", "info"]), Some("/a".into()));
        assert_eq!(socket(&["--api-socket=/a", "info"]), Some("/a".into()));
        assert_eq!(socket(&["info", "--api-socket", "/a"]), None);
    }
}
