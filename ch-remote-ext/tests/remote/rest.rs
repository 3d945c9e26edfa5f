//! A REST server in Cloud Hypervisor's place: keeps a list of devices, and refuses the
//! requests that a test names.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

#[derive(Debug, Default)]
pub(crate) struct Vm {
    /// Requests with what came with them.
    pub(crate) requests: Vec<(String, Value)>,
    pub(crate) devices: Vec<String>,
    /// Devices that the guest is about to let go of: how often they are still seen.
    leaving: Vec<(String, usize)>,
    /// The guest lets go of nothing.
    pub(crate) holds: bool,
    /// Another client sends the same request just before the next request to unplug.
    pub(crate) other_is_quicker: bool,
    /// State of the VM, by default Running; empty if there is no VM.
    pub(crate) state: Option<&'static str>,
    /// Status and lines of the answer to the next request that would change something.
    pub(crate) refuse: Option<(u16, Value)>,
    /// It does not tell what devices there are.
    pub(crate) busy: bool,
}

/// Serves as long as the test runs.
pub(crate) fn serve(path: &Path) -> Arc<Mutex<Vm>> {
    let vm = Arc::new(Mutex::new(Vm::default()));
    let listener = UnixListener::bind(path).unwrap();
    let state = Arc::clone(&vm);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let state = Arc::clone(&state);
            std::thread::spawn(move || answer(&stream.unwrap(), &state));
        }
    });
    vm
}

/// One request, one answer.
fn answer(stream: &UnixStream, vm: &Mutex<Vm>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let request = line
        .rsplit_once(' ')
        .map_or("", |(head, _)| head)
        .to_owned();
    let mut length = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
            break;
        }
        if let Some(size) = line.to_lowercase().strip_prefix("content-length:") {
            length = size.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, content) = vm.lock().unwrap().handle(&request, body);
    let content = content.map_or(String::new(), |content| content.to_string());
    let text = format!(
        "HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
         Content-Length: {}\r\n\r\n{content}",
        content.len()
    );
    // The program may have gone.
    let mut stream = stream;
    let _ = stream.write_all(text.as_bytes());
}

impl Vm {
    fn handle(&mut self, request: &str, body: Value) -> (u16, Option<Value>) {
        self.requests.push((request.to_owned(), body.clone()));
        let id = body["id"].as_str().unwrap_or_default().to_owned();
        if request.starts_with("PUT")
            && let Some((status, lines)) = self.refuse.take()
        {
            return (status, Some(lines));
        }
        match request {
            "GET /api/v1/vmm.ping" => (200, Some(json!({"version": "v0"}))),
            "PUT /api/v1/vm.add-net" => {
                self.devices.push(id.clone());
                (200, Some(json!({"id": id, "bdf": "0000:00:05.0"})))
            }
            "PUT /api/v1/vm.remove-device" => self.unplug(id),
            "GET /api/v1/vm.info" if self.busy => (429, Some(json!(["Too Many Requests"]))),
            "GET /api/v1/vm.info" if self.state == Some("") => (404, None),
            "GET /api/v1/vm.info" => (200, Some(self.info())),
            "PUT /api/v1/vm.create" => (204, None),
            _ => (404, Some(json!(["Error from API", "Not Found"]))),
        }
    }

    /// Like v53: a device is taken out of the configuration at once, so that it is not found a
    /// second time.
    pub(crate) fn unplug(&mut self, id: String) -> (u16, Option<Value>) {
        if std::mem::take(&mut self.other_is_quicker) {
            self.leaving.push((id.clone(), 3));
        }
        if !self.devices.contains(&id) || self.is_leaving(&id) {
            let lines = json!([
                "Error from API",
                "The device could not be removed from the VM",
                format!("Failed to find device corresponding to the given identifier: {id}"),
            ]);
            return (500, Some(lines));
        }
        self.leaving.push((id, 3));
        (204, None)
    }

    fn is_leaving(&self, id: &str) -> bool {
        self.leaving.iter().any(|(name, _)| name == id)
    }

    fn info(&mut self) -> Value {
        if !self.holds {
            self.let_go();
        }
        let configured = self.devices.iter().filter(|id| !self.is_leaving(id));
        let nets: Vec<Value> = configured.map(|id| json!({ "id": id })).collect();
        let state = self.state.unwrap_or("Running");
        let mut info = json!({"state": state, "config": {"net": nets}});
        if state != "Created" {
            let tree = self.devices.iter().map(|id| (id.clone(), json!({})));
            info["device_tree"] = Value::Object(tree.collect());
        }
        info
    }

    fn let_go(&mut self) {
        for (_, looks) in &mut self.leaving {
            *looks -= 1;
        }
        let gone = |id: &String| {
            self.leaving
                .iter()
                .any(|(name, looks)| name == id && *looks == 0)
        };
        self.devices.retain(|id| !gone(id));
        self.leaving.retain(|(_, looks)| *looks > 0);
    }

    /// The body of the last request of one kind.
    pub(crate) fn last(&self, request: &str) -> Option<&Value> {
        let found = self
            .requests
            .iter()
            .rev()
            .find(|(name, _)| name.ends_with(request));
        found.map(|(_, body)| body)
    }
}
