//! A call of the runtime: its environment variables.

use std::env;
use std::ffi::OsString;

use virtio_inter_args::check_interface_name;
use virtio_inter_common::MacAddr;

use crate::error::{ENVIRONMENT, Error};

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

/// A call.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    /// Whose interface it is. Empty where the command has none, as the other two.
    pub(crate) container: String,
    pub(crate) interface: String,
    pub(crate) netns: String,
    /// The address of `CNI_ARGS`.
    pub(crate) mac: Option<MacAddr>,
    /// Directories of plug-ins.
    pub(crate) path: OsString,
}

impl Request {
    pub(crate) fn from_environment() -> Result<Self, Error> {
        let name = text("CNI_COMMAND")?;
        let command = match name.as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "STATUS" => Command::Status,
            "GC" => Command::Gc,
            "VERSION" => Command::Version,
            "" => {
                return Err(Error::new(
                    ENVIRONMENT,
                    "CNI_COMMAND is not set: this is a CNI plug-in, which container runtimes start",
                ));
            }
            _ => return Err(Error::new(ENVIRONMENT, format!("CNI_COMMAND is {name:?}"))),
        };
        let mut request = Self {
            command,
            container: String::new(),
            interface: String::new(),
            netns: text("CNI_NETNS")?,
            mac: None,
            path: env::var_os("CNI_PATH").unwrap_or_default(),
        };
        match command {
            Command::Add | Command::Check => {
                request.identify()?;
                if request.netns.is_empty() {
                    return Err(Error::new(ENVIRONMENT, "CNI_NETNS is not set"));
                }
                request.mac = mac(&text("CNI_ARGS")?)?;
            }
            Command::Del => request.identify()?,
            Command::Status | Command::Gc | Command::Version => {}
        }
        Ok(request)
    }

    /// Takes the names of the container and of the interface.
    fn identify(&mut self) -> Result<(), Error> {
        self.container = text("CNI_CONTAINERID")?;
        self.interface = text("CNI_IFNAME")?;
        let missing: Vec<&str> = [
            ("CNI_CONTAINERID", &self.container),
            ("CNI_IFNAME", &self.interface),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.is_empty().then_some(name))
        .collect();
        if !missing.is_empty() {
            let message = format!("Not set: {}", missing.join(", "));
            return Err(Error::new(ENVIRONMENT, message));
        }
        if !is_container(&self.container) {
            let message = format!(
                "CNI_CONTAINERID is {:?}: letters, digits, '_', '.' and '-' are allowed, and a \
                 letter or digit at its begin",
                self.container
            );
            return Err(Error::new(ENVIRONMENT, message));
        }
        if check_interface_name(&self.interface).is_err() {
            let message = format!(
                "CNI_IFNAME is {:?}, which no interface can have as its name",
                self.interface
            );
            return Err(Error::new(ENVIRONMENT, message));
        }
        Ok(())
    }
}

/// A variable's text; empty if it is not set.
fn text(name: &str) -> Result<String, Error> {
    let value = env::var_os(name).unwrap_or_default();
    value
        .into_string()
        .map_err(|_| Error::new(ENVIRONMENT, format!("{name} is not UTF-8")))
}

/// The names of networks and containers: they are parts of file names.
pub(crate) fn is_container(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_allowed)
}

/// The key MAC of `CNI_ARGS`. Other keys are for other plug-ins.
fn mac(arguments: &str) -> Result<Option<MacAddr>, Error> {
    let mut found = None;
    for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            let message = format!("CNI_ARGS has {pair:?}, which is not KEY=VALUE");
            return Err(Error::new(ENVIRONMENT, message));
        };
        if key == "MAC" && !value.is_empty() {
            let parsed = value.parse::<MacAddr>();
            let refused = |error| Error::new(ENVIRONMENT, format!("CNI_ARGS: {error}"));
            found = Some(parsed.map_err(refused)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_id_is_never_a_path() {
        for name in ["a", "0f3c_9.b-c"] {
            assert!(is_container(name), "{name}");
        }
        for name in ["", "../a", ".a", "-a", "a/b", "a b", "é"] {
            assert!(!is_container(name), "{name}");
        }
    }

    #[test]
    fn mac_address_comes_from_among_the_runtimes_arguments() {
        let of = |text: &str| mac(text).map(|mac| mac.map(|mac| mac.to_string()));
        assert_eq!(of("").unwrap(), None);
        assert_eq!(of("IgnoreUnknown=1;K8S_POD_NAME=a;").unwrap(), None);
        let given = of("IgnoreUnknown=1;MAC=02:00:00:00:00:07").unwrap();
        assert_eq!(given.as_deref(), Some("02:00:00:00:00:07"));
        assert_eq!(of("MAC").unwrap_err().code, ENVIRONMENT);
        assert_eq!(of("MAC=01:00:00:00:00:07").unwrap_err().code, ENVIRONMENT);
    }
}
