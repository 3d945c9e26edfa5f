//! A client of Cloud Hypervisor's REST API, for what inter-VM devices need.

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

/// Timeout of requests that a VMM answers at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout of queries that are useful only if they are answered at once.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);

/// Timeout of requests that may wait for a backend, for which Cloud Hypervisor waits 60 s.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(75);

/// A request failed.
#[derive(Debug, Error)]
pub(crate) enum ApiError {
    /// Nobody listens on the socket.
    #[error("Cannot connect to API socket {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The VMM does not answer in time.
    #[error("API socket {} does not answer within {} s", path.display(), within.as_secs())]
    Silent { path: PathBuf, within: Duration },
    /// The answer is not HTTP.
    #[error("API socket {} does not speak HTTP", path.display())]
    Http {
        path: PathBuf,
        #[source]
        source: hyper::Error,
    },
    /// The VMM reports an error.
    #[error("Server responded with {status}")]
    Refused {
        status: StatusCode,
        #[source]
        why: Option<VmmError>,
    },
    /// The request succeeded, but the answer cannot be parsed.
    #[error("Answer of API socket {} to {request} is not understood", path.display())]
    Content {
        path: PathBuf,
        request: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// This process cannot make an event loop.
    #[error("Cannot wait for an answer")]
    Runtime(#[source] io::Error),
}

/// One line of an error that the VMM reported, and its cause.
#[derive(Debug, Error)]
#[error("{line}")]
pub(crate) struct VmmError {
    line: String,
    #[source]
    cause: Option<Box<VmmError>>,
}

impl VmmError {
    /// Parses the body of an answer: a JSON list of strings, the cause last; older versions send
    /// text.
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

/// The answer to `vm.info`.
#[derive(Debug)]
pub(crate) struct VmInfo(Value);

/// The VMM's state of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceInfo {
    /// The VM does not have the device.
    Absent,
    /// The VM has the device.
    Present,
    /// The VMM has asked the guest to release the device, and the guest has not yet.
    Leaving,
}

impl VmInfo {
    #[cfg(test)]
    pub(crate) fn new(info: Value) -> Self {
        Self(info)
    }

    /// Whether the VM was booted: then it has its devices, and is connected to their backends.
    pub(crate) fn is_booted(&self) -> bool {
        self.0["device_tree"].is_object()
    }

    /// Whether the VM is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.0["state"] == "Paused"
    }

    /// The state of a device.
    pub(crate) fn device(&self, id: &str) -> DeviceInfo {
        let is_named = |net: &Value| net["id"] == id;
        let nets = self.0["config"]["net"].as_array();
        let configured = nets.is_some_and(|nets| nets.iter().any(is_named));
        // A booted VM has a device tree; before, there is only the configuration.
        let in_tree = self.0["device_tree"].as_object();
        match in_tree.map(|tree| tree.contains_key(id)) {
            None if configured => DeviceInfo::Present,
            None | Some(false) => DeviceInfo::Absent,
            // The VMM removes the device from the configuration when it asks the guest to release
            // it, and from the tree when the guest has done so.
            Some(true) if configured => DeviceInfo::Present,
            Some(true) => DeviceInfo::Leaving,
        }
    }
}

/// A connection to a VMM.
#[derive(Debug)]
pub(crate) struct Api {
    path: PathBuf,
    runtime: Runtime,
}

impl Api {
    /// The state of the VM of a VMM that answers soon; `None` if there is no VM.
    ///
    /// # Errors
    /// When nobody listens on the socket, or the VMM does not answer in time.
    pub(crate) fn query(path: &Path) -> Result<Option<VmInfo>, ApiError> {
        Self::new(path)?.info_within(QUERY_TIMEOUT)
    }

    /// Checks that a VMM answers on a socket.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub(crate) fn connect(path: &Path) -> Result<Self, ApiError> {
        let api = Self::new(path)?;
        api.send(Method::GET, "vmm.ping", None, REQUEST_TIMEOUT)?;
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

    /// Plugs in a network device. Returns the VMM's answer.
    pub(crate) fn add_net(&self, config: &Value) -> Result<String, ApiError> {
        self.send(Method::PUT, "vm.add-net", Some(config), DEVICE_TIMEOUT)
    }

    /// Asks the guest to release a device.
    pub(crate) fn remove_device(&self, id: &str) -> Result<(), ApiError> {
        let body = serde_json::json!({ "id": id });
        self.send(
            Method::PUT,
            "vm.remove-device",
            Some(&body),
            REQUEST_TIMEOUT,
        )
        .map(drop)
    }

    /// Creates a VM.
    pub(crate) fn create(&self, config: &Value) -> Result<String, ApiError> {
        self.send(Method::PUT, "vm.create", Some(config), DEVICE_TIMEOUT)
    }

    /// The state of the VM; `None` if there is no VM.
    pub(crate) fn info(&self) -> Result<Option<VmInfo>, ApiError> {
        self.info_within(REQUEST_TIMEOUT)
    }

    fn info_within(&self, within: Duration) -> Result<Option<VmInfo>, ApiError> {
        let info = match self.send(Method::GET, "vm.info", None, within) {
            // Other errors, such as too many requests at a time, do not mean that there is no VM.
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

    /// The VMM's state of a device.
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
        // Made of constants, so it is valid.
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
                why: VmmError::new(&content),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use cloud_hypervisor_ext::report::error_lines;

    use super::*;

    #[test]
    fn vmm_error_has_one_line_per_cause() {
        for (body, lines) in [
            (
                &br#"["Error from API","The VM could not boot"]"#[..],
                &["Error from API", "The VM could not boot"][..],
            ),
            (b"InternalServerError\n", &["InternalServerError"]),
        ] {
            assert_eq!(error_lines(&VmmError::new(body).unwrap()), lines);
        }
        assert!(VmmError::new(b"").is_none());
        assert!(VmmError::new(b"[]").is_none());
    }
}
