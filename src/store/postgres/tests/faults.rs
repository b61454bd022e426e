//! A server that goes away, does not answer, or is not there yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use runcast_broker_conformance::Proxy;
use tokio::sync::watch;

use super::server::Postgres;
use super::{Log, Place, PostgresOptions, PostgresStore, eventually, soon, up};
use crate::run::Status;
use crate::store::suite::kit;
use crate::store::{Created, RunStore, StoreError};

const LIMIT: Duration = Duration::from_millis(500);

fn hasty(url: &str) -> PostgresOptions {
    let options = PostgresOptions::new(url.parse().unwrap());
    PostgresOptions { connect_timeout: LIMIT, query_timeout: LIMIT, ..options }
}

/// Every kind of call fails as unavailable, and in time.
async fn all_fail_in_time(store: &PostgresStore) {
    let begun = Instant::now();
    let mut owner = kit::Owner { run: kit::new_run(kit::spec(7), None, 0).run, number: 0, reserved_seq: 9 };
    let (tenant, run) = (kit::tenant(), kit::id(1));
    let pairs = [(run, 1)];
    let (created, committed, got, extended, claimed, healthy) = tokio::join!(
        store.create(kit::new_run(kit::spec(8), None, 0)),
        store.commit(owner.tokens(&["a"])),
        store.get(&tenant, run),
        store.extend(&pairs, kit::LEASE),
        store.recover(kit::now(), 1),
        store.health()
    );
    let errors = [created.err(), committed.err(), got.err(), extended.err(), claimed.err(), healthy.err()];
    assert!(errors.iter().all(|error| matches!(error, Some(StoreError::Unavailable(_)))), "{errors:?}");
    assert!(begun.elapsed() < LIMIT * 4, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_that_appears_after_the_start_is_found_and_said_to_be_so_once() {
    let Some(server) = Postgres::reserve(&[]) else { return };
    let log = Log::default();
    let _gathers = log.gather();
    let store = PostgresStore::connect(hasty(&format!("{}?sslmode=disable", server.url("postgres")))).unwrap();
    all_fail_in_time(&store).await;
    all_fail_in_time(&store).await;
    server.run().await;
    up(&store).await;
    assert_eq!((log.count("postgres is away"), log.count("connected to postgres")), (1, 1), "{}", log.text());
    let away = log.text();
    let line = away.lines().find(|line| line.contains("postgres is away")).unwrap();
    assert!(line.contains("WARN") && line.contains("Connection refused"), "{line}");
    assert_eq!(log.count(super::server::PASSWORD), 0);
}

#[tokio::test]
async fn what_was_acknowledged_outlives_a_killed_server_and_is_written_once() {
    let Some(server) = Postgres::start(&[]).await else { return };
    let place = Place::on(&server).await;
    let store =
        Arc::new(PostgresStore::connect(PostgresOptions { connect_timeout: LIMIT, ..place.options() }).unwrap());
    let log = Log::default();
    let _gathers = log.gather();
    let mut owner = kit::Owner::of_new(&*store, 1).await;
    let (stop, stopped) = watch::channel(false);

    let (creating, stopped_creating) = (Arc::clone(&store), stopped.clone());
    let (created, creations) = watch::channel(0_u64);
    let creator = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for number in 10.. {
            if *stopped_creating.borrow() {
                break;
            }
            let key = format!("key {number}");
            // With a key, so that it can be sent again.
            match creating.create(kit::keyed(number, &key, 1)).await {
                Ok(Created::New | Created::Existing(_)) => {
                    acknowledged.push(number);
                    created.send_modify(|created| *created += 1);
                }
                Ok(other @ (Created::KeyReused | Created::TooManyWaiting | Created::TooManyOfTenant)) => {
                    panic!("{other:?}")
                }
                Err(error) => {
                    assert!(error.is_transient(), "{error:?}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        acknowledged
    });
    let (committing, stopped_committing) = (Arc::clone(&store), stopped);
    let committer = tokio::spawn(async move {
        while !*stopped_committing.borrow() {
            let tokens = owner.tokens(&["a", "b"]);
            while let Err(error) = committing.commit(tokens.clone()).await {
                assert!(error.is_transient(), "{error:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        owner
    });
    for round in 1..=3 {
        let before = (store.heads(&[kit::id(1)]).await.unwrap()[0].last_seq, *creations.borrow());
        let committed =
            async || matches!(store.heads(&[kit::id(1)]).await.as_deref(), Ok([head]) if head.last_seq > before.0 + 20);
        eventually("the load goes on", async || committed().await && *creations.borrow() > before.1 + 5).await;
        server.kill();
        eventually("it is noticed", async || store.health().await.is_err()).await;
        server.run().await;
        up(&store).await;
        assert_eq!(log.count("postgres is away"), round, "{}", log.text());
    }
    stop.send(true).unwrap();
    let acknowledged = soon("creations end", creator).await.unwrap();
    let owner = soon("commits end", committer).await.unwrap();
    assert!(acknowledged.len() > 15);
    for number in acknowledged {
        assert_eq!(kit::status(&*store, kit::id(number)).await, Status::Queued);
    }
    assert_eq!(kit::get(&*store, kit::id(1)).await.run, owner.run);
    let numbers: Vec<_> = kit::log(&*store, kit::id(1)).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(numbers, (1..=owner.run.last_seq).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_server_that_stands_still_hangs_nobody() {
    let Some(server) = Postgres::start(&[]).await else { return };
    let store = PostgresStore::connect(hasty(&format!("{}?sslmode=disable", server.url("postgres")))).unwrap();
    up(&store).await;
    server.signal("STOP");
    all_fail_in_time(&store).await;
    all_fail_in_time(&store).await;
    server.signal("CONT");
    up(&store).await;
    kit::create(&store, kit::spec(1)).await;
}

#[tokio::test]
async fn connections_that_went_silent_cost_one_time_limit_together() {
    let Some(place) = Place::fresh().await else { return };
    let server = super::shared().await.unwrap();
    let proxy = Proxy::before(server.port).await;
    let url = place.url.replace(&format!(":{}/", server.port), &format!(":{}/", proxy.port));
    // Long enough to open all connections at once.
    let limit = LIMIT * 4;
    let options = PostgresOptions { connections: 5, connect_timeout: limit, query_timeout: limit, ..hasty(&url) };
    let store = PostgresStore::connect(options).unwrap();
    up(&store).await;
    // All of them are open.
    let checks = || futures_util::future::join_all((0..6).map(|_| store.health()));
    assert!(checks().await.iter().all(Result::is_ok));
    proxy.silence();
    let begun = Instant::now();
    assert!(store.health().await.is_err());
    up(&store).await;
    let checked = checks().await;
    assert!(checked.iter().all(Result::is_ok), "{checked:?}");
    assert!(begun.elapsed() < limit * 3, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn connections_that_an_operator_ends_come_back() {
    let Some(place) = Place::fresh().await else { return };
    let store = place.store();
    let mut owner = kit::Owner::of_new(&*store, 1).await;
    let mine = place.url.rsplit('D').next().unwrap();
    place
        .sql(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE pid IN (SELECT pid FROM pg_stat_activity WHERE application_name = 'runcast') \
             AND (SELECT setting FROM pg_settings WHERE name = 'search_path') = '{mine}'"
        ))
        .await;
    let tokens = owner.tokens(&["a"]);
    eventually("it is written", async || store.commit(tokens.clone()).await.is_ok()).await;
}

#[tokio::test]
async fn a_server_that_takes_no_writes_is_named() {
    let Some(place) = Place::fresh().await else { return };
    let url = format!("{}%20-cdefault_transaction_read_only%3Don", place.url);
    let store = PostgresStore::connect(PostgresOptions::new(url.parse().unwrap())).unwrap();
    let refused = soon("a refusal", store.create(kit::new_run(kit::spec(1), None, 0))).await;
    assert!(matches!(&refused, Err(StoreError::ReadOnly(text)) if text.contains("standby")), "{refused:?}");
}
