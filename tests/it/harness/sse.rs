//! Reads event streams.

use bytes::{Bytes, BytesMut};
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, Response};
use serde_json::Value;

use super::soon;

/// One event of a run's log, from a stream or from a page.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) kind: String,
    pub(crate) data: Value,
}

impl Event {
    /// From a page of JSON.
    pub(crate) fn of_page(event: &Value) -> Self {
        let kind = event["type"].as_str().expect("a type").to_owned();
        assert!(event["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{event}");
        Self { seq: event["seq"].as_u64().expect("a number"), kind, data: event["data"].clone() }
    }

    /// From the lines of a frame.
    fn of_frame(frame: &str) -> Self {
        let mut lines = frame.trim_end_matches('\n').lines();
        let mut field = |name: &str| {
            let line = lines.next().unwrap_or_else(|| panic!("no {name} in {frame:?}"));
            line.strip_prefix(name).unwrap_or_else(|| panic!("no {name} in {frame:?}")).to_owned()
        };
        let (seq, kind, data) = (field("id: "), field("event: "), field("data: "));
        assert_eq!(lines.next(), None, "{frame:?}");
        let data = serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error} in {frame:?}"));
        Self { seq: seq.parse().unwrap_or_else(|error| panic!("{error} in {frame:?}")), kind, data }
    }

    /// It ends the run.
    pub(crate) fn is_final(&self) -> bool {
        ["run.completed", "run.failed", "run.cancelled", "run.expired"].contains(&self.kind.as_str())
    }

    /// The text that it adds to the answer.
    pub(crate) fn text(&self) -> &str {
        self.data["text"].as_str().unwrap_or_default()
    }
}

/// What a stream carries.
enum Block {
    Event(String),
    Comment,
    Retry,
}

/// A run's event stream. Dropping it is hanging up.
pub(crate) struct Stream {
    response: Response,
    unread: BytesMut,
    /// All frames so far, as they came, without comments and `retry:`.
    pub(crate) bytes: Vec<u8>,
    retry: bool,
}

impl Stream {
    /// Sends `request`, whose answer must be a stream.
    pub(crate) async fn open(request: RequestBuilder) -> Self {
        let response = soon("a stream's head", request.send()).await.expect("an answer");
        assert_eq!(response.status(), 200, "{response:?}");
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert_eq!(header("content-type"), "text/event-stream");
        assert_eq!(header("cache-control"), "no-store, no-transform");
        assert_eq!(header("x-accel-buffering"), "no");
        Self { response, unread: BytesMut::new(), bytes: Vec::new(), retry: false }
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next event; `None` at the end. Comments do not prolong its deadline.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        soon("the stream's next event", self.event()).await
    }

    async fn event(&mut self) -> Option<Event> {
        loop {
            match self.block().await? {
                Block::Event(frame) => return Some(Event::of_frame(&frame)),
                Block::Comment => {}
                Block::Retry => {
                    assert!(!self.retry, "a second retry");
                    self.retry = true;
                }
            }
        }
    }

    /// Reads until a comment comes; the events before it.
    pub(crate) async fn until_comment(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match soon("a comment", self.block()).await.expect("a comment") {
                Block::Event(frame) => events.push(Event::of_frame(&frame)),
                Block::Comment => return events,
                Block::Retry => {}
            }
        }
    }

    /// Reads on to the first event for which `is` holds; all events up to it.
    pub(crate) async fn through(&mut self, is: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("the stream ended after {events:?}"));
            let found = is(&event);
            events.push(event);
            if found {
                return events;
            }
        }
    }

    /// All events up to the end of the stream.
    pub(crate) async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    /// All events up to the end of the stream or of its connection, whichever comes first.
    pub(crate) async fn rest_of_broken(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            if let Some(frame) = self.frame() {
                match frame {
                    Block::Event(frame) => events.push(Event::of_frame(&frame)),
                    Block::Comment | Block::Retry => {}
                }
                continue;
            }
            match soon("the stream's end", self.response.chunk()).await {
                Ok(Some(bytes)) => self.unread.extend_from_slice(&bytes),
                Ok(None) | Err(_) => return events,
            }
        }
    }

    /// The next frame of an event as it came; `None` at the end.
    pub(crate) async fn next_frame(&mut self) -> Option<String> {
        soon("the stream's next event", async {
            loop {
                if let Block::Event(frame) = self.block().await? {
                    return Some(frame);
                }
            }
        })
        .await
    }

    /// Reads until a comment comes; how many events came before it.
    pub(crate) async fn frames_until_comment(&mut self) -> usize {
        let mut frames = 0;
        loop {
            match soon("a comment", self.block()).await.expect("a comment") {
                Block::Event(_) => frames += 1,
                Block::Comment => return frames,
                Block::Retry => {}
            }
        }
    }

    async fn block(&mut self) -> Option<Block> {
        loop {
            if let Some(block) = self.frame() {
                return Some(block);
            }
            match self.response.chunk().await.expect("a stream that does not break") {
                Some(bytes) => self.unread.extend_from_slice(&bytes),
                None => {
                    assert!(self.unread.is_empty(), "cut off: {:?}", self.unread);
                    return None;
                }
            }
        }
    }

    fn frame(&mut self) -> Option<Block> {
        let end = self.unread.windows(2).position(|pair| pair == b"\n\n")? + 2;
        let frame = self.unread.split_to(end).freeze();
        let block = classify(&frame);
        if matches!(block, Block::Event(_)) {
            self.bytes.extend_from_slice(&frame);
        }
        Some(block)
    }
}

fn classify(frame: &Bytes) -> Block {
    let text = String::from_utf8(frame.to_vec()).expect("UTF-8");
    if text.starts_with(':') {
        Block::Comment
    } else if text.starts_with("retry: ") {
        Block::Retry
    } else {
        Block::Event(text)
    }
}

/// The events of a stream that was read as a whole.
pub(crate) fn parse(body: impl AsRef<[u8]>) -> Vec<Event> {
    let text = str::from_utf8(body.as_ref()).expect("UTF-8");
    let frames = text.split_inclusive("\n\n").filter(|frame| !frame.starts_with([':', 'r']));
    frames.map(Event::of_frame).collect()
}
