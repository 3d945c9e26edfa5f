//! A directory for a test, with a segment, a stand-in for IPAM and calls of the plug-in.

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use virtio_inter_test_support::process::build_beside;

const PROGRAM: &str = env!("CARGO_BIN_EXE_virtio-inter-cni");

/// A container's id, as long as runtimes make it.
pub(crate) const POD: &str = "4f1d0e6c2b7a9835d0c1e2f3a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7";

/// Notes its calls and its configuration, and gives addresses that end with the number in the
/// interface's name.
const IPAM: &str = r#"#!/bin/sh
here=$(dirname "$0")/..
cat > "$here/ipam-$CNI_COMMAND"
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >> "$here/ipam-calls"
if [ -e "$here/ipam-fails" ]; then
    echo '{ "cniVersion": "1.1.0", "code": 11, "msg": "No address is left", "details": "of 254" }'
    exit 1
fi
[ "$CNI_COMMAND" = ADD ] || exit 0
host=1${CNI_IFNAME#eth}
cat << END
{ "cniVersion": "1.1.0",
  "ips": [ { "address": "10.0.0.$host/24", "gateway": "10.0.0.1" },
           { "address": "fd00::$host/64" } ],
  "routes": [ { "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.0.0.9", "mtu": 1400 } ],
  "dns": { "nameservers": [ "10.0.0.1" ] } }
END
"#;

/// A directory for one test.
pub(crate) struct Place {
    directory: TempDir,
}

/// What a call answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) is_success: bool,
    pub(crate) output: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        build_beside(Path::new(PROGRAM), &["virtio-inter"]);
        let place = Self {
            directory: TempDir::with_prefix("vi").unwrap(),
        };
        fs::create_dir(place.path("segment")).unwrap();
        fs::create_dir(place.path("plugins")).unwrap();
        place.script("plugins/fake-ipam", IPAM);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn script(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A network with IPAM, whose ports have no supervisor.
    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "virtio-inter-cni",
            "segment": self.path("segment"),
            "ipam": { "type": "fake-ipam" },
            "dan_dir": self.path("run/dans"),
            "state_dir": self.path("state"),
            "supervisor": "none",
            "port_program": Path::new(PROGRAM).with_file_name("virtio-inter"),
        })
    }

    /// Its configuration with other values; a key with `null` is removed.
    pub(crate) fn config_with(&self, changes: Value) -> Value {
        let mut config = self.config();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
            if value.is_null() {
                config.as_object_mut().unwrap().remove(key);
            }
        }
        config
    }

    /// Kata's file of the pod.
    pub(crate) fn dan_file(&self) -> PathBuf {
        self.path(&format!("run/dans/{POD}.json"))
    }

    /// The devices in that file.
    pub(crate) fn devices(&self) -> Vec<Value> {
        let text = fs::read(self.dan_file()).unwrap();
        let mut document: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["netns"], Value::Null);
        serde_json::from_value(document["devices"].take()).unwrap()
    }

    /// The records of attached interfaces.
    pub(crate) fn records(&self) -> Vec<Value> {
        let Ok(entries) = fs::read_dir(self.path("state")) else {
            return Vec::new();
        };
        let records = entries
            .filter_map(|entry| fs::read(entry.unwrap().path().join("attachment.json")).ok());
        records
            .map(|text| serde_json::from_slice(&text).unwrap())
            .collect()
    }

    /// The process of the only attached interface.
    pub(crate) fn port(&self) -> u32 {
        let records = self.records();
        assert_eq!(records.len(), 1, "{records:?}");
        records[0]["process"]["pid"]
            .as_u64()
            .unwrap()
            .try_into()
            .unwrap()
    }

    /// The names in a directory; none if there is no directory.
    pub(crate) fn names(&self, directory: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(directory)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Asserts that no file of an attachment is left.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.names("run/dans"), [""; 0]);
        assert_eq!(self.names("segment"), [""; 0]);
        let mut state = self.names("state");
        state.retain(|name| name != ".lock");
        assert_eq!(state, [""; 0]);
    }

    /// The commands that IPAM got.
    pub(crate) fn ipam_calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("ipam-calls")).unwrap_or_default();
        let command = |line: &str| line.split(' ').next().unwrap().to_owned();
        calls.lines().map(command).collect()
    }

    /// A call for an interface of the pod, as a runtime makes it.
    pub(crate) fn call(&self, command: &str, interface: &str, config: &Value) -> Answer {
        self.call_with(command, interface, &config.to_string(), &[])
    }

    /// A call with other variables. One with an empty value is not set.
    pub(crate) fn call_with(
        &self,
        command: &str,
        interface: &str,
        input: &str,
        variables: &[(&str, &str)],
    ) -> Answer {
        let mut program = Command::new(PROGRAM);
        program
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", POD)
            .env("CNI_NETNS", "/run/netns/pod")
            .env("CNI_IFNAME", interface)
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web")
            .env("CNI_PATH", self.path("plugins"));
        for (name, value) in variables {
            match value.is_empty() {
                true => program.env_remove(name),
                false => program.env(name, value),
            };
        }
        let pipes = program.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        // Fails where the plug-in does not read it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        // Ends only when no port has the pipe.
        let output = child.wait_with_output().unwrap();
        Answer {
            is_success: output.status.success(),
            output: String::from_utf8(output.stdout).unwrap(),
        }
    }

    /// Attaches an interface, and returns the result.
    #[track_caller]
    pub(crate) fn add(&self, interface: &str) -> Value {
        self.call("ADD", interface, &self.config()).result()
    }

    /// The configuration of CHECK and DEL after ADD.
    pub(crate) fn config_after(&self, result: &Value) -> Value {
        self.config_with(json!({ "prevResult": result }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for record in self.records() {
            let interface = record["interface"].as_str().unwrap_or_default();
            let container = record["container"].as_str().unwrap_or_default();
            let config = self.config_with(json!({ "name": record["network"], "ipam": null }));
            let variables = [("CNI_CONTAINERID", container)];
            self.call_with("DEL", interface, &config.to_string(), &variables);
        }
    }
}

impl Answer {
    /// The result of a call that succeeded.
    #[track_caller]
    pub(crate) fn result(&self) -> Value {
        assert!(self.is_success, "{}", self.output);
        serde_json::from_str(&self.output).unwrap()
    }

    /// Asserts that a call without a result succeeded.
    #[track_caller]
    pub(crate) fn assert_done(&self) {
        assert!(self.is_success && self.output.is_empty(), "{}", self.output);
    }

    /// The error of a call that failed, as the specification has it.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        assert!(!self.is_success, "{}", self.output);
        let error: Value = serde_json::from_str(&self.output).expect(&self.output);
        for key in ["cniVersion", "msg", "details"] {
            assert!(error[key].is_string(), "{key} of {error}");
        }
        error
    }

    /// Asserts that a call failed with that code and a text.
    #[track_caller]
    pub(crate) fn assert_error(&self, code: u32, text: &str) {
        let error = self.error();
        assert_eq!(error["code"], code, "{error}");
        assert!(self.output.contains(text), "{text:?} in {error}");
    }
}
