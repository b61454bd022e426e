//! Lists and streams of foreign producers: nothing is lost, whoever dies.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use runcast_broker::{ErrorKind, Message, Source};
use runcast_broker_redis::{RedisList, RedisOptions, RedisStream, StreamOptions};
use tokio::runtime::Builder;
use tokio::time::{Instant, timeout};

use crate::server::{DEADLINE, Server, eventually, name, soon};

const LEASE: Duration = Duration::from_secs(1);

const KEY: &str = "jobs:pending";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    List,
    Stream,
}

/// Expands to a test for each kind.
macro_rules! on_both {
    ($($test:ident)*) => {
        mod list {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Kind::List).await;
            })*
        }
        mod stream {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Kind::Stream).await;
            })*
        }
    };
}

on_both! {
    messages_come_oldest_first_and_go_when_they_are_done
    a_message_that_is_dropped_comes_again
    what_a_dead_process_held_comes_again_after_its_lease
    a_source_that_is_closed_lets_others_have_what_it_held_at_once
    a_source_whose_waits_are_given_up_loses_nothing
    two_sources_share_while_their_connections_are_cut
    a_server_that_is_killed_and_comes_back_loses_nothing
    a_server_that_stalls_fails_in_time_and_is_found_again
    a_server_that_forgets_everything_is_used_again
    a_key_of_another_type_is_told_as_it_is
}

impl Kind {
    fn open(self, options: RedisOptions) -> Box<dyn Source> {
        match self {
            Self::List => Box::new(RedisList::open(options, KEY).unwrap()),
            Self::Stream => {
                let stream =
                    StreamOptions { stream: KEY.to_owned(), group: "group".to_owned(), field: Some("m".to_owned()) };
                Box::new(RedisStream::open(options, stream).unwrap())
            }
        }
    }

    async fn push(self, raw: &mut MultiplexedConnection, messages: impl IntoIterator<Item = String>) {
        for message in messages {
            let mut push = match self {
                Self::List => redis::cmd("LPUSH"),
                Self::Stream => redis::cmd("XADD"),
            };
            push.arg(KEY);
            if self == Self::Stream {
                push.arg("*").arg("m");
            }
            push.arg(message).exec_async(raw).await.unwrap();
        }
    }

    /// How many messages are held by somebody.
    async fn held(self, raw: &mut MultiplexedConnection) -> usize {
        match self {
            Self::List => {
                let keys: Vec<String> =
                    redis::cmd("KEYS").arg(format!("{KEY}:runcast:*")).query_async(raw).await.unwrap();
                let mut held = 0;
                for key in keys {
                    held += redis::cmd("LLEN").arg(key).query_async::<usize>(raw).await.unwrap();
                }
                held
            }
            Self::Stream => {
                let pending: (usize, redis::Value, redis::Value, redis::Value) =
                    redis::cmd("XPENDING").arg(KEY).arg("group").query_async(raw).await.unwrap();
                pending.0
            }
        }
    }
}

fn options(server: &Server, consumer: &str) -> RedisOptions {
    RedisOptions { lease: LEASE, consumer: Some(name(consumer)), ..server.options() }
}

fn numbers(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| number.to_string())
}

async fn next(source: &mut Box<dyn Source>) -> Message {
    soon("a message", source.next()).await.unwrap()
}

fn text(message: &Message) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

/// Takes `messages` in a process that dies: nothing of it runs any more, and nothing was said.
async fn die_with(kind: Kind, options: RedisOptions, messages: usize) {
    let died = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut source = kind.open(options);
            for _ in 0..messages {
                std::mem::forget(next(&mut source).await);
            }
            std::mem::forget(source);
        });
        runtime.shutdown_background();
    });
    eventually("the process has died", async || died.is_finished()).await;
    died.join().unwrap();
}

/// Takes and removes messages, through all errors, until each of `count` has come; returns how many came again.
async fn drain(sources: &mut [Box<dyn Source>], count: usize) -> usize {
    let (mut seen, mut again) = (BTreeSet::new(), 0);
    let deadline = Instant::now() + DEADLINE;
    while seen.len() < count {
        for source in &mut *sources {
            assert!(Instant::now() < deadline, "{} of {count} came", seen.len());
            // those without any do not hold up the others
            let Ok(Ok(message)) = timeout(Duration::from_millis(50), source.next()).await else { continue };
            again += usize::from(!seen.insert(text(&message)));
            done(message).await;
        }
    }
    again
}

/// Removes a message, however often that takes.
async fn done(message: Message) {
    let mut message = Some(message);
    soon("the message is removed", async {
        while let Err(refused) = message.take().unwrap().done().await {
            message = Some(refused.message);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn messages_come_oldest_first_and_go_when_they_are_done(kind: Kind) {
    let Some(server) = Server::start(&[]).await else { return };
    let (mut raw, mut source) = (server.raw().await, kind.open(options(&server, "one")));
    kind.push(&mut raw, numbers(200)).await;
    let mut ids = BTreeSet::new();
    for number in 0..200 {
        let message = next(&mut source).await;
        assert_eq!(text(&message), number.to_string());
        ids.extend(message.id().map(str::to_owned));
        message.done().await.unwrap();
    }
    assert_eq!(ids.len(), if kind == Kind::Stream { 200 } else { 0 }, "entries of streams have names of their own");
    assert_eq!(kind.held(&mut raw).await, 0);
    // one that comes while it waits
    let (message, ()) = tokio::join!(next(&mut source), kind.push(&mut raw, ["late".to_owned()]));
    assert_eq!(text(&message), "late");
    assert_eq!(kind.held(&mut raw).await, 1);
    message.done().await.unwrap();
    assert_eq!(kind.held(&mut raw).await, 0);
}

async fn a_message_that_is_dropped_comes_again(kind: Kind) {
    let Some(server) = Server::start(&[]).await else { return };
    let (mut raw, mut source) = (server.raw().await, kind.open(options(&server, "one")));
    kind.push(&mut raw, numbers(2)).await;
    let (first, second) = (next(&mut source).await, next(&mut source).await);
    // while it waits as well
    let (message, ()) = tokio::join!(next(&mut source), async { drop(first) });
    assert_eq!(text(&message), "0");
    message.done().await.unwrap();
    drop(second);
    next(&mut source).await.done().await.unwrap();
    assert_eq!(kind.held(&mut raw).await, 0);
}

async fn what_a_dead_process_held_comes_again_after_its_lease(kind: Kind) {
    const MESSAGES: usize = 250;
    let Some(server) = Server::start(&[]).await else { return };
    let (mut raw, mut source) = (server.raw().await, kind.open(options(&server, "living")));
    kind.push(&mut raw, numbers(MESSAGES)).await;
    die_with(kind, options(&server, "dead"), 150).await;
    let died = Instant::now();
    assert!(kind.held(&mut raw).await >= 150);
    drain(std::slice::from_mut(&mut source), MESSAGES).await;
    assert!(died.elapsed() < LEASE * 5, "only after {:?}", died.elapsed());
    assert_eq!(kind.held(&mut raw).await, 0);
}

async fn a_source_that_is_closed_lets_others_have_what_it_held_at_once(kind: Kind) {
    let Some(server) = Server::start(&[]).await else { return };
    let patient = |consumer| RedisOptions { lease: Duration::from_secs(3600), ..options(&server, consumer) };
    let (mut raw, mut source) = (server.raw().await, kind.open(patient("closed")));
    kind.push(&mut raw, numbers(9)).await;
    let held = [next(&mut source).await, next(&mut source).await];
    soon("close", source.close()).await;
    drop(held);
    let mut other = kind.open(patient("other"));
    for number in 0..9 {
        let message = next(&mut other).await;
        assert_eq!(text(&message), number.to_string());
        message.done().await.unwrap();
    }
    assert_eq!(kind.held(&mut raw).await, 0);
}

async fn a_source_whose_waits_are_given_up_loses_nothing(kind: Kind) {
    let Some(server) = Server::start(&[]).await else { return };
    let (mut raw, mut source) = (server.raw().await, kind.open(options(&server, "one")));
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + DEADLINE;
    for number in 0.. {
        if number < 100 {
            kind.push(&mut raw, [number.to_string()]).await;
        }
        // given up at any point, from before anything was sent to after it was answered
        let patience = Duration::from_micros(number * 97 % 5_000);
        if let Ok(message) = timeout(patience, source.next()).await {
            let message = message.unwrap();
            seen.insert(text(&message));
            message.done().await.unwrap();
        }
        if seen.len() == 100 {
            break;
        }
        assert!(Instant::now() < deadline, "{} came", seen.len());
    }
    assert_eq!(kind.held(&mut raw).await, 0);
}

async fn two_sources_share_while_their_connections_are_cut(kind: Kind) {
    const MESSAGES: usize = 1_000;
    let Some(server) = Server::start(&[]).await else { return };
    let mut raw = server.raw().await;
    let mut sources = [kind.open(options(&server, "one")), kind.open(options(&server, "two"))];
    let mut cutter = server.raw().await;
    let cut = async {
        for _ in 0..20 {
            let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut cutter).await.unwrap();
            // not the producer's, nor this one
            let theirs = ["blmove", "xreadgroup", "xautoclaim", "evalsha", "lrem", "xack"];
            let is_theirs = |line: &str| theirs.iter().any(|command| line.contains(&format!(" cmd={command} ")));
            for client in clients.lines().filter(|line| is_theirs(line)) {
                let id = client.split_whitespace().next().and_then(|id| id.strip_prefix("id=")).unwrap();
                let mut kill = redis::cmd("CLIENT");
                drop(kill.arg("KILL").arg("ID").arg(id).exec_async(&mut cutter).await);
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    let push = async {
        for number in numbers(MESSAGES) {
            kind.push(&mut raw, [number]).await;
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    };
    let (again, (), ()) = tokio::join!(drain(&mut sources, MESSAGES), cut, push);
    // what came twice was in somebody's hands when a connection was cut
    assert!(again < MESSAGES / 2, "{again} came again");
    eventually("all are removed", async || {
        for source in &mut sources {
            if let Ok(Ok(message)) = timeout(Duration::from_millis(20), source.next()).await {
                done(message).await;
            }
        }
        kind.held(&mut raw).await == 0
    })
    .await;
}

async fn a_server_that_is_killed_and_comes_back_loses_nothing(kind: Kind) {
    let Some(server) = Server::start(&[]).await else { return };
    let mut source = kind.open(options(&server, "one"));
    kind.push(&mut server.raw().await, numbers(20)).await;
    let held = next(&mut source).await;
    server.kill();
    held.done().await.unwrap_err();
    assert_eq!(loop_until_error(&mut source).await, ErrorKind::Transient);
    server.run().await;
    let again = drain(std::slice::from_mut(&mut source), 20).await;
    assert!(again <= 20, "{again} came again");
    let mut raw = server.raw().await;
    eventually("all are removed", async || {
        if let Ok(Ok(message)) = timeout(Duration::from_millis(20), source.next()).await {
            done(message).await;
        }
        kind.held(&mut raw).await == 0
    })
    .await;
}

/// Takes what is buffered, and leaves it to come again.
async fn loop_until_error(source: &mut Box<dyn Source>) -> ErrorKind {
    let mut taken = Vec::new();
    loop {
        match soon("an error", source.next()).await {
            Ok(message) => taken.push(message),
            Err(error) => return error.kind(),
        }
    }
}

async fn a_server_that_stalls_fails_in_time_and_is_found_again(kind: Kind) {
    const LIMIT: Duration = Duration::from_millis(300);
    let Some(server) = Server::start(&[]).await else { return };
    let options = RedisOptions { command_timeout: LIMIT, connect_timeout: LIMIT, ..options(&server, "one") };
    let (mut raw, mut source) = (server.raw().await, kind.open(options));
    kind.push(&mut raw, numbers(1)).await;
    let held = next(&mut source).await;
    // it waits by now
    assert!(timeout(LIMIT, source.next()).await.is_err());
    server.signal("STOP");
    let since = Instant::now();
    let refused = held.done().await.unwrap_err();
    assert_eq!((refused.error.kind(), since.elapsed() < LIMIT * 3), (ErrorKind::Transient, true));
    assert_eq!(soon("an error", source.next()).await.err().unwrap().kind(), ErrorKind::Transient);
    assert!(since.elapsed() < LEASE + LIMIT * 5, "only after {:?}", since.elapsed());
    server.signal("CONT");
    done(refused.message).await;
    kind.push(&mut raw, ["after".to_owned()]).await;
    let mut seen = BTreeSet::new();
    soon("the message after", async {
        while !seen.contains("after") {
            if let Ok(message) = source.next().await {
                seen.insert(text(&message));
                message.done().await.unwrap();
            }
        }
    })
    .await;
    assert_eq!(kind.held(&mut raw).await, 0);
}

async fn a_server_that_forgets_everything_is_used_again(kind: Kind) {
    let Some(server) = Server::start(&[]).await else { return };
    let (mut raw, mut source) = (server.raw().await, kind.open(options(&server, "one")));
    kind.push(&mut raw, numbers(1)).await;
    let forgotten = next(&mut source).await;
    redis::cmd("FLUSHALL").exec_async(&mut raw).await.unwrap();
    forgotten.done().await.unwrap();
    kind.push(&mut raw, ["new".to_owned()]).await;
    let message = soon("a message", async {
        loop {
            if let Ok(message) = source.next().await {
                return message;
            }
        }
    })
    .await;
    assert_eq!(text(&message), "new");
    message.done().await.unwrap();
}

async fn a_key_of_another_type_is_told_as_it_is(kind: Kind) {
    let Some(server) = Server::start(&[]).await else { return };
    let (mut raw, mut source) = (server.raw().await, kind.open(options(&server, "one")));
    redis::cmd("SET").arg(KEY).arg("text").exec_async(&mut raw).await.unwrap();
    let error = soon("an error", source.next()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(error.to_string().contains("wrong kind of value"), "{error}");
    redis::cmd("DEL").arg(KEY).exec_async(&mut raw).await.unwrap();
    kind.push(&mut raw, numbers(1)).await;
    next(&mut source).await.done().await.unwrap();
}

#[tokio::test]
async fn what_a_dead_consumer_of_a_list_held_takes_its_old_place() {
    let Some(server) = Server::start(&[]).await else { return };
    let patient = RedisOptions { lease: Duration::from_secs(3600), ..options(&server, "node") };
    let mut raw = server.raw().await;
    Kind::List.push(&mut raw, numbers(100)).await;
    die_with(Kind::List, patient.clone(), 3).await;
    // under its old name at once
    let mut source = Kind::List.open(patient);
    for number in 0..100 {
        let message = next(&mut source).await;
        assert_eq!(text(&message), number.to_string());
        message.done().await.unwrap();
    }
}

#[tokio::test]
async fn a_consumer_of_a_list_that_thaws_after_its_lease_loses_nothing() {
    let Some(server) = Server::start(&[]).await else { return };
    let mut raw = server.raw().await;
    let (mut frozen, mut other) =
        (Kind::List.open(options(&server, "frozen")), Kind::List.open(options(&server, "other")));
    Kind::List.push(&mut raw, numbers(1)).await;
    let held = next(&mut frozen).await;
    // nobody asks the frozen one for longer than its lease
    let taken_over = next(&mut other).await;
    held.done().await.unwrap();
    assert_eq!(Kind::List.held(&mut raw).await, 1, "it removed nothing of the other's");
    taken_over.done().await.unwrap();
    Kind::List.push(&mut raw, ["after".to_owned()]).await;
    assert_eq!(text(&next(&mut frozen).await), "after");
}

#[tokio::test]
async fn an_entry_without_the_field_is_an_object_of_all_its_fields() {
    let Some(server) = Server::start(&[]).await else { return };
    let mut raw = server.raw().await;
    let mut source = Kind::Stream.open(options(&server, "one"));
    let mut add = redis::cmd("XADD");
    add.arg(KEY).arg("*").arg("run_id").arg(17).arg("text").arg(b"\xff\"").exec_async(&mut raw).await.unwrap();
    let message = next(&mut source).await;
    assert_eq!(text(&message), "{\"run_id\":\"17\",\"text\":\"\u{fffd}\\\"\"}");
}
