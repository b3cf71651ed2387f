//! The HTTP server against peers that behave, and peers that do not: raw sockets on loopback, frames written by hand.

mod hostile_h1;
mod hostile_h2;
mod kit;
mod parked;
mod priorities;
