//! How a section is declared, read and listed: once, next to its struct.

use std::collections::BTreeMap;

use super::{
    faults::Origin,
    sources::{Reader, Scope, join},
};

/// One line of a configuration, for rendering and for the example.
pub(super) enum Line {
    /// The head of a section.
    Section { path: String, about: &'static str },
    /// A key: its full path, its documentation, what it takes, and its value as TOML.
    Key { path: String, name: &'static str, about: &'static str, expected: String, value: Option<String> },
}

/// A part of the configuration: the whole, a section, or a map of sections.
pub(super) trait Part {
    /// Returns the part when nobody sets anything.
    fn initial() -> Self;

    fn read(reader: &mut Reader<'_>, scope: Scope) -> Self;

    /// Appends the part's lines; `path` is its own path.
    fn list(&self, path: &str, lines: &mut Vec<Line>);
}

/// Names the entries of a map of sections that are there without being written.
pub(super) trait Entry: Sized {
    const BUILT_IN: &'static [&'static str];

    /// The entry with what its name says; `is_set` tells whether a key of it is set.
    fn named(self, name: &str, is_set: impl Fn(&str) -> bool) -> Self {
        let _ = (name, is_set);
        self
    }
}

/// Declares a section: `/// meaning, why` `pub key: Type = default => codec;`, then `parts` (sections inside it) and
/// `beside` (fields that are no keys). From it come the struct, its defaults, its reading and its documentation.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $($(#[doc = $doc:literal])+ pub $key:ident: $type:ty = $default:expr => $codec:expr;)*
        }
        $(parts { $($(#[doc = $part_doc:literal])+ pub $part:ident: $part_type:ty;)* })?
        $(beside { $($(#[doc = $beside_doc:literal])+ pub $beside:ident: $beside_type:ty;)* })?
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $key: $type,)*
            $($($(#[doc = $part_doc])+ pub $part: $part_type,)*)?
            $($($(#[doc = $beside_doc])+ pub $beside: $beside_type,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($key: $default,)*
                    $($($part: $crate::config::parts::Part::initial(),)*)?
                    $($($beside: Default::default(),)*)?
                }
            }
        }

        impl $crate::config::parts::Part for $name {
            fn initial() -> Self {
                Self::default()
            }

            fn read(
                reader: &mut $crate::config::sources::Reader<'_>,
                mut scope: $crate::config::sources::Scope,
            ) -> Self {
                let read = Self {
                    $($key: reader.key(&mut scope, stringify!($key), &$codec, $default),)*
                    $($($part: {
                        let inner = reader.enter(&mut scope, stringify!($part));
                        $crate::config::parts::Part::read(reader, inner)
                    },)*)?
                    $($($beside: Default::default(),)*)?
                };
                reader.leave(scope);
                read
            }

            fn list(&self, path: &str, lines: &mut Vec<$crate::config::parts::Line>) {
                use $crate::config::{codecs::Codec, parts::Line, sources::join};
                lines.push(Line::Section { path: path.to_owned(), about: concat!($($about, "\n"),+) });
                $(lines.push(Line::Key {
                    path: join(path, stringify!($key)),
                    name: stringify!($key),
                    about: concat!($($doc, "\n"),+),
                    expected: $codec.expected(),
                    value: $codec.write(&self.$key),
                });)*
                $($(self.$part.list(&join(path, stringify!($part)), lines);)*)?
            }
        }
    };
}
pub(super) use section;

impl<S: Part + Entry> Part for BTreeMap<String, S> {
    fn initial() -> Self {
        S::BUILT_IN.iter().map(|name| ((*name).to_owned(), S::initial().named(name, |_| false))).collect()
    }

    fn read(reader: &mut Reader<'_>, mut scope: Scope) -> Self {
        let written = scope.table.iter().map(|(name, written)| (name.clone(), Some(written.line)));
        let built_in = S::BUILT_IN.iter().map(|name| ((*name).to_owned(), None));
        let names: BTreeMap<String, Option<usize>> = built_in.chain(written).collect();
        let mut entries = Self::new();
        for (name, line) in names {
            let inner = reader.enter(&mut scope, &name);
            if is_name(&name) {
                let path = inner.path.clone();
                let entry = S::read(reader, inner);
                let entry = entry.named(&name, |key| reader.origins.contains_key(&join(&path, key)));
                entries.insert(name, entry);
            } else {
                let origin = line.map_or(Origin::Default, |line| reader.at(line));
                reader.fault(&inner.path, origin, "expected a name of 1 to 64 of the characters a-z A-Z 0-9 _ -");
            }
        }
        entries
    }

    fn list(&self, path: &str, lines: &mut Vec<Line>) {
        for (name, entry) in self {
            entry.list(&join(path, name), lines);
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}
