//! The contract, checked against the memory broker on paused time.

use std::sync::Arc;

use runcast_broker_conformance::Backend;
use runcast_broker_memory::MemoryBroker;

async fn open() -> Backend {
    Backend::new(Arc::new(MemoryBroker::default()))
}

runcast_broker_conformance::suite!(backend = open, time = paused);
