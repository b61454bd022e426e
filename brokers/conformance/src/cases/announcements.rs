//! Announcements and watches.

use std::time::Duration;

use bytes::Bytes;
use runcast_broker::Announcement;
use tokio::time::timeout;

use crate::Backend;
use crate::harness::{announce, name, see, soon, watch};

/// Nothing from before the watch, everything from then on, whether or not it waits.
pub async fn a_watch_sees_what_is_announced_after_it_is_in_place(backend: Backend) {
    let (broker, topic) = (backend.broker(), name("topic"));
    announce(broker, &topic, &["before"]).await;
    let mut watcher = watch(broker, &topic).await;
    announce(broker, &topic, &["after", ""]).await;
    see(&mut *watcher, &["after", ""]).await;
    tokio::join!(see(&mut *watcher, &["while waiting"]), announce(broker, &topic, &["while waiting"]));
}

/// One sender's announcements on one topic arrive as they were sent.
pub async fn announcements_keep_their_order(backend: Backend) {
    let (broker, topic) = (backend.broker(), name("topic"));
    let mut watcher = watch(broker, &topic).await;
    let payloads: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    let payloads: Vec<&str> = payloads.iter().map(String::as_str).collect();
    tokio::join!(announce(broker, &topic, &payloads), see(&mut *watcher, &payloads));
}

/// Watchers do not compete, and one that leaves does not disturb the other.
pub async fn two_watchers_each_get_every_announcement(backend: Backend) {
    let (broker, topic) = (backend.broker(), name("topic"));
    let (mut one, mut two) = (watch(broker, &topic).await, watch(broker, &topic).await);
    announce(broker, &topic, &["1", "2"]).await;
    see(&mut *one, &["1", "2"]).await;
    see(&mut *two, &["1", "2"]).await;
    drop(one);
    announce(broker, &topic, &["3"]).await;
    see(&mut *two, &["3"]).await;
    drop(two);
    // nobody watches: no error
    announce(broker, &topic, &["4"]).await;
}

/// A watch sees its own topic only, also when one name begins with the other or is a queue's.
pub async fn topics_do_not_leak(backend: Backend) {
    let (broker, topic, longer) = (backend.broker(), name("topic"), name("topic:more"));
    let (mut short_watch, mut long_watch) = (watch(broker, &topic).await, watch(broker, &longer).await);
    soon("publish", broker.publish(&topic, Bytes::from_static(b"a message"))).await.expect("publish");
    announce(broker, &longer, &["long"]).await;
    announce(broker, &topic, &["short"]).await;
    see(&mut *short_watch, &["short"]).await;
    see(&mut *long_watch, &["long"]).await;
}

/// However often a wait is abandoned, every announcement arrives, once and in order.
pub async fn watching_is_cancellation_safe(backend: Backend) {
    let (broker, topic) = (backend.broker(), name("topic"));
    let mut watcher = watch(broker, &topic).await;
    let payloads: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let announced = async {
        for payload in &payloads {
            announce(broker, &topic, &[payload]).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let seen = async {
        for payload in &payloads {
            let next = loop {
                tokio::select! { biased; next = watcher.next() => break next, () = async {} => {} }
                if let Ok(next) = timeout(Duration::from_millis(1), watcher.next()).await {
                    break next;
                }
            };
            assert_eq!(next.expect("next"), Announcement::Payload(Bytes::copy_from_slice(payload.as_bytes())));
        }
    };
    soon("all announcements", async { tokio::join!(announced, seen) }).await;
}
