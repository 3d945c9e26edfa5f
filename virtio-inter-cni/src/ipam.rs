//! The plug-in that manages IP addresses (IPAM): a program in `CNI_PATH`, which speaks the same
//! protocol and gets the same configuration.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::Config;
use crate::error::{Error, IPAM};
use crate::program::find_in;
use crate::request::Request;

/// The IPAM plug-in of a network.
#[derive(Debug)]
pub(crate) struct Ipam<'a> {
    name: &'a str,
    program: PathBuf,
    config: &'a Config,
}

/// Addresses and routes of an interface, as IPAM gave them.
#[derive(Debug)]
pub(crate) struct Lease {
    /// The whole result.
    pub(crate) document: Map<String, Value>,
    ips: Vec<Ip>,
    pub(crate) routes: Vec<Route>,
}

#[derive(Debug, Deserialize)]
struct Ip {
    /// With its prefix.
    address: String,
    gateway: Option<IpAddr>,
}

/// A route.
#[derive(Debug, Deserialize)]
pub(crate) struct Route {
    /// With its prefix.
    #[serde(rename = "dst")]
    pub(crate) destination: String,
    #[serde(rename = "gw")]
    gateway: Option<IpAddr>,
    pub(crate) mtu: Option<u32>,
    pub(crate) scope: Option<u32>,
}

impl<'a> Ipam<'a> {
    /// The plug-in that the configuration names; `None` if it names none.
    pub(crate) fn of(config: &'a Config, request: &Request) -> Result<Option<Self>, Error> {
        let Some(name) = config.ipam.as_deref() else {
            return Ok(None);
        };
        // A name, not a path.
        let program = match name.contains('/') {
            true => None,
            false => find_in(&request.path, name.as_ref()),
        };
        let Some(program) = program else {
            let message = format!("There is no IPAM plug-in {name:?} in CNI_PATH");
            return Err(Error::new(IPAM, message).detail(request.path.display()));
        };
        Ok(Some(Self {
            name,
            program,
            config,
        }))
    }

    /// Asks for addresses.
    pub(crate) fn add(&self) -> Result<Lease, Error> {
        let output = self.call("ADD")?;
        let lease = Lease::parse(&output).map_err(|error| {
            Error::new(
                IPAM,
                format!("The result of IPAM plug-in {} is of no use", self.name),
            )
            .detail(error)
        });
        lease.map_err(|error| error.and(self.call("DEL").err().into_iter().collect()))
    }

    /// Forwards a command, which has no result. The plug-in inherits the other variables.
    pub(crate) fn call(&self, command: &str) -> Result<Vec<u8>, Error> {
        let failed = |error: std::io::Error| {
            Error::new(
                IPAM,
                format!("Cannot run IPAM plug-in {}: {error}", self.name),
            )
        };
        let mut child = Command::new(&self.program)
            .env("CNI_COMMAND", command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let input = Value::Object(self.config.document.clone()).to_string();
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read it may do without it.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(self.error(command, &output.stdout, &output.status.to_string())),
        }
    }

    /// The plug-in's error, with its code.
    fn error(&self, command: &str, output: &[u8], status: &str) -> Error {
        let document: Value = serde_json::from_slice(output).unwrap_or_default();
        let code = document["code"]
            .as_u64()
            .and_then(|code| u32::try_from(code).ok());
        let message = document["msg"].as_str().unwrap_or(status);
        let error = Error::new(
            code.filter(|code| *code != 0).unwrap_or(IPAM),
            format!("{command} of IPAM plug-in {}: {message}", self.name),
        );
        error.detail(document["details"].as_str().unwrap_or_default())
    }
}

impl Lease {
    fn parse(output: &[u8]) -> Result<Self, String> {
        let document: Map<String, Value> =
            serde_json::from_slice(output).map_err(|error| error.to_string())?;
        let ips: Vec<Ip> = list(&document, "ips")?;
        let routes: Vec<Route> = list(&document, "routes")?;
        if ips.is_empty() {
            return Err("It has no address".to_owned());
        }
        let destinations = routes.iter().map(|route| &route.destination);
        for text in ips.iter().map(|ip| &ip.address).chain(destinations) {
            address(text).ok_or_else(|| format!("{text:?} is no address with a prefix"))?;
        }
        Ok(Self {
            document,
            ips,
            routes,
        })
    }

    /// The addresses, each with its prefix.
    pub(crate) fn addresses(&self) -> Vec<&str> {
        self.ips.iter().map(|ip| ip.address.as_str()).collect()
    }

    /// The addresses alone.
    pub(crate) fn hosts(&self) -> Vec<IpAddr> {
        self.ips
            .iter()
            .filter_map(|ip| address(&ip.address))
            .collect()
    }

    /// A route's gateway: its own, or that of an address of its family. A route to the link has
    /// none.
    pub(crate) fn gateway_of(&self, route: &Route) -> Option<IpAddr> {
        /// `RT_SCOPE_LINK` of rtnetlink(7). Larger ones are nearer still.
        const LINK: u32 = 253;
        let is_v4 = address(&route.destination)?.is_ipv4();
        let mut gateways = self.ips.iter().filter_map(|ip| ip.gateway);
        match route.scope {
            Some(LINK..) => route.gateway,
            _ => route
                .gateway
                .or_else(|| gateways.find(|gateway| gateway.is_ipv4() == is_v4)),
        }
    }
}

fn list<T: for<'a> Deserialize<'a>>(
    document: &Map<String, Value>,
    key: &str,
) -> Result<Vec<T>, String> {
    let value = document.get(key).cloned().unwrap_or_default();
    let list: Result<Option<Vec<T>>, _> = serde_json::from_value(value);
    list.map(Option::unwrap_or_default)
        .map_err(|error| format!("Key {key:?}: {error}"))
}

/// The address of a text such as 10.0.0.1/24, whose prefix is valid.
fn address(text: &str) -> Option<IpAddr> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= longest).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateways(text: &str) -> Vec<Option<String>> {
        let lease = Lease::parse(text.as_bytes()).unwrap();
        let gateways = lease.routes.iter().map(|route| lease.gateway_of(route));
        gateways.map(|gateway| Some(gateway?.to_string())).collect()
    }

    #[test]
    fn route_without_a_gateway_takes_that_of_an_address_of_its_family() {
        let text = r#"{ "ips": [ { "address": "fd00::2/64", "gateway": "fd00::1" },
                                 { "address": "10.0.0.2/24", "gateway": "10.0.0.1" } ],
            "routes": [ { "dst": "0.0.0.0/0" }, { "dst": "::/0" }, { "dst": "10.9.0.0/16",
                "gw": "10.0.0.9" }, { "dst": "10.8.0.0/16", "scope": 253 } ] }"#;
        let wanted = [Some("10.0.0.1"), Some("fd00::1"), Some("10.0.0.9"), None];
        assert_eq!(
            gateways(text),
            wanted.map(|gateway| gateway.map(str::to_owned))
        );
    }

    #[test]
    fn lease_without_a_usable_address_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{ "ips": [] }"#,
            r#"{ "ips": [ { "address": "10.0.0.2" } ] }"#,
            r#"{ "ips": [ { "address": "10.0.0.2/33" } ] }"#,
            r#"{ "ips": [ { "address": "10.0.0.2/24" } ], "routes": [ { "dst": "default" } ] }"#,
        ] {
            assert!(Lease::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
