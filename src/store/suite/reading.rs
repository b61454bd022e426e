//! Lists and logs.

use std::collections::BTreeMap;

use super::Harness;
use super::kit::*;
use crate::run::{Event, Run, RunId, Segment, Spec, Status, Tenant};
use crate::store::{RunFilter, RunStore, StoreError, Stored};

/// Runs of every status, of two tenants and two agents, in no order; returns those of `tenant()`.
async fn populate(store: &dyn RunStore) -> Vec<Run> {
    let statuses = Status::ALL.into_iter().filter(|status| *status != Status::Waiting);
    let mut number = 100;
    for status in statuses.clone().chain(statuses) {
        number += 1;
        run_in(store, number, status).await;
        // Whatever is still queued would be claimed by the next case of this list.
        if status == Status::Queued {
            claim(store, 1).await;
        }
    }
    for (number, labels, time) in [(5, "red", 10), (210, "red", 2_000), (150, "blue", 1_000), (7, "red", 1_000)] {
        let metadata = BTreeMap::from([("team".into(), labels.into()), ("n".into(), number.to_string())]);
        let created_at = seconds(time);
        create(store, Spec { metadata, agent: "mail".into(), created_at, ..spec(number) }).await;
    }
    for number in [1, 120, 300] {
        create(store, Spec { tenant: Tenant::new("acme"), ..spec(number) }).await;
    }
    let mut runs = Vec::new();
    for number in 1..400 {
        runs.extend(store.get(&tenant(), id(number)).await.unwrap().map(|stored| stored.run));
    }
    runs.reverse();
    assert_eq!(runs.len(), 18);
    runs
}

async fn page_through(store: &dyn RunStore, filter: &RunFilter, limit: usize) -> Vec<Run> {
    let (mut runs, mut before) = (Vec::new(), filter.before);
    loop {
        let page = store.list(&tenant(), RunFilter { before, ..filter.clone() }, limit).await.unwrap();
        assert!(page.len() <= limit);
        let Some(last) = page.last() else { return runs };
        assert!(before.is_none_or(|before| last.run.spec.id < before));
        before = Some(last.run.spec.id);
        runs.extend(page.into_iter().map(|stored| stored.run));
    }
}

pub(crate) async fn runs_are_listed_by_stable_pages(harness: &mut dyn Harness) {
    let store = harness.store();
    let expected = populate(&*store).await;
    for limit in [1, 4, 17, 18, 100] {
        assert_eq!(page_through(&*store, &RunFilter::default(), limit).await, expected, "{limit}");
    }
    // Runs that come or go meanwhile shift no page.
    let first = store.list(&tenant(), RunFilter::default(), 5).await.unwrap();
    create(&*store, spec(399)).await;
    store.delete(&tenant(), first[1].run.spec.id).await.unwrap();
    let before = Some(first[4].run.spec.id);
    let rest = page_through(&*store, &RunFilter { before, ..RunFilter::default() }, 5).await;
    assert_eq!(rest, expected[5..]);
    // A page shows what `get` shows.
    let stored: Vec<Stored> = store.list(&tenant(), RunFilter::default(), 100).await.unwrap();
    for stored in stored {
        assert_eq!(get(&*store, stored.run.spec.id).await, stored);
    }
}

pub(crate) async fn runs_are_listed_by_each_filter(harness: &mut dyn Harness) {
    let store = harness.store();
    let all = populate(&*store).await;
    let labels = |labels: &[(&str, &str)]| {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let none = RunFilter::default();
    let mut filters: Vec<RunFilter> = Vec::new();
    filters.extend(Status::ALL.map(|status| RunFilter { statuses: vec![status], ..none.clone() }));
    filters.extend([
        RunFilter { statuses: Status::ALL.to_vec(), ..none.clone() },
        RunFilter { statuses: vec![Status::Failed, Status::Queued, Status::Completed, Status::Failed], ..none.clone() },
        RunFilter { agent: Some("mail".into()), ..none.clone() },
        RunFilter { agent: Some("nobody".into()), ..none.clone() },
        RunFilter { metadata: labels(&[("team", "red")]), ..none.clone() },
        RunFilter { metadata: labels(&[("team", "red"), ("n", "7")]), ..none.clone() },
        RunFilter { metadata: labels(&[("team", "7")]), ..none.clone() },
        RunFilter { created_after: Some(seconds(1_000)), ..none.clone() },
        RunFilter { created_before: Some(seconds(1_000)), ..none.clone() },
        RunFilter { created_after: Some(seconds(10)), created_before: Some(seconds(11)), ..none.clone() },
        RunFilter { before: Some(id(150)), statuses: vec![Status::Running, Status::Queued], ..none.clone() },
        RunFilter { agent: Some("mail".into()), statuses: vec![Status::Queued], ..none.clone() },
    ]);
    for filter in filters {
        let expected: Vec<_> = all.iter().filter(|run| matches(run, &filter)).cloned().collect();
        for limit in [2, 100] {
            assert_eq!(page_through(&*store, &filter, limit).await, expected, "{filter:?}");
        }
    }
}

fn matches(run: &Run, filter: &RunFilter) -> bool {
    let spec = &run.spec;
    filter.before.is_none_or(|before| spec.id < before)
        && (filter.statuses.is_empty() || filter.statuses.contains(&run.status))
        && filter.agent.as_ref().is_none_or(|agent| spec.agent == *agent)
        && filter.metadata.iter().all(|(key, value)| spec.metadata.get(key) == Some(value))
        && filter.created_after.is_none_or(|after| spec.created_at >= after)
        && filter.created_before.is_none_or(|before| spec.created_at < before)
}

pub(crate) async fn a_log_can_be_read_from_every_number(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    for size in [1, 5, 2, 40, 3] {
        let events: Vec<_> = (0..size).map(|n| Event::Log { level: "info", message: "x".repeat(n * 10) }).collect();
        let commit_of = owner.events(&events, now());
        commit(&*store, commit_of).await;
    }
    let neighbour = Owner::of_new(&*store, 2).await;
    assert_eq!(neighbour.run.last_seq, 3);

    let all = store.segments(id(1), 0, usize::MAX).await.unwrap();
    assert_eq!(all.iter().map(Segment::first_seq).collect::<Vec<_>>(), [1, 3, 4, 5, 10, 12, 52]);
    let last = owner.run.last_seq;
    for after in 0..=last + 3 {
        for max_bytes in [0, 200, 2_000, usize::MAX] {
            read_on(&*store, id(1), after, max_bytes, &all).await;
        }
    }
    assert_eq!(store.segments(id(1), u64::MAX, usize::MAX).await.unwrap(), []);
    assert_eq!(store.segments(id(3), 0, usize::MAX).await.unwrap(), []);
}

/// Reads the log after `after` to its end, and compares it with the same part of `all`.
async fn read_on(store: &dyn RunStore, id: RunId, after: u64, max_bytes: usize, all: &[Segment]) {
    let expected: Vec<_> = all.iter().filter(|segment| segment.last_seq() > after).cloned().collect();
    let (mut read, mut cursor) = (Vec::new(), after);
    loop {
        let part = store.segments(id, cursor, max_bytes).await.unwrap();
        let bytes: usize = part.iter().map(|segment| segment.bytes().len()).sum();
        assert!(part.len() <= 1 || bytes <= max_bytes);
        let Some(last) = part.last() else { break };
        assert!(last.last_seq() > cursor);
        cursor = last.last_seq();
        read.extend(part);
    }
    assert_eq!(read, expected, "after {after}, {max_bytes} bytes at a time");
}

pub(crate) async fn a_closed_store_refuses_everything(harness: &mut dyn Harness) {
    let store = harness.store();
    create(&*store, spec(1)).await;
    store.health().await.unwrap();
    let accepted = futures_util::future::join_all((2..=40).map(|number| store.create(new_run(spec(number), None, 0))));
    let (outcomes, ()) = tokio::join!(accepted, store.close());
    let accepted = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
    assert_eq!(accepted, 39, "what was accepted before is finished");
    store.close().await;
    assert!(matches!(store.create(new_run(spec(50), None, 0)).await, Err(StoreError::Closed)));
    assert!(matches!(store.get(&tenant(), id(1)).await, Err(StoreError::Closed)));
    assert!(matches!(store.segments(id(1), 0, 1).await, Err(StoreError::Closed)));
    assert!(matches!(store.counts().await, Err(StoreError::Closed)));
    assert!(matches!(store.health().await, Err(StoreError::Closed)));
    let store = harness.restart().await;
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 40);
}
