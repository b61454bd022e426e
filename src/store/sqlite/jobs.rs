//! Work for the store's threads: closures, sent through a bounded channel and answered one by one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::{Semaphore, oneshot};

use crate::store::StoreError;

/// What a thread gets.
pub(super) enum Message<C> {
    /// Something to do.
    Work(Box<dyn Job<C>>),
    /// Nothing more will come.
    Stop,
}

/// Something to do on the state `C` of a thread.
pub(super) trait Job<C>: Send {
    /// Does it and keeps the result; also again, when what it did was undone. A panic is an error like another.
    fn run(&mut self, on: &mut C) -> Result<(), StoreError>;

    /// Hands the result to the caller; `failed` if what the job did was undone after all.
    fn answer(self: Box<Self>, failed: Option<&StoreError>);
}

struct Call<F, T> {
    work: F,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<C, F, T> Job<C> for Call<F, T>
where
    F: FnMut(&mut C) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn run(&mut self, on: &mut C) -> Result<(), StoreError> {
        let result = catch_unwind(AssertUnwindSafe(|| (self.work)(on)))
            .unwrap_or_else(|panic| Err(StoreError::Corrupt(format!("the store panicked: {}", text_of(&*panic)))));
        let outcome = result.as_ref().map(|_| ()).map_err(Clone::clone);
        self.result = Some(result);
        outcome
    }

    fn answer(self: Box<Self>, failed: Option<&StoreError>) {
        let answer = match (self.result, failed) {
            (Some(Err(own)), _) => Err(own),
            (_, Some(failed)) => Err(failed.clone()),
            (Some(Ok(value)), None) => Ok(value),
            (None, None) => Err(StoreError::Closed),
        };
        // Whoever asked may have gone.
        drop(self.reply.send(answer));
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Where callers enter: at most `capacity` jobs are accepted at a time, further callers wait in order.
pub(super) struct Gate<C> {
    inbox: Sender<Message<C>>,
    room: Semaphore,
    threads: usize,
}

impl<C: 'static> Gate<C> {
    /// A gate to `threads` threads that all read from the receiver.
    pub(super) fn new(capacity: usize, threads: usize) -> (Self, Receiver<Message<C>>) {
        // One place a thread is left for its stop.
        let (inbox, work) = crossbeam_channel::bounded(capacity + threads);
        (Self { inbox, room: Semaphore::new(capacity), threads }, work)
    }

    /// Runs `work` on a thread. Once it is accepted it is done, also when the caller does not wait. The writer may undo
    /// it and run it again before it is answered: it must not change anything but what it is given.
    pub(super) async fn call<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnMut(&mut C) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let permit = self.room.acquire().await.map_err(|_| StoreError::Closed)?;
        permit.forget();
        let (reply, answer) = oneshot::channel();
        let call = Call { work, result: None, reply };
        self.inbox.try_send(Message::Work(Box::new(call))).map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Lets `jobs` further callers in.
    pub(super) fn finished(&self, jobs: usize) {
        self.room.add_permits(jobs);
    }

    /// Nobody is let in any more.
    pub(super) fn is_closed(&self) -> bool {
        self.room.is_closed()
    }

    /// Lets nobody in any more. The threads end when they have done what was accepted before.
    pub(super) fn close(&self) {
        if self.is_closed() {
            return;
        }
        self.room.close();
        for _ in 0..self.threads {
            // Fails only when the thread is gone already.
            drop(self.inbox.try_send(Message::Stop));
        }
    }
}
