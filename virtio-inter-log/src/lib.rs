//! Log output that never blocks.
//!
//! Standard error may be a terminal that was stopped with Ctrl-S, a pipe that nobody reads, or a
//! journal that hangs: a write to it then blocks until somebody reads. The threads of a port and of
//! the launcher must not block, as guests wait for them. So they only add lines to a bounded queue,
//! and a thread of its own writes them. Lines for which the queue has no room are counted; the
//! count is written in their place as soon as the reader is back.
//!
//! `O_NONBLOCK` would be simpler, but it is a property of the open file description, which other
//! processes share.
//!
//! A program calls [`ignore_signals`], [`report_panics`] and [`start`] first, and [`flush`] before
//! it exits or execs.
mod journal;
mod queue;
mod signals;
mod stderr;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::thread;

use env_logger::{Env, Target};
use log::{Level, Record};

/// Ignores the signals that a write may raise, and that would end or stop this process: SIGXFSZ,
/// SIGTTOU, SIGTTIN. The Rust runtime does the same with SIGPIPE.
pub fn ignore_signals() {
    signals::ignore();
}

/// Undoes [`ignore_signals`]: a program that is executed inherits ignored signals. May be called
/// between fork and exec.
pub fn restore_signals() {
    signals::restore();
}

/// Sends the log to standard error: at the levels of `RUST_LOG`, else at `default_level` and above.
///
/// If standard error is the journal, lines carry its priorities, and no time stamp: it adds one.
pub fn start(default_level: &str) {
    start_as(default_level, None);
}

/// The same for a command that somebody runs at a terminal or in a script: lines begin with the
/// program's name, and have neither time nor level.
pub fn start_plain(default_level: &str, program: &'static str) {
    start_as(default_level, Some(program));
}

fn start_as(default_level: &str, plain: Option<&'static str>) {
    let mut builder =
        env_logger::Builder::from_env(Env::default().default_filter_or(default_level));
    builder.target(Target::Pipe(Box::new(QueueWriter)));
    if journal::is_stderr() {
        builder.format(|line, record| {
            line.write_all(journal::prefix(record.level(), &text_of(record)).as_bytes())
        });
    } else if let Some(program) = plain {
        builder.format(move |line, record| writeln!(line, "{program}: {}", text_of(record)));
    } else if !matches!(
        std::env::var("RUST_LOG_STYLE").as_deref(),
        Ok("always" | "never")
    ) {
        // env_logger decides on colours by its target, which is the queue.
        builder.write_style(anstream::AutoStream::choice(&io::stderr()).into());
    }
    builder.init();
}

fn text_of(record: &Record<'_>) -> String {
    match record.level() {
        // Modules are of use to developers only.
        Level::Debug | Level::Trace => format!("{}: {}", record.target(), record.args()),
        _ => record.args().to_string(),
    }
}

/// Has `hook` called in the thread that writes, before it writes anything: a process may restrict
/// it. To be called before the first line.
pub fn on_thread_start(hook: fn()) {
    stderr::on_start(hook);
}

/// Keeps lines until [`release`], or [`flush`]: the thread that writes them would have the rights
/// that this one is about to give up.
pub fn hold() {
    stderr::hold(true);
}

/// Has lines written again, with the next one.
pub fn release() {
    stderr::hold(false);
}

/// Writes a text that is no log line, such as a usage error, after the lines before it.
pub fn say(level: Level, text: &str) {
    let text = if journal::is_stderr() {
        journal::prefix(level, text)
    } else {
        format!("{}\n", text.trim_end())
    };
    stderr::push(text.into_bytes());
}

/// Waits until all lines are written: for 200 ms at most if standard error takes none.
pub fn flush() {
    stderr::flush();
}

/// Has panics reported through the queue, then calls `end` in the thread that panicked.
pub fn report_panics(end: impl Fn() + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("without a name");
        let mut text = format!("Thread {name} {panic}");
        // Only where RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            text.push_str(&format!("\n{backtrace}"));
        }
        say(Level::Error, &text);
        flush();
        end();
    }));
}

/// Adds each write to the queue; env_logger writes a record at once.
struct QueueWriter;

impl Write for QueueWriter {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        stderr::push(lines.to_vec());
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
