//! The follow-ups of an agent: a list of tables.

use std::time::Duration;

use toml::{Table, Value};

use super::{
    codecs::{Codec, Int, Problem, Span, literal},
    parsed::FILLED,
    sources::Surroundings,
    values::FollowUp,
};

/// The keys of a follow-up, with what each takes.
const AFTER: Span = Span(Duration::from_millis(1), Duration::from_secs(366 * 86_400));
const TIMES: Int<u32> = Int(1, 1_000);

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
        let items = value.iter().map(|FollowUp { after, instruction, times }| {
            let after = AFTER.write(after).unwrap_or_default();
            let instruction = literal(instruction).unwrap_or_default();
            format!("{{ after = {after}, instruction = {instruction}, times = {times} }}")
        });
        Some(format!("[{}]", items.collect::<Vec<_>>().join(", ")))
    }
}

fn read(table: &Table, around: &Surroundings) -> Result<FollowUp, String> {
    if let Some(unknown) = table.keys().find(|key| !["after", "instruction", "times"].contains(&key.as_str())) {
        return Err(format!("{unknown}: unknown key; expected after, instruction, times"));
    }
    Ok(FollowUp {
        after: key(table, "after", &AFTER, around)?.ok_or("after has to be set")?,
        instruction: key(table, "instruction", &FILLED, around)?.ok_or("instruction has to be set")?,
        times: key(table, "times", &TIMES, around)?.unwrap_or(1),
    })
}

fn key<C: Codec>(table: &Table, name: &str, codec: &C, around: &Surroundings) -> Result<Option<C::Value>, String> {
    let Some(value) = table.get(name) else { return Ok(None) };
    let read = codec.read(value, around);
    read.map(Some).map_err(|problem| format!("{name}: {}", codec.explain(problem, value)))
}
