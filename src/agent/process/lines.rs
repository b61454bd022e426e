//! Lines of bounded length.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Reads lines, one at a time: what is not asked for stays with whoever writes it.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    longest: usize,
    partial: Vec<u8>,
    ended: bool,
}

/// A line, or a part of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Without its line break.
    Whole(Vec<u8>),
    /// As much of a line as may be: the rest follows.
    Long(Vec<u8>),
    /// What came after the last line break, before the end. Never empty.
    Last(Vec<u8>),
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Reads from `reader`, lines of at most `longest` bytes.
    pub(super) fn new(reader: R, longest: usize) -> Self {
        Self { reader: BufReader::new(reader), longest, partial: Vec::new(), ended: false }
    }

    /// Whether the end was reached: there are no more lines.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// The next line; `None` at the end, which an error is, too. Cancellation safe.
    pub(super) async fn next(&mut self) -> io::Result<Option<Line>> {
        if self.ended {
            return Ok(None);
        }
        loop {
            let bytes = self.reader.fill_buf().await.inspect_err(|_| self.ended = true)?;
            if bytes.is_empty() {
                self.ended = true;
                let last = std::mem::take(&mut self.partial);
                return Ok(Some(last).filter(|last| !last.is_empty()).map(Line::Last));
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let room = self.longest - self.partial.len();
            let taken = end.unwrap_or(bytes.len());
            if taken > room {
                self.partial.extend_from_slice(&bytes[..room]);
                self.reader.consume(room);
                return Ok(Some(Line::Long(std::mem::take(&mut self.partial))));
            }
            self.partial.extend_from_slice(&bytes[..taken]);
            self.reader.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(Some(Line::Whole(std::mem::take(&mut self.partial))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(bytes: &[u8]) -> Vec<Line> {
        let (mut lines, mut all) = (Lines::new(bytes, 4), Vec::new());
        while let Some(line) = lines.next().await.unwrap() {
            all.push(line);
        }
        assert!(lines.ended() && lines.next().await.unwrap().is_none());
        all
    }

    #[tokio::test]
    async fn lines_are_whole_or_say_that_they_are_not() {
        let (whole, long, last) = (
            |text: &str| Line::Whole(text.into()),
            |text: &str| Line::Long(text.into()),
            |text: &str| Line::Last(text.into()),
        );
        for (bytes, expected) in [
            ("", vec![]),
            ("\n", vec![whole("")]),
            ("ab\ncd\n", vec![whole("ab"), whole("cd")]),
            ("ab", vec![last("ab")]),
            ("abcd\n", vec![whole("abcd")]),
            ("abcde\nf", vec![long("abcd"), whole("e"), last("f")]),
            ("abcdefghi", vec![long("abcd"), long("efgh"), last("i")]),
        ] {
            assert_eq!(all(bytes.as_bytes()).await, expected, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_line_that_is_waited_for_is_not_lost_when_nobody_waits_any_more() {
        let (mut writer, reader) = tokio::io::duplex(64);
        let mut lines = Lines::new(reader, 64);
        tokio::io::AsyncWriteExt::write_all(&mut writer, b"half").await.unwrap();
        tokio::select! {
            biased;
            line = lines.next() => panic!("{line:?} is no line"),
            () = tokio::task::yield_now() => {}
        }
        tokio::io::AsyncWriteExt::write_all(&mut writer, b" a line\n").await.unwrap();
        assert_eq!(lines.next().await.unwrap(), Some(Line::Whole(b"half a line".to_vec())));
    }
}
