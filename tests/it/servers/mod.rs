//! Private, throw-away servers.

#[expect(dead_code, reason = "shared with the tests of the store, which use more of it")]
#[path = "../../servers/postgres.rs"]
pub(crate) mod postgres;
#[expect(dead_code, reason = "shared with the tests of the broker, which use more of it")]
#[path = "../../../brokers/amqp/tests/it/server.rs"]
pub(crate) mod rabbitmq;
#[path = "../../servers/redis.rs"]
pub(crate) mod redis;
