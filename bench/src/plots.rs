//! Plots of values over sizes, as SVG: a line for each way, with bars from the least to the
//! greatest round.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use crate::case::Way;
use crate::report::{Table, ways};
use crate::results::Results;

const PIXELS: (u32, u32) = (720, 400);

/// Draws the table into `path`. False if there is nothing to draw: fewer than two sizes.
///
/// # Errors
///
/// A path that cannot be written.
pub fn draw(results: &Results, table: &Table, path: &Path) -> Result<bool> {
    let sizes = results.sizes(&table.at());
    let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else {
        return Ok(false);
    };
    if first == last {
        return Ok(false);
    }
    let lines: Vec<(Way, Vec<[f64; 4]>)> = ways(results, table)
        .into_iter()
        .map(|way| (way, points(results, table, way, &sizes)))
        .collect();
    let all = lines.iter().flat_map(|(_, points)| points);
    let top = all.map(|[_, _, _, max]| *max).fold(0.0, f64::max);
    if top <= 0.0 {
        return Ok(false);
    }
    let unit = results
        .row(&table.at(), lines[0].0, *first)
        .map_or_else(String::new, |row| row.unit.clone());
    plot(path, &table.title(), &unit, (*first, *last), top, &lines)
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("Drawing {}", path.display()))?;
    Ok(true)
}

/// Binary logarithm of the size, median, least and greatest.
fn points(results: &Results, table: &Table, way: Way, sizes: &[u32]) -> Vec<[f64; 4]> {
    sizes
        .iter()
        .filter_map(|size| {
            let spread = results.row(&table.at(), way, *size)?.spread()?;
            let x = f64::from(*size).log2();
            Some([x, spread.median, spread.min, spread.max])
        })
        .collect()
}

fn plot(
    path: &Path,
    title: &str,
    unit: &str,
    (first, last): (u32, u32),
    top: f64,
    lines: &[(Way, Vec<[f64; 4]>)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, PIXELS).into_drawing_area();
    area.fill(&WHITE)?;
    let x = f64::from(first).log2() - 0.2..f64::from(last).log2() + 0.2;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(x, 0.0..top * 1.05)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(12)
        .x_label_formatter(&|x| size_label(*x))
        .y_desc(unit)
        .draw()?;
    for (way, points) in lines {
        let color = color(*way);
        chart
            .draw_series(LineSeries::new(
                points.iter().map(|[x, median, ..]| (*x, *median)),
                color.stroke_width(2),
            ))?
            .label(way.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(points.iter().map(|[x, _, min, max]| {
            PathElement::new([(*x, *min), (*x, *max)], color.stroke_width(1))
        }))?;
        chart.draw_series(
            points
                .iter()
                .map(|[x, median, ..]| Circle::new((*x, *median), 3, color.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

/// A size by its binary logarithm, where that is whole.
fn size_label(x: f64) -> String {
    let rounded = x.round();
    if (x - rounded).abs() > 0.01 {
        return String::new();
    }
    let size = rounded.exp2();
    if size >= 1024.0 {
        format!("{} Ki", size / 1024.0)
    } else {
        format!("{size}")
    }
}

/// The same for a way in all plots.
fn color(way: Way) -> RGBColor {
    match way {
        Way::Loopback | Way::Memcpy => RGBColor(120, 120, 120),
        Way::Inter | Way::Link => RGBColor(200, 30, 60),
        Way::Tap | Way::NetVhost => RGBColor(30, 90, 180),
        Way::Memif | Way::UnixStream => RGBColor(30, 140, 70),
        Way::Pipe | Way::OvsDpdk | Way::Uplink => RGBColor(200, 130, 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Group;
    use crate::report::tables;
    use crate::results::tests::row;

    #[test]
    fn plot_has_a_line_for_each_way_and_one_size_has_no_plot() {
        let path = std::env::temp_dir().join(format!("plot-{}.svg", std::process::id()));
        let mut results = Results::default();
        results.add(row(Way::Inter, 64, &[5.0, 6.0]));
        let table = tables(&results, Group::Paper).remove(0);
        assert!(!draw(&results, &table, &path).unwrap());
        results.add(row(Way::Inter, 1024, &[8.0]));
        results.add(row(Way::Tap, 64, &[2.0]));
        assert!(draw(&results, &table, &path).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("tap + bridge") && text.contains("virtio-inter"));
        assert!(text.contains("1 Ki"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn plot_labels_whole_powers() {
        assert_eq!(size_label(6.0), "64");
        assert_eq!(size_label(16.0), "64 Ki");
        assert_eq!(size_label(6.5), "");
    }
}
