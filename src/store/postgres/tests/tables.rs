//! The tables: who makes them, whose they are, and what cannot be read in them.

use std::sync::Arc;

use futures_util::future::join_all;

use super::{Place, PostgresOptions, PostgresStore, eventually, soon, up};
use crate::run::Status;
use crate::store::postgres::Migrated;
use crate::store::suite::{kit, threads};
use crate::store::{Created, NodeStore, Proposal, RunStore, StoreError};
use crate::thread::OnBusy;

#[tokio::test]
async fn nodes_that_start_together_make_the_tables_once() {
    let Some(place) = Place::fresh().await else { return };
    let nodes: Vec<_> = (0..6).map(|_| place.store()).collect();
    soon("all are up", join_all(nodes.iter().map(|node| up(node)))).await;
    assert_eq!(place.number("SELECT count(*) FROM runcast_schema WHERE version = 2 AND oldest = 1").await, 1);
    kit::create(&*nodes[0], kit::spec(1)).await;
    assert_eq!(kit::claim(&*nodes[5], 9).await.len(), 1);
}

async fn refusal(store: &PostgresStore) -> String {
    let error = soon("a refusal", store.get(&kit::tenant(), kit::id(1))).await.unwrap_err();
    assert!(matches!(error, StoreError::Foreign(_)), "{error:?}");
    let created = store.create(kit::new_run(kit::spec(1), None, 0)).await.unwrap_err();
    assert_eq!(created.to_string(), error.to_string(), "every call says so");
    error.to_string()
}

#[tokio::test]
async fn tables_of_a_newer_version_are_refused_unless_they_serve_this_one_too() {
    let Some(place) = Place::fresh().await else { return };
    up(&place.store()).await;
    place.sql("UPDATE runcast_schema SET version = 9, oldest = 8").await;
    let store = place.store();
    let text = refusal(&store).await;
    assert!(text.contains("schema version is 9") && text.contains("this one knows 2"), "{text}");
    place.sql("UPDATE runcast_schema SET version = 3, oldest = 2").await;
    up(&store).await;
    let proposal = Proposal { mode: "production".into(), namespace: "n".into() };
    let agreement = store.agree(&proposal, false).await.unwrap();
    assert_eq!((agreement.schema, agreement.known_schema), (3, 2));
}

#[tokio::test]
async fn tables_are_left_alone_until_they_are_migrated_if_that_is_wanted() {
    let Some(place) = Place::fresh().await else { return };
    let options = PostgresOptions { auto_migrate: false, ..place.options() };
    let store = PostgresStore::connect(options.clone()).unwrap();
    let text = refusal(&store).await;
    assert!(text.contains("`runcast migrate`"), "{text}");
    assert_eq!(place.number("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()").await, 0);
    assert_eq!(PostgresStore::migrate(&options).await.unwrap(), Migrated { from: 0, to: 2 });
    assert_eq!(PostgresStore::migrate(&options).await.unwrap(), Migrated { from: 2, to: 2 });
    up(&store).await;
}

#[tokio::test]
async fn a_creation_that_breaks_its_batch_fails_alone() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    up(&store).await;
    place.sql(&format!("ALTER TABLE runcast_specs ADD CHECK (run_id <> '{}')", kit::id(5))).await;
    let burst = (1..=9).map(|number| store.create(kit::keyed(number, &format!("key {number}"), 1)));
    for (number, outcome) in (1..).zip(join_all(burst).await) {
        match outcome {
            Ok(created) => assert!(number != 5 && created == Created::New, "{number}: {created:?}"),
            Err(error) => assert!(number == 5 && matches!(error, StoreError::Corrupt(_)), "{number}: {error}"),
        }
    }
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 8);
    assert_eq!(store.create(kit::keyed(10, "key 5", 2)).await.unwrap(), Created::New, "the key was not kept");
}

#[tokio::test]
async fn tables_of_the_version_before_are_brought_up_to_date_and_still_serve_it() {
    const COLUMNS: &str = "tenant, agent, agent_version, priority, created_at, status, attempt, failures, crashes, \
         steps, timers_armed, ran_ms, checkpoint_seq, last_seq, input_tokens, output_tokens, estimated, reserved_seq, \
         commit_number";
    let Some(place) = Place::fresh().await else { return };
    place.sql(include_str!("../schema_1.sql")).await;
    place.sql("INSERT INTO runcast_schema VALUES (1, 1)").await;
    let store = place.store();
    up(&store).await;
    assert_eq!(place.number("SELECT count(*) FROM runcast_schema WHERE version = 2 AND oldest = 1").await, 1);
    kit::create(&*store, kit::spec(1)).await;
    // As a node of that version writes them.
    place
        .sql(&format!(
            "INSERT INTO runcast_runs (id, {COLUMNS}) SELECT gen_random_uuid(), {COLUMNS} FROM runcast_runs; \
             INSERT INTO runcast_specs (run_id, input, params, metadata, timeout_ms, max_attempts, on_disconnect) \
             SELECT r.id, s.input, s.params, s.metadata, s.timeout_ms, s.max_attempts, s.on_disconnect \
             FROM runcast_specs s, runcast_runs r WHERE r.id <> s.run_id",
        ))
        .await;
    assert_eq!(kit::claim(&*store, 9).await.len(), 2);
}

#[tokio::test]
async fn a_thread_goes_on_though_a_node_of_the_version_before_has_ended_its_run() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    let thread = threads::thread(&*store, 1).await;
    threads::say(&*store, thread, 1, OnBusy::Enqueue).await;
    threads::say(&*store, thread, 2, OnBusy::Enqueue).await;
    let mut owner = kit::Owner::next(&*store).await;
    // Which leaves nothing to the thread.
    kit::commit(&*store, owner.complete()).await;
    let moved = threads::say(&*store, thread, 3, OnBusy::Enqueue).await;
    assert_eq!(moved.thread.holder, Some(kit::id(2)));
    assert_eq!(kit::status(&*store, kit::id(2)).await, Status::Queued);
    assert_eq!(kit::status(&*store, kit::id(3)).await, Status::Scheduled);
}

#[tokio::test]
async fn a_run_that_cannot_be_read_fails_in_the_end_and_holds_up_nobody() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    for number in [1, 2, 3] {
        kit::create(&*store, kit::spec(number)).await;
    }
    place
        .sql("UPDATE runcast_specs SET input = '{' WHERE run_id = (SELECT min(id::text)::uuid FROM runcast_runs)")
        .await;
    assert_eq!(kit::claim(&*store, 2).await.len(), 1);
    assert_eq!(kit::claim(&*store, 2).await.len(), 1);
    assert_eq!(kit::claim(&*store, 2).await.len(), 0);
    assert!(matches!(store.get(&kit::tenant(), kit::id(1)).await, Err(StoreError::Corrupt(_))));
    assert_eq!(store.heads(&[kit::id(1)]).await.unwrap()[0].status, Status::Failed);
}

#[tokio::test]
async fn a_damaged_log_is_reported() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    let damages = ["frames = '\\x00'", "marks = '\\xff'", "marks = ''", "last_seq = 7", "first_seq = 0"];
    for (damage, number) in damages.into_iter().zip(1..) {
        kit::create(&*store, kit::spec(number)).await;
        place.sql(&format!("UPDATE runcast_segments SET {damage}")).await;
        let read = store.segments(kit::id(number), 0, 1).await;
        assert!(matches!(read, Err(StoreError::Corrupt(_))), "{damage}: {read:?}");
        place.sql("DELETE FROM runcast_segments").await;
    }
}

#[tokio::test]
async fn what_was_accepted_is_done_though_nobody_waits() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    let mut dropped = Box::pin(store.create(kit::new_run(kit::spec(1), None, 0)));
    assert!(futures_util::poll!(&mut dropped).is_pending());
    drop(dropped);
    eventually("it is created", async || {
        matches!(store.get(&kit::tenant(), kit::id(1)).await, Ok(Some(stored)) if stored.run.status == Status::Queued)
    })
    .await;
    // Also when the store is gone before it was up.
    let other: Arc<PostgresStore> = place.store();
    let mut dropped = Box::pin(other.create(kit::new_run(kit::spec(2), None, 0)));
    assert!(futures_util::poll!(&mut dropped).is_pending());
    drop(dropped);
    drop(other);
    eventually("it is created", async || matches!(store.get(&kit::tenant(), kit::id(2)).await, Ok(Some(_)))).await;
}

#[tokio::test]
async fn callers_beyond_the_bound_wait_their_turn() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    let many = 5_000;
    let outcomes = join_all((1..=many).map(|number| store.create(kit::new_run(kit::spec(number), None, 0)))).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], many);
}

#[tokio::test]
async fn plans_that_were_made_for_empty_tables_stay_good() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    up(&store).await;
    // The planner knows now that there is nothing.
    place.sql("VACUUM ANALYZE runcast_runs").await;
    let mut owner = kit::Owner::of_new(&*store, 1).await;
    place
        .sql(
            "INSERT INTO runcast_runs SELECT (r).* FROM (SELECT jsonb_populate_record(r, \
             jsonb_build_object('id', gen_random_uuid())) AS r FROM runcast_runs r, generate_series(1, 20000)) many",
        )
        .await;
    for _ in 0..50 {
        kit::commit(&*store, owner.tokens(&["a"])).await;
        assert_eq!(store.extend(&[(owner.id(), 1)], kit::LEASE).await.unwrap().len(), 1);
    }
    store.close().await;
    // A claim and a hundred updates, as soon as the connections that did them have told of it.
    let updated = "SELECT n_tup_upd FROM pg_stat_user_tables \
         WHERE relname = 'runcast_runs' AND schemaname = current_schema()";
    eventually("the statistics are there", async || place.number(updated).await >= 101).await;
    let read = place.number(&updated.replace("n_tup_upd", "seq_tup_read + idx_tup_fetch")).await;
    assert!(read < 20_000, "{read} rows were looked at");
}

#[tokio::test]
async fn ranks_are_found_by_indexes_however_long_the_queue_is() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    up(&store).await;
    place.sql("VACUUM ANALYZE runcast_runs").await;
    kit::create(&*store, kit::spec(1)).await;
    kit::create_due(&*store, kit::spec(2), Some(kit::seconds(1_500))).await;
    place
        .sql(
            "INSERT INTO runcast_runs SELECT (r).* FROM (SELECT jsonb_populate_record(r, \
             jsonb_build_object('id', gen_random_uuid(), 'rank', n, 'tenant', 'tenant-' || n % 7)) AS r \
             FROM runcast_runs r, generate_series(1, 20000) n WHERE status = 'queued') many; \
             INSERT INTO runcast_specs SELECT (s).* FROM (SELECT jsonb_populate_record(s, \
             jsonb_build_object('run_id', r.id)) AS s FROM runcast_specs s, runcast_runs r \
             WHERE s.retry_of IS NULL AND r.tenant <> 'default' AND s.run_id = \
             (SELECT id FROM runcast_runs WHERE tenant = 'default' AND status = 'queued')) many",
        )
        .await;
    let limits = crate::store::Limits { tenants: [("tenant-1".to_owned(), 40)].into(), ..Default::default() };
    let claim = |limits| kit::claim_of(1, &[("chat", "1")], limits);
    for number in 3..=40 {
        kit::create(&*store, kit::spec(number)).await;
        assert_eq!(store.claim(claim(crate::store::Limits::default())).await.unwrap().len(), 1);
        assert_eq!(store.claim(claim(limits.clone())).await.unwrap().len(), 1);
    }
    let due = kit::timers(&*store).await.pop().unwrap();
    let (run, command) = due.of_run().unwrap();
    kit::done(store.transition(None, run, command, kit::seconds(1_500)).await.unwrap());
    store.close().await;
    let updated = "SELECT n_tup_upd FROM pg_stat_user_tables \
         WHERE relname = 'runcast_runs' AND schemaname = current_schema()";
    eventually("the statistics are there", async || place.number(updated).await >= 78).await;
    let read = place.number(&updated.replace("n_tup_upd", "seq_tup_read + idx_tup_fetch")).await;
    // The long queue was read once or twice, to be made.
    assert!(read < 90_000, "{read} rows were looked at");
}
