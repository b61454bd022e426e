//! A schedule on many nodes: each planned time makes one run, though nodes are killed in the middle of it.

use serde_json::json;

use super::{Cluster, Kind, on_both_brokers};
use crate::harness::{eventually, id_of};
use crate::schedules::{assert_once, create, each_second, runs};

async fn each_planned_time_makes_one_run_whatever_node_dies(kind: Kind) {
    let Some(mut cluster) = Cluster::start(kind, 3, 1).await else { return };
    let mut schedules = Vec::new();
    for node in &cluster.apis {
        schedules.push(id_of(&create(node, &each_second()).await));
    }
    let mut least = 0;
    for round in 0..4 {
        least += 2;
        // Each time another one goes, in the middle of a second, and the others go on.
        let survivor = (round + 1) % 3;
        for schedule in &schedules {
            eventually("the schedule fires", async || {
                (runs(&cluster.apis[survivor], schedule).await.len() >= least).then_some(())
            })
            .await;
        }
        cluster.apis[round % 3].kill9().await;
        least = 0;
        for schedule in &schedules {
            least = least.max(runs(&cluster.apis[survivor], schedule).await.len());
        }
        for schedule in &schedules {
            eventually("the others go on", async || {
                (runs(&cluster.apis[survivor], schedule).await.len() > least).then_some(())
            })
            .await;
        }
        cluster.apis[round % 3].restart().await;
        cluster.ready().await;
    }
    let node = &cluster.apis[0];
    for schedule in &schedules {
        assert_eq!(node.delete(&format!("/v1/schedules/{schedule}")).await.status, 204);
        let made = runs(node, schedule).await;
        assert_once(&made);
        assert!(made.windows(2).all(|pair| pair[1].0 - pair[0].0 == 1_000), "none is left out: {made:?}");
        for (_, run) in &made {
            assert_eq!(node.wait_final(run).await["status"], json!("completed"));
        }
    }
}

on_both_brokers! {
    each_planned_time_makes_one_run_whatever_node_dies
}
