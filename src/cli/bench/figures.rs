//! Figures: percentiles, rounding, how they are printed.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// Percentiles of some durations, by nearest rank; in JSON milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(super) struct Percentiles {
    p50: Millis,
    p99: Millis,
    max: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Millis(Duration);

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(rounded(self.0.as_secs_f64() * 1e3))
    }
}

impl Percentiles {
    /// Of `samples`; `None` of none.
    pub(super) fn of(mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        let rank = |percent: usize| {
            let rank = (samples.len() * percent).div_ceil(100).max(1);
            samples.get(rank - 1).copied().map(Millis)
        };
        Some(Self { p50: rank(50)?, p99: rank(99)?, max: rank(100)? })
    }
}

impl Percentiles {
    /// The median, in milliseconds.
    pub(super) fn p50_ms(&self) -> f64 {
        self.p50.0.as_secs_f64() * 1e3
    }

    /// In milliseconds.
    pub(super) fn p99_ms(&self) -> f64 {
        self.p99.0.as_secs_f64() * 1e3
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |Millis(duration): Millis| duration.as_secs_f64() * 1e3;
        write!(f, "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", ms(self.p50), ms(self.p99), ms(self.max))
    }
}

/// Three decimals.
pub(super) fn rounded(figure: f64) -> f64 {
    (figure * 1e3).round() / 1e3
}

/// KiB as MiB, for people; a dash for what could not be measured.
pub(super) fn mib(kib: Option<u64>) -> String {
    kib.map_or_else(|| "-".to_owned(), |kib| format!("{:.1} MiB", kib as f64 / 1024.0))
}

/// Prints a report: one JSON object, or its text.
pub(super) fn print(report: &(impl Serialize + fmt::Display), json: bool) -> Result<(), String> {
    use std::io::Write as _;
    let text =
        if json { serde_json::to_string(report).map_err(|error| error.to_string())? } else { report.to_string() };
    writeln!(std::io::stdout(), "{text}").map_err(|error| format!("cannot write the report: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: impl IntoIterator<Item = u64>) -> [u64; 3] {
        let Percentiles { p50, p99, max } =
            Percentiles::of(millis.into_iter().map(Duration::from_millis).collect()).unwrap();
        [p50, p99, max].map(|Millis(duration)| duration.as_millis() as u64)
    }

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        assert_eq!(Percentiles::of(Vec::new()), None);
        assert_eq!(of([7]), [7, 7, 7]);
        assert_eq!(of([2, 1]), [1, 2, 2]);
        assert_eq!(of((1..=100).rev()), [50, 99, 100]);
        assert_eq!(of(1..=101), [51, 100, 101]);
        assert_eq!(of(1..=1000), [500, 990, 1000]);
    }

    #[test]
    fn durations_are_milliseconds_in_json() {
        let figures = Percentiles::of(vec![Duration::from_micros(1_234)]);
        assert_eq!(serde_json::to_string(&figures).unwrap(), r#"{"p50":1.234,"p99":1.234,"max":1.234}"#);
    }
}
