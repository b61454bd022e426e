//! The contract, each case in a namespace of its own, with a second process; those that restart the
//! server do it by `kill -9`, on the server that is there for it.

use std::sync::Arc;

use runcast_broker::Broker;
use runcast_broker_conformance::Backend;

use crate::steps::{alone, once_back, shared};

async fn open() -> Option<Backend> {
    // the case says by its name whether it restarts; where it has none, each gets the server for that
    let thread = std::thread::current();
    let restarts = thread.name().is_none_or(|name| name == "main" || name.contains("restart"));
    let space = Arc::new(if restarts { alone().await? } else { shared().await? });
    let (broker, peer) = (space.broker().await, space.broker().await);
    once_back("health", async || broker.health().await).await;
    let backend = Backend::new(Arc::new(broker)).with_peer(Arc::new(peer));
    Some(backend.with_restart(move || {
        let space = Arc::clone(&space);
        async move {
            assert!(restarts, "others use this server");
            space.server.sync().await;
            space.server.kill();
            space.server.run().await;
        }
    }))
}

runcast_broker_conformance::suite!(backend = open, time = real);
