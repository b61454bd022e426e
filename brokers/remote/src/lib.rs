//! What the adapters of brokers on other machines share, whatever they speak.

mod failure;
mod topics;

pub use failure::Failure;
pub use topics::{Change, RemoteWatch, Topics};
