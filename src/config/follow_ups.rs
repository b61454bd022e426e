//! The follow-ups of an agent: a list of tables.

use std::time::Duration;

use toml::{Table, Value};

use super::{
    codecs::{Codec, Int, List, Problem, Span, literal},
    parsed::FILLED,
    sources::Surroundings,
    values::{FollowUp, FollowUpHours},
};

/// The keys of a follow-up, with what each takes.
const AFTER: Span = Span(Duration::from_millis(1), Duration::from_secs(366 * 86_400));
const TIMES: Int<u32> = Int(1, 1_000);

/// All of them.
const KEYS: [&str; 6] = ["after", "instruction", "times", "hours", "days", "timezone"];

/// The most follow-ups of an agent: nobody goes through more.
const MOST: usize = 100;

/// A list of follow-ups; in a flag or variable, as TOML.
pub(super) struct FollowUps;

impl Codec for FollowUps {
    type Value = Vec<FollowUp>;

    fn expected(&self) -> String {
        "a list of tables such as { after = \"1h\", instruction = \"Ask whether it helped.\", times = 1 }".to_owned()
    }

    fn convert(&self, text: &str) -> Value {
        let parsed = format!("list = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("list"));
        parsed.unwrap_or_else(|| Value::String(text.to_owned()))
    }

    fn read(&self, value: &Value, around: &Surroundings) -> Result<Vec<FollowUp>, Problem> {
        let items = value.as_array().filter(|items| items.len() <= MOST).ok_or(Problem::Unlike)?;
        let items = items.iter().enumerate().map(|(index, item)| {
            let table = item.as_table().ok_or(Problem::Unlike)?;
            read(table, around).map_err(|said| Problem::Said(format!("item {}: {said}", index + 1)))
        });
        items.collect()
    }

    fn write(&self, value: &Vec<FollowUp>) -> Option<String> {
        let items = value.iter().map(|FollowUp { after, instruction, times, hours }| {
            let after = AFTER.write(after).unwrap_or_default();
            let instruction = literal(instruction).unwrap_or_default();
            let hours = hours.as_ref().map_or_else(String::new, |FollowUpHours { hours, days, timezone }| {
                let days = if days.is_empty() { String::new() } else { format!(", days = {days:?}") };
                format!(", hours = {hours:?}{days}, timezone = {timezone:?}")
            });
            format!("{{ after = {after}, instruction = {instruction}, times = {times}{hours} }}")
        });
        Some(format!("[{}]", items.collect::<Vec<_>>().join(", ")))
    }
}

fn read(table: &Table, around: &Surroundings) -> Result<FollowUp, String> {
    if let Some(unknown) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("{unknown}: unknown key; expected {}", KEYS.join(", ")));
    }
    let hours = key(table, "hours", &FILLED, around)?;
    let days = key(table, "days", &List(FILLED), around)?;
    let timezone = key(table, "timezone", &FILLED, around)?;
    if hours.is_none() && (days.is_some() || timezone.is_some()) {
        return Err("days and timezone need hours".to_owned());
    }
    let hours = hours.map(|hours| FollowUpHours {
        hours,
        days: days.unwrap_or_default(),
        timezone: timezone.unwrap_or_else(|| "UTC".to_owned()),
    });
    if let Some(written) = &hours {
        let read = written.read().map_err(|error| format!("hours: {error}"))?;
        if read.from == read.to && !written.hours.trim_end().ends_with("24:00") {
            let expected = "expected hours that end at another time than they begin, or \"00:00-24:00\"";
            return Err(format!("hours: {expected}, got {:?}", written.hours));
        }
    }
    Ok(FollowUp {
        after: key(table, "after", &AFTER, around)?.ok_or("after has to be set")?,
        instruction: key(table, "instruction", &FILLED, around)?.ok_or("instruction has to be set")?,
        times: key(table, "times", &TIMES, around)?.unwrap_or(1),
        hours,
    })
}

fn key<C: Codec>(table: &Table, name: &str, codec: &C, around: &Surroundings) -> Result<Option<C::Value>, String> {
    let Some(value) = table.get(name) else { return Ok(None) };
    let read = codec.read(value, around);
    read.map(Some).map_err(|problem| format!("{name}: {}", codec.explain(problem, value)))
}
