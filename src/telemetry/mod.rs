//! Logs and metrics.

mod logs;
mod metrics;

pub use logs::init;
pub use metrics::Metrics;
