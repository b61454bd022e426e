//! What the owner of a running run has decided.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::log::{self, NewSegment, NewStep};
use super::rows::{Binder, state_columns};
use super::timers::{self, Armed};
use super::transition::forget_commands;
use super::writer::Writer;
use super::{dead_letters, threads, webhooks};
use crate::run::{Run, RunId, Status, Timestamp};
use crate::store::spelling::{integer, json, unsigned};
use crate::store::{Commit, Committed, Farewell, StoreError};

/// A commit, ready to be written: what costs time is encoded by the caller.
pub(super) struct Decided {
    run: Run,
    number: u64,
    segment: Option<NewSegment>,
    reserved_seq: u64,
    step: Option<NewStep>,
    output: Option<String>,
    farewell: Option<Farewell>,
    at: Option<Timestamp>,
}

/// Whose a run is, as far as a commit is concerned.
enum Owner {
    /// The committing attempt's, whose next commit this is.
    Us,
    /// The committing attempt's, and this commit is written already.
    UsAlready,
    /// Not, or no longer, the committing attempt's.
    Other,
}

impl Decided {
    pub(super) fn new(commit: Commit) -> Result<Self, StoreError> {
        Ok(Self {
            at: webhooks::recorded(commit.segment.as_ref()),
            segment: commit.segment.as_ref().map(NewSegment::new),
            step: commit.step.map(NewStep::new).transpose()?,
            output: commit.run.output.as_ref().map(json).transpose()?,
            farewell: commit.farewell,
            run: commit.run,
            number: commit.number,
            reserved_seq: commit.reserved_seq,
        })
    }

    /// Writes it, if the attempt still owns the run.
    pub(super) fn write(&self, writer: &mut Writer) -> Result<Committed, StoreError> {
        let (conn, id) = (writer.conn(), self.run.spec.id);
        let leaves = self.run.status != Status::Running;
        if leaves && self.run.status != Status::Cancelled && cancel_waits(conn, id)? {
            return Ok(match self.owner(conn)? {
                Owner::Us => Committed::CancelWaits,
                Owner::UsAlready => Committed::Done,
                Owner::Other => Committed::Fenced,
            });
        }
        if self.run.status == Status::Completed && self.farewell.is_some() && threads::has_unread(conn, id)? {
            return Ok(match self.owner(conn)? {
                Owner::Us => Committed::SteerWaits,
                Owner::UsAlready => Committed::Done,
                Owner::Other => Committed::Fenced,
            });
        }
        let updated = if leaves { self.leave(conn)? } else { self.go_on(conn)? };
        if updated == 0 {
            return Ok(match self.owner(conn)? {
                Owner::UsAlready => Committed::Done,
                Owner::Us | Owner::Other => Committed::Fenced,
            });
        }
        if let Some(segment) = &self.segment {
            log::append(conn, id, segment)?;
        }
        if let Some(step) = &self.step {
            log::keep_step(conn, id, step)?;
        }
        if leaves {
            // A running run has no timer.
            timers::follow(conn, Armed::default(), &self.run)?;
            if let Some(output) = &self.output {
                conn.prepare_cached("INSERT INTO results (run_id, output) VALUES (?, ?)")?
                    .execute(params![id.as_bytes(), output])?;
            }
            if self.run.status.is_final() {
                forget_commands(conn, id)?;
                dead_letters::bury_failed(conn, &self.run)?;
            }
            webhooks::put(writer, &self.run, Status::Running, self.at)?;
            // One that goes back to the queue keeps its rank, which its lane has gone beyond.
            writer.moved(&self.run.spec, Some(Status::Running), self.run.status, 0);
        }
        if let Some(farewell) = &self.farewell
            && let Some(followed) = threads::follow(writer, &self.run, Some(farewell), farewell.now)?
        {
            return Ok(Committed::Followed(followed));
        }
        Ok(Committed::Done)
    }

    fn go_on(&self, conn: &Connection) -> Result<usize, StoreError> {
        let mut statement = conn.prepare_cached(concat!(
            "UPDATE runs SET ",
            state_columns!(),
            " WHERE id = ? AND status = 'running' AND attempt = ? AND commit_number = ?"
        ))?;
        let mut binder = Binder::new(&mut statement);
        binder.bind_state(&self.run, self.reserved_seq, self.number)?;
        self.bind_fence(&mut binder)?;
        Ok(binder.execute()?)
    }

    fn leave(&self, conn: &Connection) -> Result<usize, StoreError> {
        let mut statement = conn.prepare_cached(concat!(
            "UPDATE runs SET status = ?, finished_at = ?, ",
            state_columns!(),
            " WHERE id = ? AND status = 'running' AND attempt = ? AND commit_number = ?"
        ))?;
        let mut binder = Binder::new(&mut statement);
        binder.bind(self.run.status.as_str())?;
        binder.bind(self.run.finished_at.map(Timestamp::as_millis))?;
        // What was reserved beyond the last event will not be used.
        binder.bind_state(&self.run, self.run.last_seq, self.number)?;
        self.bind_fence(&mut binder)?;
        Ok(binder.execute()?)
    }

    fn bind_fence(&self, binder: &mut Binder<'_, '_>) -> rusqlite::Result<()> {
        binder.bind(self.run.spec.id.as_bytes())?;
        binder.bind(self.run.attempt)?;
        binder.bind(integer(self.number) - 1)
    }

    fn owner(&self, conn: &Connection) -> Result<Owner, StoreError> {
        let found = conn
            .prepare_cached("SELECT attempt, commit_number, status = 'running' FROM runs WHERE id = ?")?
            .query_row([self.run.spec.id.as_bytes()], |row| {
                Ok((row.get::<_, u32>(0)?, unsigned(row.get(1)?), row.get::<_, bool>(2)?))
            })
            .optional()?;
        Ok(match found {
            Some((attempt, number, _)) if attempt == self.run.attempt && number == self.number => Owner::UsAlready,
            Some((attempt, number, true)) if attempt == self.run.attempt && number + 1 == self.number => Owner::Us,
            Some(_) | None => Owner::Other,
        })
    }
}

fn cancel_waits(conn: &Connection, id: RunId) -> Result<bool, StoreError> {
    Ok(conn.prepare_cached("SELECT 1 FROM commands WHERE run_id = ? AND kind = 'cancel'")?.exists([id.as_bytes()])?)
}
