//! `--print-capabilities` of QEMU's conventions of vhost-user back-ends
//! (docs/interop/vhost-user.rst and vhost-user.json there).

use std::ffi::{OsStr, OsString};

/// The option.
const OPTION: &str = "--print-capabilities";

/// What a back-end of the type `net` can say: its type.
pub const CAPABILITIES: &str = "{\n  \"type\": \"net\"\n}\n";

/// Whether a command line, the program's name first, asks for the capabilities. All else in it is
/// ignored then, by the conventions.
pub fn is_asked_for(arguments: &[OsString]) -> bool {
    let mut arguments = arguments.iter().skip(1).map(OsString::as_os_str).peekable();
    // Management software does not know of subcommands.
    arguments.next_if_eq(&OsStr::new("port"));
    let is_option = |argument: &&OsStr| argument.as_encoded_bytes().starts_with(b"-");
    arguments.peek().is_none_or(is_option) && arguments.any(|argument| argument == OPTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_asked_for_with_and_without_the_subcommand() {
        let asks = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            is_asked_for(&words)
        };
        assert!(asks("virtio-inter --print-capabilities"));
        assert!(asks("virtio-inter port --print-capabilities"));
        assert!(asks("virtio-inter-port --nonsense --print-capabilities"));
        assert!(asks("virtio-inter port --fd 3 --print-capabilities"));
        assert!(!asks("virtio-inter"));
        assert!(!asks("virtio-inter port --fd 3"));
        assert!(!asks("virtio-inter list --print-capabilities"));
    }
}
