//! Starts AI-agent runs over HTTP, executes them on actors, streams their tokens over SSE, survives crashes
//! and deploys, and never loses a run.
//!
//! An embedding service builds a [`Runcast`] with its own agents and mounts the API in its actix-web
//! application; `examples/embedded.rs` does it.
//!
//! Where things are:
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`run`] | the state machine, pure: status, command, event, effect; frames; retry arithmetic |
//! | [`engine`] | the actors that execute runs, and the handle to them: supervisor, run actor, timers, feed, dispatcher, recovery |
//! | [`schedule`] | when a schedule fires: cron in a time zone, pure |
//! | [`thread`] | what belongs to conversations: hours within which something may happen, pure |
//! | [`ingest`] | from the messages of foreign producers to wishes for runs, pure |
//! | [`agent`] | what executes a run: the trait; the model agent with its providers and tools; programs and services; the scripted agent |
//! | [`store`] | the truth: the contract, the SQLite adapter |
//! | [`api`] | the HTTP API over the engine's handle |
//! | [`app`] | the composition root: start order, drain order |
//! | [`config`], [`cli`] | configuration, command line |
//! | [`clock`], [`telemetry`] | the one wall clock; logs and metrics |
//! | [`net`] | calls to where users and models may send us: which URLs, which addresses |
//! | [`webhook`] | what is told to URLs: signatures, when to try again |
//!
//! Brokers are crates of their own, which depend on `runcast-broker` alone.

pub mod agent;
pub mod api;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod ingest;
pub mod net;
pub mod run;
pub mod schedule;
pub mod store;
pub mod telemetry;
pub mod thread;
pub mod webhook;

pub use app::{Builder, Runcast, StartError};
