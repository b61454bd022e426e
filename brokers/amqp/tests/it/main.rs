//! The RabbitMQ adapter against servers of its own: the contract, and what only RabbitMQ can do wrong.

#![cfg(test)]

mod bounds;
mod conformance;
mod faults;
mod ingest;
mod security;
mod server;
mod steps;
