//! The origin: when there is what, and when it says so.
#![deny(clippy::disallowed_methods)]

use super::names::Name;
use super::random::Random;
use super::{Latency, Scenario};

/// Parts that were there before the first viewer came, in segments: what a live playlist has, and more.
const BEFORE: u64 = 100;

/// Of a part, how much has passed when the first viewer comes: they do not wait for a beginning.
const PHASE: f64 = 0.37;

pub(super) struct Source {
    part_us: u64,
    /// Of a segment.
    pub(super) parts: u64,
    latency: Latency,
    random: Random,
    /// For each request.
    service_us: f64,
    free_us: f64,
}

/// What it says to one request: times in microseconds.
pub(super) struct Said {
    pub(super) headers_us: u64,
    /// The newest part in a playlist.
    pub(super) newest: u64,
    /// Of a segment: its first part and when that is here, each next one a part later at the earliest.
    pub(super) bytes: Vec<(u64, u64)>,
    pub(super) end_us: u64,
}

impl Source {
    pub(super) fn new(scenario: &Scenario) -> Source {
        let parts = (scenario.segment.as_micros() / scenario.part.as_micros().max(1)).max(1) as u64;
        Source {
            part_us: scenario.segment.as_micros() as u64 / parts,
            parts,
            latency: scenario.latency.clone(),
            random: Random::new(scenario.seed),
            service_us: scenario.capacity.map_or(0.0, |capacity| 1e6 / f64::from(capacity)),
            free_us: 0.0,
        }
    }

    /// When a part is there.
    pub(super) fn published(&self, part: u64) -> u64 {
        let from_start = part as f64 + 1.0 - PHASE - (BEFORE * self.parts) as f64;
        (from_start.max(0.0) * self.part_us as f64) as u64
    }

    /// The newest part that is there at this time.
    pub(super) fn newest(&self, at_us: u64) -> u64 {
        ((at_us as f64 / self.part_us as f64 + PHASE) as u64 + BEFORE * self.parts) - 1
    }

    /// The segment that a part belongs to.
    pub(super) fn segment(&self, part: u64) -> u64 {
        part / self.parts
    }

    /// The last part of a segment.
    pub(super) fn last_part(&self, segment: u64) -> u64 {
        (segment + 1) * self.parts - 1
    }

    /// When the origin can say something in answer to a request for `name`, at the earliest.
    pub(super) fn available(&self, name: Name) -> u64 {
        match name {
            Name::Reload(_, part) => self.published(part),
            Name::Segment(_, number) => self.published(number * self.parts),
            Name::Multivariant | Name::Playlist(_) | Name::Init(_) => 0,
        }
    }

    /// Answers `count` requests for `name` that came at `at_us`; what the last of them hears. `from`: the part from
    /// which on the body is wanted.
    pub(super) fn answer(&mut self, at_us: u64, name: Name, from: u64, count: u64) -> Said {
        self.free_us = self.free_us.max(at_us as f64) + self.service_us * count as f64;
        let latency_us = self.latency.sample(&mut self.random).as_micros() as u64;
        let ready = self.free_us as u64;
        let headers_us = ready.max(self.available(name)) + latency_us;
        let mut said = Said {
            headers_us,
            newest: self.newest(headers_us - latency_us),
            bytes: Vec::new(),
            end_us: headers_us,
        };
        if let Name::Segment(_, number) = name {
            // What is there already comes at once.
            let last = self.last_part(number);
            let there = self.newest(ready.max(self.available(name))).min(last);
            if there >= from {
                said.bytes.push((there, headers_us));
            }
            for part in from.max(there + 1)..=last {
                said.bytes.push((part, self.published(part).max(ready) + latency_us));
            }
            said.end_us = said.bytes.last().map_or(headers_us, |&(_, at)| at);
        }
        said
    }
}
