//! Many at once: what is said into threads while their runs come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use rand::RngExt as _;

use super::Harness;
use super::kit::{self, Owner, id, now, seconds, tenant};
use super::threads::{found, last, message, quiet, thread, thread_id};
use crate::run::{Command, Retry, RunId, Status, ThreadId, Timestamp};
use crate::store::{Admitted, Committed, IdempotencyKey, RunFilter, Store, StoreError};
use crate::thread::{How, OnBusy, Refusal};

/// Tries again what the store could not do in time, but not what it should never have come to.
async fn patiently<T>(mut ask: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(StoreError::Unavailable(text)) if !text.contains("deadlock") => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Executes what there is to execute, one way or another, until nothing is left.
async fn work(store: &dyn Store, senders: &AtomicU64) {
    let agents: Arc<[_]> = Arc::new([("chat".to_owned(), "1".to_owned())]);
    loop {
        let idle = senders.load(Ordering::Acquire) == 0
            && patiently(async || store.counts().await).await.values().all(|count| *count == 0);
        if idle {
            return;
        }
        for timer in patiently(async || store.timers(Timestamp::MAX, None, 10).await).await {
            if let Some((run, command)) = timer.of_run() {
                patiently(async || store.transition(None, run, command.clone(), timer.due).await).await;
            }
        }
        let claim = crate::store::Claim {
            node: "node-1".into(),
            agents: Arc::clone(&agents),
            room: 2,
            reserve: 10,
            lease: kit::LEASE,
            now: now(),
            turn: 0,
            limits: Arc::default(),
        };
        for claimed in patiently(async || store.claim(claim.clone()).await).await {
            finish(store, Owner::from(claimed)).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn finish(store: &dyn Store, mut owner: Owner) {
    let (run, attempt) = (owner.id(), owner.run.attempt);
    let tokens = owner.tokens(&["a", "b"]);
    patiently(async || store.commit(tokens.clone()).await).await;
    let mut way = rand::rng().random_range(0..6);
    loop {
        let mut next = owner.clone();
        let commit = match way {
            0 => last(next.fail(Retry::Never), "half"),
            1 => match next.fail(kit::after(1)) {
                commit if commit.run.status.is_final() => last(commit, "half"),
                commit => commit,
            },
            2 => {
                patiently(async || store.give_up(run, attempt, now()).await).await;
                return;
            }
            3 => last(next.decide(&Command::Cancel), "half"),
            _ => last(next.complete(), "whole"),
        };
        match patiently(async || store.commit(commit.clone()).await).await {
            Committed::SteerWaits => {
                let taken = patiently(async || store.take_steers(run, attempt, 0).await).await;
                assert!(!taken.is_empty());
            }
            Committed::CancelWaits => way = 3,
            Committed::Done | Committed::Followed(_) | Committed::Fenced => return,
        }
    }
}

/// Sends 25 messages, and says which were accepted, where, and whether they were handed to a run that was there.
async fn send(store: &dyn Store, sender: u64, threads: u64, senders: &AtomicU64) -> Vec<(u64, ThreadId, bool)> {
    let mut accepted = Vec::new();
    for number in 1..=25 {
        let number = sender * 100 + number;
        let (thread, on_busy, calm, stop) = {
            let mut random = rand::rng();
            let on_busy = OnBusy::ALL[random.random_range(0..OnBusy::ALL.len())];
            let thread = thread_id(random.random_range(1..=threads));
            (thread, on_busy, random.random_range(0..4) == 0, random.random_range(0..5) == 0)
        };
        let mut admission = message(thread, number, on_busy);
        if calm {
            admission = quiet(admission);
        }
        let (key, fingerprint) = (number.to_string(), [1; 32]);
        admission.key = Some(IdempotencyKey { route: "/m", key, fingerprint, valid_after: seconds(0) });
        match patiently(async || store.admit(admission.clone()).await).await {
            Admitted::Done(moved) => accepted.push((number, thread, matches!(moved.how, How::Steered(_)))),
            // It came in before, though nobody said so in time.
            Admitted::Existing { .. } | Admitted::Refused(Refusal::Busy { .. }) => {}
            other @ (Admitted::KeyReused
            | Admitted::TooManyWaiting
            | Admitted::TooManyOfTenant
            | Admitted::Missing
            | Admitted::Refused(Refusal::Full { .. } | Refusal::HandedOff | Refusal::StaleTimer)) => {
                panic!("{other:?}")
            }
        }
        if stop {
            patiently(async || store.transition(None, id(number), Command::Cancel, now()).await).await;
        }
    }
    senders.fetch_sub(1, Ordering::AcqRel);
    accepted
}

pub(crate) async fn many_messages_at_once_keep_their_order_and_their_runs(harness: &mut impl Harness) {
    const THREADS: u64 = 3;
    let stores = [harness.store(), harness.another()];
    for number in 1..=THREADS {
        thread(&*stores[0], number).await;
    }
    let senders = &AtomicU64::new(8);
    let store = |number: u64| if number.is_multiple_of(2) { &*stores[0] } else { &*stores[1] };
    let sending = (0..8_u64).map(|sender| async move { send(store(sender), sender, THREADS, senders).await });
    let working = (0..4_u64).map(|worker| async move { work(store(worker), senders).await });
    let watching = async {
        while senders.load(Ordering::Acquire) > 0 {
            for number in 1..=THREADS {
                let statuses = vec![Status::Running];
                let filter = RunFilter { thread: Some(thread_id(number)), statuses, ..RunFilter::default() };
                let active = patiently(async || store(0).list(&tenant(), filter.clone(), 9).await).await;
                assert!(active.len() <= 1, "{active:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let all = async { tokio::join!(join_all(sending), join_all(working), watching).0 };
    let accepted = tokio::time::timeout(Duration::from_secs(180), all).await.expect("nothing is left over").concat();

    let store = &*stores[0];
    assert!(!accepted.is_empty());
    for number in 1..=THREADS {
        let thread = thread_id(number);
        let filter = RunFilter { thread: Some(thread), ..RunFilter::default() };
        let runs = store.list(&tenant(), filter, 1_000).await.unwrap();
        assert!(runs.iter().all(|stored| stored.run.status.is_final()));
        let kept = found(store, thread).await;
        assert_eq!((kept.holder, kept.dropping), (None, false));
        let mut given: BTreeMap<String, Vec<RunId>> = BTreeMap::new();
        for stored in &runs {
            for message in stored.run.spec.input.clone().into_messages() {
                given.entry(message.content.text().into_owned()).or_default().push(stored.run.spec.id);
            }
        }
        let messages = store.messages(thread, 0, 1_000).await.unwrap();
        assert!(messages.iter().map(|message| message.seq).eq(1..=kept.last_message));
        for (number, _, steered) in accepted.iter().filter(|accepted| accepted.1 == thread) {
            let text = format!("m{number}");
            let said: Vec<_> = messages.iter().filter(|message| message.message.content == text).collect();
            assert_eq!(said.len(), 1, "{text}");
            let run = said[0].run.expect("it has a run");
            match steered {
                true => assert!(runs.iter().any(|stored| stored.run.spec.id == run)),
                false => assert_eq!(given.get(&text), Some(&vec![run]), "{text}"),
            }
        }
    }
}
