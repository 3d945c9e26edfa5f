//! Cloud Hypervisor's command line: finds what concerns inter-VM devices, and passes everything
//! else on unchanged.
//!
//! Every argument keeps its place, also unknown ones. As in clap, a flag's values are the arguments
//! up to the next one with a leading dash, or the one after `=`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The arguments, without the program's name.
#[derive(Clone, Debug, Default)]
pub struct CommandLine {
    pieces: Vec<Piece>,
}

/// A long flag with its values, or anything else.
#[derive(Clone, Debug)]
enum Piece {
    Flag {
        /// With its dashes.
        name: OsString,
        /// `--flag=value`.
        attached: bool,
        values: Vec<OsString>,
    },
    Other(OsString),
}

impl CommandLine {
    /// Reads arguments.
    pub fn new(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let mut arguments = arguments.into_iter().peekable();
        let mut pieces = Vec::new();
        while let Some(argument) = arguments.next() {
            let bytes = argument.as_bytes();
            if bytes == b"--" {
                pieces.push(Piece::Other(argument));
                pieces.extend(arguments.by_ref().map(Piece::Other));
            } else if !bytes.starts_with(b"--") {
                pieces.push(Piece::Other(argument));
            } else if let Some(equals) = bytes.iter().position(|byte| *byte == b'=') {
                pieces.push(Piece::Flag {
                    name: OsString::from_vec(bytes[..equals].to_vec()),
                    attached: true,
                    values: vec![OsString::from_vec(bytes[equals + 1..].to_vec())],
                });
            } else {
                let mut values = Vec::new();
                while let Some(value) = arguments.next_if(is_value) {
                    values.push(value);
                }
                pieces.push(Piece::Flag {
                    name: argument,
                    attached: false,
                    values,
                });
            }
        }
        Self { pieces }
    }

    /// The arguments for Cloud Hypervisor.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Other(argument) => arguments.push(argument.clone()),
                Piece::Flag {
                    name,
                    attached: true,
                    values,
                } => {
                    let mut argument = name.clone();
                    for value in values {
                        argument.push("=");
                        argument.push(value);
                    }
                    arguments.push(argument);
                }
                Piece::Flag { name, values, .. } => {
                    arguments.push(name.clone());
                    arguments.extend(values.iter().cloned());
                }
            }
        }
        arguments
    }

    /// Whether an argument (`-V`) or long flag occurs before a `--`.
    pub fn has(&self, flag: &str) -> bool {
        let end = |piece: &&Piece| !matches!(piece, Piece::Other(argument) if argument == "--");
        self.pieces.iter().take_while(end).any(|piece| match piece {
            Piece::Flag { name, .. } => name == flag,
            Piece::Other(argument) => argument == flag,
        })
    }

    /// The names of all long flags, with their dashes.
    pub fn flags(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Flag { name, .. } => name.to_str(),
            Piece::Other(_) => None,
        })
    }

    /// The log level for the number of `-v`, as in Cloud Hypervisor.
    pub fn log_level(&self) -> &'static str {
        match self.verbosity() {
            0 => "warn",
            1 => "info",
            2 => "debug",
            _ => "trace",
        }
    }

    /// How often `-v` was given, `-vv` counting twice.
    fn verbosity(&self) -> usize {
        let count = |argument: &OsString| {
            let letters = argument.to_str()?.strip_prefix('-')?;
            (!letters.is_empty() && letters.bytes().all(|letter| letter == b'v'))
                .then_some(letters.len())
        };
        self.pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Other(argument) => count(argument),
                Piece::Flag { .. } => None,
            })
            .sum()
    }

    /// All values of a long flag, in order.
    pub fn values<'a>(&'a self, flag: &'a str) -> impl Iterator<Item = &'a OsStr> {
        self.pieces
            .iter()
            .filter_map(move |piece| match piece {
                Piece::Flag { name, values, .. } if name == flag => Some(values),
                _ => None,
            })
            .flatten()
            .map(OsString::as_os_str)
    }

    /// All values of a long flag that are text.
    pub fn texts<'a>(&'a self, flag: &'a str) -> impl Iterator<Item = &'a str> {
        self.values(flag).filter_map(OsStr::to_str)
    }

    /// Removes a long flag. Returns the values of each occurrence.
    pub fn take(&mut self, flag: &str) -> Vec<Vec<OsString>> {
        let mut taken = Vec::new();
        self.pieces.retain_mut(|piece| match piece {
            Piece::Flag { name, values, .. } if name == flag => {
                taken.push(std::mem::take(values));
                false
            }
            _ => true,
        });
        taken
    }

    /// Adds values to the last occurrence of a long flag, or adds the flag. (Cloud Hypervisor
    /// before v52 accepts `--net` once only.)
    pub fn append(&mut self, flag: &str, more: impl IntoIterator<Item = OsString>) {
        for piece in self.pieces.iter_mut().rev() {
            if let Piece::Flag {
                name,
                attached,
                values,
            } = piece
                && name == flag
            {
                // A flag with `=` has one value only.
                *attached = false;
                values.extend(more);
                return;
            }
        }
        // Before a `--`, after which there are no flags.
        let end = self
            .pieces
            .iter()
            .position(|piece| matches!(piece, Piece::Other(argument) if argument == "--"))
            .unwrap_or(self.pieces.len());
        let piece = Piece::Flag {
            name: flag.into(),
            attached: false,
            values: more.into_iter().collect(),
        };
        self.pieces.insert(end, piece);
    }

    /// Replaces the values of a long flag for which `change` returns another.
    pub fn change(&mut self, flag: &str, change: impl Fn(&str) -> Option<String>) {
        for piece in &mut self.pieces {
            if let Piece::Flag { name, values, .. } = piece
                && name == flag
            {
                for value in values {
                    if let Some(new) = value.to_str().and_then(&change) {
                        *value = new.into();
                    }
                }
            }
        }
    }
}

/// A lone dash is a value.
fn is_value(argument: &OsString) -> bool {
    !argument.as_bytes().starts_with(b"-") || argument == "-"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &[&str]) -> CommandLine {
        CommandLine::new(arguments.iter().map(OsString::from))
    }

    fn texts(line: &CommandLine) -> Vec<String> {
        line.arguments()
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect()
    }

    #[test]
    fn arguments_are_passed_on_unchanged() {
        for arguments in [
            &[
                "--kernel",
                "k",
                "-v",
                "--net",
                "a",
                "b",
                "--rtc",
                "--disk=x=y",
            ][..],
            &["--api-socket=", "--", "--net", "x"],
            &["stray", "-vv", "--new-flag", "-", "--watchdog", "-V"],
            &[],
        ] {
            assert_eq!(texts(&line(arguments)), arguments);
        }
    }

    #[test]
    fn arguments_that_are_no_text_are_passed_on_unchanged() {
        let odd = OsString::from_vec(b"--disk=path=\xff".to_vec());
        let line = CommandLine::new([odd.clone(), "--net".into(), OsString::from_vec(vec![0xfe])]);
        assert_eq!(
            line.arguments(),
            [odd, "--net".into(), OsString::from_vec(vec![0xfe])]
        );
        assert_eq!(line.texts("--net").count(), 0);
    }

    #[test]
    fn flag_is_taken_out_wherever_it_stands() {
        let mut line = line(&[
            "--inter-vm",
            "a",
            "b",
            "--kernel",
            "k",
            "--inter-vm=c",
            "-v",
            "--inter-vm",
        ]);
        assert_eq!(line.take("--inter-vm"), [vec!["a", "b"], vec!["c"], vec![]]);
        assert_eq!(texts(&line), ["--kernel", "k", "-v"]);
    }

    #[test]
    fn values_are_added_to_the_last_of_a_flag() {
        let mut twice = line(&["--net", "a", "--net=b", "-v"]);
        twice.append("--net", ["c".into()]);
        assert_eq!(texts(&twice), ["--net", "a", "--net", "b", "c", "-v"]);
        let mut none = line(&["-v", "--", "x"]);
        none.append("--net", ["c".into(), "d".into()]);
        assert_eq!(texts(&none), ["-v", "--net", "c", "d", "--", "x"]);
    }

    #[test]
    fn values_are_changed_in_place() {
        let mut line = line(&["--memory=size=1G", "--memory-zone", "a", "b"]);
        line.change("--memory", |value| Some(format!("{value},shared=on")));
        line.change("--memory-zone", |value| {
            (value == "b").then(|| "c".to_owned())
        });
        assert_eq!(
            texts(&line),
            ["--memory=size=1G,shared=on", "--memory-zone", "a", "c"]
        );
    }

    #[test]
    fn verbosity_is_counted() {
        assert_eq!(line(&["-v", "-vv", "--v", "-V", "-"]).verbosity(), 3);
        assert_eq!(line(&["-v"]).log_level(), "info");
        assert_eq!(line(&["-vvv"]).log_level(), "trace");
    }

    #[test]
    fn arguments_after_two_dashes_are_no_flags() {
        assert!(line(&["--help"]).has("--help"));
        assert!(!line(&["--", "--help"]).has("--help"));
        assert_eq!(
            line(&["--a=b", "-c", "--", "--d"])
                .flags()
                .collect::<Vec<_>>(),
            ["--a"]
        );
    }
}
