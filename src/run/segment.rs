//! Events as bytes: each encoded once, as its SSE frame, and shared from then on.

use std::io::Write as _;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Event, Timestamp};

/// Consecutive events of one run, encoded. The numbers within a segment are dense.
///
/// A frame is `id: <seq>\nevent: <type>\ndata: <json>\n\n` (WHATWG HTML, server-sent events); JSON has
/// no raw line breaks, so one `data` line is always enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    first_seq: u64,
    bytes: Bytes,
    marks: Vec<Mark>,
}

/// Where a frame ends, and when its event was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Offset of the byte after the frame, within its segment.
    pub end: u32,
    /// When the event was recorded.
    pub at: Timestamp,
}

/// One event, read back from its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded<'a> {
    /// Its number.
    pub seq: u64,
    /// When it was recorded.
    pub at: Timestamp,
    /// Its type.
    pub kind: &'a str,
    /// Its payload, JSON.
    pub data: &'a str,
}

/// Appends the frame of `event`, number `seq`, to `buffer`.
pub fn encode(buffer: &mut BytesMut, seq: u64, event: &Event) {
    let mut out = buffer.writer();
    // Writing to memory does not fail, and our events have no keys that JSON cannot carry.
    let written = write!(out, "id: {seq}\nevent: {}\ndata: ", event.kind());
    debug_assert!(written.is_ok());
    let encoded = serde_json::to_writer(&mut out, event);
    debug_assert!(encoded.is_ok());
    buffer.put_slice(b"\n\n");
}

impl Segment {
    /// The segment of frames in `bytes` that `marks` delimit.
    #[must_use]
    pub fn new(first_seq: u64, bytes: Bytes, marks: Vec<Mark>) -> Self {
        debug_assert_eq!(marks.last().map(|mark| mark.end as usize), Some(bytes.len()));
        Self { first_seq, bytes, marks }
    }

    /// Encodes `events`, numbered from `first_seq`, recorded at `at`.
    #[must_use]
    pub fn encode(first_seq: u64, events: &[Event], at: Timestamp) -> Self {
        let mut bytes = BytesMut::with_capacity(events.len() * 128);
        let mut marks = Vec::with_capacity(events.len());
        for (event, seq) in events.iter().zip(first_seq..) {
            encode(&mut bytes, seq, event);
            marks.push(Mark { end: end_of(&bytes), at });
        }
        Self { first_seq, bytes: bytes.freeze(), marks }
    }

    /// The number of the first event.
    #[must_use]
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// The number of the last event.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.first_seq + self.marks.len() as u64 - 1
    }

    /// All frames.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Where the frames end.
    #[must_use]
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// The frames of the events after number `seq`, sharing the memory; empty if there are none.
    #[must_use]
    pub fn after(&self, seq: u64) -> Bytes {
        let skipped = seq.saturating_sub(self.first_seq.saturating_sub(1)).min(self.marks.len() as u64);
        match usize::try_from(skipped).unwrap_or(usize::MAX) {
            0 => self.bytes.clone(),
            skipped => self.bytes.slice(self.marks[skipped - 1].end as usize..),
        }
    }

    /// The segment without the events up to number `seq`, sharing the memory; `None` if nothing is left.
    #[must_use]
    pub fn since(&self, seq: u64) -> Option<Self> {
        if seq < self.first_seq {
            return Some(self.clone());
        }
        let skipped = usize::try_from(seq - self.first_seq + 1).ok().filter(|skipped| *skipped < self.marks.len())?;
        let start = self.marks[skipped - 1].end;
        let marks = self.marks[skipped..].iter().map(|mark| Mark { end: mark.end - start, at: mark.at }).collect();
        Some(Self { first_seq: seq + 1, bytes: self.bytes.slice(start as usize..), marks })
    }

    /// Consecutive segments as one; `None` if there are none, or they are not consecutive.
    #[must_use]
    pub fn join<'a>(segments: impl Iterator<Item = &'a Self> + Clone) -> Option<Self> {
        let mut pieces = segments.clone();
        let first = pieces.next()?;
        if pieces.next().is_none() {
            return Some(first.clone());
        }
        let mut bytes = BytesMut::with_capacity(segments.clone().map(|segment| segment.bytes.len()).sum());
        let mut joined = Self { first_seq: first.first_seq, bytes: Bytes::new(), marks: Vec::new() };
        for segment in segments {
            if !joined.marks.is_empty() && segment.first_seq != joined.last_seq() + 1 {
                return None;
            }
            let offset = end_of(&bytes);
            joined.marks.extend(segment.marks.iter().map(|mark| Mark { end: mark.end + offset, at: mark.at }));
            bytes.extend_from_slice(&segment.bytes);
        }
        joined.bytes = bytes.freeze();
        Some(joined)
    }

    /// Its last event is the run's final one.
    #[must_use]
    pub fn ends_the_run(&self) -> bool {
        let before = self.marks.iter().rev().nth(1).map_or(0, |mark| mark.end as usize);
        parse(&self.bytes[before..]).is_some_and(|(kind, _)| super::event::is_final_kind(kind))
    }

    /// The events, read back.
    pub fn events(&self) -> impl Iterator<Item = Recorded<'_>> {
        let mut start = 0;
        self.marks.iter().zip(self.first_seq..).filter_map(move |(mark, seq)| {
            let frame = &self.bytes[start..mark.end as usize];
            start = mark.end as usize;
            let (kind, data) = parse(frame)?;
            Some(Recorded { seq, at: mark.at, kind, data })
        })
    }

    /// The marks as bytes, for a store: for each frame its length and the milliseconds since the one
    /// before (the first: since the epoch), as LEB128 numbers.
    #[must_use]
    pub fn encode_marks(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.marks.len() * 2 + 6);
        let (mut end, mut at) = (0, 0);
        for mark in &self.marks {
            leb128(&mut out, u64::from(mark.end - end));
            // Clocks may step back; the difference is folded into the unsigned numbers (zigzag).
            let passed = mark.at.as_millis() - at;
            leb128(&mut out, ((passed << 1) ^ (passed >> 63)).cast_unsigned());
            (end, at) = (mark.end, mark.at.as_millis());
        }
        out
    }

    /// The segment that was stored as `bytes` and `marks`; `None` if they do not fit together.
    #[must_use]
    pub fn decode(first_seq: u64, bytes: Bytes, marks: &[u8]) -> Option<Self> {
        let (mut rest, mut end, mut at) = (marks, 0_u32, 0_i64);
        let mut decoded = Vec::with_capacity(marks.len() / 2);
        while !rest.is_empty() {
            end = end.checked_add(u32::try_from(read_leb128(&mut rest)?).ok()?)?;
            let folded = read_leb128(&mut rest)?;
            at = at.checked_add((folded >> 1).cast_signed() ^ -((folded & 1).cast_signed()))?;
            decoded.push(Mark { end, at: Timestamp::from_millis(at) });
        }
        (first_seq > 0 && end > 0 && end as usize == bytes.len()).then_some(Self { first_seq, bytes, marks: decoded })
    }
}

/// The offset after what `bytes` holds. Segments are bounded far below 4 GiB by what callers gather.
pub fn end_of(bytes: &BytesMut) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// The frames that `bytes` consist of, read back: number, type and payload of each.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = (u64, &str, &str)> {
    // JSON has no raw line breaks, so an empty line ends a frame and nothing else.
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    text.split_inclusive("\n\n").filter_map(|frame| {
        let number = frame.strip_prefix("id: ")?.split('\n').next()?.parse().ok()?;
        let (kind, data) = parse(frame.as_bytes())?;
        Some((number, kind, data))
    })
}

fn parse(frame: &[u8]) -> Option<(&str, &str)> {
    let frame = std::str::from_utf8(frame).ok()?;
    let (_, rest) = frame.split_once("\nevent: ")?;
    let (kind, rest) = rest.split_once("\ndata: ")?;
    Some((kind, rest.strip_suffix("\n\n")?))
}

fn leb128(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_leb128(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn deltas(texts: &[&str]) -> Vec<Event> {
        texts.iter().map(|text| Event::MessageDelta { text: (*text).to_owned() }).collect()
    }

    #[test]
    fn a_frame_is_id_event_data() {
        let segment = Segment::encode(7, &deltas(&["hi \"you\"\n"]), Timestamp::from_millis(1));
        let expected = "id: 7\nevent: message.delta\ndata: {\"text\":\"hi \\\"you\\\"\\n\"}\n\n";
        assert_eq!(segment.bytes(), expected.as_bytes());
        let events: Vec<_> = segment.events().collect();
        assert_eq!((events[0].kind, events[0].data), ("message.delta", "{\"text\":\"hi \\\"you\\\"\\n\"}"));
    }

    #[test]
    fn a_cursor_gets_what_follows_and_nothing_else() {
        let segment = Segment::encode(5, &deltas(&["a", "b", "c"]), Timestamp::from_millis(1));
        assert_eq!(segment.last_seq(), 7);
        for (after, first) in [(0, 5), (4, 5), (5, 6), (6, 7)] {
            assert!(segment.after(after).starts_with(format!("id: {first}\n").as_bytes()), "{after}");
        }
        assert!(segment.after(7).is_empty() && segment.after(99).is_empty());
    }

    #[test]
    fn what_follows_a_number_is_a_segment_of_its_own() {
        let segment = Segment::encode(5, &deltas(&["a", "bb", "c"]), Timestamp::from_millis(1));
        assert_eq!(segment.since(3), Some(segment.clone()));
        assert_eq!(segment.since(4), Some(segment.clone()));
        let rest = segment.since(5).unwrap();
        assert_eq!(rest, Segment::encode(6, &deltas(&["bb", "c"]), Timestamp::from_millis(1)));
        assert_eq!((segment.since(7), segment.since(99)), (None, None));
        let first = Segment::encode(5, &deltas(&["a"]), Timestamp::from_millis(1));
        assert_eq!(Segment::join([&first, &rest].into_iter()), Some(segment.clone()));
        assert_eq!(Segment::join([&rest, &first].into_iter()), None);
        assert_eq!(Segment::join([&rest].into_iter()), Some(rest));
        assert_eq!(Segment::join(std::iter::empty()), None);
    }

    #[test]
    fn a_segment_knows_whether_it_ends_the_run() {
        let end = Event::Cancelled { usage: Default::default() };
        let tokens = deltas(&["\nevent: run.completed\ndata: {}"]);
        for (events, ends) in [(vec![tokens[0].clone()], false), (vec![tokens[0].clone(), end.clone()], true)] {
            assert_eq!(Segment::encode(1, &events, Timestamp::from_millis(1)).ends_the_run(), ends);
        }
        assert!(Segment::encode(9, &[end], Timestamp::from_millis(1)).ends_the_run());
    }

    proptest! {
        #[test]
        fn segments_survive_the_store(
            texts in prop::collection::vec(".*", 1..20),
            times in prop::collection::vec(0..5_000_000_000_000_i64, 20),
            first in 1..u64::from(u32::MAX),
        ) {
            let (mut bytes, mut marks) = (BytesMut::new(), Vec::new());
            for ((text, at), seq) in texts.iter().zip(times).zip(first..) {
                encode(&mut bytes, seq, &Event::MessageDelta { text: text.clone() });
                marks.push(Mark { end: end_of(&bytes), at: Timestamp::from_millis(at) });
            }
            let segment = Segment::new(first, bytes.freeze(), marks);
            let decoded = Segment::decode(first, segment.bytes().clone(), &segment.encode_marks());
            prop_assert_eq!(decoded.as_ref(), Some(&segment));
            prop_assert_eq!(segment.events().count(), texts.len());
            let read: Vec<_> = segment.events().map(|event| (event.seq, event.kind, event.data)).collect();
            prop_assert_eq!(frames(segment.bytes()).collect::<Vec<_>>(), read);
        }

        #[test]
        fn rubbish_marks_are_refused_not_believed(marks in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(segment) = Segment::decode(1, Bytes::from_static(&[b'x'; 100]), &marks) {
                prop_assert_eq!(segment.after(0).len(), 100);
                prop_assert_eq!(segment.events().count(), 0);
            }
        }
    }
}
