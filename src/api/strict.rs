//! JSON bodies, read strictly: a refusal names the field, and says in the words of JSON what was expected of it.
//!
//! What serde derives takes an array for an object, by position, and speaks of Rust's types. So a body is read as plain
//! JSON first, and everything from that.

use std::fmt;
use std::vec::IntoIter;

use serde::de::value::StringDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, Expected, IgnoredAny, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

use super::problem::{Code, Problem};

/// How much of a name or text is repeated to whoever sent it, in characters.
const SHOWN: usize = 64;

/// Reads a body.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let json: Json = serde_json::from_slice(body).map_err(|error| unread(body, &error))?;
    T::deserialize(json).map_err(Problem::from)
}

/// Why there is nothing to read. JSON may be more than is read: nested too deeply, or a number out of all bounds.
fn unread(body: &[u8], error: &serde_json::Error) -> Problem {
    let is_json = std::str::from_utf8(body).is_ok() && serde_json::from_slice::<IgnoredAny>(body).is_ok();
    if !is_json {
        return Problem::new(Code::InvalidJson, format!("the body is not JSON: {error}"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let found = serde_path_to_error::deserialize::<_, Json>(&mut deserializer).err();
    let path = found.map(|found| cut(&found.path().to_string())).filter(|path| path != ".");
    Fault { path, text: error.to_string() }.into()
}

/// The first characters of a text.
fn cut(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// What is wrong in a body.
#[derive(Debug)]
struct Fault {
    /// Where, if not with all of it.
    path: Option<String>,
    text: String,
}

impl Fault {
    fn unlike(got: &str, expected: &str) -> Self {
        Self { path: None, text: format!("expected {expected}, got {got}") }
    }

    /// The same, seen from what holds it: `step` is the name of a field, or a place as `[0]`.
    fn under(self, step: &str) -> Self {
        let path = match self.path {
            None => cut(step),
            Some(rest) if rest.starts_with('[') => cut(step) + &rest,
            Some(rest) => format!("{}.{rest}", cut(step)),
        };
        Self { path: Some(path), ..self }
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::field(fault.path.unwrap_or_else(|| "body".to_owned()), fault.text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: None, text: message.to_string() }
    }

    fn invalid_type(got: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::unlike(&shown(got), &spoken(expected))
    }

    fn invalid_value(got: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::unlike(&shown(got), &spoken(expected))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::unlike(&format!("{:?}", cut(variant)), &one_of(expected))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self { path: Some(cut(field)), text: format!("unknown field, expected {}", one_of(expected)) }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { path: Some(field.to_owned()), text: "missing field".to_owned() }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self { path: Some(field.to_owned()), text: "expected once".to_owned() }
    }
}

fn one_of(words: &[&str]) -> String {
    if words.is_empty() { "none".to_owned() } else { format!("one of {}", words.join(", ")) }
}

/// What was expected, in the words of JSON.
fn spoken(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "a string" => "a text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array".to_owned(),
        "newtype variant" => "an object".to_owned(),
        "a formatted UUID string" => "a UUID".to_owned(),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" => "a whole number from 0".to_owned(),
        "i32" => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        _ => text,
    }
}

/// What was found, in the words of JSON.
fn shown(got: Unexpected<'_>) -> String {
    match got {
        Unexpected::Str(text) => format!("{:?}", cut(text)),
        Unexpected::Bool(truth) => truth.to_string(),
        Unexpected::Unsigned(number) => number.to_string(),
        Unexpected::Signed(number) => number.to_string(),
        Unexpected::Float(number) => number.to_string(),
        Unexpected::Unit => "null".to_owned(),
        Unexpected::Seq => "an array".to_owned(),
        Unexpected::Map => "an object".to_owned(),
        Unexpected::UnitVariant => "a text".to_owned(),
        Unexpected::Char(_)
        | Unexpected::Bytes(_)
        | Unexpected::Option
        | Unexpected::NewtypeStruct
        | Unexpected::Enum
        | Unexpected::NewtypeVariant
        | Unexpected::TupleVariant
        | Unexpected::StructVariant
        | Unexpected::Other(_) => got.to_string(),
    }
}

/// Plain JSON. An object keeps all its fields, also those that are given twice.
enum Json {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    Array(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl Json {
    fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Self::Null => Unexpected::Unit,
            Self::Bool(truth) => Unexpected::Bool(*truth),
            Self::Unsigned(number) => Unexpected::Unsigned(*number),
            Self::Signed(number) => Unexpected::Signed(*number),
            Self::Float(number) => Unexpected::Float(*number),
            Self::Text(text) => Unexpected::Str(text),
            Self::Array(_) => Unexpected::Seq,
            Self::Object(_) => Unexpected::Map,
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E>(self, truth: bool) -> Result<Json, E> {
                Ok(Json::Bool(truth))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
                Ok(Json::Unsigned(number))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
                Ok(Json::Signed(number))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
                Ok(Json::Float(number))
            }

            fn visit_str<E>(self, text: &str) -> Result<Json, E> {
                Ok(Json::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Json::Array(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Json::Object(fields))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserializer<'de> for Json {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Null => visitor.visit_unit(),
            Self::Bool(truth) => visitor.visit_bool(truth),
            Self::Unsigned(number) => visitor.visit_u64(number),
            Self::Signed(number) => visitor.visit_i64(number),
            Self::Float(number) => visitor.visit_f64(number),
            Self::Text(text) => visitor.visit_string(text),
            Self::Array(items) => visitor.visit_seq(Items { items: items.into_iter(), taken: 0 }),
            Self::Object(fields) => visitor.visit_map(Fields { fields: fields.into_iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if let Self::Null = self { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if let Self::Object(_) = self {
            return self.deserialize_any(visitor);
        }
        Err(Fault::invalid_type(self.unexpected(), &"an object"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self {
            Self::Text(text) => visitor.visit_enum(IntoDeserializer::<Fault>::into_deserializer(text)),
            Self::Object(mut fields) if fields.len() == 1 => {
                let (name, value) = fields.swap_remove(0);
                visitor.visit_enum(Variant { name, value })
            }
            Self::Null
            | Self::Bool(_)
            | Self::Unsigned(_)
            | Self::Signed(_)
            | Self::Float(_)
            | Self::Array(_)
            | Self::Object(_) => Err(Fault::unlike(&shown(self.unexpected()), &one_of(variants))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct identifier ignored_any
    }
}

/// The items of an array.
struct Items {
    items: IntoIter<Json>,
    taken: usize,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let place = format!("[{}]", self.taken);
        self.taken += 1;
        seed.deserialize(item).map(Some).map_err(|fault| fault.under(&place))
    }
}

/// The fields of an object.
struct Fields {
    fields: IntoIter<(String, Json)>,
    value: Option<(String, Json)>,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((name, value)) = self.fields.next() else { return Ok(None) };
        let key = seed.deserialize(name.clone().into_deserializer())?;
        self.value = Some((name, value));
        Ok(Some(key))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        let (name, value) = self.value.take().ok_or_else(|| Fault::custom("a value without a name"))?;
        seed.deserialize(value).map_err(|fault| fault.under(&name))
    }
}

/// One of several things that an object may be, named by its only field.
struct Variant {
    name: String,
    value: Json,
}

impl<'de> EnumAccess<'de> for Variant {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Fault> {
        let name: StringDeserializer<Fault> = self.name.clone().into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Err(Fault::invalid_type(Unexpected::Map, &"a text"))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        seed.deserialize(self.value).map_err(|fault| fault.under(&self.name))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.value.deserialize_any(visitor).map_err(|fault| fault.under(&self.name))
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        self.value.deserialize_struct("", fields, visitor).map_err(|fault| fault.under(&self.name))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Map, Value, json};

    use super::*;
    use crate::run::{Budget, Input, OnDisconnect, Webhook};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        input: Input,
        #[serde(default)]
        on_disconnect: OnDisconnect,
        #[serde(default)]
        budget: Budget,
        webhook: Option<Webhook>,
        #[serde(default)]
        metadata: BTreeMap<String, String>,
        params: Option<Value>,
        #[serde(default)]
        state: Map<String, Value>,
        priority: Option<i32>,
        delay_ms: Option<u64>,
    }

    fn refused(body: &[u8]) -> (String, String, String) {
        let problem = serde_json::to_value(read::<Body>(body).unwrap_err()).unwrap();
        let text = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
        (text("code"), text("field"), text("detail"))
    }

    #[test]
    fn what_is_as_expected_is_read_whole() {
        let params = json!({"a": [1, -1, 1.5, null, true, "x", u64::MAX, i64::MIN], "b": {}});
        let body = json!({
            "input": [{"role": "user", "content": [{"type": "text", "text": "x"},
                {"type": "image", "source": {"data": {"media_type": "image/png", "base64": "AAAA"}}}]}],
            "on_disconnect": "cancel", "budget": {"tokens": 5}, "webhook": {"url": "u", "events": ["run.failed"]},
            "metadata": {"a": "b"}, "params": params, "state": {"a": [1]}, "priority": -3, "delay_ms": null,
        });
        let read: Body = read(body.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::to_value(&read.input).unwrap(), body["input"]);
        assert_eq!((read.on_disconnect, read.budget.tokens), (OnDisconnect::Cancel, Some(5)));
        assert_eq!(read.webhook, serde_json::from_value(body["webhook"].clone()).unwrap());
        assert_eq!((read.metadata["a"].as_str(), read.params), ("b", Some(params)));
        assert_eq!((read.state["a"][0].as_u64(), read.priority, read.delay_ms), (Some(1), Some(-3), None));
    }

    #[test]
    fn what_is_not_is_refused_by_its_field_in_the_words_of_json() {
        for (field, value, at, expected) in [
            ("on_disconnect", json!(5), "on_disconnect", "expected one of continue, cancel, got 5"),
            ("on_disconnect", json!(["cancel"]), "on_disconnect", "expected one of continue, cancel, got an array"),
            ("on_disconnect", json!({"cancel": null}), "on_disconnect", "expected a text, got an object"),
            ("on_disconnect", json!("panic"), "on_disconnect", "expected one of continue, cancel, got \"panic\""),
            ("budget", json!([5]), "budget", "expected an object, got an array"),
            ("budget", json!({"steps": 5_000_000_000_u64}), "budget.steps", "a whole number from 0 to 4294967295"),
            ("webhook", json!(["https://h.example"]), "webhook", "expected an object, got an array"),
            ("webhook", json!({"url": "u", "events": [5]}), "webhook.events[0]", "expected one of run.completed, "),
            ("webhook", json!({"url": 5}), "webhook.url", "expected a text, got 5"),
            ("input", json!(5), "input", "expected a text or an array of messages"),
            ("input", json!([["user", "x"]]), "input[0]", "expected an object, got an array"),
            ("input", json!([{"role": 5, "content": "x"}]), "input[0].role", "expected one of system, user, assistant"),
            ("input", json!([{"role": "user"}]), "input[0].content", "missing field"),
            (
                "input",
                json!([{"role": "user", "content": [["text", {"text": "x"}]]}]),
                "input[0].content[0]",
                "expected an object, got an array",
            ),
            (
                "input",
                json!([{"role": "user", "content": [{"type": "image", "source": {"data": ["image/png", "AAAA"]}}]}]),
                "input[0].content[0].source.data",
                "expected an object, got an array",
            ),
            (
                "input",
                json!([{"role": "user", "content": [{"type": "image", "source": "url"}]}]),
                "input[0].content[0].source",
                "expected an object, got a text",
            ),
            ("metadata", json!([]), "metadata", "expected an object, got an array"),
            ("metadata", json!({"a": null}), "metadata.a", "expected a text, got null"),
            ("state", json!([]), "state", "expected an object, got an array"),
            ("state", json!(null), "state", "expected an object, got null"),
            ("priority", json!(1.5), "priority", "expected a whole number from -2147483648 to 2147483647, got 1.5"),
            ("delay_ms", json!(-1), "delay_ms", "expected a whole number from 0, got -1"),
            ("colour", json!(1), "colour", "unknown field, expected one of input, on_disconnect, "),
        ] {
            let mut body = json!({"input": "x"});
            body[field] = value;
            let (code, named, detail) = refused(body.to_string().as_bytes());
            assert_eq!((code.as_str(), named.as_str()), ("invalid_field", at), "{body}: {detail}");
            assert!(detail.starts_with(&format!("{at}: ")) && detail.contains(expected), "{body}: {detail}");
        }
        for (body, at, expected) in [
            ("[\"x\"]", "body", "expected an object, got an array"),
            ("null", "body", "expected an object, got null"),
            ("{}", "input", "missing field"),
            ("{\"input\": \"x\", \"input\": \"y\"}", "input", "expected once"),
            ("{\"input\": \"x\", \"params\": {\"a\": [1e999]}}", "params.a[0]", "number out of range"),
        ] {
            let (code, named, detail) = refused(body.as_bytes());
            assert_eq!((code.as_str(), named.as_str()), ("invalid_field", at), "{body}: {detail}");
            assert!(detail.contains(expected), "{body}: {detail}");
        }
        let deep = format!("{{\"input\": \"x\", \"params\": {}1{}}}", "[".repeat(5_000), "]".repeat(5_000));
        let (code, named, detail) = refused(deep.as_bytes());
        assert!(code == "invalid_field" && named.starts_with("params[0]") && named.len() <= SHOWN, "{named}: {detail}");
    }

    #[test]
    fn what_is_no_json_is_called_so() {
        for body in [&b""[..], b"{", b"hello", b"{} {}", b"{\"input\": \"x\",}", b"{\"input\": 'x'}", b"\"\xff\""] {
            let (code, _, detail) = refused(body);
            assert_eq!(code, "invalid_json", "{detail}");
        }
    }
}
