//! The outcomes as four charts over the cache-blocking timeout: a line for each TTL and rule.

use plotters::prelude::*;

use crate::whatif::Cell;
use edge::simulate::Rule;

const SIZE: (u32, u32) = (1200, 900);

/// Room for what the colours mean: three rows of twelve.
const LEGEND: u32 = 120;

/// Told apart also by those who see no red and green.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

type Figure = fn(&Cell) -> f64;

const CHARTS: [(&str, Figure); 4] = [
    ("requests to the origin, worst second", |cell| cell.outcome.origin.peak as f64),
    ("leak ratio of the edges, %", |cell| cell.outcome.leak_ratio * 100.0),
    ("99 of 100 viewers wait at most, ms", |cell| cell.outcome.wait_ms.p99 as f64),
    ("stalls", |cell| cell.outcome.stalls as f64),
];

/// An SVG document.
pub(super) fn svg(cells: &[Cell]) -> anyhow::Result<String> {
    let mut svg = String::new();
    let drawn = draw(cells, &mut svg);
    drawn.map_err(|error| anyhow::anyhow!("the plot cannot be drawn: {error}"))?;
    Ok(svg)
}

fn draw(cells: &[Cell], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (charts, legend) = root.split_vertically(SIZE.1 - LEGEND);
    let distinct = |figure: fn(&Cell) -> u64| {
        let mut values: Vec<u64> = cells.iter().map(figure).collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    let (ttls, timeouts) = (distinct(|cell| cell.ttl_ms), distinct(|cell| cell.blocking_timeout_ms));
    let place = |cell: &Cell| timeouts.iter().position(|timeout| *timeout == cell.blocking_timeout_ms);
    for (panel, (title, figure)) in charts.split_evenly((2, 2)).iter().zip(CHARTS) {
        let top = cells.iter().map(figure).fold(1.0, f64::max) * 1.5;
        // The rules are decades apart; a logarithm has no zero.
        let bottom = cells.iter().map(figure).filter(|value| *value > 0.0).fold(1.0, f64::min) / 2.0;
        let mut chart = ChartBuilder::on(panel)
            .caption(title, ("sans-serif", 18))
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(80)
            .build_cartesian_2d(-0.2..timeouts.len() as f64 - 0.8, (bottom..top).log_scale())?;
        // Each timeout has a place; between two of them nothing is said.
        let timeout = |x: &f64| match timeouts.get(x.round() as usize) {
            Some(timeout) if (x - x.round()).abs() < 1e-6 => timeout.to_string(),
            _ => String::new(),
        };
        let figures = |y: &f64| if *y >= 1.0 { format!("{y:.0}") } else { format!("{y}") };
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("cache-blocking timeout, ms").x_labels(timeouts.len() + 1).x_label_formatter(&timeout);
        mesh.y_label_formatter(&figures)
            .label_style(("sans-serif", 13))
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (colour, ttl) in COLOURS.iter().cycle().zip(&ttls) {
            for rule in [Rule::Promote, Rule::Flood] {
                let line = cells.iter().filter(|cell| cell.ttl_ms == *ttl && cell.rule == rule);
                let points: Vec<_> =
                    line.filter_map(|cell| Some((place(cell)? as f64, figure(cell).max(bottom)))).collect();
                chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(width(rule))))?;
                chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, colour.filled())))?;
            }
        }
    }
    let keys = COLOURS.iter().cycle().zip(&ttls).flat_map(|(colour, ttl)| {
        [Rule::Promote, Rule::Flood].map(|rule| (colour, rule, format!("TTL {ttl} ms, {}", rule.as_str())))
    });
    for (index, (colour, rule, text)) in keys.enumerate() {
        let (x, y) =
            (30 + (index / 2 % 6) as i32 * 190, 8 + (index % 2) as i32 * 20 + (index / 12) as i32 * 40);
        legend.draw(&PathElement::new(vec![(x, y), (x + 24, y)], colour.stroke_width(width(rule))))?;
        legend.draw(&Text::new(text, (x + 32, y - 7), ("sans-serif", 13)))?;
    }
    root.present()?;
    Ok(())
}

fn width(rule: Rule) -> u32 {
    if rule == Rule::Promote { 4 } else { 1 }
}
