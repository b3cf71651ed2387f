//! Where log lines go: standard error, filtered; standard output is for what a command answers. And what a process says of
//! itself rather than of a role.

use std::io::IsTerminal;
use std::sync::OnceLock;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tracing_subscriber::EnvFilter;

/// Exchanges the filter of the log that is installed.
static EXCHANGE: OnceLock<Box<dyn Fn(EnvFilter) -> bool + Send + Sync>> = OnceLock::new();

/// Installs the log. `filter` is a checked filter from the configuration; that of the flag `--log` overrides it for good.
pub(crate) fn init(filter: &str, by_flag: Option<&str>) {
    let filter = EnvFilter::try_new(by_flag.unwrap_or(filter)).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter);
    if by_flag.is_some() {
        return builder.init();
    }
    let builder = builder.with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    let _ = EXCHANGE.set(Box::new(move |filter| handle.reload(filter).is_ok()));
}

/// Another filter from the configuration, for what is logged from now on. False: `--log` has chosen one, or no log is
/// installed.
pub(crate) fn set_filter(filter: &str) -> bool {
    let (Some(exchange), Ok(filter)) = (EXCHANGE.get(), EnvFilter::try_new(filter)) else { return false };
    exchange(filter)
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
