//! What an adapter gives to each case.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use runcast_broker::Broker;

type Restart = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// A broker that one case has to itself, and what more can be done with it.
#[derive(Clone)]
pub struct Backend {
    broker: Arc<dyn Broker>,
    peer: Option<Arc<dyn Broker>>,
    restart: Option<Restart>,
}

/// What a case needs and a backend does not offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing(pub(crate) &'static str);

impl Backend {
    /// A backend of one broker: fresh, and isolated from those of other cases.
    #[must_use]
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        Self { broker, peer: None, restart: None }
    }

    /// Adds another connection to the same namespace, standing for another process. For brokers
    /// whose capabilities say `shared`.
    #[must_use]
    pub fn with_peer(mut self, peer: Arc<dyn Broker>) -> Self {
        self.peer = Some(peer);
        self
    }

    /// Adds a way to restart the server. The future ends when the server accepts connections again;
    /// it panics when that fails.
    #[must_use]
    pub fn with_restart<F, R>(mut self, restart: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.restart = Some(Arc::new(move || Box::pin(restart())));
        self
    }

    pub(crate) fn broker(&self) -> &dyn Broker {
        &*self.broker
    }

    pub(crate) fn peer(&self) -> Result<&dyn Broker, Missing> {
        if !self.broker.capabilities().shared {
            return Err(Missing("capability shared"));
        }
        self.peer.as_deref().ok_or(Missing("a second connection (Backend::with_peer)"))
    }

    pub(crate) fn restart(&self) -> Result<Restart, Missing> {
        self.restart.clone().ok_or(Missing("a way to restart the server (Backend::with_restart)"))
    }

    pub(crate) fn durable(&self) -> Result<(), Missing> {
        if self.broker.capabilities().durable { Ok(()) } else { Err(Missing("capability durable")) }
    }

    pub(crate) async fn close(&self) {
        self.broker.close().await;
        if let Some(peer) = &self.peer {
            peer.close().await;
        }
    }
}
