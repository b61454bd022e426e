//! Answers as servers send them.

pub(in crate::agent::providers) mod openai;
