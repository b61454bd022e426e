//! What nodes stand on: SQLite and memory unless `RUNCAST_TEST_STACK` says `redis` or `rabbitmq`, which go with
//! PostgreSQL. The servers are private, and shared by all tests of the process; each directory has a database and a
//! namespace of its own.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::sync::{Mutex, OnceCell};

use crate::servers::postgres::Postgres;
use crate::servers::rabbitmq;
use crate::servers::redis::Redis;

/// Whether every node has a process and a file of its own to stand on.
pub(crate) fn is_embedded() -> bool {
    stack().is_none()
}

fn stack() -> Option<String> {
    std::env::var("RUNCAST_TEST_STACK").ok().filter(|stack| !stack.is_empty())
}

struct Servers {
    postgres: Postgres,
    broker_url: String,
    databases: Mutex<BTreeSet<String>>,
    /// Kept until the process ends.
    _broker: Broker,
}

enum Broker {
    Redis { _server: Redis },
    RabbitMq { _server: rabbitmq::Server },
}

async fn servers() -> &'static Servers {
    static SERVERS: OnceCell<Servers> = OnceCell::const_new();
    SERVERS
        .get_or_init(async || {
            let (broker_url, broker) = match stack().as_deref() {
                Some("redis") => {
                    let server = Redis::start().await.expect("redis-server is installed");
                    (format!("redis://127.0.0.1:{}", server.port), Broker::Redis { _server: server })
                }
                Some("rabbitmq") => {
                    let server = rabbitmq::Server::start(None).await.expect("rabbitmq-server is installed");
                    (format!("amqp://guest:guest@127.0.0.1:{}", server.port), Broker::RabbitMq { _server: server })
                }
                other => panic!("RUNCAST_TEST_STACK: expected redis or rabbitmq, got {other:?}"),
            };
            let postgres = Postgres::start(&[]).await.expect("postgresql is installed");
            Servers { postgres, broker_url, databases: Mutex::default(), _broker: broker }
        })
        .await
}

/// The variables that put the node of `directory` on what it is to stand on.
pub(crate) async fn environment(directory: &Path) -> Vec<(&'static str, String)> {
    if is_embedded() {
        return Vec::new();
    }
    let servers = servers().await;
    let name = directory.file_name().expect("a directory of its own").to_string_lossy();
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    // Its case is all that tells some directories apart, and databases go by lower case unless quoted.
    let name = format!("t{name}");
    if servers.databases.lock().await.insert(name.clone()) {
        create_database(&servers.postgres.url("postgres"), &name).await;
    }
    vec![
        ("RUNCAST_BROKER", servers.broker_url.clone()),
        ("RUNCAST_STORE", servers.postgres.url(&name)),
        ("RUNCAST_NAMESPACE", name),
        // A killed node's runs are to be found as soon as those of a file, nearly.
        ("RUNCAST_RECOVERY_LEASE", "2s".to_owned()),
        ("RUNCAST_RECOVERY_SWEEP_INTERVAL", "500ms".to_owned()),
        ("RUNCAST_POSTGRES_QUERY_TIMEOUT", "1500ms".to_owned()),
        ("RUNCAST_POSTGRES_CONNECTIONS", "5".to_owned()),
    ]
}

async fn create_database(url: &str, name: &str) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("a database server");
    let connection = tokio::spawn(connection);
    client.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await.expect("a new database");
    drop(client);
    connection.await.expect("no panic").expect("a connection that closes in order");
}
