//! Group commit: whatever waits goes into one statement, and each caller gets its own answer.
//!
//! A lane writes one batch at a time; what arrives meanwhile is the next. A run has one item in a batch, and items
//! are in the order of their runs' ids, so that batches of several nodes lock rows in the same order. A batch that
//! fails though the connection is good (one item breaks a constraint, or one row is locked by someone for long) is
//! written again item by item, so that each fails for itself.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::error::{Blame, Failure};
use super::link::Link;
use crate::run::RunId;
use crate::store::StoreError;

/// At most so many items share a statement. Bounds how long the first of them waits.
const BATCH: usize = 512;

/// A batch is full with so many bytes: those of one statement must get through within its time limit.
const BYTES: usize = 4 << 20;

/// So many items are accepted at a time; further callers wait their turn.
const WAITING: usize = 4_096;

/// What a lane writes.
#[async_trait]
pub(super) trait Item: Send + Sync + Sized + 'static {
    /// What the caller learns.
    type Answer: Send + 'static;
    /// What the lane remembers from one batch to the next.
    type Memory: Default + Send + 'static;

    /// The run that it is about.
    fn run(&self) -> RunId;

    /// About how large it is.
    fn bytes(&self) -> usize;

    /// Writes all of `items`, which are about different runs, in the order of their ids. The answers are in the
    /// same order; `None`: the item waits for the next batch.
    async fn write(link: &Link, items: &[&Self], memory: &mut Self::Memory) -> Result<Answers<Self>, Failure>;
}

/// The answers to the items of a batch.
pub(super) type Answers<T> = Vec<Option<Result<<T as Item>::Answer, StoreError>>>;

/// Where the items of one kind go.
pub(super) struct Lane<T: Item> {
    link: Arc<Link>,
    inbox: Mutex<Option<mpsc::Sender<Call<T>>>>,
    ended: watch::Receiver<()>,
}

struct Call<T: Item> {
    item: T,
    reply: oneshot::Sender<Result<T::Answer, StoreError>>,
}

impl<T: Item> Lane<T> {
    /// A lane on the current runtime.
    pub(super) fn new(link: &Arc<Link>) -> Self {
        let (inbox, calls) = mpsc::channel(WAITING);
        let (alive, ended) = watch::channel(());
        let writes = Arc::clone(link);
        tokio::spawn(async move {
            write_all(&writes, calls).await;
            drop(alive);
        });
        Self { link: Arc::clone(link), inbox: Mutex::new(Some(inbox)), ended }
    }

    /// Writes an item. Once it is accepted it is written, also when the caller does not wait.
    pub(super) async fn call(&self, item: T) -> Result<T::Answer, StoreError> {
        let inbox = self.inbox.lock().clone().ok_or(StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let answered = async {
            inbox.send(Call { item, reply }).await.map_err(|_| StoreError::Closed)?;
            drop(inbox);
            answer.await.unwrap_or(Err(StoreError::Closed))
        };
        // The batch before the item's own has its time, too.
        let late = || Err(StoreError::Unavailable("the write was not answered in time".to_owned()));
        timeout(self.link.limit() * 2, answered).await.unwrap_or_else(|_| late())
    }

    /// Accepts nothing more; what was accepted is still written.
    pub(super) fn end(&self) {
        self.inbox.lock().take();
    }

    /// Returns when the lane has written all that was accepted.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + use<T> {
        let mut ended = self.ended.clone();
        // Nothing is ever sent: this ends when the lane has ended.
        async move { drop(ended.changed().await) }
    }

    /// Accepts nothing more, and returns when all that was accepted is written.
    pub(super) async fn close(&self) {
        self.end();
        self.ended().await;
    }
}

async fn write_all<T: Item>(link: &Link, mut calls: mpsc::Receiver<Call<T>>) {
    let mut waiting = VecDeque::new();
    let mut memory = T::Memory::default();
    loop {
        if waiting.is_empty() {
            let Some(call) = calls.recv().await else { return };
            waiting.push_back(call);
        }
        let (mut batch, mut bytes, mut later) = (BTreeMap::new(), 0, VecDeque::new());
        // What waits for its run's turn must not keep others out.
        while batch.len() < BATCH
            && bytes < BYTES
            && later.len() < WAITING
            && let Some(call) = waiting.pop_front().or_else(|| calls.try_recv().ok())
        {
            match batch.entry(call.item.run()) {
                Entry::Vacant(free) => {
                    bytes += call.item.bytes();
                    free.insert(call);
                }
                Entry::Occupied(_) => later.push_back(call),
            }
        }
        later.append(&mut waiting);
        waiting = later;
        waiting.extend(write(link, batch.into_values().collect(), &mut memory).await);
    }
}

/// Writes a batch and answers its callers, but for those whose items wait for the next.
async fn write<T: Item>(link: &Link, batch: Vec<Call<T>>, memory: &mut T::Memory) -> Vec<Call<T>> {
    let items: Vec<&T> = batch.iter().map(|call| &call.item).collect();
    let answers = match T::write(link, &items, memory).await {
        Ok(answers) => answers,
        Err(failure) if failure.blame != Blame::Statement || items.len() == 1 => repeated(&failure.error, items.len()),
        Err(failure) => {
            tracing::debug!(error = %failure.error, items = items.len(), "a batch failed; its items are written one by one");
            one_by_one(link, &items, memory).await
        }
    };
    let mut again = Vec::new();
    for (call, answer) in batch.into_iter().zip(answers) {
        match answer {
            // Whoever asked may have gone.
            Some(answer) => drop(call.reply.send(answer)),
            None if !call.reply.is_closed() => again.push(call),
            None => {}
        }
    }
    again
}

async fn one_by_one<T: Item>(link: &Link, items: &[&T], memory: &mut T::Memory) -> Answers<T> {
    let mut answers = Vec::with_capacity(items.len());
    for item in items {
        match T::write(link, &[*item], memory).await {
            Ok(answer) => answers.extend(answer),
            Err(failure) if failure.blame != Blame::Statement => {
                answers.extend(repeated(&failure.error, items.len() - answers.len()));
                break;
            }
            Err(failure) => answers.push(Some(Err(failure.error))),
        }
    }
    answers
}

fn repeated<T>(error: &StoreError, times: usize) -> Vec<Option<Result<T, StoreError>>> {
    (0..times).map(|_| Some(Err(error.clone()))).collect()
}
