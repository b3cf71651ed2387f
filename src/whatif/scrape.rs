//! What `/metrics` of a node says.

/// Metrics, as they were scraped.
#[derive(Debug, Default)]
pub(crate) struct Scrape(Vec<Line>);

#[derive(Debug)]
struct Line {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Scrape {
    /// Reads the OpenMetrics text that a node prints; lines that are none of its are left aside.
    pub(crate) fn parse(text: &str) -> Scrape {
        Scrape(text.lines().filter_map(line).collect())
    }

    /// The sum of what a metric says under all these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.of(name, labels).map(|line| line.value).sum()
    }

    /// What a metric says by the value of `label`, under all of `labels`.
    pub(crate) fn by<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
        label: &'a str,
    ) -> impl Iterator<Item = (&'a str, f64)> {
        self.of(name, labels).filter_map(move |line| Some((line.label(label)?, line.value)))
    }

    /// Whether there is such a metric.
    pub(crate) fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.of(name, labels).next().is_some()
    }

    fn of<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Line> {
        self.0.iter().filter(move |line| {
            line.name == name && labels.iter().all(|(label, value)| line.label(label) == Some(value))
        })
    }
}

impl Line {
    fn label(&self, label: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| name == label).map(|(_, value)| value.as_str())
    }
}

/// `name{label="value",other="value"} 1.5`
fn line(text: &str) -> Option<Line> {
    if text.starts_with('#') {
        return None;
    }
    let (name, rest) = text.split_at(text.find(['{', ' '])?);
    let mut labels = Vec::new();
    let mut rest = rest;
    if let Some(within) = rest.strip_prefix('{') {
        rest = within;
        while !rest.starts_with('}') {
            let (label, after) = rest.trim_start_matches(',').split_once("=\"")?;
            // Nothing of ours has quotes in its labels.
            let (value, after) = after.split_once('"')?;
            labels.push((label.to_owned(), value.to_owned()));
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Line { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read() {
        let scrape = Scrape::parse(
            "# HELP a b\na 1\nb_total{tier=\"edge\",class=\"x\"} 2\nb_total{tier=\"edge\",class=\"y\"} 3.5\n\
             b_total{tier=\"shield\",class=\"x\"} 4 # {id=\"1\"} 1\nbroken{\nbroken{a=\"} 1\nc many\n# EOF\n",
        );
        assert_eq!(scrape.0.len(), 4, "{scrape:?}");
        assert_eq!(scrape.sum("a", &[]), 1.0);
        assert_eq!(scrape.sum("b_total", &[("tier", "edge")]), 5.5);
        assert_eq!(scrape.sum("b_total", &[("class", "x")]), 6.0);
        assert_eq!(scrape.sum("b_total", &[("tier", "pop")]), 0.0);
        let by: Vec<_> = scrape.by("b_total", &[("tier", "edge")], "class").collect();
        assert_eq!(by, [("x", 2.0), ("y", 3.5)]);
        assert!(scrape.has("a", &[]) && !scrape.has("a", &[("tier", "edge")]));
    }
}
