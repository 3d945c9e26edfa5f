//! Help, version and wrong command lines: also where there is no ch-remote.

use std::ffi::OsStr;

use crate::harness::{Place, Ran};

/// A run that finds no ch-remote.
fn alone(place: &Place, arguments: &[&str]) -> Ran {
    place.run_program(arguments, "", OsStr::new("/nowhere/ch-remote"))
}

const NOT_SHOWN: &str = "not shown: CH_REMOTE names /nowhere/ch-remote, which is not a program";

#[test]
fn help_needs_no_ch_remote() {
    let place = Place::new();
    for arguments in [&["--help"][..], &["-h"], &["help"]] {
        let text = alone(&place, arguments).succeeded();
        for part in [
            "Usage: ch-remote-ext --api-socket <api-socket> <COMMAND>",
            "  add-device ",
            "  add-inter-vm ",
            "  inter-vm ",
            "  remove-device ",
            "--version",
            "CH_REMOTE ",
            "Exit status",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(text.lines().last().unwrap().ends_with(NOT_SHOWN), "{text}");
    }
}

#[test]
fn help_for_commands_needs_no_ch_remote() {
    let place = Place::new();
    for (arguments, part) in [
        (&["help", "add-inter-vm"][..], "queue_size=<"),
        (&["add-inter-vm", "-h"], "queue_size=<"),
        (&["help", "inter-vm"], "list"),
        (&["inter-vm", "help"], "list"),
        (&["inter-vm", "--help"], "list"),
        (&["help", "inter-vm", "list"], "--json"),
        (&["inter-vm", "help", "list"], "--json"),
        (&["inter-vm", "list", "-h"], "--json"),
        (&["help", "inter-vm", "show"], "--json"),
        (&["help", "add-device"], "inter-vm,<config>"),
        (&["add-device", "--help"], "inter-vm,<config>"),
        (&["help", "remove-device"], "ends its port"),
        (&["remove-device", "-h"], "ends its port"),
        (&["snapshot", "--help"], "is refused while"),
        (&["help", "create"], "inter-VM network devices"),
        (
            &["--api-socket", "/a", "create", "--help"],
            "inter-VM network devices",
        ),
    ] {
        let text = alone(&place, arguments).succeeded();
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
}

#[test]
fn help_for_a_changed_command_is_both_programs() {
    let place = Place::new();
    let text = place
        .run_program(
            &["add-device", "--help"],
            "",
            place.path("remote").as_os_str(),
        )
        .succeeded();
    assert!(text.contains("Commands:"), "{text}");
    assert!(text.contains("inter-vm,<config>"), "{text}");
    assert!(!text.contains("not shown"), "{text}");
}

#[test]
fn version_needs_no_ch_remote() {
    let place = Place::new();
    for argument in ["--version", "-V"] {
        let text = alone(&place, &[argument]).succeeded();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(
            lines[0],
            concat!("ch-remote-ext ", env!("CARGO_PKG_VERSION"))
        );
        assert!(lines[1].ends_with(NOT_SHOWN), "{text}");
    }
}

#[test]
fn command_line_without_arguments_is_a_usage_error_with_help() {
    let place = Place::new();
    let ran = alone(&place, &[]);
    assert_eq!((ran.status, ran.out.as_str()), (2, ""));
    assert!(ran.err.contains("add-inter-vm"), "{}", ran.err);
}

#[test]
fn typing_errors_are_usage_errors_with_a_suggestion() {
    let place = Place::new();
    for (arguments, suggestion) in [
        (
            &["--api-sokcet", "/a", "inter-vm", "list"][..],
            "'--api-socket'",
        ),
        (&["--api-socket", "/a", "intervm", "list"], "'inter-vm'"),
        (
            &["--api-socket", "/a", "add-device", "inter-vn,segment=a"],
            "'inter-vm'",
        ),
        (&["--api-socket", "/a", "inter-vm", "lst"], "'list'"),
        (
            &["--api-socket", "/a", "add-inter-vm", "segmnt=a"],
            "did you mean segment?",
        ),
    ] {
        let error = alone(&place, arguments).failed(2);
        assert!(error.contains(suggestion), "{error}");
    }
}

#[test]
fn command_of_a_missing_ch_remote_is_named() {
    let place = Place::new();
    let error = alone(&place, &["--api-socket", "/a", "info"]).failed(1);
    assert!(
        error.contains("Cannot run info, a command of ch-remote"),
        "{error}"
    );
}

#[test]
fn api_socket_that_looks_abstract_is_a_usage_error() {
    let place = Place::new();
    for command in [
        &["inter-vm", "list"][..],
        &["add-inter-vm", "segment=web"],
        &["add-device", "inter-vm,segment=web"],
    ] {
        let arguments = [&["--api-socket", "@vm1"], command].concat();
        let error = place.run(&arguments).failed(2);
        assert!(
            error.contains("@vm1 looks like an abstract socket"),
            "{error}"
        );
    }
}
