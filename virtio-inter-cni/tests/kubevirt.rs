//! The script for KubeVirt's sidecar-shim, `dist/kubevirt/onDefineDomain`, called as the shim does.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::process::{Command, Output};

use serde_json::{Value, json};
use virtio_inter_test_support::skip;

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../dist/kubevirt/onDefineDomain"
);

/// Interfaces of no binding, of another one, and one of ours.
fn vmi() -> Value {
    json!({ "spec": { "domain": { "devices": { "interfaces": [
        { "name": "pod", "masquerade": {} },
        { "name": "null", "bridge": {}, "binding": null },
        { "name": "other", "binding": { "name": "other" }, "macAddress": "02:00:00:00:00:02" },
        { "name": "net1", "binding": { "name": "inter" }, "macAddress": "02:00:00:00:00:01" },
    ] } } } })
}

/// None where there is no Python: the running test is skipped.
fn call(vmi: &Value, domain: &str) -> Option<Output> {
    let output = Command::new("python3")
        .arg(SCRIPT)
        .args(["--vmi", &vmi.to_string(), "--domain", domain])
        .env("NETWORK_BINDING_PLUGIN_NAME", "inter")
        .env("VIRTIO_INTER_DIRECTORY", "/run/sockets")
        .output();
    match output {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skip("python3 is not installed");
            None
        }
        output => Some(output.unwrap()),
    }
}

/// The domain that it writes, with `'` for quotes.
fn domain_of(vmi: &Value, domain: &str) -> Option<String> {
    let output = call(vmi, domain)?;
    assert!(output.status.success(), "{output:?}");
    let made = String::from_utf8(output.stdout).unwrap();
    Some(made.trim().replace('"', "'"))
}

const INTERFACE: &str = "<interface type='vhostuser'><alias name='ua-net1' />\
    <mac address='02:00:00:00:00:01' />\
    <source type='unix' path='/run/sockets/net1.sock' mode='server' />\
    <model type='virtio-non-transitional' /></interface>";

#[test]
fn kubevirt_domain_gets_an_interface_and_shared_memory() {
    let domain = "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' type='kvm'>\
        <devices><interface type='ethernet' /></devices>\
        <qemu:commandline><qemu:arg value='-x' /></qemu:commandline></domain>";
    let memory = "<memoryBacking><source type='memfd' /><access mode='shared' /></memoryBacking>";
    let expected = domain
        .replace("</devices>", &format!("{INTERFACE}</devices>"))
        .replace("</domain>", &format!("{memory}</domain>"));
    if let Some(made) = domain_of(&vmi(), domain) {
        assert_eq!(made, expected);
    }
}

#[test]
fn kubevirt_domain_with_huge_pages_and_numa_cells_shares_them() {
    let domain = "<domain type='kvm'><memoryBacking><hugepages /></memoryBacking>\
        <cpu><numa><cell id='0' /></numa></cpu><devices /></domain>";
    let expected = domain
        .replace("<hugepages />", "<hugepages /><access mode='shared' />")
        .replace("id='0'", "id='0' memAccess='shared'")
        .replace("<devices />", &format!("<devices>{INTERFACE}</devices>"));
    if let Some(made) = domain_of(&vmi(), domain) {
        assert_eq!(made, expected);
    }
}

#[test]
fn kubevirt_domain_without_such_an_interface_stays_as_it_is() {
    let mut vmi = vmi();
    let interfaces = &mut vmi["spec"]["domain"]["devices"]["interfaces"];
    interfaces.as_array_mut().unwrap().pop();
    let none = json!({ "spec": { "domain": { "devices": { "interfaces": null } } } });
    let domain = "<domain type='kvm'><devices /></domain>";
    for vmi in [vmi, none] {
        if let Some(made) = domain_of(&vmi, domain) {
            assert_eq!(made, domain);
        }
    }
}

#[test]
fn kubevirt_interface_without_an_address_is_an_error() {
    let mut vmi = vmi();
    let interface = &mut vmi["spec"]["domain"]["devices"]["interfaces"][3];
    interface.as_object_mut().unwrap().remove("macAddress");
    let Some(output) = call(&vmi, "<domain type='kvm'><devices /></domain>") else {
        return;
    };
    assert!(!output.status.success() && output.stdout.is_empty());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("net1 has no macAddress"), "{told}");
}
