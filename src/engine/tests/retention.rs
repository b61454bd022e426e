//! What is held of runs that have ended, in the store and in memory.

use futures_util::StreamExt;

use super::*;

#[test]
fn runs_that_ended_leave_memory_with_their_last_viewer() {
    actix::System::new().block_on(async {
        let cluster = Cluster::new();
        let api = cluster.node("api", Role::Api).await;
        let worker = cluster.node("worker", Role::Worker).await;
        let tenant = Tenant::default();
        let mut runs = Vec::new();
        for _ in 0..20 {
            runs.push(api.create(wish("scripted")).await.unwrap().0.run.spec.id);
        }
        // One that stays, and the others that are seen to their end on both nodes.
        let Watched::Viewer(mut late) = api.watch(&tenant, runs[0], 0).await.unwrap() else { panic!("it is there") };
        for run in &runs {
            assert!(seen(&api, *run, 0).await.contains("event: run.completed"));
            assert!(seen(&worker, *run, 0).await.contains("event: run.completed"));
        }
        until(async || worker.node.feed.len() == 0 && api.node.feed.len() <= 1).await;
        assert!(late.next().await.is_some());
        while late.next().await.is_some() {}
        drop(late);
        until(async || api.node.feed.len() == 0).await;
        for engine in [worker, api] {
            engine.drain(PATIENCE, CancellationToken::new()).await;
        }
        cluster.store.close().await;
    });
}

#[test]
fn a_viewer_whose_log_is_removed_ends_without_a_final_event_on_every_node() {
    actix::System::new().block_on(async {
        let cluster = Cluster::new();
        let kept = Retention {
            runs: Some(Duration::from_millis(300)),
            threads: None,
            batch: 2,
            interval: Duration::from_millis(100),
        };
        // What viewers read is not in memory any more.
        let small = |parts: &mut Parts| {
            parts.settings.feed.log_memory = 1;
            parts.settings.feed.ended_linger = Duration::ZERO;
            parts.settings.retention = kept;
        };
        let api = cluster.node_with("api", Role::Api, small).await;
        let tenant = Tenant::default();
        let mut spoken = wish("scripted");
        spoken.params.insert("tokens".to_owned(), 20_000.into());
        let id = api.create(spoken).await.unwrap().0.run.spec.id;
        let worker = cluster.node_with("worker", Role::Worker, small).await;
        // It has begun to read, and does not go on.
        until(async || cluster.store.heads(&[id]).await.unwrap()[0].last_seq > 5_000).await;
        let Watched::Viewer(mut viewer) = api.watch(&tenant, id, 0).await.unwrap() else { panic!("it is there") };
        let mut text = viewer.next().await.unwrap().to_vec();
        until(async || cluster.store.get(&tenant, id).await.unwrap().is_none()).await;
        let rest = async {
            while let Some(frames) = viewer.next().await {
                text.extend_from_slice(&frames);
            }
            String::from_utf8(text).unwrap()
        };
        let text = tokio::time::timeout(PATIENCE, rest).await.expect("the log ends");
        assert!(!text.contains("event: run.completed"), "it ends as if nothing was missing");
        let numbers = ids(&text);
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "nothing is left out");
        let last = numbers.len() as u64;
        let again = api.watch(&tenant, id, last).await;
        let again = again.map(|watched| matches!(watched, Watched::SeenAll));
        assert!(matches!(again, Err(RunRequestError::Gone)), "{again:?} after {last}");
        assert!(matches!(api.get(&tenant, id).await, Err(RunRequestError::Gone)));
        assert!(matches!(api.get(&tenant, SystemClock.run_id()).await, Err(RunRequestError::Missing)));
        for engine in [worker, api] {
            engine.drain(PATIENCE, CancellationToken::new()).await;
        }
        cluster.store.close().await;
    });
}
