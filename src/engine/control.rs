//! Signals between nodes, at most once: what they are about is in the store, or asked for again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use runcast_broker::{Announcement, Name};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::Node;
use super::mailbox::post;
use super::supervisor::Cancel;
use crate::run::{Backoff, RunId};

/// How long other nodes may take to say that they have viewers of a run.
const ANSWER: Duration = Duration::from_secs(1);

const RETRY: Backoff = Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5) };

/// What nodes tell each other on the topic `control`, as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Signal {
    /// A cancel waits in the store for the run's owner.
    Cancel(RunId),
    /// Does anybody watch this run? Its last viewer here has gone.
    Watched(RunId),
    /// Somebody does.
    Watching(RunId),
}

/// Who asks whether a run is watched, and whether somebody has said so.
#[derive(Default)]
pub(crate) struct Asked {
    open: Mutex<HashMap<RunId, bool>>,
}

fn topic() -> Name {
    Name::new("control").unwrap_or_else(|_| unreachable!("a constant name"))
}

impl Node {
    /// Tells the run's owner, wherever it is, that a cancel waits for it. If that gets lost, the next
    /// extension of its lease tells it.
    pub(crate) fn signal_cancel(self: &Arc<Self>, run: RunId) {
        // Bounded by the requests that wait for it.
        post(self.supervisor(run), Cancel(run));
        if self.shared {
            let node = Arc::clone(self);
            actix::spawn(async move { node.signal(Signal::Cancel(run)).await });
        }
    }

    /// Whether a viewer of the run is connected to another node. Without an answer from the broker: yes.
    pub(crate) async fn watched_elsewhere(&self, run: RunId) -> bool {
        if !self.shared {
            return false;
        }
        self.asked.open.lock().insert(run, false);
        let asked = self.signal(Signal::Watched(run)).await;
        tokio::time::sleep(ANSWER).await;
        let answered = self.asked.open.lock().remove(&run).unwrap_or(true);
        !asked || answered
    }

    async fn signal(&self, signal: Signal) -> bool {
        let Ok(payload) = serde_json::to_vec(&signal) else { return false };
        let told = self.broker.announce(&topic(), Bytes::from(payload)).await;
        if let Err(error) = &told {
            tracing::debug!(?signal, %error, "cannot signal the other nodes");
        }
        told.is_ok()
    }

    async fn heard(self: &Arc<Self>, signal: Signal) {
        match signal {
            // The owner may be about to start: its supervisor remembers.
            Signal::Cancel(run) if self.role.executes() => post(self.supervisor(run), Cancel(run)),
            Signal::Cancel(_) => {}
            Signal::Watched(run) => {
                if self.feed.watched(run) {
                    self.signal(Signal::Watching(run)).await;
                }
            }
            Signal::Watching(run) => {
                if let Some(answered) = self.asked.open.lock().get_mut(&run) {
                    *answered = true;
                }
            }
        }
    }
}

/// Hears what other nodes say, until `stop` is cancelled.
pub(crate) async fn listen(node: Arc<Node>, stop: CancellationToken) {
    let heard = async {
        for failures in 1.. {
            let mut watch = match node.broker.watch(&topic()).await {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::debug!(%error, "cannot listen to the other nodes; trying again");
                    tokio::time::sleep(RETRY.delay(failures, rand::random::<f64>(), None)).await;
                    continue;
                }
            };
            loop {
                match watch.next().await {
                    Ok(Announcement::Payload(payload)) => match serde_json::from_slice(&payload) {
                        Ok(signal) => node.heard(signal).await,
                        // A newer version may say more.
                        Err(error) => tracing::debug!(%error, "another node's signal is not understood"),
                    },
                    // Whoever asked and got no answer asks again; a cancel is found at the next extension.
                    Ok(Announcement::Gap) => node.asked.open.lock().values_mut().for_each(|answer| *answer = true),
                    Err(error) => {
                        tracing::debug!(%error, "the other nodes are not heard any more; trying again");
                        tokio::time::sleep(RETRY.delay(failures, rand::random::<f64>(), None)).await;
                        break;
                    }
                }
            }
        }
    };
    stop.run_until_cancelled(heard).await;
}
