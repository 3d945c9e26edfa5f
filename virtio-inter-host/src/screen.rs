//! What `virtio-inter top` shows: a table of ports and their rates, and a line of keys.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use crate::rates::PortRates;
use crate::text::safe;

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
    /// How the ports are sorted.
    pub(crate) order: Order,
    /// Ports above the first that is shown.
    first: usize,
}

impl Screen {
    /// Moves the table by lines, down if positive.
    pub(crate) fn scroll(&mut self, lines: isize) {
        let last = self.ports.as_ref().map_or(0, Vec::len).saturating_sub(1);
        self.first = self.first.saturating_add_signed(lines).min(last);
    }

    /// Draws all.
    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        if area.width < LEAST.0 || area.height < LEAST.1 {
            let (columns, lines) = LEAST;
            let text = format!("The terminal is too small: {columns} columns, {lines} lines");
            frame.render_widget(Paragraph::new(text), area);
            return;
        }
        let [top, middle, bottom] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(area);
        let keys = "q quit   t by traffic   d by drops   n by name   ↑ ↓ scroll";
        frame.render_widget(Line::styled(keys, dim()), bottom);
        let Some(ports) = &self.ports else {
            frame.render_widget(Line::raw("Asking the ports"), top);
            return;
        };
        let traffic: f64 = ports
            .iter()
            .filter_map(|port| Some(port.rates?.bits()))
            .sum();
        let text = format!("{} ports, {}bit/s", ports.len(), si(traffic / 2.0));
        frame.render_widget(Line::raw(text), top);
        let rows = self.sorted(ports).into_iter().skip(self.first).map(row);
        let header = [
            "PORT", "STATE", "TX bit/s", "frames/s", "RX bit/s", "frames/s", "DROPS/s",
        ];
        let widths = [
            Constraint::Min(14),
            Constraint::Length(9),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(8),
        ];
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let table = Table::new(rows, widths).header(Row::new(header).style(bold));
        frame.render_widget(table, middle);
    }

    fn sorted<'a>(&self, ports: &'a [PortRates]) -> Vec<&'a PortRates> {
        let mut sorted: Vec<&PortRates> = ports.iter().collect();
        let value = |port: &PortRates| match (self.order, port.rates) {
            (Order::Traffic, Some(rates)) => rates.bits(),
            (Order::Drops, Some(rates)) => rates.drops,
            _ => 0.0,
        };
        // The reading is in the order of names; sorting keeps that among equals.
        sorted.sort_by(|a, b| value(b).total_cmp(&value(a)));
        sorted
    }
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn row(port: &PortRates) -> Row<'static> {
    let rate = |of: &dyn Fn(crate::rates::Rates) -> f64| {
        Cell::from(
            port.rates
                .map_or_else(|| "-".to_owned(), |rates| si(of(rates))),
        )
    };
    let cells = [
        Cell::from(safe(&format!("{}/{}", port.segment, port.port))),
        Cell::from(port.state),
        rate(&|rates| rates.tx_bits),
        rate(&|rates| rates.tx_frames),
        rate(&|rates| rates.rx_bits),
        rate(&|rates| rates.rx_frames),
        rate(&|rates| rates.drops),
    ];
    let loses = port.rates.is_some_and(|rates| rates.drops > 0.0);
    let style = match (port.state, loses) {
        ("running" | "active" | "standby", false) => Style::new(),
        ("running" | "active" | "standby", true) => Style::new().add_modifier(Modifier::BOLD),
        _ => dim(),
    };
    Row::new(cells).style(style)
}

/// A number with three digits or so and a decimal prefix.
fn si(value: f64) -> String {
    let (scaled, prefix) = match value {
        ..1e3 => (value, ""),
        ..1e6 => (value / 1e3, "k"),
        ..1e9 => (value / 1e6, "M"),
        _ => (value / 1e9, "G"),
    };
    let digits = match scaled {
        _ if prefix.is_empty() => 0,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{scaled:.digits$}{prefix}")
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
    fn screen_of_a_small_terminal_says_so() {
        let lines = shown(&Screen::default(), 59, 10);
        assert!(
            lines[0].starts_with("The terminal is too small"),
            "{lines:#?}"
        );
    }

    #[test]
    fn numbers_have_decimal_prefixes() {
        let texts = [0.0, 999.0, 1234.0, 56_700.0, 2.5e9].map(si);
        assert_eq!(texts, ["0", "999", "1.23k", "56.7k", "2.50G"]);
    }
}
