//! Pictures for the documents: a screen of the terminal as SVG.
//!
//! The tests compare the files in `docs/images` with a fresh rendering. With the variable
//! `UPDATE_PICTURES` set, they write them.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use serde_json::json;

use crate::rates::rates;
use crate::reader::{Answer, Port};
use crate::screen::Screen;

/// Size of a cell of the terminal.
const CELL: (u16, u16) = (8, 17);
/// Space around the text.
const MARGIN: u16 = 12;
const BACKGROUND: &str = "#1c1f24";

/// The screen as SVG: a background, and a text for each run of cells that look the same.
fn svg(screen: &Buffer) -> String {
    let area = screen.area;
    let (width, height) = (
        area.width * CELL.0 + 2 * MARGIN,
        area.height * CELL.1 + 2 * MARGIN,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n\
         <g font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"13\" \
         xml:space=\"preserve\">\n"
    );
    for (line, cells) in (1..).zip(screen.content.chunks(area.width.into())) {
        let mut column = 0;
        for run in cells.chunk_by(|a, b| look(a) == look(b)) {
            let text: String = run.iter().map(Cell::symbol).collect();
            let start = column;
            column += run.len();
            let text = text.trim_end();
            if text.is_empty() {
                continue;
            }
            let (color, weight) = look(&run[0]);
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" textLength=\"{}\" fill=\"{color}\"{weight}>{}</text>",
                usize::from(MARGIN) + start * usize::from(CELL.0),
                MARGIN + line * CELL.1 - 4,
                text.chars().count() * usize::from(CELL.0),
                escaped(text)
            );
        }
    }
    svg + "</g>\n</svg>\n"
}

/// The color of a cell's text, and its weight.
fn look(cell: &Cell) -> (&'static str, &'static str) {
    let color = match cell.fg {
        Color::Red => "#ff7b72",
        _ if cell.modifier.contains(Modifier::DIM) => "#8b949e",
        _ => "#e6edf3",
    };
    match cell.modifier.contains(Modifier::BOLD) {
        true => (color, " font-weight=\"bold\""),
        false => (color, ""),
    }
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;");
    text.replace('<', "&lt;").replace('>', "&gt;")
}

/// The directory of the pictures.
fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/images")
}

/// Compares a picture of the documents with `screen`, or writes it.
fn compare(name: &str, screen: &Buffer) {
    let path = images().join(name);
    let fresh = svg(screen);
    if env::var_os("UPDATE_PICTURES").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == fresh,
        "{} is not what is shown now. Write what is: \
         UPDATE_PICTURES=1 cargo test -p virtio-inter-host picture",
        path.display()
    );
}

/// A port that has sent and got so many megabytes, and lost so many frames.
fn port(id: &str, queues: u8, tx: u64, rx: u64, drops: u64) -> Port {
    let traffic = |megabytes: u64| (megabytes * 1_000_000, megabytes * 20);
    let ((tx_bytes, tx_frames), (rx_bytes, rx_frames)) = (traffic(tx), traffic(rx));
    let counters = json!({
        "tx_bytes": tx_bytes, "tx_frames": tx_frames,
        "rx_bytes": rx_bytes, "rx_frames": rx_frames, "tx_peer_stalled": drops,
    });
    let status = json!({
        "pid": 1, "started": 1, "counters": [counters],
        "frontend": {"pid": 2, "queues_running": queues},
    });
    Port::answering(id, &status)
}

fn ports(seconds: u64) -> Vec<Port> {
    let gone = Port {
        answer: Answer::Gone,
        ..port("vm5", 0, 0, 0, 0)
    };
    vec![
        port("vm1", 2, 714 * seconds, 6 * seconds, 0),
        port("vm2", 2, 6 * seconds, 714 * seconds, 0),
        port("vm3", 2, 3 * seconds, 0, 17 * seconds),
        port("vm4", 0, 0, 0, 0),
        gone,
    ]
}

#[test]
fn picture_of_top_shows_what_top_shows() {
    let mut screen = Screen::default();
    screen.ports = Some(rates(&ports(0), &ports(1), Duration::from_secs(1)));
    let mut terminal = Terminal::new(TestBackend::new(80, 9)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    compare("top.svg", terminal.backend().buffer());
}

/// `capture.txt` is what tshark prints of a capture of three ports, the third of whose guests has
/// another address than its port. Its first lines are the command.
#[test]
fn picture_of_a_capture_has_its_text() {
    let capture = fs::read_to_string(images().join("capture.txt")).unwrap();
    let columns = capture.lines().map(|line| line.chars().count()).max();
    let (width, height) = (columns.unwrap_or_default(), capture.lines().count());
    let size = |cells: usize| u16::try_from(cells).unwrap();
    let mut screen = Buffer::empty(Rect::new(0, 0, size(width), size(height)));
    for (line, text) in (0..).zip(capture.lines()) {
        let style = match text {
            _ if text.starts_with(['$', '>']) => Style::new().add_modifier(Modifier::BOLD),
            _ if text.contains("dropped") => Style::new().fg(Color::Red),
            _ => Style::new(),
        };
        screen.set_string(0, line, text, style);
    }
    compare("capture.svg", &screen);
}
