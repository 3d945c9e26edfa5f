//! Cloud Hypervisor's REST API on its Unix socket, as far as inter-VM devices need it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use virtio_inter_args::absolute;

/// For what a VMM answers at once.
const AT_ONCE: Duration = Duration::from_secs(10);

/// For what is of use only if it comes at once.
const SOON: Duration = Duration::from_secs(3);

/// For what may wait for a device: Cloud Hypervisor gives a backend 60 s.
const FOR_A_DEVICE: Duration = Duration::from_secs(75);

/// What came instead of what was asked for.
#[derive(Debug, Error)]
pub(crate) enum ApiError {
    /// Nobody is there.
    #[error("Cannot connect to API socket {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Somebody is there, but nothing comes.
    #[error("API socket {} does not answer within {} s", path.display(), within.as_secs())]
    Silent { path: PathBuf, within: Duration },
    /// What comes is no HTTP.
    #[error("API socket {} does not speak HTTP", path.display())]
    Http {
        path: PathBuf,
        #[source]
        source: hyper::Error,
    },
    /// The VMM cannot do it: its own words.
    #[error("Server responded with {status}")]
    Refused {
        status: StatusCode,
        #[source]
        why: Option<Told>,
    },
    /// It was done, and the answer is nonsense.
    #[error("Answer of API socket {} to {request} is not understood", path.display())]
    Content {
        path: PathBuf,
        request: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// This process lacks something.
    #[error("Cannot wait for an answer")]
    Runtime(#[source] io::Error),
}

/// A line of an error that the VMM told, and what caused it.
#[derive(Debug, Error)]
#[error("{line}")]
pub(crate) struct Told {
    line: String,
    #[source]
    cause: Option<Box<Told>>,
}

impl Told {
    /// From an answer's body: a JSON list of strings, the cause last; older versions send text.
    fn new(body: &[u8]) -> Option<Self> {
        let lines: Vec<String> = serde_json::from_slice(body)
            .unwrap_or_else(|_| vec![String::from_utf8_lossy(body).trim().to_owned()]);
        let told = lines.into_iter().rev().filter(|line| !line.is_empty());
        told.fold(None, |cause, line| {
            let cause = cause.map(Box::new);
            Some(Self { line, cause })
        })
    }
}

/// What `vm.info` answers.
#[derive(Debug)]
pub(crate) struct VmInfo(Value);

/// A VM's word on one of its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceInfo {
    /// There is none.
    Absent,
    /// It is there.
    Present,
    /// It is there until the guest lets go of it, which the VMM has asked it to.
    Leaving,
}

impl VmInfo {
    #[cfg(test)]
    pub(crate) fn new(info: Value) -> Self {
        Self(info)
    }

    /// Whether the VM was booted: it has its devices, and has connected to what serves them.
    pub(crate) fn is_booted(&self) -> bool {
        self.0["device_tree"].is_object()
    }

    /// Whether its processors stand still.
    pub(crate) fn is_paused(&self) -> bool {
        self.0["state"] == "Paused"
    }

    /// What it says of a device.
    pub(crate) fn device(&self, id: &str) -> DeviceInfo {
        let is_named = |net: &Value| net["id"] == id;
        let nets = self.0["config"]["net"].as_array();
        let configured = nets.is_some_and(|nets| nets.iter().any(is_named));
        // There is a tree once the VM was booted; before, there is what it will be made of.
        let in_tree = self.0["device_tree"].as_object();
        match in_tree.map(|tree| tree.contains_key(id)) {
            None if configured => DeviceInfo::Present,
            None | Some(false) => DeviceInfo::Absent,
            // A request to unplug takes the device out of the configuration, the guest's consent
            // out of the tree.
            Some(true) if configured => DeviceInfo::Present,
            Some(true) => DeviceInfo::Leaving,
        }
    }
}

/// A VMM.
#[derive(Debug)]
pub(crate) struct Api {
    path: PathBuf,
    runtime: Runtime,
}

impl Api {
    /// What the VM at a socket is and does, by a VMM that answers soon. None: there is no VM.
    ///
    /// # Errors
    ///
    /// When it does not answer, or nobody is there.
    pub(crate) fn look(path: &Path) -> Result<Option<VmInfo>, ApiError> {
        Self::new(path)?.info_within(SOON)
    }

    /// A VMM at a socket that answers.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub(crate) fn connect(path: &Path) -> Result<Self, ApiError> {
        let api = Self::new(path)?;
        api.send(Method::GET, "vmm.ping", None, AT_ONCE)?;
        Ok(api)
    }

    fn new(path: &Path) -> Result<Self, ApiError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ApiError::Runtime)?;
        Ok(Self {
            path: path.to_owned(),
            runtime,
        })
    }

    /// Plugs in a network device: what the VMM says of it.
    pub(crate) fn add_net(&self, config: &Value) -> Result<String, ApiError> {
        self.send(Method::PUT, "vm.add-net", Some(config), FOR_A_DEVICE)
    }

    /// Asks the guest to let a device go.
    pub(crate) fn remove_device(&self, id: &str) -> Result<(), ApiError> {
        let body = serde_json::json!({ "id": id });
        self.send(Method::PUT, "vm.remove-device", Some(&body), AT_ONCE)
            .map(drop)
    }

    /// Makes a VM.
    pub(crate) fn create(&self, config: &Value) -> Result<String, ApiError> {
        self.send(Method::PUT, "vm.create", Some(config), FOR_A_DEVICE)
    }

    /// What the VM is and does. None: there is no VM.
    pub(crate) fn info(&self) -> Result<Option<VmInfo>, ApiError> {
        self.info_within(AT_ONCE)
    }

    fn info_within(&self, within: Duration) -> Result<Option<VmInfo>, ApiError> {
        let info = match self.send(Method::GET, "vm.info", None, within) {
            // Anything else, such as too many requests at a time, says nothing of the VM.
            Err(ApiError::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }) => return Ok(None),
            other => other?,
        };
        let info = serde_json::from_str(&info).map_err(|source| ApiError::Content {
            path: absolute(&self.path),
            request: "vm.info",
            source,
        })?;
        Ok(Some(VmInfo(info)))
    }

    /// What the VM says of a device.
    pub(crate) fn device(&self, id: &str) -> Result<DeviceInfo, ApiError> {
        let info = self.info()?;
        Ok(info.map_or(DeviceInfo::Absent, |info| info.device(id)))
    }

    fn send(
        &self,
        method: Method,
        request: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<String, ApiError> {
        let exchange = async {
            timeout(within, self.exchange(method, request, body))
                .await
                .unwrap_or_else(|_| {
                    Err(ApiError::Silent {
                        path: absolute(&self.path),
                        within,
                    })
                })
        };
        self.runtime.block_on(exchange)
    }

    async fn exchange(
        &self,
        method: Method,
        request: &str,
        body: Option<&Value>,
    ) -> Result<String, ApiError> {
        let http = |source| ApiError::Http {
            path: absolute(&self.path),
            source,
        };
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|source| ApiError::Connect {
                path: absolute(&self.path),
                source,
            })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let connection = tokio::spawn(connection);
        let mut builder = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{request}"))
            .header(HOST, "localhost")
            .header(ACCEPT, "*/*");
        if body.is_some() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        let content = Bytes::from(body.map(Value::to_string).unwrap_or_default());
        // Made of constants: nothing in it can be wrong.
        let request = builder
            .body(Full::new(content))
            .unwrap_or_else(|error| unreachable!("{error}"));
        let answer = sender.send_request(request).await.map_err(http)?;
        let status = answer.status();
        let content = answer.into_body().collect().await.map_err(http)?.to_bytes();
        connection.abort();
        if status.is_success() {
            Ok(String::from_utf8_lossy(&content).into_owned())
        } else {
            Err(ApiError::Refused {
                status,
                why: Told::new(&content),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use cloud_hypervisor_ext::report::chain;

    use super::*;

    #[test]
    fn what_a_vmm_tells_comes_line_by_line() {
        for (body, lines) in [
            (
                &br#"["Error from API","The VM could not boot"]"#[..],
                &["Error from API", "The VM could not boot"][..],
            ),
            (b"InternalServerError\n", &["InternalServerError"]),
        ] {
            assert_eq!(chain(&Told::new(body).unwrap()), lines);
        }
        assert!(Told::new(b"").is_none());
        assert!(Told::new(b"[]").is_none());
    }
}
