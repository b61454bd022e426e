//! What a run of the scripted agent has to look like to its viewer.

use std::time::Instant;

use serde::Serialize;

use crate::cli::sse::Frame;

/// What was wrong with the events of runs that came to their end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Faults {
    /// Tokens that never came.
    pub(super) lost: u64,
    /// Tokens that came again.
    pub(super) duplicates: u64,
    /// Events whose number does not follow the one before.
    pub(super) out_of_order: u64,
    /// Events after the final one.
    pub(super) after_end: u64,
}

impl std::iter::Sum for Faults {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, more| Self {
            lost: sum.lost + more.lost,
            duplicates: sum.duplicates + more.duplicates,
            out_of_order: sum.out_of_order + more.out_of_order,
            after_end: sum.after_end + more.after_end,
        })
    }
}

/// Watches the events of one run.
#[derive(Debug, Default)]
pub(super) struct Check {
    seq: u64,
    token: u64,
    faults: Faults,
    end: Option<Result<Instant, String>>,
    /// When the first token came.
    pub(super) first_token: Option<Instant>,
}

impl Check {
    /// Sees the next event.
    pub(super) fn see(&mut self, frame: Frame<'_>) {
        if self.end.is_some() {
            self.faults.after_end += 1;
        }
        // An attempt that follows another may skip numbers, and says its tokens again.
        let again = frame.kind == "run.retrying";
        if frame.seq != self.seq + 1 && !(again && frame.seq > self.seq) {
            self.faults.out_of_order += 1;
        }
        self.seq = frame.seq;
        match frame.kind {
            "message.delta" => self.token(number(frame.data)),
            "run.retrying" => self.token = 0,
            "run.completed" => self.end = Some(Ok(Instant::now())),
            "run.failed" | "run.cancelled" | "run.expired" => {
                self.end = Some(Err(format!("{} {}", frame.kind, frame.data)))
            }
            _ => {}
        }
    }

    fn token(&mut self, number: u64) {
        self.first_token.get_or_insert_with(Instant::now);
        if number <= self.token {
            self.faults.duplicates += 1;
        } else {
            self.faults.lost += number - self.token - 1;
            self.token = number;
        }
    }

    /// When the run was completed and what was wrong on the way, if it was to have `tokens` tokens.
    pub(super) fn finish(&self, tokens: u64) -> Result<(Instant, Faults), String> {
        let end = self.end.clone().ok_or_else(|| "the stream ended without a final event".to_owned())??;
        let mut faults = self.faults;
        faults.lost += tokens.saturating_sub(self.token);
        faults.duplicates += self.token.saturating_sub(tokens);
        Ok((end, faults))
    }
}

/// The number of the token in `{"text":"t17 "}`; 0 of anything else.
fn number(data: &str) -> u64 {
    let token = data.strip_prefix("{\"text\":\"t").and_then(|rest| rest.strip_suffix(" \"}"));
    token.and_then(|token| token.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(frames: &[(u64, &str)]) -> Result<Faults, String> {
        let mut check = Check::default();
        for (seq, what) in frames {
            let data = format!("{{\"text\":\"{what} \"}}");
            let kind = if what.starts_with('t') { "message.delta" } else { what };
            check.see(Frame { seq: *seq, kind, data: &data });
        }
        check.finish(2).map(|(_, faults)| faults)
    }

    #[test]
    fn what_is_wrong_with_a_run_is_seen() {
        let none = Faults::default();
        assert_eq!(faults(&[(1, "t1"), (2, "t2"), (3, "run.completed")]), Ok(none));
        let retried = [(1, "t1"), (9, "run.retrying"), (10, "t1"), (11, "t2"), (12, "run.completed")];
        assert_eq!(faults(&retried), Ok(none));
        assert_eq!(faults(&[(1, "t2"), (2, "run.completed")]), Ok(Faults { lost: 1, ..none }));
        assert_eq!(faults(&[(1, "t1"), (2, "run.completed")]), Ok(Faults { lost: 1, ..none }));
        let twice = [(1, "t1"), (2, "t2"), (3, "t2"), (4, "run.completed")];
        assert_eq!(faults(&twice), Ok(Faults { duplicates: 1, ..none }));
        assert_eq!(faults(&[(1, "t1"), (3, "t2"), (4, "run.completed")]), Ok(Faults { out_of_order: 1, ..none }));
        let past = [(1, "t1"), (2, "t2"), (3, "run.completed"), (4, "run.completed")];
        assert_eq!(faults(&past), Ok(Faults { after_end: 1, ..none }));
        assert!(faults(&[(1, "t1"), (2, "t2")]).is_err());
        assert!(faults(&[(1, "run.failed")]).is_err());
    }
}
