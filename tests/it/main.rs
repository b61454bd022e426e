//! Drives the real binary over HTTP: every promise of the product, checked from outside.

#![cfg(test)]

mod api;
mod cancel;
mod config;
mod embed;
mod harness;
mod lifecycle;
mod local_model;
mod model;
mod refuse;
mod stream;
mod survive;
