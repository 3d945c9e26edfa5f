//! `virtio-inter top`: the rates of all ports, again and again, in a terminal or as JSON lines.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde::Serialize;

use crate::args::{Places, TopArgs};
use crate::output;
use crate::place::{self, Place};
use crate::rates::{PortRates, rates};
use crate::reader::{self, Port};
use crate::screen::{Order, Screen};

/// Time for which a key may wait until the terminal shows a new reading.
const LOOK: Duration = Duration::from_millis(100);

/// All ports at a moment.
#[derive(Debug, Serialize)]
struct Reading {
    /// Seconds since 1970.
    time: u64,
    ports: Vec<PortRates>,
    /// Segments whose ports are not known, as their directories cannot be read.
    unreadable: Vec<String>,
}

/// Runs `virtio-inter top` until the user or the reader of its output ends it.
///
/// # Errors
///
/// When there is no such segment, standard output is no terminal and `--json` is not given, or it
/// cannot be written.
pub fn run(arguments: &TopArgs) -> Result<()> {
    // A segment that does not exist is an error now, and one that is removed later is not.
    place::find(&arguments.places)?;
    if arguments.json {
        return print_lines(arguments);
    }
    ensure!(
        io::stdout().is_terminal() && io::stdin().is_terminal(),
        "Standard input and output must be a terminal; --json prints lines for programs"
    );
    let mut terminal = ratatui::try_init().context("Cannot set up the terminal")?;
    let ended = show(arguments, &mut terminal);
    ratatui::restore();
    ended
}

/// The ports of these places, none of those that are gone; and the segments that cannot be read.
fn read(places: &Places) -> Result<(Vec<Port>, Vec<String>)> {
    let places = place::find_again(places)?;
    let unreadable = places.iter().filter(|place| place.unreadable.is_some());
    let unreadable = unreadable.map(Place::name).collect();
    Ok((reader::read(&places), unreadable))
}

/// Reads the ports in intervals, until `use_reading` returns false.
fn read_again_and_again(
    arguments: &TopArgs,
    mut use_reading: impl FnMut(Reading) -> Result<bool>,
    mut wait: impl FnMut(Duration) -> bool,
) -> Result<()> {
    let interval = Duration::from_secs(arguments.interval.into());
    let mut before: Vec<Port> = Vec::new();
    let mut began = Instant::now();
    for number in 0.. {
        let now = Instant::now();
        let (ports, unreadable) = read(&arguments.places)?;
        let reading = Reading {
            time: seconds_since_1970(),
            ports: rates(&before, &ports, now - began),
            unreadable,
        };
        (before, began) = (ports, now);
        // The first reading has no rates: nobody counts it.
        let is_last = arguments.count.is_some_and(|count| number >= count);
        if !use_reading(reading)? || is_last || !wait(interval.saturating_sub(now.elapsed())) {
            break;
        }
    }
    Ok(())
}

fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

/// One JSON document on a line for each interval.
fn print_lines(arguments: &TopArgs) -> Result<()> {
    let mut is_first = true;
    let print = |reading: Reading| {
        if std::mem::take(&mut is_first) {
            return Ok(true);
        }
        let line = serde_json::to_string(&reading)? + "\n";
        output::print(&line)
    };
    let wait = |time| {
        thread::sleep(time);
        true
    };
    read_again_and_again(arguments, print, wait)
}

/// Shows the readings in the terminal until a key ends that.
fn show(arguments: &TopArgs, terminal: &mut DefaultTerminal) -> Result<()> {
    // Ports that do not answer hold up the reader for seconds, and must not hold up the keys.
    let (readings, shown) = channel();
    let (stop, stopped) = channel();
    let of_reader = arguments.clone();
    thread::Builder::new()
        .name("reader".to_owned())
        .spawn(move || read_for_screen(&of_reader, &readings, &stopped))
        .context("Cannot start a thread")?;
    // The thread may still wait for ports then; the process ends without it.
    let ended = keep_shown(&shown, terminal);
    drop(stop);
    ended
}

fn read_for_screen(
    arguments: &TopArgs,
    readings: &Sender<Result<Reading>>,
    stopped: &Receiver<()>,
) {
    let send = |reading| Ok(readings.send(Ok(reading)).is_ok());
    let wait = |time| matches!(stopped.recv_timeout(time), Err(RecvTimeoutError::Timeout));
    if let Err(error) = read_again_and_again(arguments, send, wait) {
        // Nobody takes it if a key has ended all.
        let _ = readings.send(Err(error));
    }
}

fn keep_shown(readings: &Receiver<Result<Reading>>, terminal: &mut DefaultTerminal) -> Result<()> {
    let mut screen = Screen::default();
    loop {
        match readings.try_recv() {
            Ok(Err(error)) => return Err(error),
            Ok(Ok(reading)) => {
                screen.ports = Some(reading.ports);
                screen.unreadable = reading.unreadable;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        terminal
            .draw(|frame| screen.draw(frame))
            .context("Cannot write to the terminal")?;
        if !event::poll(LOOK).context("Cannot read from the terminal")? {
            continue;
        }
        if let Event::Key(key) = event::read().context("Cannot read from the terminal")?
            && key.kind == KeyEventKind::Press
            && !take_key(&mut screen, key)
        {
            return Ok(());
        }
    }
}

/// Does what a key asks for. Returns false if that is to end.
fn take_key(screen: &mut Screen, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('t') => screen.order = Order::Traffic,
        KeyCode::Char('d') => screen.order = Order::Drops,
        KeyCode::Char('n') => screen.order = Order::Name,
        KeyCode::Char('p') => screen.toggle_pairs(),
        KeyCode::Down => screen.scroll(1),
        KeyCode::Up => screen.scroll(-1),
        KeyCode::PageDown => screen.scroll(10),
        KeyCode::PageUp => screen.scroll(-10),
        _ => {}
    }
    true
}
