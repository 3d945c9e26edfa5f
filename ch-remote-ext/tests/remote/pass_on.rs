//! Commands of the stock program are passed to it unchanged.

use crate::harness::Place;

#[test]
fn commands_of_ch_remote_are_passed_on() {
    let place = Place::new();
    let stock = place.path("remote");
    for words in [
        &["--api-socket", "/a", "info"][..],
        &["--api-socket=/a", "add-device", "path=/x,id=y"],
        &["--api-socket", "/a", "resize", "--cpus", "2"],
        &["--api-socket", "/nowhere", "remove-device", "x"],
        &["--api-socket", "/nowhere", "create", "/x"],
        // Good for an API socket, but a supervisor's beside it would be too long.
        &[
            "--api-socket",
            &format!("/{:a<95}", "no"),
            "remove-device",
            "x",
        ],
        &[
            "--dbus-service-name",
            "a",
            "--dbus-object-path",
            "b",
            "ping",
        ],
        &["frobnicate", "--x"],
        &["--frobnicate"],
    ] {
        let ran = place.run_program(words, "", stock.as_os_str());
        let expected: String = words.iter().map(|word| format!("[{word}]")).collect();
        assert_eq!(
            (ran.status, ran.out.as_str(), ran.err.as_str()),
            (9, expected.as_str(), "")
        );
    }
}

#[test]
fn help_is_the_stock_programs_with_ours_in_it() {
    let place = Place::new();
    for words in [&["--help"][..], &["help"]] {
        let ran = place.run_program(words, "", place.path("remote").as_os_str());
        let names: Vec<&str> = ran
            .out
            .lines()
            .skip(3)
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(
            names,
            ["add-device", "add-inter-vm", "info", "inter-vm", "help"]
        );
    }
}

#[test]
fn help_for_a_command_of_ours_is_ours() {
    let place = Place::new();
    for (words, expected) in [
        (&["help", "add-inter-vm"][..], "segment=<name_or_directory>"),
        (&["add-inter-vm", "--help"], "segment=<name_or_directory>"),
        (&["help", "inter-vm"], "List all devices, one per line"),
    ] {
        let ran = place.run_program(words, "", place.path("remote").as_os_str());
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{words:?}");
        assert!(ran.out.contains(expected), "{words:?}: {}", ran.out);
    }
}

#[test]
fn version_is_both() {
    let place = Place::new();
    let ran = place.run_program(&["-V"], "", place.path("remote").as_os_str());
    let ours = format!("ch-remote-ext {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        ran.out.lines().collect::<Vec<_>>(),
        ["ch-remote v0-stand-in", &ours]
    );
}
