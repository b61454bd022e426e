//! What a program or a service says that is an agent: one vocabulary of JSON messages, whatever carries them.
//!
//! A program has them as lines on its standard input and output, a service as the events of an HTTP answer.
//! `docs/programs.md` is the description for those who write one.
//!
//! | file | owns |
//! | --- | --- |
//! | `messages.rs` | the words: what is told, what is heard, and what is wrong with the rest |
//! | `session.rs` | what becomes of each message that is heard |
//! | `tools.rs` | calls of Runcast's tools on behalf of a program |

mod messages;
mod session;
mod tools;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use messages::{BAD_MESSAGE, MAX_MESSAGE, Reply, Said, Source, short};
pub(crate) use session::{Heard, Session, Talk, start};
