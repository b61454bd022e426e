//! The contract, each case on a server of its own, with a second process and restarts by `kill -9`.

use std::sync::Arc;

use runcast_broker::Broker;
use runcast_broker_conformance::Backend;

use crate::server::{Server, soon};

async fn open() -> Option<Backend> {
    let server = Arc::new(Server::start(&[]).await?);
    let (broker, peer) = (server.broker().await, server.broker().await);
    soon("health", broker.health()).await.unwrap();
    let backend = Backend::new(Arc::new(broker)).with_peer(Arc::new(peer)).with_restart(move || {
        let server = Arc::clone(&server);
        async move {
            server.kill();
            server.run().await;
        }
    });
    Some(backend)
}

runcast_broker_conformance::suite!(backend = open, time = real);
