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
    /// In the table of all scenarios; else in one of its scenario's own.
    #[serde(skip)]
    listed: bool,
}

/// Which figures are the good ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// What the scenarios found.
pub(crate) struct Report {
    /// Names of scenarios, or of what is in them; none: everything.
    wanted: Vec<String>,
    rows: Vec<Row>,
    tables: Vec<String>,
}

impl Report {
    pub(crate) fn new(wanted: Vec<String>) -> Report {
        Report { wanted, rows: Vec::new(), tables: Vec::new() }
    }

    /// Whether figures whose name is or begins with `name` were asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        let within = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.wanted.is_empty()
            || self.wanted.iter().any(|wanted| within(name, wanted) || within(wanted, name))
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
        self.push(name.into(), unit, better, rooftop, peer, true);
    }

    /// A figure beside those of several peers, for `results.json` only: a row for each of them.
    pub(crate) fn record(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        better: Better,
        rooftop: f64,
        peers: &[(&str, f64)],
    ) {
        let name = name.into();
        for &peer in peers {
            self.push(name.clone(), unit, better, rooftop, Some(peer), false);
        }
        if peers.is_empty() {
            self.push(name, unit, better, rooftop, None, false);
        }
    }

    fn push(
        &mut self,
        name: String,
        unit: &'static str,
        better: Better,
        rooftop: f64,
        peer: Option<(&str, f64)>,
        listed: bool,
    ) {
        let ratio = peer.map(|(_, figure)| rooftop / figure).filter(|ratio| ratio.is_finite());
        let (peer_name, peer) = peer.map(|(name, figure)| (name.to_owned(), figure)).unzip();
        self.rows.push(Row { name, unit, rooftop, peer, peer_name, ratio, better, listed });
    }

    /// A table of a scenario's own: shown now and again at the end. The first column is aligned to the left.
    pub(crate) fn table(&mut self, title: &str, head: Vec<String>, rows: Vec<Vec<String>>) {
        let cells: Vec<Vec<String>> = [head].into_iter().chain(rows).collect();
        let table = format!("{title}\n{}", aligned(&cells, |column| column == 0));
        println!("\n{table}");
        self.tables.push(table);
    }

    pub(crate) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(&self.rows)? + "\n")
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let dash = || "-".to_owned();
        let head = ["", "unit", "Rooftop", "peer", "ratio", "better", "peer is"];
        let mut cells = vec![head.map(String::from).to_vec()];
        for row in self.rows.iter().filter(|row| row.listed) {
            cells.push(vec![
                row.name.clone(),
                row.unit.to_owned(),
                short(row.rooftop),
                row.peer.map_or_else(dash, short),
                row.ratio.map_or_else(dash, |ratio| format!("{ratio:.2}")),
                if row.better == Better::Lower { "lower" } else { "higher" }.to_owned(),
                row.peer_name.clone().unwrap_or_else(dash),
            ]);
        }
        let listed = (cells.len() > 1).then(|| aligned(&cells, |column| !(2..=4).contains(&column)));
        listed.iter().chain(&self.tables).cloned().collect::<Vec<_>>().join("\n")
    }
}

/// Columns side by side; those that are not `left` end at the same place.
fn aligned(cells: &[Vec<String>], left: impl Fn(usize) -> bool) -> String {
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match left(column) {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    cells.iter().map(line).collect()
}

/// Three significant digits or so.
pub(crate) fn short(figure: f64) -> String {
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
