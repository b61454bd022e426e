//! What answers where no model does, so that the basic flow lives: a reply that is written down, or what patterns find.
//! The run says so: its outcome is `fallback`.

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::agent::{AgentError, Answer, RunContext};

/// The most memory of a compiled pattern, in bytes.
const PATTERN_BYTES: usize = 1 << 20;

/// The outcome of a run that it answered.
pub(super) const OUTCOME: &str = "fallback";

/// A deterministic answer.
#[derive(Debug, Clone)]
pub struct Fallback {
    /// What is said; `{input}` stands for the input's last text, `{NAME}` for what pattern `NAME` found.
    reply: Option<String>,
    /// What is looked for in the input's last text: the first group of a pattern, or all that it matches.
    extract: Vec<(String, Regex)>,
}

/// A fallback that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidFallback(String);

impl Fallback {
    /// A fallback that says `reply`, with what the patterns of `extract` find by their names. Without a reply its
    /// output is the object of what they find.
    ///
    /// # Errors
    /// There is neither, or a pattern is no regular expression; says which.
    pub fn new(reply: Option<String>, extract: Vec<(String, String)>) -> Result<Self, InvalidFallback> {
        if reply.is_none() && extract.is_empty() {
            return Err(InvalidFallback("expected a reply or patterns".to_owned()));
        }
        let compiled = extract.into_iter().map(|(name, pattern)| {
            let built = RegexBuilder::new(&pattern).size_limit(PATTERN_BYTES).build();
            built.map(|regex| (name.clone(), regex)).map_err(|error| InvalidFallback(format!("{name}: {error}")))
        });
        Ok(Self { reply, extract: compiled.collect::<Result<_, _>>()? })
    }

    /// The output for an input.
    fn output(&self, input: &str) -> Value {
        let find = |(name, pattern): &(String, Regex)| {
            let found = pattern.captures(input).and_then(|found| found.get(1).or_else(|| found.get(0)));
            (name.clone(), found.map_or(Value::Null, |found| Value::from(found.as_str())))
        };
        let found: Map<_, _> = self.extract.iter().map(find).collect();
        let Some(reply) = &self.reply else { return Value::Object(found) };
        // One pass: what is put in is not looked at again.
        let (mut text, mut rest) = (String::new(), reply.as_str());
        while let Some((before, behind)) = rest.split_once('{') {
            text.push_str(before);
            let named = behind.split_once('}').and_then(|(name, rest)| {
                let value = if name == "input" {
                    Some(input)
                } else {
                    found.get(name).map(|found| found.as_str().unwrap_or(""))
                };
                Some((value?, rest))
            });
            match named {
                Some((value, behind)) => {
                    text.push_str(value);
                    rest = behind;
                }
                None => {
                    text.push('{');
                    rest = behind;
                }
            }
        }
        text.push_str(rest);
        Value::from(text)
    }

    /// Answers in place of the model, which has failed with `error`.
    pub(super) async fn answer(&self, context: &RunContext, error: &AgentError) -> Result<Answer, AgentError> {
        context.log("warn", format!("no model answers, the fallback does: {error}")).await?;
        let output = self.output(&context.input().last_text());
        let text = output.as_str().map_or_else(|| output.to_string(), str::to_owned);
        context.delta(text.as_str()).await?;
        context.message(text).await?;
        Ok(Answer { outcome: OUTCOME.to_owned(), ..Answer::finished(output) })
    }
}

/// The error says that there is no model to answer.
pub(super) fn is_for(error: &AgentError) -> bool {
    match error {
        AgentError::Transient { code, .. } | AgentError::Permanent { code, .. } => code.starts_with("provider_"),
        AgentError::OutOfBudget(_) | AgentError::Ask(_) | AgentError::Stopped => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn output(reply: Option<&str>, extract: &[(&str, &str)], input: &str) -> Value {
        let extract = extract.iter().map(|(name, pattern)| ((*name).to_owned(), (*pattern).to_owned())).collect();
        Fallback::new(reply.map(str::to_owned), extract).unwrap().output(input)
    }

    #[test]
    fn replies_and_patterns_are_filled_in_once() {
        assert_eq!(output(Some("You said: {input}"), &[], "{order}"), "You said: {order}");
        let patterns = [("order", r"order (\d+)"), ("mail", r"\S+@\S+")];
        let input = "order 77 for me@example.com";
        assert_eq!(output(None, &patterns, input), json!({"order": "77", "mail": "me@example.com"}));
        assert_eq!(output(Some("{order}/{mail}/{other}/{"), &patterns, "order 5"), "5//{other}/{");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_name() {
        assert!(Fallback::new(None, Vec::new()).is_err());
        let error = Fallback::new(None, vec![("order".into(), "(".into())]).unwrap_err();
        assert!(error.to_string().starts_with("order: "), "{error}");
    }
}
