//! The result of ADD.

use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::{CONFIG, Error};
use crate::ipam::Lease;
use crate::request::Request;

/// The result: that of the plug-in before this one, if there is one, with the interface and what
/// IPAM gave for it.
pub(crate) fn compose(
    config: &Config,
    request: &Request,
    mac: &str,
    socket: &str,
    lease: Option<&Lease>,
) -> Result<Value, Error> {
    let mut result = config.previous_result()?.unwrap_or_default();
    result.insert("cniVersion".to_owned(), config.version().into());
    let mut interface = json!({
        "name": request.interface,
        "mac": mac,
        "sandbox": request.netns,
    });
    if config.is_at_least("1.1.0") {
        interface["mtu"] = config.mtu.into();
        interface["socketPath"] = socket.into();
    }
    let interfaces = list(&mut result, "interfaces")?;
    let index = interfaces.len();
    interfaces.push(interface);
    let given = lease
        .map(|lease| lease.document.clone())
        .unwrap_or_default();
    for key in ["ips", "routes"] {
        let Some(Value::Array(more)) = given.get(key) else {
            continue;
        };
        let mut more = more.clone();
        if key == "ips" {
            more.iter_mut()
                .for_each(|ip| ip["interface"] = index.into());
        }
        list(&mut result, key)?.append(&mut more);
    }
    let own = config.document.get("dns");
    if let Some(dns) = given.get("dns").filter(|dns| !is_empty(dns)).or(own) {
        result.insert("dns".to_owned(), dns.clone());
    }
    Ok(Value::Object(result))
}

fn list<'a>(result: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>, Error> {
    let value = result.entry(key).or_insert_with(|| json!([]));
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or_else(|| {
        let message = format!("Key \"prevResult\": its {key:?} is not a list");
        Error::new(CONFIG, message)
    })
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

/// Finds out whether the result of ADD has the interface, with that address.
pub(crate) fn check(config: &Config, request: &Request, mac: &str) -> Result<(), Error> {
    let Some(result) = config.previous_result()? else {
        let message = "The network configuration has no key \"prevResult\", which CHECK needs";
        return Err(Error::new(CONFIG, message));
    };
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let is_it = |interface: &Value| {
        interface["name"] == *request.interface
            && interface["sandbox"] == *request.netns
            && interface["mac"]
                .as_str()
                .is_some_and(|text| text.eq_ignore_ascii_case(mac))
    };
    if interfaces.is_some_and(|interfaces| interfaces.iter().any(is_it)) {
        return Ok(());
    }
    let message = format!(
        "Key \"prevResult\" has no interface {} with address {mac} in {}",
        request.interface, request.netns
    );
    Err(Error::new(CONFIG, message))
}
