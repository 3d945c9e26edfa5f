//! The names of the kinds of findings.

macro_rules! codes {
    ($($code:ident = $name:literal,)*) => {
        /// The kinds of findings that are no warnings of ports; their names are stable.
        /// `docs/operations.md` describes them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Code {
            $($code,)*
        }

        impl Code {
            /// The names of all, in their order.
            #[cfg(test)]
            pub(super) const NAMES: &[&str] = &[$($name),*];

            /// Its name.
            pub(super) fn as_str(self) -> &'static str {
                match self {
                    $(Code::$code => $name,)*
                }
            }
        }
    };
}

codes! {
    PortGone = "port-gone",
    PortSilent = "port-silent",
    PortDenied = "port-denied",
    NoStatus = "no-status",
    InvalidStatus = "invalid-status",
    NoVmm = "no-vmm",
    Refused = "refused",
    DuplicateMac = "duplicate-mac",
    MtuMismatch = "mtu-mismatch",
    SegmentNotSticky = "segment-not-sticky",
    SegmentPublic = "segment-public",
    SegmentUnreadable = "segment-unreadable",
    PeersUsedUp = "peers-used-up",
    LinkMemoryUsedUp = "link-memory-used-up",
    RingsUsedUp = "rings-used-up",
    MappingsUsedUp = "mappings-used-up",
    FilesUsedUp = "files-used-up",
    HostFilesUsedUp = "host-files-used-up",
    AioUsedUp = "aio-used-up",
    ThreadsUsedUp = "threads-used-up",
}
