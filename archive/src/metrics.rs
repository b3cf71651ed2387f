//! What the archive has done.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why: `overflow` or `gap` of a hole, `age` or `size` of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// The label.
    pub reason: &'static str,
}

type Reasons = Family<Reason, Counter>;

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident,)+) => {
        /// Counters of one archive; clones share them.
        #[derive(Debug, Clone, Default)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// Counters under `archive_*` in `registry`, the field's documentation as help.
            pub fn register(registry: &mut Registry) -> Self {
                let metrics = Self::default();
                $(registry.register(
                    concat!("archive_", stringify!($field)),
                    concat!($($help),+).trim_start().trim_end_matches('.'),
                    metrics.$field.clone(),
                );)+
                metrics
            }
        }
    };
}

metrics! {
    /// Segments written.
    segments: Counter,
    /// Bytes of segments written.
    written_bytes: Counter,
    /// Journal objects written.
    journals: Counter,
    /// Attempts to write that failed; each is made again.
    failures: Counter,
    /// Whether the last attempt to write failed.
    failing: Gauge,
    /// Bytes that wait to be written.
    queued_bytes: Gauge,
    /// Segments that are not kept, by reason: the queue was full, or no media came.
    holes: Reasons,
    /// Segments offered by a writer that had lost its stream.
    refused_segments: Counter,
    /// Segments without a journal that were found again after their writer was stopped.
    adopted_segments: Counter,
    /// Damaged journals that were met.
    damaged_journals: Counter,
    /// Broadcasts that were closed and have one index.
    finished_broadcasts: Counter,
    /// Broadcasts removed to keep within age and size, by reason.
    removed_broadcasts: Reasons,
    /// Bytes of all broadcasts at the last look.
    stored_bytes: Gauge,
}
