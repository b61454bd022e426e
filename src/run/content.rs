//! What a message says: a text, or parts of which some are images or sound.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// What a message says. As JSON a text, or an array of parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// A text.
    Text(String),
    /// Parts, in order.
    Parts(Vec<Part>),
}

/// A part of what a message says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Part {
    /// A text.
    Text {
        /// The text.
        text: String,
    },
    /// An image that the model looks at.
    Image {
        /// Where it is.
        source: Source,
    },
    /// Sound that the model listens to.
    Audio {
        /// Where it is.
        source: Source,
    },
}

/// Where an image or a sound is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// At a URL, which the provider fetches; Runcast does not.
    Url(String),
    /// In the message itself.
    Data {
        /// Such as `image/png` or `audio/wav`.
        media_type: String,
        /// Base64, with padding.
        base64: String,
    },
}

impl Content {
    /// The length of all that is said, in bytes, images and sound as they are spelled.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Parts(parts) => parts.iter().map(Part::bytes).sum(),
        }
    }

    /// How much it is to read for a model, as bytes of text: an image or a sound counts as one of some 1,500 tokens,
    /// however it is spelled.
    #[must_use]
    pub fn weight(&self) -> usize {
        const MEDIA: usize = 6_000;
        match self {
            Self::Text(text) => text.len(),
            Self::Parts(parts) => parts.iter().map(|part| part.text().map_or(MEDIA, str::len)).sum(),
        }
    }

    /// The texts, one after the other; what is no text is left out.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Parts(parts) => match &parts[..] {
                [Part::Text { text }] => Cow::Borrowed(text),
                _ => parts.iter().filter_map(Part::text).collect::<Vec<_>>().join(" ").into(),
            },
        }
    }

    /// The parts, unless it is only a text.
    #[must_use]
    pub fn parts(&self) -> Option<&[Part]> {
        match self {
            Self::Text(_) => None,
            Self::Parts(parts) => Some(parts),
        }
    }

    /// What is wrong with it; `None`: nothing. Names the part and what was expected.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let Self::Parts(parts) = self else { return None };
        if parts.is_empty() {
            return Some("expected a text or at least one part".to_owned());
        }
        let fault = |(index, part): (usize, &Part)| Some(format!("part {index}: {}", part.fault()?));
        parts.iter().enumerate().find_map(fault)
    }
}

impl Part {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text { text } => Some(text),
            Self::Image { .. } | Self::Audio { .. } => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Text { text } => text.len(),
            Self::Image { source } | Self::Audio { source } => match source {
                Source::Url(url) => url.len(),
                Source::Data { media_type, base64 } => media_type.len() + base64.len(),
            },
        }
    }

    fn fault(&self) -> Option<String> {
        let (kind, source) = match self {
            Self::Text { .. } => return None,
            Self::Image { source } => ("image/", source),
            Self::Audio { source } => ("audio/", source),
        };
        match source {
            Source::Url(url) if url.starts_with("https://") || url.starts_with("http://") => None,
            Source::Url(_) => Some("expected an http or https URL".to_owned()),
            Source::Data { media_type, .. } if !is_media_type(media_type, kind) => {
                Some(format!("expected a media_type such as {kind}…"))
            }
            Source::Data { base64, .. } if !is_base64(base64) => Some("expected base64 with padding".to_owned()),
            Source::Data { .. } => None,
        }
    }
}

fn is_media_type(text: &str, kind: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-');
    text.strip_prefix(kind).is_some_and(|rest| !rest.is_empty() && rest.len() <= 64 && rest.chars().all(plain))
}

fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    let digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    !text.is_empty() && text.len().is_multiple_of(4) && text.len() - digits.len() <= 2 && digits.bytes().all(digit)
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl PartialEq<str> for Content {
    fn eq(&self, text: &str) -> bool {
        matches!(self, Self::Text(own) if own == text)
    }
}

impl PartialEq<String> for Content {
    fn eq(&self, text: &String) -> bool {
        *self == **text
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not `untagged`, whose only message is that nothing matched.
        struct TextOrParts;
        impl<'de> Visitor<'de> for TextOrParts {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or an array of parts {\"type\", …}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Content, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Content::Parts)
            }
        }
        deserializer.deserialize_any(TextOrParts)
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not by its tag, which takes an array for an object and forgets where a fault is.
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Kind {
            Text,
            Image,
            Audio,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            #[serde(rename = "type")]
            kind: Kind,
            text: Option<String>,
            source: Option<Source>,
        }
        let Fields { kind, text, source } = Fields::deserialize(deserializer)?;
        match (kind, text, source) {
            (Kind::Text, Some(text), None) => Ok(Self::Text { text }),
            (Kind::Image, None, Some(source)) => Ok(Self::Image { source }),
            (Kind::Audio, None, Some(source)) => Ok(Self::Audio { source }),
            (Kind::Text, None, None) => Err(de::Error::missing_field("text")),
            (Kind::Image | Kind::Audio, None, None) => Err(de::Error::missing_field("source")),
            (Kind::Text, _, Some(_)) => Err(de::Error::unknown_field("source", &["type", "text"])),
            (Kind::Image | Kind::Audio, Some(_), _) => Err(de::Error::unknown_field("text", &["type", "source"])),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parts(value: serde_json::Value) -> Content {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn texts_and_parts_are_read_and_written_as_they_are() {
        let image = json!([
            {"type": "text", "text": "what is"},
            {"type": "image", "source": {"url": "https://example.com/cat.png"}},
            {"type": "audio", "source": {"data": {"media_type": "audio/wav", "base64": "UklGRg=="}}},
            {"type": "text", "text": "this?"},
        ]);
        let content = parts(image.clone());
        assert_eq!(serde_json::to_value(&content).unwrap(), image);
        assert_eq!((content.text().as_ref(), content.fault()), ("what is this?", None));
        assert_eq!(parts(json!("hello")), Content::from("hello"));
        let error = serde_json::from_value::<Content>(json!(5)).unwrap_err().to_string();
        assert!(error.contains("a text or an array of parts"), "{error}");
        for (part, named) in [
            (json!({"type": "video", "source": {"url": "x"}}), "video"),
            (json!({"text": "x"}), "type"),
            (json!({"type": "text"}), "text"),
            (json!({"type": "text", "text": "x", "source": {"url": "x"}}), "source"),
            (json!({"type": "image"}), "source"),
            (json!({"type": "audio", "text": "x"}), "text"),
            (json!({"type": "text", "text": "x", "colour": "red"}), "colour"),
        ] {
            let error = serde_json::from_value::<Content>(json!([part])).unwrap_err().to_string();
            assert!(error.contains(&format!("`{named}`")), "{part}: {error}");
        }
    }

    #[test]
    fn parts_that_make_no_sense_are_refused_by_their_number() {
        for (part, expected) in [
            (json!({"type": "image", "source": {"url": "file:///etc/passwd"}}), "http"),
            (json!({"type": "image", "source": {"data": {"media_type": "text/html", "base64": "AAAA"}}}), "image/"),
            (json!({"type": "audio", "source": {"data": {"media_type": "audio/wav", "base64": "A*=="}}}), "base64"),
            (json!({"type": "audio", "source": {"data": {"media_type": "audio/wav", "base64": "AAA"}}}), "base64"),
            (json!({"type": "audio", "source": {"data": {"media_type": "audio/wav", "base64": "A==="}}}), "base64"),
        ] {
            let fault = parts(json!([{"type": "text", "text": ""}, part])).fault().unwrap();
            assert!(fault.starts_with("part 1: ") && fault.contains(expected), "{fault}");
        }
        assert!(parts(json!([])).fault().is_some());
    }
}
