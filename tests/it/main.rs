//! Drives the real binary over HTTP: every promise of the product, checked from outside.

#![cfg(test)]

mod agents;
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
mod programs;
mod providers;
mod refuse;
mod remote;
mod retention;
mod schedules;
mod servers;
mod stream;
mod survive;
mod threads;
mod tools;
mod webhooks;
