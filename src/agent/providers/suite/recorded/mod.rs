//! Answers as servers send them.

pub(in crate::agent::providers) mod anthropic;
pub(in crate::agent::providers) mod gemini;
pub(in crate::agent::providers) mod openai;
pub(in crate::agent::providers) mod responses;
