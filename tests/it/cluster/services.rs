//! The broker and the database of a cluster: real, private, and behind proxies.

use runcast_broker::{Broker, Name};
use runcast_broker_amqp::{AmqpBroker, AmqpOptions};
use runcast_broker_conformance::Proxy;
use runcast_broker_redis::{RedisBroker, RedisOptions};

use crate::servers::postgres::Postgres;
use crate::servers::rabbitmq;
use crate::servers::redis::Redis;

/// Which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Redis,
    RabbitMq,
}

enum Server {
    Redis(Redis),
    RabbitMq(rabbitmq::Server),
}

/// A broker and a database.
pub(crate) struct Services {
    server: Server,
    pub(crate) postgres: Postgres,
    pub(crate) to_broker: Proxy,
    pub(crate) to_store: Proxy,
}

impl Services {
    /// `None` when a server is not installed here.
    pub(crate) async fn start(kind: Kind) -> Option<Self> {
        let postgres = Postgres::start(&[]).await?;
        let server = match kind {
            Kind::Redis => Server::Redis(Redis::start().await?),
            Kind::RabbitMq => Server::RabbitMq(rabbitmq::Server::start(None).await?),
        };
        let port = match &server {
            Server::Redis(redis) => redis.port,
            Server::RabbitMq(rabbit) => rabbit.port,
        };
        let (to_broker, to_store) = (Proxy::before(port).await, Proxy::before(postgres.port).await);
        Some(Self { server, postgres, to_broker, to_store })
    }

    /// The broker's URL, by way of the proxy.
    pub(crate) fn broker_url(&self) -> String {
        match self.server {
            Server::Redis(_) => format!("redis://127.0.0.1:{}", self.to_broker.port),
            Server::RabbitMq(_) => format!("amqp://guest:guest@127.0.0.1:{}", self.to_broker.port),
        }
    }

    /// The database's URL, by way of the proxy.
    pub(crate) fn store_url(&self) -> String {
        let direct = self.postgres.url("postgres");
        direct.replace(&format!(":{}/", self.postgres.port), &format!(":{}/", self.to_store.port))
    }

    pub(crate) fn kill_broker(&self) {
        match &self.server {
            Server::Redis(redis) => redis.kill(),
            Server::RabbitMq(rabbit) => rabbit.kill(),
        }
    }

    pub(crate) async fn run_broker(&self) {
        match &self.server {
            Server::Redis(redis) => redis.run().await,
            Server::RabbitMq(rabbit) => rabbit.run().await,
        }
    }

    /// A connection to the broker, as another node has it.
    pub(crate) async fn broker(&self) -> Box<dyn Broker> {
        let namespace = Name::new("runcast").expect("a name");
        match self.server {
            Server::Redis(_) => {
                let options = RedisOptions::new(self.broker_url().parse().expect("a URL"));
                Box::new(RedisBroker::connect(RedisOptions { namespace, ..options }).await.expect("a broker"))
            }
            Server::RabbitMq(_) => {
                let options = AmqpOptions::new(self.broker_url().parse().expect("a URL"));
                Box::new(AmqpBroker::connect(AmqpOptions { namespace, ..options }).await.expect("a broker"))
            }
        }
    }
}
