//! Asks ports for their status: all at once, within a time limit.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::Value;
use virtio_inter_common::{PortId, peer_pid};

use crate::document::Document;
use crate::place::Place;

/// Time without any byte from any port after which the others are taken for stopped: a port answers
/// at once, and a busy host answers slowly but goes on.
const SILENCE: Duration = Duration::from_secs(2);

/// Time for all answers: a hostile port could send a byte now and then.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum size of a document in bytes: more than 1024 peers and 64 queue pairs need.
const MAX_DOCUMENT: usize = 4 << 20;

/// Answers that are waited for at a time: a process may have 1024 descriptors.
const AT_ONCE: usize = 256;

/// A port, and its answer.
#[derive(Debug)]
pub(crate) struct Port {
    /// The segment's name, or its directory.
    pub(crate) segment: String,
    /// The segment's directory, absolute.
    pub(crate) directory: PathBuf,
    pub(crate) id: PortId,
    pub(crate) answer: Answer,
}

/// What a port answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Its status: as the commands understand it, and the JSON text as it is.
    Status(Box<Document>, Vec<u8>),
    /// Nobody listens: the port was killed, and left its files.
    Gone,
    /// This user may not ask.
    Denied,
    /// It did not answer in time.
    Silent,
    /// It has no status socket here: an older version, or the name was taken.
    None,
    /// Its answer is no status document.
    Invalid(String),
}

impl Port {
    /// Its status, if it answered.
    pub(crate) fn status(&self) -> Option<&Document> {
        match &self.answer {
            Answer::Status(document, _) => Some(document),
            _ => None,
        }
    }

    /// The state in a word.
    pub(crate) fn state(&self) -> &'static str {
        match &self.answer {
            Answer::Status(document, _) => match (&document.frontend, document.active) {
                (_, Some(true)) => "active",
                (_, Some(false)) => "standby",
                (None, None) => "no VMM",
                (Some(frontend), None) if frontend.queues_running == 0 => {
                    let mut codes = document.warnings.iter().map(|warning| &*warning.code);
                    if codes.any(|code| ["memory-not-shared", "queue-waits"].contains(&code)) {
                        "not started"
                    } else {
                        "no driver"
                    }
                }
                (Some(_), None) => "running",
            },
            Answer::Gone => "gone",
            Answer::Denied => "denied",
            Answer::Silent => "silent",
            Answer::None => "no status",
            Answer::Invalid(_) => "invalid",
        }
    }
}

#[cfg(test)]
impl Port {
    /// A port of segment `web` that answers with this document, and is the process in it.
    pub(crate) fn answering(id: &str, status: &Value) -> Self {
        let document = Document::answered(status);
        Self {
            segment: "web".to_owned(),
            directory: "/run/virtio-inter/web".into(),
            id: id.parse().unwrap(),
            answer: Answer::Status(Box::new(document), status.to_string().into_bytes()),
        }
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut port = serializer.serialize_struct("Port", 4)?;
        port.serialize_field("segment", &self.segment)?;
        port.serialize_field("port", self.id.as_str())?;
        port.serialize_field("state", self.state())?;
        let status = match &self.answer {
            // A hostile port's unknown fields may be no value: they must not hide other ports.
            Answer::Status(_, text) => serde_json::from_slice(text).unwrap_or_default(),
            _ => Value::Null,
        };
        port.serialize_field("status", &status)?;
        port.end()
    }
}

/// What the commands print as JSON.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Entry<'a> {
    /// A segment whose ports are not known.
    Unreadable {
        segment: String,
        port: (),
        state: &'static str,
        status: (),
    },
    Port(&'a Port),
}

/// The segments whose ports are not known, and the ports.
pub(crate) fn entries<'a>(places: &[Place], ports: &'a [Port]) -> Vec<Entry<'a>> {
    let unreadable = places.iter().filter_map(|place| {
        Some(Entry::Unreadable {
            segment: place.name(),
            port: (),
            state: place.unreadable.as_ref()?.state(),
            status: (),
        })
    });
    unreadable.chain(ports.iter().map(Entry::Port)).collect()
}

/// Asks all ports of these places.
pub(crate) fn read(places: &[Place]) -> Vec<Port> {
    let mut questions: Vec<Question> = places
        .iter()
        .flat_map(|place| {
            place.ports.iter().map(|(id, files)| {
                let status = place.segment.join(format!("{id}.status"));
                Question {
                    port: Port {
                        segment: place.name(),
                        directory: place.segment.clone(),
                        id: id.clone(),
                        answer: Answer::Silent,
                    },
                    path: files.contains("status").then_some(status),
                    socket: None,
                    text: Vec::new(),
                }
            })
        })
        .collect();
    let deadline = Instant::now() + TIMEOUT;
    for some in questions.chunks_mut(AT_ONCE) {
        some.iter_mut().for_each(Question::ask);
        while some.iter().any(|question| question.socket.is_some()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait(some, left.min(SILENCE)) {
                break;
            }
        }
        // The time is over, or they are closed already.
        some.iter_mut().for_each(|question| question.socket = None);
    }
    questions
        .into_iter()
        .map(|question| question.port)
        .collect()
}

/// One port that is being asked.
struct Question {
    port: Port,
    /// The status socket, if there is one.
    path: Option<PathBuf>,
    /// The connection, until the answer is complete.
    socket: Option<OwnedFd>,
    text: Vec<u8>,
}

impl Question {
    fn ask(&mut self) {
        self.port.answer = match self.path.as_deref().map(open) {
            None => Answer::None,
            Some(Ok(socket)) => {
                self.socket = Some(socket);
                return;
            }
            Some(Err(Errno::CONNREFUSED | Errno::NOENT)) => Answer::Gone,
            Some(Err(Errno::ACCESS | Errno::PERM)) => Answer::Denied,
            // Its queue of connections is full.
            Some(Err(Errno::AGAIN)) => Answer::Silent,
            Some(Err(error)) => Answer::Invalid(error.to_string()),
        };
    }

    /// Reads what has come.
    fn receive(&mut self) {
        let Some(socket) = &self.socket else {
            return;
        };
        self.text.reserve(64 << 10);
        match rustix::io::read(socket, spare_capacity(&mut self.text)) {
            Ok(0) => self.complete(),
            Ok(_) if self.text.len() > MAX_DOCUMENT => {
                self.socket = None;
                self.port.answer = Answer::Invalid("the answer is too long".to_owned());
            }
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => {
                self.socket = None;
                self.port.answer = Answer::Invalid(error.to_string());
            }
        }
    }

    fn complete(&mut self) {
        let socket = self.socket.take();
        let process = socket.and_then(|socket| peer_pid(socket.as_fd()).ok()?);
        let text = std::mem::take(&mut self.text);
        self.port.answer = match serde_json::from_slice::<Document>(&text) {
            // It gave way to other readers, or ended meanwhile.
            Err(_) if text.is_empty() => Answer::Silent,
            Err(error) => Answer::Invalid(error.to_string()),
            Ok(document) => Answer::Status(
                Box::new(Document {
                    process,
                    ..document
                }),
                text,
            ),
        };
    }
}

/// Connects to a status socket without waiting.
fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Waits for answers, and reads them. Returns false when none came, or waiting is not possible.
fn wait(questions: &mut [Question], limit: Duration) -> bool {
    let mut waiting: Vec<&mut Question> = questions
        .iter_mut()
        .filter(|question| question.socket.is_some())
        .collect();
    let ready: Vec<bool> = {
        let mut fds: Vec<PollFd<'_>> = waiting
            .iter()
            .filter_map(|question| question.socket.as_ref())
            .map(|socket| PollFd::new(socket, PollFlags::IN))
            .collect();
        let limit = Timespec::try_from(limit).ok();
        match poll(&mut fds, limit.as_ref()) {
            Err(Errno::INTR) => return true,
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        fds.iter().map(|fd| !fd.revents().is_empty()).collect()
    };
    for (question, _) in waiting.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
        question.receive();
    }
    true
}

/// The name of a process; `None` if it is gone.
pub(crate) fn process_name(pid: u32) -> Option<String> {
    let read = || -> io::Result<String> { std::fs::read_to_string(format!("/proc/{pid}/comm")) };
    Some(read().ok()?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// The answer of a port whose status socket sends this; `None`: it does not answer.
    fn answer(text: Option<&str>) -> Port {
        let temp = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(temp.path().join("a.status")).unwrap();
        std::fs::write(temp.path().join("a.lock"), "").unwrap();
        std::thread::scope(|scope| {
            if let Some(text) = text {
                scope.spawn(move || listener.accept().unwrap().0.write_all(text.as_bytes()));
            }
            read(&[place(temp.path())]).remove(0)
        })
    }

    fn place(directory: &Path) -> Place {
        crate::place::find(&crate::args::Places {
            places: vec![directory.as_os_str().to_owned()],
        })
        .unwrap()
        .remove(0)
    }

    #[test]
    fn reader_takes_the_states_from_the_documents() {
        for (text, state) in [
            (r#"{"version":1,"frontend":null}"#, "no VMM"),
            (r#"{"frontend":{"pid":1,"queues_running":0}}"#, "no driver"),
            (
                r#"{"frontend":{"pid":1,"queues_running":0},
                    "warnings":[{"code":"memory-not-shared","text":"","count":1}]}"#,
                "not started",
            ),
            (
                r#"{"frontend":{"pid":null,"queues_running":2},"new":1}"#,
                "running",
            ),
            (r#"{"active":true}"#, "active"),
            (r#"{"active":false}"#, "standby"),
            ("", "silent"),
            ("HTTP/1.1 400", "invalid"),
            (r#"{"frontend":3}"#, "invalid"),
        ] {
            assert_eq!(answer(Some(text)).state(), state, "{text}");
        }
    }

    #[test]
    fn reader_asks_each_port_once_and_all_before_it_waits() {
        let temp = tempfile::tempdir().unwrap();
        // Three descriptors each; other tests may need some, too.
        const PORTS: usize = AT_ONCE / 2;
        let socket = |port| temp.path().join(format!("vm{port}.status"));
        let listeners: Vec<UnixListener> = (0..PORTS)
            .map(|port| {
                std::fs::write(temp.path().join(format!("vm{port}.lock")), "").unwrap();
                UnixListener::bind(socket(port)).unwrap()
            })
            .collect();
        let place = place(temp.path());
        std::thread::scope(|scope| {
            let ports = scope.spawn(|| {
                // No port answers before all are asked.
                let mut clients: Vec<_> = listeners
                    .iter()
                    .map(|listener| listener.accept().unwrap().0)
                    .collect();
                for client in &mut clients {
                    client.write_all(b"{}").unwrap();
                }
            });
            let read = read(&[place]);
            let have_answered = read.iter().all(|port| port.state() == "no VMM");
            if !have_answered {
                // Else they would wait for ever.
                for port in 0..PORTS {
                    let _ = UnixStream::connect(socket(port));
                }
            }
            ports.join().unwrap();
            assert!(have_answered && read.len() == PORTS);
        });
        for listener in &listeners {
            listener.set_nonblocking(true).unwrap();
            let again = listener.accept().unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        }
    }

    /// As that of a container does, whose first process has the number 1 in its own namespace.
    #[test]
    fn reader_knows_the_process_of_a_port_that_calls_it_otherwise() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("a.lock"), "").unwrap();
        let listener = UnixListener::bind(temp.path().join("a.status")).unwrap();
        let place = place(temp.path());
        let ports = std::thread::scope(|scope| {
            scope.spawn(|| {
                listener
                    .accept()
                    .unwrap()
                    .0
                    .write_all(b"{\"pid\":1}")
                    .unwrap();
            });
            read(&[place])
        });
        let Answer::Status(document, _) = &ports[0].answer else {
            panic!("{ports:?}");
        };
        assert_eq!(document.pid, Some(1));
        assert_eq!(document.process, Some(std::process::id()));
    }

    #[test]
    fn reader_is_held_up_by_no_port() {
        let temp = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(temp.path().join("a.status")).unwrap();
        drop(UnixListener::bind(temp.path().join("b.status")).unwrap());
        for file in ["a.lock", "b.lock", "c.lock", "c.sock"] {
            std::fs::write(temp.path().join(file), "").unwrap();
        }
        let ports = read(&[place(temp.path())]);
        let states: Vec<&str> = ports.iter().map(Port::state).collect();
        assert_eq!(states, ["silent", "gone", "no status"]);
    }
}
