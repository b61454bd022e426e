//! The Redis adapter against servers of its own: the contract, and what only Redis can do wrong.

#![cfg(test)]

mod bounds;
mod conformance;
mod faults;
mod ingest;
mod logs;
mod security;
mod server;
mod takeover;
