//! Who answers the callers of the writer. Waking a caller takes about as long as a small write: when there are many, a
//! thread of its own does it, while the writer writes the next batch.

use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

use super::jobs::Job;
use super::writer::Writer;
use crate::store::StoreError;

/// From so many callers on it is worth to wake the thread.
const MANY: usize = 16;

/// So many batches may wait for it. Beyond that the writer waits.
const BATCHES: usize = 8;

/// The jobs of a transaction, and why it is lost, if it is.
type Batch = (Vec<Box<dyn Job<Writer>>>, Option<StoreError>);

/// The thread. It answers whom it has been given, ends, and is waited for, when this is dropped.
pub(super) struct Answers {
    batches: Option<Sender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Answers {
    /// Starts the thread.
    pub(super) fn start() -> Result<Self, StoreError> {
        let (batches, given) = bounded(BATCHES);
        let thread = super::spawn("sqlite-answers", move || given.into_iter().for_each(answer))?;
        Ok(Self { batches: Some(batches), thread: Some(thread) })
    }

    /// Answers the callers of a transaction that has ended.
    pub(super) fn give(&self, batch: Batch) {
        match &self.batches {
            Some(batches) if batch.0.len() >= MANY => {
                if let Err(refused) = batches.send(batch) {
                    answer(refused.into_inner());
                }
            }
            _ => answer(batch),
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        drop(self.batches.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, whom it has not answered learns that the store is closed.
            drop(thread.join());
        }
    }
}

fn answer((jobs, lost): Batch) {
    for job in jobs {
        job.answer(lost.as_ref());
    }
}
