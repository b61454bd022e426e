//! Several nodes on one database: leases, races, and what one may cost another.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;

use super::server::Postgres;
use super::{Harness, Place, PostgresOptions, PostgresStore, soon, up};
use crate::run::{Command, Event, Failure, Rejection, Retry, RunError, Status};
use crate::store::suite::{self, kit};
use crate::store::{Committed, Created, DeadLetterStore, RunStore, StoreError, Transition};
use crate::thread::OnBusy;

#[tokio::test]
async fn of_two_nodes_no_run_is_claimed_twice() {
    let Some(place) = Place::fresh().await else { return };
    let nodes = [place.store(), place.store()];
    join_all((1..=200).map(|number| kit::create(&*nodes[0], kit::spec(number)))).await;
    let claims = (0..40).map(|turn| kit::claim(&*nodes[turn % 2], 7));
    let mut claimed: Vec<_> = join_all(claims).await.into_iter().flatten().map(|taken| taken.run.spec.id).collect();
    loop {
        let more = kit::claim(&*nodes[1], 200).await;
        if more.is_empty() {
            break;
        }
        claimed.extend(more.into_iter().map(|taken| taken.run.spec.id));
    }
    assert_eq!(claimed.len(), 200);
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>().len(), 200);
}

#[tokio::test]
async fn a_claim_passes_over_what_another_has_locked() {
    let Some(mut place) = Place::fresh().await else { return };
    let store = place.store();
    join_all((1..=300).map(|number| kit::create(&*store, kit::spec(number)))).await;
    let theirs = place.admin.transaction().await.unwrap();
    theirs.batch_execute("SELECT FROM runcast_runs ORDER BY id LIMIT 250 FOR UPDATE").await.unwrap();
    let claimed = kit::claim(&*store, 3).await;
    assert_eq!(claimed.iter().map(|taken| taken.run.spec.id).collect::<Vec<_>>(), [251, 252, 253].map(kit::id));
    theirs.rollback().await.unwrap();
    assert_eq!(kit::claim(&*store, 1).await[0].run.spec.id, kit::id(1));
}

#[tokio::test]
async fn an_expired_lease_is_recovered_by_exactly_one_of_two_nodes() {
    let Some(place) = Place::fresh().await else { return };
    let nodes = [place.store(), place.store()];
    let mut owners = Vec::new();
    for number in 1..=20 {
        owners.push(kit::Owner::of_new(&*nodes[0], number).await);
    }
    assert_eq!(nodes[1].recover(kit::now(), 100).await.unwrap(), [], "their leases have not ended");
    place.end_leases().await;
    let both = join_all(nodes.iter().map(|node| node.recover(kit::now(), 100))).await;
    let both: Vec<usize> = both.into_iter().map(|recovered| recovered.unwrap().len()).collect();
    assert_eq!(both.iter().sum::<usize>(), 20, "{both:?}");
    for mut owner in owners {
        assert_eq!(kit::status(&*nodes[1], owner.id()).await, Status::Queued);
        assert_eq!(nodes[0].commit(owner.tokens(&["late"])).await.unwrap(), Committed::Fenced);
    }
}

#[tokio::test]
async fn an_expired_lease_that_nobody_took_can_be_extended() {
    let Some(place) = Place::fresh().await else { return };
    let nodes = [place.store(), place.store()];
    let mut owner = kit::Owner::of_new(&*nodes[0], 1).await;
    place.end_leases().await;
    assert_eq!(nodes[0].extend(&[(owner.id(), 1)], kit::LEASE).await.unwrap().len(), 1);
    assert_eq!(nodes[1].recover(kit::now(), 9).await.unwrap(), []);
    kit::commit(&*nodes[0], owner.tokens(&["on"])).await;
}

#[tokio::test]
async fn a_stale_pair_does_not_keep_a_newer_attempt_alive() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    let mut owner = kit::Owner::of_new(&*store, 1).await;
    kit::commit(&*store, owner.decide(&Command::Release { attempt: 1 })).await;
    assert_eq!(kit::Owner::next(&*store).await.run.attempt, 2);
    place.end_leases().await;
    assert_eq!(store.extend(&[(owner.id(), 1)], kit::LEASE).await.unwrap(), []);
    assert_eq!(store.recover(kit::now(), 9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn leases_are_as_long_as_they_were_asked_for() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    let owner = kit::Owner::of_new(&*store, 1).await;
    let left = "SELECT extract(epoch FROM lease_until - clock_timestamp())::bigint FROM runcast_runs";
    let claimed = place.number(left).await;
    assert!((590..=600).contains(&claimed), "{claimed}");
    store.extend(&[(owner.id(), 1)], Duration::from_secs(60)).await.unwrap();
    let extended = place.number(left).await;
    assert!((50..=60).contains(&extended), "{extended}");
}

#[tokio::test]
async fn a_cancel_that_races_a_finish_is_never_lost() {
    let Some(place) = Place::fresh().await else { return };
    let nodes = [place.store(), place.store()];
    for number in 1..=150 {
        let mut owner = kit::Owner::of_new(&*nodes[0], number).await;
        let complete = owner.complete();
        let cancel = nodes[1].transition(None, kit::id(number), Command::Cancel, kit::now());
        let (handed, committed) = if number % 2 == 0 {
            tokio::join!(cancel, nodes[0].commit(complete))
        } else {
            let (committed, handed) = tokio::join!(nodes[0].commit(complete), cancel);
            (handed, committed)
        };
        let stored = kit::get(&*nodes[0], kit::id(number)).await;
        match (handed.unwrap(), committed.unwrap()) {
            (Transition::Handed(_), Committed::CancelWaits) => {
                assert_eq!((stored.run.status, stored.cancel_requested), (Status::Running, true));
            }
            (Transition::Rejected(found, Rejection::Final(Status::Completed)), Committed::Done) => {
                assert_eq!((stored.run.status, &stored.run.output), (Status::Completed, &found.run.output));
                assert!(found.run.output.is_some());
            }
            other => panic!("{number}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_finish_that_waited_for_a_cancel_finds_it() {
    let Some(mut place) = Place::fresh().await else { return };
    let store = place.store();
    let mut owner = kit::Owner::of_new(&*store, 1).await;
    let cancel = place.admin.transaction().await.unwrap();
    cancel.batch_execute("SELECT FROM runcast_runs FOR UPDATE").await.unwrap();
    let complete = owner.complete();
    let finish = tokio::spawn(async move { store.commit(complete).await });
    soon("the finish waits for the row", async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND transactionid::text = \
             (SELECT backend_xid::text FROM pg_stat_activity WHERE pid = pg_backend_pid())";
        // The lock of a row is waited for as that of its transaction, which has no number before it writes.
        cancel.batch_execute("UPDATE runcast_runs SET cancel_requested = true").await.unwrap();
        while cancel.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    cancel.commit().await.unwrap();
    assert_eq!(finish.await.unwrap().unwrap(), Committed::CancelWaits);
}

#[tokio::test]
async fn of_many_requests_with_one_key_on_two_nodes_one_creates_a_run() {
    let Some(place) = Place::fresh().await else { return };
    let nodes = [place.store(), place.store()];
    for round in 0..5 {
        let key = format!("key {round}");
        let numbers = (round * 100 + 1)..=(round * 100 + 60);
        let requests = numbers.map(|number| nodes[number as usize % 2].create(kit::keyed(number, &key, 1)));
        let (mut new, mut first) = (0, BTreeSet::new());
        for outcome in join_all(requests).await {
            match outcome.unwrap() {
                Created::New => new += 1,
                Created::Existing(stored) => drop(first.insert(stored.run.spec.id)),
                other @ (Created::KeyReused | Created::TooManyWaiting | Created::TooManyOfTenant) => {
                    panic!("{other:?}")
                }
            }
        }
        assert_eq!((new, first.len()), (1, 1));
    }
    assert_eq!(nodes[0].counts().await.unwrap()[&Status::Queued], 5);
}

#[tokio::test]
async fn keys_that_were_used_before_take_no_room_from_others() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    kit::commit(&*store, {
        store.create(kit::keyed(1, "k", 1)).await.unwrap();
        kit::Owner::next(&*store).await.complete()
    })
    .await;
    let bounded = |new| crate::store::NewRun { max_waiting: 1, ..new };
    let again = (2..20).map(|number| store.create(bounded(kit::keyed(number, "k", 1))));
    let (again, new) = tokio::join!(join_all(again), store.create(bounded(kit::keyed(99, "other", 1))));
    assert!(again.into_iter().all(|outcome| matches!(outcome, Ok(Created::Existing(_)))));
    assert_eq!(new.unwrap(), Created::New);
}

#[tokio::test]
async fn a_row_that_someone_holds_on_to_costs_its_own_run_only() {
    let Some(mut place) = Place::fresh().await else { return };
    let limit = Duration::from_secs(2);
    let store = PostgresStore::connect(PostgresOptions { query_timeout: limit, ..place.options() }).unwrap();
    let mut owners = Vec::new();
    for number in 1..=9 {
        owners.push(kit::Owner::of_new(&store, number).await);
    }
    let theirs = place.admin.transaction().await.unwrap();
    theirs.execute("SELECT FROM runcast_runs WHERE id = $1 FOR UPDATE", &[kit::id(5).as_uuid()]).await.unwrap();
    let commits: Vec<_> = owners.iter_mut().map(|owner| owner.tokens(&["a"])).collect();
    let outcomes = join_all(commits.iter().cloned().map(|commit| store.commit(commit))).await;
    for (commit, outcome) in commits.iter().zip(&outcomes) {
        if commit.run.spec.id == kit::id(5) {
            assert!(
                matches!(outcome, Err(StoreError::Unavailable(text)) if text.contains("lock timeout")),
                "{outcome:?}"
            );
        } else {
            assert!(matches!(outcome, Ok(Committed::Done)), "{outcome:?}");
        }
    }
    theirs.rollback().await.unwrap();
    kit::commit(&store, commits[4].clone()).await;
}

#[tokio::test]
async fn a_busy_thread_is_waited_for_longer_than_a_row() {
    let Some(mut place) = Place::fresh().await else { return };
    let limit = Duration::from_secs(4);
    let store = PostgresStore::connect(PostgresOptions { query_timeout: limit, ..place.options() }).unwrap();
    let thread = suite::threads::thread(&store, 1).await;
    let theirs = place.admin.transaction().await.unwrap();
    theirs.execute("SELECT FROM runcast_threads FOR UPDATE", &[]).await.unwrap();
    let messages = (1..=3).map(|number| suite::threads::say(&store, thread, number, OnBusy::Enqueue));
    let release = async {
        // Twice as long as a row is waited for.
        tokio::time::sleep(limit / 5).await;
        theirs.rollback().await.unwrap();
    };
    let (moved, ()) = tokio::join!(join_all(messages), release);
    assert_eq!(moved.iter().filter(|moved| moved.created.is_some()).count(), 3);
}

#[tokio::test]
async fn a_character_that_text_cannot_hold_fails_no_run() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    up(&store).await;
    let mut owner = kit::Owner::of_new(&*store, 1).await;
    let text = "a\0b".to_owned();
    kit::commit(&*store, owner.events(&[Event::MessageDelta { text: text.clone() }], kit::now())).await;
    let error = RunError { code: text.clone(), message: text.clone() };
    let failure = Failure { error, retry: Retry::Never, usage: kit::USED };
    kit::commit(&*store, owner.decide(&Command::Fail { attempt: 1, failure })).await;
    let stored = kit::get(&*store, kit::id(1)).await;
    assert_eq!(stored.run.error.unwrap().message, "a\u{fffd}b");
    assert_eq!(store.dead_letters(None, 9).await.unwrap()[0].reason, "a\u{fffd}b: a\u{fffd}b");

    let mut owner = kit::Owner::of_new(&*store, 2).await;
    let (output, outcome) = (serde_json::json!({ "a\0": "\0" }), text);
    let complete = Command::Complete { attempt: 1, output: output.clone(), outcome, usage: kit::USED };
    kit::commit(&*store, owner.decide(&complete)).await;
    assert_eq!(kit::get(&*store, kit::id(2)).await.run.output, Some(output));
}

#[tokio::test]
async fn threads_are_locked_in_one_order() {
    let Some(server) = Postgres::start(&[]).await else { return };
    let place = Place::on(&server).await;
    let store = place.store();
    let mut harness = Harness { place, store };
    suite::many_messages_at_once_keep_their_order_and_their_runs(&mut harness).await;
    harness.store.close().await;
    // A connection tells of a deadlock when it has been idle for a while, at the latest.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let deadlocks = "SELECT sum(deadlocks)::bigint FROM pg_stat_database";
    assert_eq!(harness.place.number(deadlocks).await, 0);
}
