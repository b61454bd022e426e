//! Runs one case, and the steps that cases share.

use std::io::Write;
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use runcast_broker::{Announcement, Broker, BrokerError, Consumer, Delivery, Depth, ErrorKind, Name, Watch};

use crate::{Backend, Missing};

/// How long a case waits for a condition before it fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How exactly a broker has to keep a delay or a time to live.
pub const GRANULARITY: Duration = Duration::from_millis(100);

/// For how long nothing has to happen where nothing may happen.
const QUIET: Duration = Duration::from_millis(300);

/// Which clock a case runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// Tokio's clock, paused: it jumps ahead whenever every task waits.
    Paused,
    /// The real clock.
    Real,
}

/// How a case ends when it does not panic: `()`, or a `Result` when it may lack something.
pub trait Outcome {
    /// What was missing, if the case was skipped.
    fn missing(self) -> Option<Missing>;
}

impl Outcome for () {
    fn missing(self) -> Option<Missing> {
        None
    }
}

impl Outcome for Result<(), Missing> {
    fn missing(self) -> Option<Missing> {
        self.err()
    }
}

/// Runs `case` on a backend made by `open`, on a runtime of its own, and closes the backend.
///
/// # Panics
///
/// When the case fails.
pub fn run<O, B, C, R>(name: &str, time: Time, open: impl FnOnce() -> O, case: C)
where
    O: Future<Output = B>,
    B: Into<Option<Backend>>,
    C: FnOnce(Backend) -> R,
    R: Future<Output: Outcome>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(time == Time::Paused)
        .build()
        .expect("a runtime starts");
    let missing = runtime.block_on(async {
        let Some(backend) = open().await.into() else { return Some(Missing("a server to test against")) };
        let missing = case(backend.clone()).await.missing();
        soon("close", backend.close()).await;
        missing
    });
    if let Some(Missing(what)) = missing {
        // not a print macro, whose output the test harness keeps to itself; one write, so that lines
        // of cases that run at the same time stay whole
        let line = format!("skipped {name}: needs {what}\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

pub(crate) const ONE: NonZeroU16 = NonZeroU16::MIN;

pub(crate) fn prefetch(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).expect("a case asks for a prefetch of at least one")
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("cases use valid names")
}

/// What `future` gives within the deadline.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Asks until the answer is yes.
pub(crate) async fn eventually(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(GRANULARITY / 4).await;
        }
    })
    .await;
}

/// Fails if `future` ends while nothing may happen.
pub(crate) async fn quiet<T>(what: &str, future: impl Future<Output = T>) {
    assert!(tokio::time::timeout(QUIET, future).await.is_err(), "{what}");
}

/// Repeats `call` for as long as it fails as transient.
pub(crate) async fn once_back<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T, BrokerError>) -> T {
    soon(what, async {
        loop {
            match call().await {
                Ok(value) => return value,
                Err(error) if error.kind() == ErrorKind::Transient => tokio::time::sleep(GRANULARITY).await,
                Err(error) => panic!("{what}: {error:?}"),
            }
        }
    })
    .await
}

/// Why the call was refused.
pub(crate) fn refusal<T>(what: &str, result: Result<T, BrokerError>) -> ErrorKind {
    match result {
        Ok(_) => panic!("{what} was not refused"),
        Err(error) => error.kind(),
    }
}

pub(crate) async fn publish(broker: &dyn Broker, queue: &Name, messages: &[&str]) {
    for message in messages {
        let message = Bytes::copy_from_slice(message.as_bytes());
        soon("publish", broker.publish(queue, message)).await.expect("publish");
    }
}

pub(crate) async fn consume(broker: &dyn Broker, queues: &[&Name], prefetch: NonZeroU16) -> Box<dyn Consumer> {
    let queues: Vec<Name> = queues.iter().map(|queue| (*queue).clone()).collect();
    soon("consume", broker.consume(&queues, prefetch)).await.expect("consume")
}

/// The next delivery, which has to carry `message`.
pub(crate) async fn take(consumer: &mut dyn Consumer, message: &str) -> Delivery {
    let delivery = soon(message, consumer.next()).await.expect("next");
    assert_eq!(text(delivery.message()), message, "another message was expected");
    delivery
}

/// Takes and acknowledges `messages`, which have to come in this order.
pub(crate) async fn drain(consumer: &mut dyn Consumer, messages: &[&str]) {
    for message in messages {
        ack(take(consumer, message).await).await;
    }
}

pub(crate) async fn ack(delivery: Delivery) {
    soon("ack", delivery.ack()).await.expect("ack");
}

pub(crate) async fn watch(broker: &dyn Broker, topic: &Name) -> Box<dyn Watch> {
    soon("watch", broker.watch(topic)).await.expect("watch")
}

pub(crate) async fn announce(broker: &dyn Broker, topic: &Name, payloads: &[&str]) {
    for payload in payloads {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        soon("announce", broker.announce(topic, payload)).await.expect("announce");
    }
}

/// The next announcements, which have to be `payloads` without a gap.
pub(crate) async fn see(watch: &mut dyn Watch, payloads: &[&str]) {
    for payload in payloads {
        let seen = soon(payload, watch.next()).await.expect("next");
        assert_eq!(seen, Announcement::Payload(Bytes::copy_from_slice(payload.as_bytes())));
    }
}

/// Waits until `queue` holds exactly this much.
pub(crate) async fn depth_becomes(broker: &dyn Broker, queue: &Name, expected: Depth) {
    eventually(&format!("{queue} holds {expected:?}"), async || {
        let depths = broker.depths(std::slice::from_ref(queue)).await.expect("depths");
        depths == [expected]
    })
    .await;
}

/// Presence entries as text, in the order listed.
pub(crate) async fn nodes(broker: &dyn Broker) -> Vec<(String, String)> {
    let nodes = soon("nodes", broker.nodes()).await.expect("nodes");
    nodes.iter().map(|entry| (entry.node.to_string(), text(&entry.payload).to_owned())).collect()
}

pub(crate) fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).expect("cases send text")
}
