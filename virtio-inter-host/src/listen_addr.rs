//! An address on which the exporter listens.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use virtio_inter_args::check_socket_path;

/// Where the exporter listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// An IP address and port.
    Tcp(SocketAddr),
    /// A Unix socket's path.
    Unix(PathBuf),
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            check_socket_path(&path).map_err(|error| error.to_string())?;
            return Ok(Self::Unix(path));
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            "an IP address and port such as 127.0.0.1:9477 or [::1]:9477, or unix:PATH, is needed"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_address_is_an_ip_address_or_a_path() {
        let parse = str::parse::<ListenAddr>;
        assert_eq!(
            parse("unix:/run/x").unwrap(),
            ListenAddr::Unix("/run/x".into())
        );
        assert_eq!(
            parse("[::1]:9477").unwrap(),
            ListenAddr::Tcp("[::1]:9477".parse().unwrap())
        );
        for wrong in ["", "unix:", "localhost:9477", "9477", "127.0.0.1"] {
            parse(wrong).unwrap_err();
        }
    }
}
