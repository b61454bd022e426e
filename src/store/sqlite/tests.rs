//! The suite, and what is particular to SQLite.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::Connection;
use tempfile::TempDir;

use super::create::Creation;
use super::{SqliteOptions, SqliteStore};
use crate::run::{Command, Status};
use crate::store::suite::{self, kit, store_suite};
use crate::store::{
    Created, DeadLetterStore, DeliveryFilter, EndpointCreated, NewRun, RunFilter, RunStore, Store, StoreError,
    Transition, WebhookStore,
};

/// A store in a directory of its own.
struct Harness {
    directory: TempDir,
    store: Arc<SqliteStore>,
}

impl Harness {
    fn fresh() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(options(&directory)).unwrap());
        Self { directory, store }
    }
}

fn file(directory: &TempDir) -> PathBuf {
    directory.path().join("runcast.db")
}

fn options(directory: &TempDir) -> SqliteOptions {
    SqliteOptions::new(file(directory))
}

#[async_trait]
impl suite::Harness for Harness {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// What a killed process leaves is what its files hold at that moment: a copy of them, log included,
    /// taken while the store is open.
    async fn restart(&mut self) -> Arc<dyn Store> {
        let copy = tempfile::tempdir().unwrap();
        for suffix in ["", "-wal"] {
            let name = format!("runcast.db{suffix}");
            let from = self.directory.path().join(&name);
            if from.exists() {
                std::fs::copy(from, copy.path().join(name)).unwrap();
            }
        }
        self.store = Arc::new(SqliteStore::open(options(&copy)).unwrap());
        self.directory = copy;
        self.store.clone()
    }
}

store_suite!(sqlite, Harness::fresh());

fn refusal(path: impl Into<PathBuf>) -> (StoreError, String) {
    let error = SqliteStore::open(SqliteOptions::new(path)).expect_err("the store is refused");
    let text = error.to_string();
    (error, text)
}

/// Makes a database of another kind at the place of the store.
fn made_by_sql(directory: &TempDir, sql: &str) -> PathBuf {
    Connection::open(file(directory)).unwrap().execute_batch(sql).unwrap();
    file(directory)
}

/// Sends jobs to the writer that are sure to share a transaction.
async fn in_one_batch<T>(store: &SqliteStore, jobs: impl Future<Output = T>) -> T {
    let (release, wait) = crossbeam_channel::bounded::<()>(1);
    let mut wait = Some(wait);
    // The plug is part of the batch and shares its fate. It waits once, also when the batch is undone and done again.
    let plug = store.writes.call(move |_| match wait.take() {
        Some(wait) => wait.recv().map_err(|_| StoreError::Closed),
        None => Ok(()),
    });
    let (_plug, jobs, ()) = tokio::join!(plug, jobs, async { release.send(()).unwrap() });
    jobs
}

fn new(number: u64) -> NewRun {
    kit::new_run(kit::spec(number), None, 0)
}

#[tokio::test]
async fn a_second_process_is_refused_by_the_number_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(options(&directory)).unwrap();
    let (error, text) = refusal(file(&directory));
    assert!(matches!(error, StoreError::InUse(_)));
    assert!(text.contains(&format!("{} is in use by process {}", directory.path().display(), std::process::id())));
    store.close().await;
    assert!(!directory.path().join("runcast.db-wal").exists(), "everything is in the one file then");
    let store = SqliteStore::open(options(&directory)).expect("closing releases the lock");
    drop(store);
    SqliteStore::open(options(&directory)).expect("so does dropping");
}

#[test]
fn a_file_of_a_newer_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(SqliteStore::open(options(&directory)).unwrap());
    let path = made_by_sql(&directory, "PRAGMA user_version = 9999");
    let (error, text) = refusal(&path);
    assert!(matches!(error, StoreError::Foreign(_)));
    assert!(text.contains(&path.display().to_string()) && text.contains("9999, expected at most 3"), "{text}");
}

#[tokio::test]
async fn a_file_of_an_older_version_is_brought_up_to_date() {
    let directory = tempfile::tempdir().unwrap();
    made_by_sql(&directory, include_str!("schema_1.sql"));
    made_by_sql(&directory, "PRAGMA application_id = 0x52435354; PRAGMA user_version = 1");
    let store = SqliteStore::open(options(&directory)).unwrap();
    assert_eq!(store.create(new(1)).await.unwrap(), Created::New);
    assert_eq!(store.dead_letters(None, 9).await.unwrap(), []);
}

#[test]
fn a_file_of_another_program_is_refused_and_left_as_it_was() {
    for sql in ["CREATE TABLE theirs (x)", "PRAGMA application_id = 7", "PRAGMA application_id = 7; CREATE TABLE t (x)"]
    {
        let directory = tempfile::tempdir().unwrap();
        let path = made_by_sql(&directory, sql);
        let before = std::fs::read(&path).unwrap();
        let (error, text) = refusal(&path);
        assert!(matches!(error, StoreError::Foreign(_)) && text.contains("another program"), "{text}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}

#[test]
fn a_file_that_is_no_database_or_a_damaged_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(file(&directory), "this is a letter, not a database\n".repeat(100)).unwrap();
    let (error, text) = refusal(file(&directory));
    assert!(matches!(error, StoreError::Corrupt(_)) && text.contains("runcast.db: file is not a database"), "{text}");

    let directory = tempfile::tempdir().unwrap();
    drop(SqliteStore::open(options(&directory)).unwrap());
    let mut bytes = std::fs::read(file(&directory)).unwrap();
    bytes[100..].fill(0xee);
    std::fs::write(file(&directory), bytes).unwrap();
    let (error, text) = refusal(file(&directory));
    assert!(matches!(error, StoreError::Corrupt(_)) && text.contains("malformed"), "{text}");
}

#[test]
fn a_place_that_cannot_be_written_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (error, text) = refusal(directory.path());
    assert!(matches!(error, StoreError::ReadOnly(_)) && text.contains("is a directory, expected a file"), "{text}");
    std::fs::write(directory.path().join("plain"), "").unwrap();
    let (error, text) = refusal(directory.path().join("plain/runcast.db"));
    assert!(matches!(error, StoreError::ReadOnly(_)) && text.contains("/plain"), "{text}");
    let (error, text) = refusal("/proc/runcast.db");
    assert!(matches!(error, StoreError::ReadOnly(_)) && text.contains("/proc/runcast.db.lock"), "{text}");
}

#[tokio::test]
async fn a_missing_directory_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(SqliteOptions::new(directory.path().join("a/b/runcast.db"))).unwrap();
    store.health().await.unwrap();
}

#[tokio::test]
async fn items_of_a_batch_fail_alone_by_error_and_by_panic() {
    let harness = Harness::fresh();
    let store = &harness.store;
    let error = store.writes.call(|writer| {
        Creation::new(new(1))?.write(writer)?;
        Err::<(), _>(StoreError::Unavailable("changed my mind".into()))
    });
    let panic = store.writes.call(|writer| -> Result<(), _> {
        Creation::new(new(2))?.write(writer)?;
        panic!("what is this")
    });
    let jobs = async { tokio::join!(store.create(new(3)), error, panic, store.create(new(4))) };
    let (before, error, panic, after) = in_one_batch(store, jobs).await;
    assert_eq!((before.unwrap(), after.unwrap()), (Created::New, Created::New));
    assert!(matches!(error, Err(StoreError::Unavailable(text)) if text == "changed my mind"));
    assert!(matches!(panic, Err(StoreError::Corrupt(text)) if text.contains("what is this")));
    let runs = store.list(&kit::tenant(), RunFilter::default(), 9).await.unwrap();
    assert_eq!(runs.iter().map(|stored| stored.run.spec.id).collect::<Vec<_>>(), [kit::id(4), kit::id(3)]);
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 2);
}

#[tokio::test]
async fn a_batch_that_is_lost_is_lost_for_everyone_and_changes_nothing() {
    let harness = Harness::fresh();
    let store = &harness.store;
    // As SQLite does by itself when it cannot go on.
    let lost = store.writes.call(|writer| {
        writer.conn().execute_batch("ROLLBACK")?;
        Err::<(), _>(StoreError::Full("no space left".into()))
    });
    let (first, lost) = in_one_batch(store, async { tokio::join!(store.create(new(1)), lost) }).await;
    assert!(matches!(first, Err(StoreError::Full(text)) if text == "no space left"));
    assert!(matches!(lost, Err(StoreError::Full(_))));
    assert_eq!(store.list(&kit::tenant(), RunFilter::default(), 9).await.unwrap(), []);
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 0);
    assert_eq!(store.create(new(1)).await.unwrap(), Created::New);
}

#[tokio::test]
async fn a_commit_that_fails_fails_everyone_and_changes_nothing() {
    let harness = Harness::fresh();
    let store = &harness.store;
    let sql = |sql: &'static str| store.writes.call(move |writer| Ok(writer.conn().execute_batch(sql)?));
    // A violation that SQLite looks for at the commit.
    sql("COMMIT; PRAGMA foreign_keys = on; BEGIN").await.unwrap();
    let refused = sql("CREATE TABLE a (x PRIMARY KEY); INSERT INTO b VALUES (1)");
    sql("CREATE TABLE b (x REFERENCES a DEFERRABLE INITIALLY DEFERRED)").await.unwrap();
    let (first, refused) = in_one_batch(store, async { tokio::join!(store.create(new(1)), refused) }).await;
    assert!(matches!(&first, Err(StoreError::Corrupt(text)) if text.contains("FOREIGN KEY")), "{first:?}");
    assert!(matches!(refused, Err(StoreError::Corrupt(_))));
    assert_eq!(store.list(&kit::tenant(), RunFilter::default(), 9).await.unwrap(), []);
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 0);
    assert_eq!(store.create(new(1)).await.unwrap(), Created::New);
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 1);
    assert_tallied(store).await;
}

#[tokio::test]
async fn a_full_disk_leaves_nothing_half_written() {
    let harness = Harness::fresh();
    let store = &harness.store;
    let limit = |pages: u32| {
        store
            .writes
            .call(move |writer| Ok(writer.conn().pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?))
    };
    store.create(kit::keyed(1, "first", 1)).await.unwrap();
    limit(1).await.unwrap();
    let long = |number| {
        let mut spec = kit::spec(number);
        spec.input = crate::run::Input::Text("x".repeat(50_000));
        let key = kit::keyed(number, &number.to_string(), 1).key;
        NewRun { key, ..kit::new_run(spec, None, 0) }
    };
    for (number, refused) in (2..40).zip(futures_util::future::join_all((2..40).map(|n| store.create(long(n)))).await) {
        assert!(matches!(refused, Err(StoreError::Full(_))), "{number}: {refused:?}");
    }
    assert_eq!(store.list(&kit::tenant(), RunFilter::default(), 99).await.unwrap().len(), 1);
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 1);
    // Reading goes on meanwhile.
    assert_eq!(kit::log(&**store, kit::id(1)).await.len(), 2);
    limit(u32::MAX).await.unwrap();
    for number in 2..40 {
        assert_eq!(store.create(long(number)).await.unwrap(), Created::New);
    }
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 39);
    assert_tallied(store).await;
    let checked = store.reads.call(|conn| Ok(conn.query_row("PRAGMA integrity_check", [], |row| row.get(0))?));
    let checked: String = checked.await.unwrap();
    assert_eq!(checked, "ok");
}

#[tokio::test]
async fn a_run_that_has_ended_keeps_no_command() {
    let harness = Harness::fresh();
    let store = &harness.store;
    let mut owner = kit::Owner::of_new(&**store, 1).await;
    kit::transition(&**store, kit::id(1), Command::Cancel, kit::now()).await;
    store.commit(owner.decide(&Command::Cancel)).await.unwrap();
    let commands = "SELECT count(*) FROM commands";
    let commands = store.reads.call(move |conn| Ok(conn.query_row(commands, [], |row| row.get::<_, i64>(0))?));
    assert_eq!(commands.await.unwrap(), 0);
}

#[tokio::test]
async fn a_run_that_cannot_be_read_fails_in_the_end_and_holds_up_nobody() {
    let harness = Harness::fresh();
    let store = &harness.store;
    for number in [1, 2, 3] {
        store.create(new(number)).await.unwrap();
    }
    let damage = "UPDATE specs SET input = '{' WHERE run_id = (SELECT id FROM runs ORDER BY id LIMIT 1)";
    store.writes.call(|writer| Ok(writer.conn().execute_batch(damage)?)).await.unwrap();
    assert_eq!(kit::claim(&**store, 2).await.len(), 1);
    assert_eq!(kit::claim(&**store, 2).await.len(), 1);
    assert_eq!(kit::claim(&**store, 2).await.len(), 0);
    assert!(matches!(store.get(&kit::tenant(), kit::id(1)).await, Err(StoreError::Corrupt(_))));
    let status = "SELECT status FROM runs ORDER BY id LIMIT 1";
    let status = store.reads.call(move |conn| Ok(conn.query_row(status, [], |row| row.get(0))?)).await;
    let status: String = status.unwrap();
    assert_eq!(status, "failed");
}

#[tokio::test]
async fn a_damaged_log_is_reported() {
    let harness = Harness::fresh();
    let store = &harness.store;
    let damages = ["frames = x'00'", "marks = x'ff'", "marks = x''", "last_seq = 7", "first_seq = 0"];
    for (damage, number) in damages.into_iter().zip(1..) {
        store.create(new(number)).await.unwrap();
        let sql = format!("UPDATE segments SET {damage}");
        store.writes.call(move |writer| Ok(writer.conn().execute_batch(&sql)?)).await.unwrap();
        let read = store.segments(kit::id(number), 0, 1).await;
        assert!(matches!(read, Err(StoreError::Corrupt(_))), "{damage}: {read:?}");
        store.writes.call(|writer| Ok(writer.conn().execute_batch("DELETE FROM segments")?)).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_accepted_is_done_though_nobody_waits() {
    let harness = Harness::fresh();
    let store = harness.store.clone();
    let (release, wait) = crossbeam_channel::bounded::<()>(1);
    let plugged = store.clone();
    let plug =
        tokio::spawn(async move { plugged.writes.call(move |_| wait.recv().map_err(|_| StoreError::Closed)).await });
    let mut dropped = Box::pin(store.create(new(1)));
    assert!(futures_util::poll!(&mut dropped).is_pending());
    drop(dropped);
    release.send(()).unwrap();
    plug.await.unwrap().unwrap();
    store.health().await.unwrap();
    assert_eq!(kit::status(&*store, kit::id(1)).await, Status::Queued);
}

#[tokio::test]
async fn callers_beyond_the_bound_wait_their_turn() {
    let harness = Harness::fresh();
    let store = &harness.store;
    let many = 2 * super::WRITES as u64;
    let outcomes = futures_util::future::join_all((1..=many).map(|number| store.create(new(number)))).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(Created::New))));
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], many);
}

/// What the writer counts in memory is what is in the store.
async fn assert_tallied(store: &SqliteStore) {
    let [counted, stored] = store.writes.call(|writer| writer.tallies()).await.unwrap();
    assert_eq!(counted, stored);
}

#[tokio::test]
async fn what_is_counted_in_memory_is_what_is_in_the_store() {
    let mut harness = Harness::fresh();
    suite::counts_match_a_scan_after_any_history(&mut harness).await;
    assert_tallied(&harness.store).await;
    let mut harness = Harness::fresh();
    suite::limits_hold_in_any_history(&mut harness).await;
    assert_tallied(&harness.store).await;
}

#[tokio::test]
async fn an_item_that_fails_takes_back_what_it_counted() {
    let harness = Harness::fresh();
    let store = &harness.store;
    store.create(new(1)).await.unwrap();
    // The claim, and then what fails, within one item.
    let failed = store.writes.call(|writer| {
        let claim = kit::claim_of(1, &[("chat", "1")], crate::store::Limits::default());
        let taken = super::claim::claim(writer, &claim)?.len();
        Err::<(), _>(StoreError::Unavailable(format!("after {taken}")))
    });
    assert!(matches!(failed.await, Err(StoreError::Unavailable(text)) if text == "after 1"));
    assert_tallied(store).await;
    assert_eq!(kit::claim(&**store, 9).await.len(), 1);
    assert_tallied(store).await;
}

#[tokio::test]
async fn what_is_undone_and_done_again_takes_the_same_ranks() {
    let ranks = async |fails: bool| {
        let harness = Harness::fresh();
        let store = &harness.store;
        store.create(new(1)).await.unwrap();
        let last = store.writes.call(move |_| match fails {
            true => Err(StoreError::Unavailable("changed my mind".into())),
            false => Ok(()),
        });
        let jobs = async { tokio::join!(store.create(new(2)), store.create(new(3)), last, store.create(new(4))) };
        let (second, third, last, fourth) = in_one_batch(store, jobs).await;
        assert_eq!([second, third, fourth].map(Result::unwrap), [const { Created::New }; 3]);
        assert_eq!(last.is_err(), fails);
        let ranks = "SELECT group_concat(rank) FROM (SELECT rank FROM runs ORDER BY id)";
        let ranks = store.reads.call(move |conn| Ok(conn.query_row(ranks, [], |row| row.get::<_, String>(0))?));
        ranks.await.unwrap()
    };
    assert_eq!(ranks(true).await, ranks(false).await);
}

#[tokio::test]
async fn an_endpoint_hears_of_what_its_own_transaction_does_behind_it() {
    let harness = Harness::fresh();
    let store = &harness.store;
    for number in [1, 2] {
        store.create(new(number)).await.unwrap();
    }
    let cancel = |number| store.transition(None, kit::id(number), Command::Cancel, kit::now());
    let made = store.create_endpoint(suite::endpoint(1), None, 9);
    let (before, made, after) = in_one_batch(store, async { tokio::join!(cancel(1), made, cancel(2)) }).await;
    assert!(matches!((before, after), (Ok(Transition::Done(_)), Ok(Transition::Done(_)))));
    assert_eq!(made.unwrap(), EndpointCreated::New);
    let told = store.deliveries(&kit::tenant(), DeliveryFilter::default(), 9).await.unwrap();
    assert_eq!(told.iter().map(|delivery| delivery.run).collect::<Vec<_>>(), [Some(kit::id(2))]);
}
