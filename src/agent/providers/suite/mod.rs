//! What every protocol has to do: one suite, one named test a case and protocol, on recorded answers.

mod cases;
mod faults;
pub(super) mod recorded;
mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::TryStreamExt;
use secrecy::SecretString;
use tokio::time::timeout;

use super::answer::Decoder;
use super::http::{HttpProvider, InvalidProvider, ProviderOptions};
use super::{Chat, Piece, Provider, Timeouts, ToolCall, Turn};
use crate::agent::AgentError;
use crate::run::{Message, Price, Role};

const KEY: &str = "sk-topsecret0123456789";
pub(super) const LONG: Duration = Duration::from_secs(20);

/// A protocol, with what a server that speaks it says.
pub(super) struct Subject {
    pub(super) make: fn(ProviderOptions) -> Result<HttpProvider, InvalidProvider>,
    pub(super) decoder: fn() -> Box<dyn Decoder>,
    /// An answer with thoughts, text and two calls.
    pub(super) recorded: &'static str,
    /// What stands in the event that finishes it, and in none before.
    pub(super) finish: &'static str,
    /// Its pieces, without the first, which names the model.
    pub(super) pieces: fn() -> Vec<Piece>,
    /// The answer `Hi`, not streamed.
    pub(super) whole: &'static str,
    /// An answer of one call whose arguments are no JSON.
    pub(super) malformed: &'static str,
    /// An event with the text that stands for `TEXT`.
    pub(super) token: &'static str,
    /// What comes before the first token.
    pub(super) prologue: &'static str,
    /// Events that report an error, `out of memory`, which may pass or not.
    pub(super) errors: &'static [(&'static str, &'static str)],
    /// Events that cannot be understood.
    pub(super) rubbish: &'static [&'static str],
    /// A list of the models `first` and `second`.
    pub(super) models: &'static str,
    /// The header of the key.
    pub(super) key: &'static str,
}

impl Subject {
    /// The events of an answer that has begun with this text.
    pub(super) fn says(&self, text: &str) -> String {
        self.prologue.to_owned() + &self.token.replace("TEXT", text)
    }

    /// How many bytes of the recorded answer finish it.
    pub(super) fn finished_at(&self) -> usize {
        let finish = self.recorded.find(self.finish).unwrap();
        finish + self.recorded[finish..].find("\n\n").unwrap() + 2
    }
}

pub(super) fn timeouts() -> Timeouts {
    Timeouts { connect: LONG, first_token: LONG, idle: LONG, total: 2 * LONG }
}

pub(super) fn options(base_url: &str) -> ProviderOptions {
    rustls::crypto::ring::default_provider().install_default().ok();
    ProviderOptions {
        name: "local".to_owned(),
        base_url: base_url.to_owned(),
        api_key: Some(SecretString::from(KEY)),
        timeouts: timeouts(),
        prices: BTreeMap::from([("small".to_owned(), PRICE)]),
    }
}

pub(super) const PRICE: Price = Price { input: 150_000, output: 600_000 };

pub(super) fn chat(model: &str) -> Chat {
    let turns = vec![Turn::Said(Message { role: Role::User, content: "Hi".into() })];
    Chat { model: model.to_owned(), turns, temperature: Some(0.5), max_tokens: Some(7), ..Chat::default() }
}

/// All pieces of an answer.
pub(super) async fn ask_for(provider: &impl Provider, model: &str) -> Result<Vec<Piece>, AgentError> {
    let answer = async { provider.chat(chat(model)).await?.try_collect().await };
    timeout(3 * LONG, answer).await.expect("the call hangs").map(unnamed)
}

pub(super) async fn ask(provider: &impl Provider) -> Result<Vec<Piece>, AgentError> {
    ask_for(provider, "small").await
}

/// The piece that names the model, as every answer begins.
pub(super) fn named(model: &str) -> Piece {
    Piece::Model { name: format!("local/{model}"), price: (model == "small").then_some(PRICE) }
}

/// The pieces, with the made-up ids of calls replaced by ones that are the same every time.
pub(super) fn unnamed(mut pieces: Vec<Piece>) -> Vec<Piece> {
    for (number, piece) in pieces.iter_mut().enumerate() {
        if let Piece::Call(call) = piece
            && super::asked::is_made_up(&call.id)
        {
            call.id = format!("made up {number}");
        }
    }
    pieces
}

pub(super) fn call(id: &str, name: &str, arguments: &str) -> Piece {
    Piece::Call(ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: arguments.to_owned() })
}

pub(super) fn text(text: &str) -> Piece {
    Piece::Text(text.to_owned())
}

/// Whether an error may pass and has this code.
pub(super) fn is_transient(error: &AgentError, wanted: &str) -> bool {
    matches!(error, AgentError::Transient { code, .. } if code == wanted)
}

/// Whether an error would happen again and has this code.
pub(super) fn is_permanent(error: &AgentError, wanted: &str) -> bool {
    matches!(error, AgentError::Permanent { code, .. } if code == wanted)
}

macro_rules! suite {
    ($($protocol:ident = $subject:expr;)+) => { suite! { @cases [$($protocol = $subject;)+]
        an_answer_is_streamed_with_its_model_calls_and_usage
        an_answer_that_is_not_streamed_is_taken_too
        an_answer_may_be_split_anywhere
        an_answer_that_comes_byte_by_byte_is_the_same
        an_answer_that_is_cut_at_any_byte_is_an_error_until_it_has_finished
        a_connection_that_is_cut_at_any_byte_is_an_error_until_the_answer_has_finished
        arguments_that_are_no_json_are_handed_on
        silence_before_the_first_token_has_a_limit
        silence_between_tokens_has_a_limit
        comments_and_pings_are_silence
        a_call_has_a_limit_as_a_whole
        a_finished_answer_does_not_wait_long_for_its_end
        a_slow_reader_is_not_the_providers_silence
        a_status_says_whether_it_may_pass
        the_wait_that_the_provider_asks_for_is_handed_on
        an_error_within_the_answer_is_told
        what_cannot_be_understood_may_pass
        an_event_and_an_answer_have_bounds
        a_redirect_is_not_followed
        a_server_that_is_not_there_is_unreachable
        a_dropped_call_closes_its_connection
        auto_is_the_first_model_that_is_listed
        nothing_shows_the_key
        options_that_cannot_work_are_refused
    } };
    (@cases [$($protocol:ident = $subject:expr;)+] $($case:ident)+) => {
        suite! { @protocols [$($case)+] $($protocol = $subject;)+ }
    };
    (@protocols $cases:tt $($protocol:ident = $subject:expr;)+) => {
        $(mod $protocol { suite! { @tests $subject, $cases } })+
    };
    (@tests $subject:expr, [$($case:ident)+]) => {
        $(
            #[test]
            fn $case() {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(super::cases::$case($subject));
            }
        )+
    };
}

suite! {
    openai = super::recorded::openai::SUBJECT;
    openai_responses = super::recorded::responses::SUBJECT;
    anthropic = super::recorded::anthropic::SUBJECT;
    gemini = super::recorded::gemini::SUBJECT;
}
