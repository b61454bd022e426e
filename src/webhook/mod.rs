//! Webhooks: what is sent, how it is signed, when it is tried again, and where it may go.
//!
//! The scheme is [Standard Webhooks](https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp` and
//! `webhook-signature` beside a body of `type`, `timestamp` and `data`.
//!
//! | file | owns |
//! | --- | --- |
//! | `sign.rs` | signatures and the secrets they are made with, pure |
//! | `schedule.rs` | the waits between attempts, pure |
//! | `keys.rs` | the master key, from which all secrets are derived |
//! | `client.rs` | the one place that sends, through [`net`](crate::net) |

mod client;
mod keys;
mod schedule;
mod sign;

use serde::Serialize;

use crate::run::{Timestamp, WebhookEvent};

pub use client::{Client, SendError};
pub use keys::{KeyError, Keys, MasterKey};
pub use schedule::delay;
pub use sign::{Secret, headers};

/// The body of a webhook.
#[derive(Debug, Serialize)]
pub struct Payload<'a, D: Serialize> {
    /// What has happened.
    #[serde(rename = "type")]
    pub event: WebhookEvent,
    /// When.
    pub timestamp: Timestamp,
    /// What it has happened to.
    pub data: &'a D,
}
