//! The store and the broker that a configuration names.

use std::path::Path;
use std::sync::Arc;

use runcast_broker::{Broker, BrokerError, ErrorKind, Name, Source};
use runcast_broker_amqp::{AmqpBroker, AmqpOptions, AmqpQueue, AmqpTls};
use runcast_broker_memory::{MemoryBroker, MemoryOptions};
use runcast_broker_redis::{RedisBroker, RedisList, RedisOptions, RedisStream, RedisTls, StreamOptions};

use super::StartError;
use crate::config::{self, BrokerUrl, Config, IngestKind, ServiceUrl, StoreUrl};
use crate::store::postgres::{PostgresOptions, PostgresStore, PostgresTls};
use crate::store::sqlite::{SqliteOptions, SqliteStore, Synchronous};
use crate::store::{Store, StoreError};

/// Opens the store. One that is elsewhere may be away: it is connected to in the background.
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    match &config.store {
        StoreUrl::Sqlite { .. } => {
            let path = config.store.sqlite_file(&config.data).unwrap_or_default();
            let options = sqlite_options(config, &path);
            // On a thread of its own: health is answered meanwhile, however long it takes.
            let opened = tokio::task::spawn_blocking(move || open_sqlite(options)).await;
            Ok(Arc::new(opened.map_err(|panic| StoreError::Corrupt(format!("opening it panicked: {panic}")))??))
        }
        StoreUrl::Postgres(url) => Ok(Arc::new(PostgresStore::connect(postgres_options(config, url)?)?)),
    }
}

/// Opens the store with its schema up to date, also where nodes are told not to bring it there.
pub async fn migrate(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    if let StoreUrl::Postgres(url) = &config.store {
        PostgresStore::migrate(&postgres_options(config, url)?).await?;
    }
    open_store(config).await
}

fn postgres_options(config: &Config, url: &ServiceUrl) -> Result<PostgresOptions, StoreError> {
    let section = &config.postgres;
    let mut options = PostgresOptions::new(url.expose().parse()?);
    options.tls = PostgresTls {
        authorities: section.authorities.clone(),
        client: section.certificate.clone().zip(section.key.clone()),
    };
    options.connections = section.connections;
    options.connect_timeout = section.connect_timeout;
    options.query_timeout = section.query_timeout;
    options.auto_migrate = section.migrate;
    Ok(options)
}

/// Connects to the broker as `node`. One that is elsewhere may be away: it is connected to in the
/// background.
pub async fn connect_broker(config: &Config, node: &str) -> Result<Arc<dyn Broker>, StartError> {
    match &config.broker {
        BrokerUrl::Memory => Ok(Arc::new(MemoryBroker::new(MemoryOptions::default()))),
        BrokerUrl::Redis(url) => {
            let options = redis_options(config, url, node)?;
            Ok(Arc::new(RedisBroker::connect(options).await?))
        }
        BrokerUrl::Amqp(url) => {
            let options = amqp_options(config, url, node)?;
            Ok(Arc::new(AmqpBroker::connect(options).await?))
        }
    }
}

fn redis_options(config: &Config, url: &ServiceUrl, node: &str) -> Result<RedisOptions, BrokerError> {
    let section = &config.redis;
    let mut options = RedisOptions::new(url.expose().parse()?);
    if url.scheme() == "rediss" {
        options.tls = RedisTls {
            authorities: section.authorities.clone(),
            client: section.certificate.clone().zip(section.key.clone()),
        };
    }
    options.namespace = name(&config.namespace)?;
    options.consumer = Some(name(node)?);
    options.lease = section.consumer_lease;
    Ok(options)
}

fn amqp_options(config: &Config, url: &ServiceUrl, node: &str) -> Result<AmqpOptions, BrokerError> {
    let section = &config.amqp;
    let mut options = AmqpOptions::new(url.expose().parse()?);
    if url.scheme() == "amqps" {
        options.tls = AmqpTls {
            authorities: section.authorities.clone(),
            client: section.certificate.clone().zip(section.key.clone()),
        };
    }
    options.namespace = name(&config.namespace)?;
    options.consumer = Some(name(node)?);
    Ok(options)
}

/// Opens a queue of foreign messages, whose server may be away.
pub(super) fn open_source(
    config: &Config,
    ingest: &config::Ingest,
    node: &str,
) -> Result<Box<dyn Source>, BrokerError> {
    let missing = || BrokerError::new(ErrorKind::Misconfigured, "url and queue have to be set");
    let url = ingest.url.as_ref().or(match &config.broker {
        BrokerUrl::Memory => None,
        BrokerUrl::Redis(url) | BrokerUrl::Amqp(url) => Some(url),
    });
    let (url, queue) = url.zip(ingest.queue.clone()).ok_or_else(missing)?;
    Ok(match ingest.kind {
        IngestKind::RedisList => Box::new(RedisList::open(redis_options(config, url, node)?, queue)?),
        IngestKind::RedisStream => {
            let (group, field) = (ingest.group.clone(), ingest.payload_field.clone());
            let stream = StreamOptions { stream: queue, group, field };
            Box::new(RedisStream::open(redis_options(config, url, node)?, stream)?)
        }
        IngestKind::AmqpQueue => Box::new(AmqpQueue::open(amqp_options(config, url, node)?, &queue)?),
    })
}

fn name(text: &str) -> Result<Name, BrokerError> {
    Name::new(text).map_err(|invalid| BrokerError::new(ErrorKind::Misconfigured, invalid.to_string()))
}

fn sqlite_options(config: &Config, path: &Path) -> SqliteOptions {
    let mut options = SqliteOptions::new(path);
    options.readers = config.sqlite.readers;
    options.synchronous = match config.sqlite.synchronous {
        config::Synchronous::Normal => Synchronous::Normal,
        config::Synchronous::Full => Synchronous::Full,
    };
    options
}

fn open_sqlite(options: SqliteOptions) -> Result<SqliteStore, StartError> {
    if let Some(directory) = options.path.parent() {
        std::fs::create_dir_all(directory).map_err(|source| StartError::Data { path: directory.to_owned(), source })?;
    }
    Ok(SqliteStore::open(options)?)
}
