//! Where the arguments of a call go: into the path and the query of a URL, and into a JSON body. Pure.

use std::collections::BTreeSet;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Url;
use serde_json::{Map, Value};

/// All but the unreserved characters of RFC 3986: whatever an argument is, it stays within its place.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The longest name of an argument.
const MAX_NAME: usize = 64;

/// A URL in whose path and query arguments stand. Scheme, host and port are always the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlTemplate {
    origin: String,
    path: Vec<Piece>,
    /// The parameters, in order, as they are separated by `&`.
    query: Vec<Vec<Piece>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Argument(String),
}

/// What is wrong with a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// It is of another scheme, or none.
    #[error("expected a URL that begins with https:// or http://")]
    Scheme,
    /// An argument, a user or nothing where the host is.
    #[error("expected a host, without user, password or arguments")]
    Host,
    /// It has a fragment, which no server sees.
    #[error("expected a URL without fragment")]
    Fragment,
    /// A brace that belongs to no argument.
    #[error("expected {{argument}}, the argument being a name of the characters a-z A-Z 0-9 _ -")]
    Brace,
    /// It would not be called as it is written.
    #[error("expected a URL as it is sent: percent-encoded, without . and .. in its path")]
    Spelling,
}

impl UrlTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        let scheme = ["https://", "http://"].into_iter().find(|scheme| text.starts_with(scheme));
        let scheme = scheme.ok_or(InvalidTemplate::Scheme)?;
        if text.contains('#') {
            return Err(InvalidTemplate::Fragment);
        }
        let host = &text[scheme.len()..];
        let host = &host[..host.find(['/', '?', '\\']).unwrap_or(host.len())];
        if host.is_empty() || host.contains(['{', '}', '@']) {
            return Err(InvalidTemplate::Host);
        }
        let (origin, rest) = text.split_at(scheme.len() + host.len());
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let query = query.into_iter().flat_map(|query| query.split('&'));
        let template = Self {
            origin: origin.to_owned(),
            path: pieces(if path.is_empty() { "/" } else { path })?,
            query: query.map(pieces).collect::<Result<_, _>>()?,
        };
        let sample = template.arguments().into_iter().map(|name| (name.to_owned(), Value::from("x"))).collect();
        template.fill(&sample).map_err(|_| InvalidTemplate::Spelling)?;
        Ok(template)
    }

    /// The names of the arguments that stand in it.
    #[must_use]
    pub fn arguments(&self) -> BTreeSet<&str> {
        let all = self.path.iter().chain(self.query.iter().flatten());
        all.filter_map(|piece| match piece {
            Piece::Argument(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
        .collect()
    }

    /// The URL with these arguments in it. It is on the template's own host, and beneath the template's own path.
    ///
    /// # Errors
    /// An argument of the path is missing, empty or no single value, or would lead elsewhere; the text is for a model.
    pub fn fill(&self, arguments: &Map<String, Value>) -> Result<String, String> {
        let mut path = String::new();
        for piece in &self.path {
            match piece {
                Piece::Text(text) => path += text,
                Piece::Argument(name) => {
                    let value = arguments.get(name).and_then(text_of).filter(|text| !text.is_empty());
                    let value = value.ok_or_else(|| format!("the argument {name} has to be a text or a number"))?;
                    // Also what a server might take for another folder after it has decoded it.
                    if value.split(['/', '\\']).any(|part| matches!(part, "." | "..")) {
                        return Err(format!("the argument {name} must not lead to another path"));
                    }
                    path.extend(utf8_percent_encode(&value, RESERVED));
                }
            }
        }
        let mut query = String::new();
        'parameters: for parameter in &self.query {
            let mut text = String::new();
            for piece in parameter {
                match piece {
                    Piece::Text(own) => text += own,
                    Piece::Argument(name) => match arguments.get(name) {
                        None | Some(Value::Null) => continue 'parameters,
                        Some(value) => {
                            let value = text_of(value).unwrap_or_else(|| value.to_string());
                            text.extend(utf8_percent_encode(&value, RESERVED));
                        }
                    },
                }
            }
            query.push(if query.is_empty() { '?' } else { '&' });
            query += &text;
        }
        let whole = format!("{}{path}{query}", self.origin);
        match Url::parse(&whole) {
            // Dots that two arguments have made together are gone in the parsed one.
            Ok(url) if url.path() == path => Ok(whole),
            Ok(_) | Err(_) => Err("the arguments must not lead to another path".to_owned()),
        }
    }
}

/// A single value as text; none of `null`, arrays and objects.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, InvalidTemplate> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once('{') {
        let (name, behind) = after.split_once('}').ok_or(InvalidTemplate::Brace)?;
        if before.contains('}') || !is_name(name) {
            return Err(InvalidTemplate::Brace);
        }
        pieces.extend([Piece::Text(before.to_owned()), Piece::Argument(name.to_owned())]);
        rest = behind;
    }
    if rest.contains('}') {
        return Err(InvalidTemplate::Brace);
    }
    pieces.push(Piece::Text(rest.to_owned()));
    Ok(pieces)
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain)
}

/// `template` with arguments in its texts: a text that is `{argument}` and nothing else becomes the argument's value,
/// and is left out with the entry it belongs to when there is none; within other text stands the value's text. Braces
/// around anything but one of `known` are text. What an argument holds is not looked at again.
pub(super) fn fill_body(template: &Value, known: &BTreeSet<&str>, arguments: &Map<String, Value>) -> Option<Value> {
    match template {
        Value::String(text) => match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            Some(name) if known.contains(name) => arguments.get(name).cloned(),
            Some(_) | None => Some(fill_text(text, known, arguments).into()),
        },
        Value::Array(items) => Some(items.iter().filter_map(|item| fill_body(item, known, arguments)).collect()),
        Value::Object(entries) => {
            let filled = |(key, value): (&String, &Value)| Some((key.clone(), fill_body(value, known, arguments)?));
            Some(Value::Object(entries.iter().filter_map(filled).collect()))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(template.clone()),
    }
}

fn fill_text(text: &str, known: &BTreeSet<&str>, arguments: &Map<String, Value>) -> String {
    let (mut filled, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('{') {
        filled += before;
        match after.split_once('}') {
            Some((name, behind)) if known.contains(name) => {
                let value = arguments.get(name).filter(|value| !value.is_null());
                filled += &value.map(|value| text_of(value).unwrap_or_else(|| value.to_string())).unwrap_or_default();
                rest = behind;
            }
            Some(_) | None => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else { panic!("{value} is no object") };
        map
    }

    fn fill(template: &str, arguments: Value) -> Result<String, String> {
        UrlTemplate::parse(template).unwrap().fill(&map(arguments))
    }

    #[test]
    fn arguments_are_encoded_and_stay_in_their_place() {
        for (template, arguments, url) in [
            ("https://a.b/x/{id}", json!({"id": "a/b?c#d&e=f %"}), "https://a.b/x/a%2Fb%3Fc%23d%26e%3Df%20%25"),
            ("https://a.b/{n}/{ok}", json!({"n": 1.5, "ok": true}), "https://a.b/1.5/true"),
            (
                "https://a.b:8443?q={q}&n=1",
                json!({"q": "a&admin=1+é"}),
                "https://a.b:8443/?q=a%26admin%3D1%2B%C3%A9&n=1",
            ),
            ("https://a.b/?q={q}&n={n}", json!({"n": 3}), "https://a.b/?n=3"),
            ("https://a.b/?q={q}", json!({"q": null}), "https://a.b/"),
            ("https://a.b/?q={q}", json!({"q": ["a", 1]}), "https://a.b/?q=%5B%22a%22%2C1%5D"),
            ("https://a.b/?q={q}", json!({"q": "{n}", "n": 5}), "https://a.b/?q=%7Bn%7D"),
            ("https://a.b/v{x}.json", json!({"x": "1.2"}), "https://a.b/v1.2.json"),
        ] {
            assert_eq!(fill(template, arguments).as_deref(), Ok(url));
        }
    }

    #[test]
    fn arguments_that_lead_elsewhere_are_refused() {
        for (template, arguments) in [
            ("https://a.b/x/{id}", json!({"id": ".."})),
            ("https://a.b/x/{id}", json!({"id": "."})),
            ("https://a.b/x/{id}/y", json!({"id": "../../admin"})),
            ("https://a.b/x/{id}", json!({"id": "a/../../b"})),
            ("https://a.b/x/{id}", json!({"id": "..\\admin"})),
            ("https://a.b/x/.{id}", json!({"id": "."})),
            ("https://a.b/x/.{id}/y", json!({"id": "."})),
            ("https://a.b/x/{id}", json!({"id": ""})),
            ("https://a.b/x/{id}", json!({})),
            ("https://a.b/x/{id}", json!({"id": {"a": 1}})),
        ] {
            assert!(fill(template, arguments.clone()).is_err(), "{template} {arguments}");
        }
    }

    #[test]
    fn arguments_stand_in_paths_and_queries_alone() {
        for (template, problem) in [
            ("{url}", InvalidTemplate::Scheme),
            ("file:///etc/passwd", InvalidTemplate::Scheme),
            ("{scheme}://a.b/", InvalidTemplate::Scheme),
            ("https://{host}/", InvalidTemplate::Host),
            ("https://a.{host}/", InvalidTemplate::Host),
            ("https://a.b:{port}/", InvalidTemplate::Host),
            ("https://a.b{x}", InvalidTemplate::Host),
            ("https://u@a.b/", InvalidTemplate::Host),
            ("https:///x", InvalidTemplate::Host),
            ("https://a.b/#{x}", InvalidTemplate::Fragment),
            ("https://a.b/{", InvalidTemplate::Brace),
            ("https://a.b/}", InvalidTemplate::Brace),
            ("https://a.b/{}", InvalidTemplate::Brace),
            ("https://a.b/{a b}", InvalidTemplate::Brace),
            ("https://a.b/{{a}}", InvalidTemplate::Brace),
            ("https://a.b/x/../y", InvalidTemplate::Spelling),
            ("https://a.b/ x", InvalidTemplate::Spelling),
            ("https://a.b\\x", InvalidTemplate::Spelling),
        ] {
            assert_eq!(UrlTemplate::parse(template), Err(problem), "{template}");
        }
        let template = UrlTemplate::parse("https://a.b/{x}?y={y}&x={x}").unwrap();
        assert_eq!(template.arguments(), BTreeSet::from(["x", "y"]));
    }

    #[test]
    fn bodies_take_values_as_they_are_and_nothing_from_within_them() {
        let template = json!({"q": "{q}", "n": "{n}", "text": "about {q} {n} {}", "list": ["{n}", "{q}"], "own": 1});
        let known = BTreeSet::from(["q", "n"]);
        let fill = |arguments| fill_body(&template, &known, &map(arguments)).unwrap();
        assert_eq!(
            fill(json!({"q": "\"{n}\", \"admin\": true", "n": [1]})),
            json!({
                "q": "\"{n}\", \"admin\": true",
                "n": [1],
                "text": "about \"{n}\", \"admin\": true [1] {}",
                "list": [[1], "\"{n}\", \"admin\": true"],
                "own": 1,
            })
        );
        assert_eq!(fill(json!({})), json!({"text": "about   {}", "list": [], "own": 1}));
    }

    proptest! {
        /// Whatever a model says, the call goes to the same host, beneath the same path, with the same parameters.
        #[test]
        fn no_argument_leaves_its_place(id in "(\\PC|[./\\\\%?#&=@:]){0,12}", q in "(\\PC|[./\\\\%?#&=@:]){0,12}") {
            let template = UrlTemplate::parse("https://a.b/x/{id}/y?q={q}&k=1").unwrap();
            let Ok(url) = template.fill(&map(json!({"id": id, "q": q}))) else { return Ok(()) };
            let url = Url::parse(&url).unwrap();
            prop_assert_eq!((url.scheme(), url.host_str(), url.port()), ("https", Some("a.b"), None));
            let segments: Vec<_> = url.path_segments().unwrap().collect();
            prop_assert_eq!((segments.len(), segments[0], segments[2]), (3, "x", "y"));
            let pairs: Vec<_> = url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
            prop_assert_eq!(pairs, [("q".to_owned(), q), ("k".to_owned(), "1".to_owned())]);
        }
    }
}
