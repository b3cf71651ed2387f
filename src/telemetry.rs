//! Where log lines go: standard error, filtered; standard output is for what a command answers. And what a process says of
//! itself rather than of a role.

use std::io::IsTerminal;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tracing_subscriber::EnvFilter;

/// Installs the log. `filter` is a checked filter from the configuration; the flag `--log` overrides it.
pub(crate) fn init(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Adds `process_tasks`, read when it is asked for. Needs a tokio runtime.
pub(crate) fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Tasks(Handle::current())));
}

/// The tasks of a runtime.
#[derive(Debug)]
struct Tasks(Handle);

impl Collector for Tasks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let tasks = ConstGauge::new(self.0.metrics().num_alive_tasks() as i64);
        let help = "Tasks that have not ended: one or two per connection and per name in flight";
        let encoder = encoder.encode_descriptor("process_tasks", help, None, tasks.metric_type())?;
        tasks.encode(encoder)
    }
}
