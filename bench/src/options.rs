//! Options of a run.

use std::path::PathBuf;

use clap::Args;

use crate::case::Group;

/// Options of `cargo xtask bench`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Fewer sizes and rounds: about ten minutes instead of about 50.
    #[arg(long)]
    pub quick: bool,
    /// Only this group (paper, latency, udp, busy, peers, link, uplink, scale), or a part of it,
    /// as `paper/uml/one-cpu/groups/tcp_stream`; several with commas. Other measured rows are kept.
    #[arg(long, value_name = "GROUP[/PART…]", value_delimiter = ',', value_parser = group)]
    pub only: Vec<String>,
    /// Rounds of each measurement [default: 5 for goals and 3 for others, with --quick 3 and 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// Add rounds to those that the result file has, instead of replacing them.
    #[arg(long)]
    pub add: bool,
    /// Measure nothing: write the report from the result file.
    #[arg(long, conflicts_with_all = ["add", "only", "quick", "rounds"])]
    pub report: bool,
    /// Keep what this run measured in history/ beside the report, by machine, day and commit.
    #[arg(long)]
    pub keep: bool,
    /// Write goals, and all rows, to FILE as JSON.
    #[arg(long, value_name = "FILE", value_parser = writable_file)]
    pub json: Option<PathBuf>,
    /// Directory of the report, its plots and the result file [default: bench/ of the workspace]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// Takes a name that begins with a group's.
fn group(text: &str) -> Result<String, String> {
    let first = text.split('/').next().unwrap_or_default();
    if Group::ALL.iter().any(|group| group.id() == first) {
        return Ok(text.to_owned());
    }
    let names = Group::ALL.map(Group::id).join(", ");
    Err(format!("The groups are {names}"))
}

/// Accepts a path where a file can be created or overwritten.
///
/// # Errors
///
/// The reason why none can be created.
pub fn writable_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    if path.is_dir() || path.file_name().is_none() {
        return Err("Not a file".to_owned());
    }
    if !directory.is_dir() {
        return Err(format!("No directory {}", directory.display()));
    }
    Ok(path)
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    pub(crate) fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        let line = ["bench"].iter().chain(arguments);
        Line::try_parse_from(line).map(|line| line.options)
    }

    #[test]
    fn bad_arguments_are_usage_errors() {
        for arguments in [
            &["--only", "papers"][..],
            &["--only", ""],
            &["--rounds", "0"],
            &["--rounds", "many"],
            &["--json", "/no/such/directory/out.json"],
            &["--json", "/"],
            &["--report", "--quick"],
        ] {
            let error = parse(arguments).err().unwrap();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
        assert_eq!(
            parse(&["--only", "udp,link"]).unwrap().only,
            ["udp", "link"]
        );
    }
}
