//! What `virtio-inter top` shows: a table of ports and their rates, and a line of keys.

use std::time::SystemTime;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table, Wrap};

use crate::rates::{PairRates, PortRates};
use crate::text::{age, safe, si};

/// Columns and lines of a terminal that the table needs.
const LEAST: (u16, u16) = (60, 4);

/// The order of the ports.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Most bits first.
    #[default]
    Traffic,
    /// Most lost frames first.
    Drops,
    /// By segment and name.
    Name,
}

/// The state of the screen.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    /// The last reading; `None`: there is none yet.
    pub(crate) ports: Option<Vec<PortRates>>,
    /// Segments that cannot be read.
    pub(crate) unreadable: Vec<String>,
    /// How the ports are sorted.
    pub(crate) order: Order,
    /// Pairs of ports are shown, not ports.
    shows_pairs: bool,
    /// Rows above the first that is shown.
    first: usize,
}

/// A row of the table: a port, or what a port sends to one peer.
struct TableRow {
    cells: Vec<Cell<'static>>,
    style: Style,
    bits: f64,
    drops: f64,
}

impl Screen {
    /// Shows pairs instead of ports, or ports again.
    pub(crate) fn toggle_pairs(&mut self) {
        self.shows_pairs = !self.shows_pairs;
        self.first = 0;
    }

    /// Moves the table by lines, down if positive.
    pub(crate) fn scroll(&mut self, lines: isize) {
        let ports = self.ports.as_deref().unwrap_or_default();
        let rows = match self.shows_pairs {
            true => ports.iter().map(|port| port.pairs.len()).sum(),
            false => ports.len(),
        };
        let last = rows.saturating_sub(1);
        self.first = self.first.saturating_add_signed(lines).min(last);
    }

    /// Draws all.
    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        if area.width < LEAST.0 || area.height < LEAST.1 {
            let (columns, lines) = LEAST;
            let text = format!(
                "The terminal is too small: {columns} columns and {lines} lines are needed"
            );
            frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
            return;
        }
        let [top, middle, bottom] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(area);
        let keys = "q quit  p pairs/ports  t by traffic  d by drops  n by name  ↑ ↓ scroll";
        frame.render_widget(Line::styled(keys, dim()), bottom);
        let Some(ports) = &self.ports else {
            frame.render_widget(Line::raw("Asking the ports"), top);
            return;
        };
        let traffic: f64 = ports
            .iter()
            .filter_map(|port| Some(port.rates?.bits()))
            .sum();
        let mut text = format!("{} ports, {}bit/s", ports.len(), si(traffic / 2.0));
        if !self.unreadable.is_empty() {
            text += &format!("; cannot read {}", safe(&self.unreadable.join(", ")));
        }
        frame.render_widget(Line::raw(text), top);
        let (first, header): (u16, &[&str]) = match self.shows_pairs {
            true => (
                24,
                &["PORT → PEER", "LINKED", "bit/s", "frames/s", "DROPS/s"],
            ),
            false => (
                14,
                &[
                    "PORT", "STATE", "TX bit/s", "frames/s", "RX bit/s", "frames/s", "DROPS/s",
                ],
            ),
        };
        let widths = header.iter().map(|name| match *name {
            "PORT" | "PORT → PEER" => Constraint::Min(first),
            "STATE" => Constraint::Length(9),
            _ => Constraint::Length(8),
        });
        let rows = self.sorted(ports).into_iter().skip(self.first);
        let rows = rows.map(|row| Row::new(row.cells).style(row.style));
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let table = Table::new(rows, widths).header(Row::new(header.to_vec()).style(bold));
        frame.render_widget(table, middle);
    }

    fn sorted(&self, ports: &[PortRates]) -> Vec<TableRow> {
        let mut sorted: Vec<TableRow> = match self.shows_pairs {
            true => ports.iter().flat_map(pair_rows).collect(),
            false => ports.iter().map(row).collect(),
        };
        let value = |row: &TableRow| match self.order {
            Order::Traffic => row.bits,
            Order::Drops => row.drops,
            Order::Name => 0.0,
        };
        // The reading is in the order of names; sorting keeps that among equals.
        sorted.sort_by(|a, b| value(b).total_cmp(&value(a)));
        sorted
    }
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn row(port: &PortRates) -> TableRow {
    let rate = |of: &dyn Fn(crate::rates::Rates) -> f64| {
        Cell::from(
            port.rates
                .map_or_else(|| "-".to_owned(), |rates| si(of(rates))),
        )
    };
    let rates = port.rates.unwrap_or_default();
    let style = match (port.state, rates.drops > 0.0) {
        ("running" | "active" | "standby", false) => Style::new(),
        ("running" | "active" | "standby", true) => Style::new().add_modifier(Modifier::BOLD),
        _ => dim(),
    };
    TableRow {
        cells: vec![
            Cell::from(safe(&format!("{}/{}", port.segment, port.port))),
            Cell::from(port.state),
            rate(&|rates| rates.tx_bits),
            rate(&|rates| rates.tx_frames),
            rate(&|rates| rates.rx_bits),
            rate(&|rates| rates.rx_frames),
            rate(&|rates| rates.drops),
        ],
        style,
        bits: rates.bits(),
        drops: rates.drops,
    }
}

/// A row for each peer to which the port sends.
fn pair_rows(port: &PortRates) -> Vec<TableRow> {
    let now = SystemTime::now();
    let row = |pair: &PairRates| {
        let linked = pair.since.map_or("-".to_owned(), |since| age(now, since));
        let name = format!("{}/{} → {}", port.segment, port.port, pair.peer);
        let style = match (pair.frames > 0.0, pair.drops > 0.0) {
            (_, true) => Style::new().add_modifier(Modifier::BOLD),
            (true, false) => Style::new(),
            (false, false) => dim(),
        };
        TableRow {
            cells: vec![
                Cell::from(safe(&name)),
                Cell::from(linked),
                Cell::from(si(pair.bits)),
                Cell::from(si(pair.frames)),
                Cell::from(si(pair.drops)),
            ],
            style,
            bits: pair.bits,
            drops: pair.drops,
        }
    };
    port.pairs.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::rates::Rates;

    fn port(name: &str, tx_bits: f64, drops: f64) -> PortRates {
        PortRates {
            segment: "web".to_owned(),
            port: name.to_owned(),
            state: "running",
            rates: Some(Rates {
                tx_bits,
                drops,
                ..Rates::default()
            }),
            pairs: vec![PairRates {
                peer: "z".to_owned(),
                since: Some(u64::MAX),
                frames: tx_bits / 800.0,
                bits: tx_bits,
                drops,
            }],
        }
    }

    fn shown(screen: &Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let lines = buffer.content.chunks(usize::from(width));
        lines
            .map(|line| {
                let text: String = line.iter().map(|cell| cell.symbol()).collect();
                text.trim_end().to_owned()
            })
            .collect()
    }

    fn names(screen: &Screen) -> Vec<String> {
        let lines = shown(screen, 80, 8);
        let of_ports = lines.iter().filter(|line| line.starts_with("web/"));
        of_ports.map(|line| line[..5].to_owned()).collect()
    }

    #[test]
    fn screen_has_a_line_for_each_port_with_its_rates() {
        let screen = Screen {
            ports: Some(vec![port("a", 12_340_000.0, 0.0)]),
            ..Screen::default()
        };
        let lines = shown(&screen, 80, 6);
        assert!(lines[0].starts_with("1 ports, 6.17Mbit/s"), "{lines:#?}");
        let words: Vec<&str> = lines[2].split_whitespace().collect();
        assert_eq!(words, ["web/a", "running", "12.3M", "0", "0", "0", "0"]);
        assert!(lines[5].starts_with("q quit"), "{lines:#?}");
    }

    #[test]
    fn screen_sorts_by_what_was_asked_for_and_scrolls() {
        let mut screen = Screen {
            ports: Some(vec![
                port("a", 1.0, 5.0),
                port("b", 3.0, 0.0),
                port("c", 2.0, 9.0),
            ]),
            ..Screen::default()
        };
        assert_eq!(names(&screen), ["web/b", "web/c", "web/a"]);
        screen.order = Order::Drops;
        assert_eq!(names(&screen), ["web/c", "web/a", "web/b"]);
        screen.order = Order::Name;
        screen.scroll(1);
        assert_eq!(names(&screen), ["web/b", "web/c"]);
        screen.scroll(100);
        assert_eq!(names(&screen), ["web/c"]);
        screen.scroll(-100);
        assert_eq!(names(&screen).len(), 3);
    }

    #[test]
    fn screen_names_the_segments_that_cannot_be_read() {
        let screen = Screen {
            ports: Some(vec![port("a", 0.0, 0.0)]),
            unreadable: vec!["db".to_owned(), "mail".to_owned()],
            ..Screen::default()
        };
        let lines = shown(&screen, 80, 6);
        assert_eq!(lines[0], "1 ports, 0bit/s; cannot read db, mail");
    }

    #[test]
    fn screen_shows_pairs_when_asked_for() {
        let mut screen = Screen {
            ports: Some(vec![port("a", 8_000_000.0, 0.0), port("b", 16e6, 3.0)]),
            ..Screen::default()
        };
        screen.toggle_pairs();
        let lines = shown(&screen, 80, 6);
        let words = |line: usize| lines[line].split_whitespace().collect::<Vec<_>>();
        let expected = ["web/b", "→", "z", "0", "s", "16.0M", "20.0k", "3"];
        assert_eq!(words(2), expected);
        let expected = ["web/a", "→", "z", "0", "s", "8.00M", "10.0k", "0"];
        assert_eq!(words(3), expected);
        screen.toggle_pairs();
        assert!(shown(&screen, 80, 6)[2].contains("running"));
    }

    #[test]
    fn screen_of_a_small_terminal_says_so() {
        let text = "The terminal is too small: 60 columns and 4 lines are needed";
        for (width, height) in [(59, 10), (30, 10), (30, 3), (80, 3)] {
            let lines = shown(&Screen::default(), width, height);
            let words = lines.join(" ");
            assert_eq!(words.trim_end(), text, "{lines:#?}");
        }
    }
}
