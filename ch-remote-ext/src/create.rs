//! Creates a VM with the devices for which its supervisor has ports.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow};
use cloud_hypervisor_ext::control_protocol::PortInfo;
use cloud_hypervisor_ext::report::Failure;
use serde_json::{Map, Value, json};

use crate::api::Api;
use crate::control_client::ControlClient;

/// Cloud Hypervisor's default size of a VM's memory, in bytes.
const DEFAULT_MEMORY: u64 = 512 << 20;

/// The ports for the VM that is to be created, if there are any.
///
/// # Errors
/// When there is a supervisor that does not reply: the VM would lack its devices.
pub(crate) fn find_ports(api_socket: Option<&Path>) -> anyhow::Result<Option<Vec<PortInfo>>> {
    let Some(mut supervisor) = api_socket.map(ControlClient::find).transpose()?.flatten() else {
        return Ok(None);
    };
    let ports = supervisor
        .list()
        .context("Cannot tell which inter-VM devices the VM is to have; it is not created")?;
    Ok((!ports.is_empty()).then_some(ports))
}

/// Creates the VM that a file describes, and adds the devices.
pub(crate) fn create(api_socket: &Path, path: &str, ports: &[PortInfo]) -> Result<u8, Failure> {
    let text = if path == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("Error reading from stdin")?;
        text
    } else {
        std::fs::read_to_string(path).with_context(|| format!("Cannot read {path}"))?
    };
    let mut config: Value =
        serde_json::from_str(&text).with_context(|| format!("Cannot understand {path}"))?;
    add_devices(&mut config, ports).map_err(Failure::usage)?;
    Api::connect(api_socket)?.create(&config)?;
    Ok(0)
}

/// Adds the devices that the configuration lacks, and shares the memory where `shared` is not
/// given.
fn add_devices(config: &mut Value, ports: &[PortInfo]) -> anyhow::Result<()> {
    let config = config
        .as_object_mut()
        .context("The VM's configuration is not a JSON object")?;
    let nets = config.entry("net").or_insert(Value::Null);
    if nets.is_null() {
        *nets = json!([]);
    }
    let nets = nets
        .as_array_mut()
        .context("net of the VM's configuration is not a list")?;
    for port in ports {
        let there = |net: &Value| net["vhost_socket"] == port.net.vhost_socket.as_str();
        if !nets.iter().any(there) {
            nets.push(serde_json::to_value(&port.net)?);
        }
    }
    let memory = config.entry("memory").or_insert(Value::Null);
    if memory.is_null() {
        *memory = json!({ "size": DEFAULT_MEMORY });
    }
    let memory = memory
        .as_object_mut()
        .context("memory of the VM's configuration is not an object")?;
    if memory.get("size") != Some(&json!(0)) {
        return share(memory, "memory");
    }
    let zones = memory.get_mut("zones").and_then(Value::as_array_mut);
    for zone in zones.into_iter().flatten() {
        share(
            zone.as_object_mut()
                .context("A memory zone is not an object")?,
            "a memory zone",
        )?;
    }
    Ok(())
}

fn share(memory: &mut Map<String, Value>, what: &str) -> anyhow::Result<()> {
    // Huge pages are shared in any case.
    if memory.get("hugepages") == Some(&json!(true)) {
        return Ok(());
    }
    if memory.get("shared") == Some(&json!(false)) {
        return Err(anyhow!(
            "Inter-VM devices need memory that is shared with the port, but {what} says \
             \"shared\": false"
        ));
    }
    memory.insert("shared".to_owned(), json!(true));
    Ok(())
}

#[cfg(test)]
mod tests {
    use cloud_hypervisor_ext::control_protocol::PortState;
    use cloud_hypervisor_ext::device::NetConfig;

    use super::*;

    fn port(id: &str) -> PortInfo {
        PortInfo {
            id: id.into(),
            port_id: id.into(),
            segment: "/s".into(),
            mac: "02:00:00:00:00:01".into(),
            state: PortState::Serving,
            pid: Some(1),
            restarts: 0,
            socket: format!("/run/{id}"),
            status_socket: "/x".into(),
            net: NetConfig {
                id: id.into(),
                vhost_user: true,
                vhost_socket: format!("/run/{id}"),
                mac: "02:00:00:00:00:01".into(),
                num_queues: 2,
                queue_size: None,
                mtu: None,
                pci_segment: None,
                pci_device_id: None,
            },
        }
    }

    fn with(mut config: Value) -> anyhow::Result<Value> {
        add_devices(&mut config, &[port("a"), port("b")])?;
        Ok(config)
    }

    #[test]
    fn devices_that_are_missing_are_added() {
        let config = with(json!({"net": [{"tap": "t"}, {"vhost_socket": "/run/a"}]})).unwrap();
        let sockets: Vec<&Value> = config["net"]
            .as_array()
            .unwrap()
            .iter()
            .map(|net| &net["vhost_socket"])
            .collect();
        assert_eq!(sockets, [&Value::Null, &json!("/run/a"), &json!("/run/b")]);
        assert_eq!(
            config["memory"],
            json!({"size": 536_870_912, "shared": true})
        );
    }

    #[test]
    fn memory_is_shared_where_nothing_was_said() {
        for (memory, expected) in [
            (json!({"size": 1}), json!({"size": 1, "shared": true})),
            (
                json!({"size": 1, "hugepages": true}),
                json!({"size": 1, "hugepages": true}),
            ),
            (
                json!({"size": 0, "zones": [{"id": "z"}]}),
                json!({"size": 0, "zones": [{"id": "z", "shared": true}]}),
            ),
        ] {
            assert_eq!(
                with(json!({ "memory": memory })).unwrap()["memory"],
                expected
            );
        }
    }

    #[test]
    fn config_that_is_invalid_is_an_error() {
        for config in [
            json!([]),
            json!({"net": 7}),
            json!({"memory": 7}),
            json!({"memory": {"size": 1, "shared": false}}),
            json!({"memory": {"size": 0, "zones": [{"shared": false}]}}),
        ] {
            with(config).unwrap_err();
        }
    }
}
