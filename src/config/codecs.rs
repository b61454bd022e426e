//! How the value of a key is read from text or TOML, checked, and written again.

use std::{fmt::Display, time::Duration};

use toml::Value;

use super::sources::Surroundings;

pub(super) const KIB: usize = 1 << 10;
pub(super) const MIB: usize = 1 << 20;
pub(super) const GIB: usize = 1 << 30;

/// Why a value was refused.
pub(super) enum Problem {
    /// It is not what the codec expects.
    Unlike,
    /// Something that only the codec can tell.
    Said(String),
}

/// Reads and writes the values of one kind of key.
pub(super) trait Codec {
    type Value;

    /// Whether a fault may quote a value.
    const QUOTABLE: bool = true;

    /// Names what is expected, so that it reads well after "expected".
    fn expected(&self) -> String;

    /// Turns the text of a flag or variable into what the file would have said.
    fn convert(&self, text: &str) -> Value {
        Value::String(text.to_owned())
    }

    fn read(&self, value: &Value, around: &Surroundings) -> Result<Self::Value, Problem>;

    /// Writes a value as TOML, secrets masked; `None` when there is nothing to write.
    fn write(&self, value: &Self::Value) -> Option<String>;

    /// Puts a refusal into words.
    fn explain(&self, problem: Problem, value: &Value) -> String {
        match problem {
            Problem::Said(text) => text,
            Problem::Unlike => match quoted(value).filter(|_| Self::QUOTABLE) {
                Some(got) => format!("expected {}, got {got}", self.expected()),
                None => format!("expected {}", self.expected()),
            },
        }
    }
}

/// Quotes a value in a fault, unless it might be a URL with a password or a table with secrets in it.
fn quoted(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if text.contains('@') || text.contains("://") => None,
        Value::Array(_) => Some("an array".to_owned()),
        Value::Table(_) => Some("a table".to_owned()),
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
            Some(value.to_string())
        }
    }
}

pub(super) fn literal(text: impl Into<String>) -> Option<String> {
    Some(Value::String(text.into()).to_string())
}

pub(super) fn text(value: &Value) -> Result<&str, Problem> {
    value.as_str().ok_or(Problem::Unlike)
}

/// A whole number within bounds.
pub(super) struct Int<T>(pub(super) T, pub(super) T);

impl<T: Copy + PartialOrd + Display + TryFrom<i64>> Codec for Int<T> {
    type Value = T;

    fn expected(&self) -> String {
        format!("a whole number from {} to {}", self.0, self.1)
    }

    fn convert(&self, text: &str) -> Value {
        text.trim().parse().map_or_else(|_| Value::String(text.to_owned()), Value::Integer)
    }

    fn read(&self, value: &Value, _: &Surroundings) -> Result<T, Problem> {
        let number = value.as_integer().and_then(|number| T::try_from(number).ok());
        number.filter(|number| (self.0..=self.1).contains(number)).ok_or(Problem::Unlike)
    }

    fn write(&self, value: &T) -> Option<String> {
        Some(value.to_string())
    }
}

/// A number within bounds.
pub(super) struct Decimal(pub(super) f64, pub(super) f64);

impl Codec for Decimal {
    type Value = f64;

    fn expected(&self) -> String {
        format!("a number from {} to {}", self.0, self.1)
    }

    fn convert(&self, text: &str) -> Value {
        text.trim().parse().map_or_else(|_| Value::String(text.to_owned()), Value::Float)
    }

    fn read(&self, value: &Value, _: &Surroundings) -> Result<f64, Problem> {
        let number = value.as_float().or_else(|| i32::try_from(value.as_integer()?).ok().map(f64::from));
        number.filter(|number| (self.0..=self.1).contains(number)).ok_or(Problem::Unlike)
    }

    fn write(&self, value: &f64) -> Option<String> {
        Some(Value::Float(*value).to_string())
    }
}

/// `true` or `false`.
pub(super) struct Toggle;

impl Codec for Toggle {
    type Value = bool;

    fn expected(&self) -> String {
        "true or false".to_owned()
    }

    fn convert(&self, text: &str) -> Value {
        text.trim().parse().map_or_else(|_| Value::String(text.to_owned()), Value::Boolean)
    }

    fn read(&self, value: &Value, _: &Surroundings) -> Result<bool, Problem> {
        value.as_bool().ok_or(Problem::Unlike)
    }

    fn write(&self, value: &bool) -> Option<String> {
        Some(value.to_string())
    }
}

/// A duration within bounds.
pub(super) struct Span(pub(super) Duration, pub(super) Duration);

impl Codec for Span {
    type Value = Duration;

    fn expected(&self) -> String {
        let [min, max] = [self.0, self.1].map(humantime::format_duration);
        format!("a duration such as \"15s\", from {min} to {max}")
    }

    fn read(&self, value: &Value, _: &Surroundings) -> Result<Duration, Problem> {
        let span = humantime::parse_duration(text(value)?).ok();
        span.filter(|span| (self.0..=self.1).contains(span)).ok_or(Problem::Unlike)
    }

    fn write(&self, value: &Duration) -> Option<String> {
        literal(humantime::format_duration(*value).to_string())
    }
}

/// A size in bytes within bounds.
pub(super) struct Size(pub(super) usize, pub(super) usize);

const UNITS: [(&str, usize); 4] = [("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1)];

fn sized(bytes: usize) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit))
}

impl Codec for Size {
    type Value = usize;

    fn expected(&self) -> String {
        format!("a size such as \"1MiB\", or a number of bytes, from {} to {}", sized(self.0), sized(self.1))
    }

    fn read(&self, value: &Value, _: &Surroundings) -> Result<usize, Problem> {
        let bytes = match value.as_integer() {
            Some(bytes) => usize::try_from(bytes).ok(),
            None => {
                let text = text(value)?.trim();
                let unit = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)));
                let (number, unit) = unit.unwrap_or((text, 1));
                number.trim_end().parse::<usize>().ok().and_then(|number| number.checked_mul(unit))
            }
        };
        bytes.filter(|bytes| (self.0..=self.1).contains(bytes)).ok_or(Problem::Unlike)
    }

    fn write(&self, value: &usize) -> Option<String> {
        literal(sized(*value))
    }
}

/// One of a few words.
pub(super) struct OneOf<T: 'static>(pub(super) &'static [T]);

impl<T: Copy + Display> Codec for OneOf<T> {
    type Value = T;

    fn expected(&self) -> String {
        self.0.iter().map(T::to_string).collect::<Vec<_>>().join(" or ")
    }

    fn read(&self, value: &Value, _: &Surroundings) -> Result<T, Problem> {
        let word = text(value)?;
        self.0.iter().copied().find(|known| known.to_string() == word).ok_or(Problem::Unlike)
    }

    fn write(&self, value: &T) -> Option<String> {
        literal(value.to_string())
    }
}

/// Any text, even none.
pub(super) struct Text;

impl Codec for Text {
    type Value = String;

    fn expected(&self) -> String {
        "text".to_owned()
    }

    fn read(&self, value: &Value, _: &Surroundings) -> Result<String, Problem> {
        text(value).map(str::to_owned)
    }

    fn write(&self, value: &String) -> Option<String> {
        literal(value)
    }
}

/// A list; in a flag or variable, separated by commas.
pub(super) struct List<C>(pub(super) C);

impl<C: Codec> Codec for List<C> {
    type Value = Vec<C::Value>;

    const QUOTABLE: bool = C::QUOTABLE;

    fn expected(&self) -> String {
        format!("a list; each item: {}", self.0.expected())
    }

    fn convert(&self, text: &str) -> Value {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        Value::Array(items.map(|item| self.0.convert(item)).collect())
    }

    fn read(&self, value: &Value, around: &Surroundings) -> Result<Vec<C::Value>, Problem> {
        let items = value.as_array().ok_or(Problem::Unlike)?.iter().enumerate();
        let items = items.map(|(index, item)| {
            let read = self.0.read(item, around);
            read.map_err(|problem| Problem::Said(format!("item {}: {}", index + 1, self.0.explain(problem, item))))
        });
        items.collect()
    }

    fn write(&self, value: &Vec<C::Value>) -> Option<String> {
        let items: Vec<String> = value.iter().filter_map(|item| self.0.write(item)).collect();
        Some(format!("[{}]", items.join(", ")))
    }
}

/// A key that may be left out.
pub(super) struct Optional<C>(pub(super) C);

impl<C: Codec> Codec for Optional<C> {
    type Value = Option<C::Value>;

    const QUOTABLE: bool = C::QUOTABLE;

    fn expected(&self) -> String {
        self.0.expected()
    }

    fn convert(&self, text: &str) -> Value {
        self.0.convert(text)
    }

    fn read(&self, value: &Value, around: &Surroundings) -> Result<Option<C::Value>, Problem> {
        self.0.read(value, around).map(Some)
    }

    fn write(&self, value: &Option<C::Value>) -> Option<String> {
        value.as_ref().and_then(|value| self.0.write(value))
    }
}
