//! The whole system with real peers: ffmpeg broadcasts, ffprobe, curl-like clients and headless Chromium watch.
//! One binary, a module per story. Stories that need real time share the machine by turns, or they would starve one another
//! (`kit::real_time`).

#![expect(unreachable_pub, reason = "the modules of one test binary share their items plainly")]

mod admin;
mod api;
mod archive;
mod arrows;
mod bad_input;
#[path = "../kit/boxes.rs"]
mod boxes;
mod browser;
mod cli;
mod commands;
mod console;
mod dashboards;
mod encoders;
mod endurance;
#[path = "../../cluster/tests/kit/mod.rs"]
mod etcd;
mod failover;
mod fleet;
#[expect(dead_code, reason = "other tests read durations too")]
#[path = "../kit/fragments.rs"]
mod fragments;
mod frames;
mod herd;
mod keys;
mod kit;
#[path = "../kit/lint.rs"]
mod lint;
mod lints;
mod mpd;
#[path = "../kit/numbered.rs"]
mod numbered;
mod ownership;
mod packaging;
mod players;
#[path = "../kit/playlists.rs"]
mod playlists;
mod policy;
mod publisher;
mod push;
mod reconnect;
mod reload;
mod shaka;
mod soak;
mod succession;
mod takeover;
mod timed;
mod tokens;
mod upgrade;
mod vod;
