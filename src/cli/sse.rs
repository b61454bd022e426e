//! Server-sent events, read as their bytes come in (WHATWG HTML, section 9.2).

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::LocalBoxStream;

/// The most bytes that one event may have.
const LARGEST: usize = 4 << 20;

/// One event, borrowed from its parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// Its number: the last `id` of the stream that is one; 0 before the first.
    pub(super) seq: u64,
    /// Its type.
    pub(super) kind: &'a str,
    /// Its payload.
    pub(super) data: &'a str,
}

/// An event of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// See [`Frame::seq`].
    pub(super) seq: u64,
    /// See [`Frame::kind`].
    pub(super) kind: String,
    /// See [`Frame::data`].
    pub(super) data: String,
}

/// An event is larger than this client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {LARGEST} bytes")]
pub(super) struct TooLarge;

/// Takes a stream apart, wherever it was split on its way. Comments and `retry` lines are passed over.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The beginning of a line whose end is yet to come.
    line: Vec<u8>,
    /// The last line ended in CR: a LF right after it belongs to that end.
    after_cr: bool,
    fields: Fields,
}

#[derive(Debug, Default)]
struct Fields {
    seq: u64,
    kind: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes, and gives each event that they complete to `each`.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame<'_>)) -> Result<(), TooLarge> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.line.extend_from_slice(bytes);
                break;
            };
            self.after_cr = bytes[end] == b'\r';
            if self.line.is_empty() {
                self.fields.line(&bytes[..end], &mut each);
            } else {
                self.line.extend_from_slice(&bytes[..end]);
                self.fields.line(&self.line, &mut each);
                self.line.clear();
            }
            bytes = &bytes[end + 1..];
            self.fields.bounded(0)?;
        }
        self.fields.bounded(self.line.len())
    }
}

impl Fields {
    fn line(&mut self, line: &[u8], each: &mut impl FnMut(Frame<'_>)) {
        if line.is_empty() {
            return self.dispatch(each);
        }
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => {
                self.kind.clear();
                self.kind.extend_from_slice(value);
            }
            // An id that is no number is another protocol's.
            b"id" => self.seq = str::from_utf8(value).ok().and_then(|id| id.parse().ok()).unwrap_or(self.seq),
            _ => {}
        }
    }

    fn dispatch(&mut self, each: &mut impl FnMut(Frame<'_>)) {
        if std::mem::take(&mut self.has_data) {
            let (kind, data) = (String::from_utf8_lossy(&self.kind), String::from_utf8_lossy(&self.data));
            each(Frame { seq: self.seq, kind: if kind.is_empty() { "message" } else { &kind }, data: &data });
        }
        self.kind.clear();
        self.data.clear();
    }

    fn bounded(&self, more: usize) -> Result<(), TooLarge> {
        if self.kind.len() + self.data.len() + more <= LARGEST { Ok(()) } else { Err(TooLarge) }
    }
}

/// The events of a stream, one after the other.
pub(super) struct Events {
    pieces: LocalBoxStream<'static, Result<Bytes, String>>,
    parser: Parser,
    ready: VecDeque<Event>,
}

impl Events {
    /// Reads them from the pieces of a body; an error of theirs says why it was cut.
    pub(super) fn new(pieces: LocalBoxStream<'static, Result<Bytes, String>>) -> Self {
        Self { pieces, parser: Parser::default(), ready: VecDeque::new() }
    }

    /// The next event; `None` when the stream has ended, whether or not with a final event. Cancellation
    /// safe.
    pub(super) async fn next(&mut self) -> Option<Result<Event, String>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            let piece = match self.pieces.next().await? {
                Ok(piece) => piece,
                Err(error) => return Some(Err(error)),
            };
            let ready = &mut self.ready;
            let keep = |Frame { seq, kind, data }: Frame<'_>| {
                ready.push_back(Event { seq, kind: kind.to_owned(), data: data.to_owned() });
            };
            if let Err(error) = self.parser.feed(&piece, keep) {
                return Some(Err(error.to_string()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Event>, TooLarge> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for piece in pieces {
            parser.feed(piece, |Frame { seq, kind, data }| {
                events.push(Event { seq, kind: kind.to_owned(), data: data.to_owned() });
            })?;
        }
        Ok(events)
    }

    fn event(seq: u64, kind: &str, data: &str) -> Event {
        Event { seq, kind: kind.to_owned(), data: data.to_owned() }
    }

    const STREAM: &str = "retry: 1500\n\n: still here\n\nid: 1\nevent: run.created\ndata: {\"agent\":\"ä€\"}\n\n\
        id: 2\r\nevent:custom\r\ndata:  two\r\ndata\r\ndata:lines\r\n\r\n\
        id: x\rdata: {}\r\revent: nothing\n\ndata: :\nunknown: 1\n\ndata: cut";

    #[test]
    fn a_stream_means_the_same_wherever_it_is_split() {
        let expected = [
            event(1, "run.created", "{\"agent\":\"ä€\"}"),
            event(2, "custom", " two\n\nlines"),
            event(2, "message", "{}"),
            event(2, "message", ":"),
        ];
        let bytes = STREAM.as_bytes();
        assert_eq!(parse([bytes]).unwrap(), expected);
        assert_eq!(parse(bytes.chunks(1)).unwrap(), expected);
        for at in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(at);
            assert_eq!(parse([head, tail]).unwrap(), expected, "split at {at}");
        }
    }

    #[test]
    fn an_event_that_is_too_large_is_refused_before_it_fills_the_memory() {
        let piece = [b'x'; 1 << 16];
        let one_line = std::iter::once(&b"data: "[..]).chain(std::iter::repeat_n(&piece[..], 65));
        assert_eq!(parse(one_line), Err(TooLarge));
        let line = [b"data: ".as_slice(), &piece, b"\n"].concat();
        assert_eq!(parse(std::iter::repeat_n(line.as_slice(), 65)), Err(TooLarge));
        let fits = [line.as_slice(), b"\n"].concat();
        assert_eq!(parse(std::iter::repeat_n(fits.as_slice(), 65)).unwrap().len(), 65);
    }
}
