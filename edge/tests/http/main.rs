//! A tier over upstreams that the tests play by hand: no clocks but the tier's own, no sleeps.

mod answers;
mod cmcd;
mod confirm;
mod herd;
mod kit;
mod policy;
mod push;
mod ranges;
mod resume;
mod suite;
mod tiers;
mod tokens;
mod trouble;
mod viewers;
