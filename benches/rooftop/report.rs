//! The table and `results.json`.

use serde::Serialize;

/// One figure, and the peer's in the same run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// `scenario/what/...`
    name: String,
    unit: &'static str,
    rooftop: f64,
    peer: Option<f64>,
    peer_name: Option<String>,
    /// Rooftop's figure divided by the peer's.
    ratio: Option<f64>,
    #[serde(skip)]
    better: Better,
}

/// Which figures are the good ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// What the scenarios found.
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new() -> Report {
        Report { rows: Vec::new() }
    }

    /// Says that a scenario begins.
    pub(crate) fn begin(&self, name: &str) {
        println!("== {name}");
    }

    /// Something to know besides the figures.
    pub(crate) fn note(&self, text: &str) {
        println!("   {text}");
    }

    /// A figure; `peer` has a name and its own.
    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        better: Better,
        rooftop: f64,
        peer: Option<(&str, f64)>,
    ) {
        self.rows.push(Row {
            name: name.into(),
            unit,
            rooftop,
            peer: peer.map(|(_, figure)| figure),
            peer_name: peer.map(|(name, _)| name.to_owned()),
            ratio: peer.map(|(_, figure)| rooftop / figure).filter(|ratio| ratio.is_finite()),
            better,
        });
    }

    pub(crate) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(&self.rows)? + "\n")
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let dash = || "-".to_owned();
        let mut cells = vec![["", "unit", "Rooftop", "peer", "ratio", "better", "peer is"].map(String::from)];
        for row in &self.rows {
            cells.push([
                row.name.clone(),
                row.unit.to_owned(),
                short(row.rooftop),
                row.peer.map_or_else(dash, short),
                row.ratio.map_or_else(dash, |ratio| format!("{ratio:.2}")),
                if row.better == Better::Lower { "lower" } else { "higher" }.to_owned(),
                row.peer_name.clone().unwrap_or_else(dash),
            ]);
        }
        let widths: Vec<usize> =
            (0..7).map(|column| cells.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
        let line = |row: &[String; 7]| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
                2..=4 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        cells.iter().map(line).collect()
    }
}

/// Three significant digits or so.
fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 1.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

/// The value below which the fraction `part` of the values lies; of none, 0.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (part * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(index).copied().unwrap_or(0.0)
}

/// The one in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}
