//! What belongs to conversations.

pub mod hours;
