//! `runcast supervise`: what nodes start for each program of an agent; not for people.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::agent::process;

/// Runs a program until standard input ends, and leaves nothing of it.
#[derive(Debug, Args)]
pub(super) struct SuperviseArgs {
    /// How long the program may take to end after SIGTERM, in milliseconds.
    #[arg(long, value_name = "MS")]
    grace_ms: u64,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(super) fn supervise(args: &SuperviseArgs) -> ExitCode {
    process::supervise(&args.command, Duration::from_millis(args.grace_ms))
}
