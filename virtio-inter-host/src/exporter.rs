//! `virtio-inter exporter`: serves the metrics of all ports by HTTP, or writes them to a file for
//! the textfile collector of Prometheus' node exporter.
//!
//! What it listens on is opened first; then it enters its sandbox, in which it answers.

pub mod sandbox;

use std::fs;
use std::io::{self, Write};
use std::net::TcpListener as StdTcpListener;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{interval, sleep, timeout};
use virtio_inter_sandbox::Report;

use crate::args::ExporterArgs;
use crate::lasting_failure::LastingFailure;
use crate::listen_addr::ListenAddr;
use crate::metrics::{Format, text};
use crate::{place, reader};

/// Scrapes at a time; further ones wait.
const MAX_CONNECTIONS: usize = 16;

/// Time for one connection, whose client may be slow or silent.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Name of the file for the textfile collector.
const FILE_NAME: &str = "virtio-inter.prom";

/// What the exporter tells the service manager that started it, if one did.
#[derive(Clone, Copy, Debug)]
pub struct Manager {
    /// It serves, or has written the file.
    pub ready: fn(),
    /// It still works.
    pub alive: fn(),
    /// Time from one report that it works to the next, if anybody wants them.
    pub interval: Option<Duration>,
}

/// Runs the exporter until SIGTERM or SIGINT.
///
/// # Errors
///
/// When it cannot listen, or cannot write the file for the first time.
pub fn run(arguments: &ExporterArgs, manager: Manager) -> Result<()> {
    // A segment that does not exist is an error now; later it is one that has gone.
    let found = place::find(&arguments.places)?;
    let listener = arguments.listen.as_ref().map(Listener::bind).transpose()?;
    let access = sandbox::access_of(arguments, &found);
    let mode = arguments.sandbox.mode;
    let sandbox = virtio_inter_sandbox::enter_process(mode, access, &sandbox::CALLS)?;
    if let Some(directory) = &arguments.textfile
        && arguments.once
    {
        // Not logged again and again what the kernel lacks: a timer may start this.
        return write_file(arguments, directory);
    }
    sandbox.log();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Cannot wait for requests")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("Cannot catch signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("Cannot catch signals")?;
        let work = async {
            match (listener, &arguments.textfile) {
                (Some(listener), _) => listener.serve(arguments, &sandbox, manager).await,
                (None, Some(directory)) => {
                    write_files(arguments, &sandbox, manager, directory).await
                }
                // The command line requires one of the two.
                (None, None) => Ok(()),
            }
        };
        tokio::pin!(work);
        if let Some(interval) = manager.interval {
            tokio::spawn(report(manager.alive, interval));
        }
        std::future::poll_fn(|context| {
            use std::task::Poll::{Pending, Ready};
            if terminate.poll_recv(context).is_ready() || interrupt.poll_recv(context).is_ready() {
                return Ready(Ok(()));
            }
            match work.as_mut().poll(context) {
                Ready(result) => Ready(result),
                Pending => Pending,
            }
        })
        .await
    })
}

/// Reports again and again that the thread works that serves clients and writes the file.
async fn report(alive: fn(), time: Duration) {
    let mut ticks = interval(time);
    loop {
        ticks.tick().await;
        alive();
    }
}

/// A socket that listens, not served yet.
enum Listener<'a> {
    Tcp(StdTcpListener),
    Unix(StdUnixListener, RemoveLater<'a>),
}

impl<'a> Listener<'a> {
    fn bind(address: &'a ListenAddr) -> Result<Self> {
        match address {
            ListenAddr::Tcp(address) => StdTcpListener::bind(address)
                .map(Self::Tcp)
                .with_context(|| format!("Cannot listen on {address}")),
            ListenAddr::Unix(path) => remove_stale(path)
                .and_then(|()| StdUnixListener::bind(path))
                .map(|listener| Self::Unix(listener, RemoveLater(path)))
                .with_context(|| format!("Cannot listen on {}", path.display())),
        }
    }

    async fn serve(
        self,
        arguments: &ExporterArgs,
        sandbox: &Report,
        manager: Manager,
    ) -> Result<()> {
        match self {
            Self::Tcp(listener) => {
                // With port 0 the kernel chooses.
                let address = listener.local_addr().context("Cannot listen")?;
                listener.set_nonblocking(true).context("Cannot listen")?;
                let listener = TcpListener::from_std(listener).context("Cannot listen")?;
                log::info!("Serving metrics on http://{address}/metrics");
                (manager.ready)();
                let accept = async || Ok(listener.accept().await?.0);
                serve(arguments, sandbox, accept).await
            }
            Self::Unix(listener, socket) => {
                listener.set_nonblocking(true).context("Cannot listen")?;
                let listener = UnixListener::from_std(listener).context("Cannot listen")?;
                log::info!("Serving metrics on {}", socket.0.display());
                (manager.ready)();
                let accept = async || Ok(listener.accept().await?.0);
                serve(arguments, sandbox, accept).await
            }
        }
    }
}

/// What all scrapes share.
struct Scrapes {
    arguments: ExporterArgs,
    /// To collect the metrics, which each of them tries again.
    failure: LastingFailure,
}

/// Serves connections for ever.
async fn serve<S>(
    arguments: &ExporterArgs,
    sandbox: &Report,
    accept: impl AsyncFn() -> io::Result<S>,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let scrapes = Arc::new(Scrapes {
        arguments: arguments.clone(),
        failure: LastingFailure::default(),
    });
    let accept_failure = LastingFailure::default();
    loop {
        let permit = room.clone().acquire_owned().await;
        match accept().await {
            Ok(stream) => {
                accept_failure.end();
                check_directories(sandbox)?;
                let scrapes = scrapes.clone();
                tokio::spawn(async move {
                    serve_one(stream, scrapes).await;
                    drop(permit);
                });
            }
            Err(error) => {
                accept_failure.log(&format!("Cannot accept a connection: {error}"));
                // Without free descriptors, for example, trying at once would be a busy loop.
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Removes the socket at its end.
struct RemoveLater<'a>(&'a Path);

impl Drop for RemoveLater<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

/// Removes the socket of an exporter that was killed.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        _ => return Ok(()),
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}

async fn serve_one(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, scrapes: Arc<Scrapes>) {
    let service = service_fn(|request| {
        let scrapes = scrapes.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(&request, scrapes).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A client that hangs up or is silent ends only its own connection.
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

async fn answer(request: &Request<Incoming>, scrapes: Arc<Scrapes>) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let (format, kind) = format_for(request);
            // Reading waits for ports, up to 2 s.
            let shared = scrapes.clone();
            match spawn_blocking(move || collect(&shared.arguments, format)).await {
                Ok(Ok(text)) => {
                    scrapes.failure.end();
                    (StatusCode::OK, kind, text)
                }
                Ok(Err(error)) => failed(&scrapes.failure, &format!("{error:#}")),
                // Its own text has the number of the attempt.
                Err(_) => failed(&scrapes.failure, "reading the ports panicked"),
            }
        }
        (&Method::GET | &Method::HEAD, "/") => (
            StatusCode::OK,
            "text/html; charset=utf-8",
            "<title>virtio-inter</title><a href=\"/metrics\">Metrics</a>\n".to_owned(),
        ),
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            PLAIN,
            "There is only /metrics\n".to_owned(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            PLAIN,
            "Use GET\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";

fn failed(failure: &LastingFailure, why: &str) -> (StatusCode, &'static str, String) {
    failure.log(&format!("Cannot collect metrics: {why}"));
    (StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{why}\n"))
}

/// The format that the client asks for.
fn format_for(request: &Request<Incoming>) -> (Format, &'static str) {
    let accepts = request.headers().get_all(ACCEPT).iter();
    let mut texts = accepts.filter_map(|value| value.to_str().ok());
    if texts.any(|text| text.contains("application/openmetrics-text")) {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        (Format::OpenMetrics, kind)
    } else {
        (
            Format::Prometheus,
            "text/plain; version=0.0.4; charset=utf-8",
        )
    }
}

fn collect(arguments: &ExporterArgs, format: Format) -> Result<String> {
    let places = place::find_again(&arguments.places)?;
    let ports = reader::read(&places);
    Ok(text(&places, &ports, arguments.peers, format))
}

/// Ends the exporter if a directory that it needs is another one now: it sees no ports there. Its
/// service manager starts it again.
fn check_directories(sandbox: &Report) -> Result<()> {
    match sandbox.replaced_directory() {
        None => Ok(()),
        Some(path) => bail!(
            "Directory {} was replaced, and the sandbox confines this exporter to the former one: \
             it ends, to be started again",
            path.display()
        ),
    }
}

async fn write_files(
    arguments: &ExporterArgs,
    sandbox: &Report,
    manager: Manager,
    directory: &Path,
) -> Result<()> {
    write_file(arguments, directory)?;
    let path = directory.join(FILE_NAME);
    log::info!("Writing metrics to {}", path.display());
    (manager.ready)();
    let mut ticks = interval(Duration::from_secs(arguments.interval.into()));
    ticks.tick().await;
    let failure = LastingFailure::default();
    loop {
        ticks.tick().await;
        check_directories(sandbox)?;
        match write_file(arguments, directory) {
            Ok(()) => failure.end(),
            Err(error) => failure.log(&format!("{error:#}")),
        }
    }
}

/// Replaces the file at once: a collector never reads a part of it.
fn write_file(arguments: &ExporterArgs, directory: &Path) -> Result<()> {
    let text = collect(arguments, Format::Prometheus)?;
    let path = directory.join(FILE_NAME);
    let hidden = directory.join(format!(".{FILE_NAME}.{}", std::process::id()));
    let write = || {
        // For the collector, which is another user; whatever the umask is, for no other writer.
        let mut options = fs::File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o644);
        options.open(&hidden)?.write_all(text.as_bytes())?;
        fs::rename(&hidden, &path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&hidden);
        anyhow::Error::new(error).context(format!("Cannot write {}", path.display()))
    })
}
