//! Schedules: runs that start by the clock. PURE: no IO, no clock, no async, nothing else of ours but the types of
//! a run.
//!
//! [`Timetable`] says when a cron expression fires, [`due`] what happens about a firing, [`run_id`] which run it
//! makes: the same on every node and after every crash, so that one planned time makes one run.

mod cron;
#[cfg(test)]
mod tests;
pub mod zone;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::run::{Input, OnDisconnect, RunId, ThreadId, Timestamp};
use crate::thread::OnBusy;

pub use cron::{Firing, InvalidTimetable, Missed, Timetable, due};

/// What each run of a schedule is asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Which agent.
    pub agent: String,
    /// What it is given.
    pub input: Input,
    /// Its options.
    #[serde(default)]
    pub params: serde_json::Map<String, serde_json::Value>,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i32,
    /// It expires if it has not started so long after its creation, in milliseconds.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
    /// Bounds its running time, in milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Bounds its attempts.
    #[serde(default)]
    pub max_attempts: Option<u32>,
    /// What happens when its last viewer hangs up.
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
    /// The conversation that each run belongs to.
    #[serde(default)]
    pub thread_id: Option<ThreadId>,
    /// What happens when another run holds the thread.
    #[serde(default)]
    pub on_busy: Option<OnBusy>,
    /// The caller's labels.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// The id of the run that the firing of `schedule` planned for `planned` makes: a UUID of version 7 with that time,
/// whose other bits are a digest of both. The schedule's number is no part of it: a change of the schedule in the
/// middle of a firing must not make the same planned time another one.
#[must_use]
pub fn run_id(schedule: Uuid, planned: Timestamp) -> RunId {
    let millis = u64::try_from(planned.as_millis()).unwrap_or(0);
    let digest = Sha256::new()
        .chain_update(b"runcast schedule\0")
        .chain_update(schedule.as_bytes())
        .chain_update(millis.to_be_bytes())
        .finalize();
    let mut random = [0; 10];
    random.copy_from_slice(&digest[..10]);
    RunId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}
