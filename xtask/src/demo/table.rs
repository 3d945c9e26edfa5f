//! The table at the end: every path beside loopback, and virtio-inter beside tap + bridge.

use super::figures::{Figure, Metric, Path};

/// Stands where there is no figure.
const NONE: &str = "–";

/// The figures of two guests in one placement.
pub(super) struct Group {
    /// The guests and placement of a block of the table.
    pub(super) title: String,
    pub(super) figures: Vec<Figure>,
}

/// A line of the table: words across its whole width, or cells.
enum Line {
    Title(String),
    Cells(Vec<String>),
}

/// Renders one table of all groups, with a line feed after each line.
pub(super) fn render(groups: &[Group]) -> String {
    let mut lines = vec![Line::Cells(
        [
            "",
            Path::Loopback.name(),
            Path::Inter.name(),
            "÷ loopback",
            Path::Tap.name(),
            "÷ loopback",
            "inter ÷ tap",
        ]
        .map(str::to_owned)
        .to_vec(),
    )];
    for group in groups {
        lines.push(Line::Title(group.title.clone()));
        for metric in Metric::ALL {
            let figures = Path::ALL
                .map(|path| find(&group.figures, |f| (f.metric, f.path) == (metric, path)));
            lines.push(Line::Cells(values(metric, figures)));
            lines.extend(details(metric, figures).map(Line::Cells));
        }
    }
    align(&lines)
}

fn find(figures: &[Figure], is_it: impl Fn(&Figure) -> bool) -> Option<&Figure> {
    figures.iter().find(|figure| is_it(figure))
}

fn values(metric: Metric, [loopback, inter, tap]: [Option<&Figure>; 3]) -> Vec<String> {
    let value = |figure: Option<&Figure>| {
        figure.map_or_else(|| NONE.to_owned(), |figure| number(figure.value))
    };
    vec![
        format!("  {}, {}", metric.name(), unit(metric)),
        value(loopback),
        value(inter),
        ratio(inter, loopback),
        value(tap),
        ratio(tap, loopback),
        ratio(inter, tap),
    ]
}

/// The second value of the metric's tool, if it has one.
fn details(metric: Metric, figures: [Option<&Figure>; 3]) -> Option<Vec<String>> {
    let name = metric.detail()?;
    let [loopback, inter, tap] = figures
        .map(|figure| figure.map_or_else(|| NONE.to_owned(), |figure| figure.detail.clone()));
    let none = String::new;
    Some(vec![
        format!("    {name}"),
        loopback,
        inter,
        none(),
        tap,
        none(),
        none(),
    ])
}

/// The unit in a few columns; the JSON has the whole words.
fn unit(metric: Metric) -> &'static str {
    match metric {
        Metric::PingRtt | Metric::HalfRoundTrip => "µs",
        Metric::TcpThroughput | Metric::TcpThroughputReverse => "Gbit/s",
        Metric::TcpRr => "1/s",
    }
}

/// A value with three digits that count, or all before the point.
pub(super) fn number(value: f64) -> String {
    let decimals = match value {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

fn ratio(of: Option<&Figure>, to: Option<&Figure>) -> String {
    match (of, to) {
        (Some(of), Some(to)) => number(of.value / to.value),
        _ => NONE.to_owned(),
    }
}

/// Sets the first column to the left and the others to the right, each as wide as its widest cell.
fn align(lines: &[Line]) -> String {
    let width = |text: &str| text.chars().count();
    let mut widths = Vec::new();
    for line in lines {
        let Line::Cells(cells) = line else { continue };
        widths.resize(widths.len().max(cells.len()), 0);
        for (widest, cell) in widths.iter_mut().zip(cells) {
            *widest = width(cell).max(*widest);
        }
    }
    let mut text = String::new();
    for line in lines {
        match line {
            Line::Title(title) => text += &format!("\n{title}\n"),
            Line::Cells(cells) => {
                let mut row = String::new();
                for (index, (cell, widest)) in cells.iter().zip(&widths).enumerate() {
                    if index == 0 {
                        row += &format!("{cell:<widest$}");
                    } else {
                        row += &format!("  {cell:>widest$}");
                    }
                }
                text += row.trim_end();
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::figures::tests::figure;

    fn group() -> Group {
        let mut ping = figure(Path::Inter, Metric::PingRtt, 80.0);
        ping.detail = "60–99".to_owned();
        Group {
            title: "Guests, all on one CPU".to_owned(),
            figures: vec![
                figure(Path::Loopback, Metric::PingRtt, 40.0),
                ping,
                figure(Path::Tap, Metric::PingRtt, 100.0),
                figure(Path::Loopback, Metric::TcpThroughput, 10.0),
                figure(Path::Inter, Metric::TcpThroughput, 5.5),
            ],
        }
    }

    /// The cells of the table's row for `name`.
    fn row<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
        let rest = table.split(name).nth(1).unwrap();
        rest.lines().next().unwrap().split_whitespace().collect()
    }

    #[test]
    fn table_has_each_value_beside_its_ratios() {
        let table = render(&[group()]);
        assert_eq!(table.lines().nth(2).unwrap(), "Guests, all on one CPU");
        assert_eq!(
            row(&table, "ping mean, µs"),
            ["40.0", "80.0", "2.00", "100", "2.50", "0.80"]
        );
        assert_eq!(row(&table, "min–max"), ["60–99"]);
        assert_eq!(
            row(&table, "TCP a → b, Gbit/s"),
            ["10.0", "5.50", "0.55", NONE, NONE, NONE]
        );
        assert_eq!(row(&table, "TCP_RR, 1/s"), [NONE; 6]);
    }

    #[test]
    fn table_columns_are_aligned_below_their_names() {
        let table = render(&[group(), group()]);
        let end = |line: &str, of: &str| {
            let at = line.find(of).unwrap() + of.len();
            line[..at].chars().count()
        };
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(end(lines[0], "loopback"), end(lines[3], "40.0"));
        assert_eq!(end(lines[0], "tap + bridge"), end(lines[3], "100"));
        assert_eq!(end(lines[0], "inter ÷ tap"), end(lines[3], "0.80"));
        assert_eq!(end(lines[0], "virtio-inter"), end(lines[4], "60–99"));
        assert_eq!(table.matches("Guests, all on one CPU").count(), 2);
    }

    #[test]
    fn numbers_show_three_digits_that_count() {
        let shown =
            [0.5, 5.678, 9.996, 12.34, 99.96, 123.4, 15432.1].map(|value| (value, number(value)));
        for ((_, shown), expected) in shown
            .iter()
            .zip(["0.50", "5.68", "10.0", "12.3", "100", "123", "15432"])
        {
            assert_eq!(shown, expected);
        }
    }
}
