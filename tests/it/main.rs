//! Drives the real binary over HTTP: every promise of the product, checked from outside.

#![cfg(test)]

mod api;
mod cancel;
mod cluster;
mod config;
mod embed;
mod fairness;
mod harness;
mod ingest;
mod lifecycle;
mod local_model;
mod model;
mod operate;
mod providers;
mod refuse;
mod retention;
mod schedules;
mod servers;
mod stream;
mod survive;
mod threads;
mod webhooks;
