//! One model call: its reservation, its stream, and what it used.

use futures_util::StreamExt;
use serde_json::json;

use super::act::Tools;
use super::talk::{Said, Talk};
use super::{ModelAgent, Params};
use crate::agent::providers::{Chat, Finish, Piece};
use crate::agent::{AgentError, BeginStep, RunContext};
use crate::run::{Bound, Price, StepKind, Usage};

/// How many tokens of an answer are reserved where neither the run nor its agent bounds them.
const RESERVED_TOKENS: u64 = 4_096;

/// About how many bytes a token has.
const TOKEN: usize = 4;

impl ModelAgent {
    /// Makes the model call that is next and keeps it.
    pub(super) async fn call(
        &self,
        context: &RunContext,
        params: &Params,
        talk: &Talk,
        tools: &Tools,
    ) -> Result<Said, AgentError> {
        let chat = Chat {
            tools: tools.cards().into(),
            parallel_tools: tools.parallel,
            schema: self.options.output_schema.clone(),
            ..self.chat(params, talk)
        };
        self.make(context, talk, chat, false).await
    }

    /// Makes the call that gives the plan, and keeps it.
    pub(super) async fn call_for_plan(
        &self,
        context: &RunContext,
        params: &Params,
        talk: &Talk,
    ) -> Result<Said, AgentError> {
        let tasks = json!({
            "type": "object",
            "properties": {"tasks": {"type": "array", "items": {"type": "string"}}},
            "required": ["tasks"],
            "additionalProperties": false,
        });
        let chat = Chat { schema: Some(tasks.into()), ..self.chat(params, talk) };
        self.make(context, talk, chat, true).await
    }

    fn chat(&self, params: &Params, talk: &Talk) -> Chat {
        Chat {
            model: self.options.model.clone(),
            turns: talk.turns.clone(),
            temperature: params.temperature.or(self.options.temperature),
            max_tokens: params.max_tokens.map(|number| number as u32).or(self.options.max_tokens),
            ..Chat::default()
        }
    }

    async fn make(&self, context: &RunContext, talk: &Talk, mut chat: Chat, plan: bool) -> Result<Said, AgentError> {
        let step = talk.step + 1;
        let tools: usize =
            chat.tools.iter().map(|tool| tool.description.len() + tool.parameters.to_string().len()).sum();
        let asked = (talk.bytes() + tools).div_ceil(TOKEN) as u64;
        let price = self.options.price;
        // Models count some tokens around each message, and not all texts have four bytes to a token.
        let reserved_input = asked * 4 / 3 + 16 * talk.turns.len() as u64;
        let most = most_tokens(context, reserved_input, chat.max_tokens, price)?;
        if let Some(bounded) = most.bounded {
            chat.max_tokens = Some(bounded);
        }
        let reserve = used(reserved_input, most.reserved, price, true);
        let begin = BeginStep { step, kind: StepKind::Model, name: self.model(), call_id: None, reserve };
        let began = context.begin_step(begin).await?;
        let mut pieces = self.provider.chat(chat).await?;
        let mut meter = Meter { asked, said: 0, price, wasted: Usage::default() };
        let mut said = Said { key: Some(context.spec().id.to_string()), plan, ..Said::default() };
        let mut reported = None;
        while let Some(piece) = pieces.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    // What was shown is void; the fallback says something else.
                    if meter.said > 0 && self.fallback(&error, talk).is_some() {
                        context.step_retrying(step, began, error.to_string()).await?;
                    }
                    return Err(error);
                }
            };
            match piece {
                Piece::Model { name, price } => {
                    said.model = Some(name);
                    meter.price = price.or(meter.price);
                }
                Piece::Restart { reason } => {
                    meter.wasted = meter.used();
                    (meter.said, reported) = (0, None);
                    said = Said { key: said.key, plan, ..Said::default() };
                    context.step_retrying(step, began, reason).await?;
                }
                Piece::Text(more) => {
                    meter.said += more.len();
                    said.text.push_str(&more);
                    // A plan is shown as one.
                    if !plan {
                        context.delta(more).await?;
                    }
                }
                Piece::Reasoning(more) => {
                    meter.said += more.len();
                    context.reasoning(more).await?;
                }
                Piece::Call(call) => {
                    meter.said += call.name.len() + call.arguments.len();
                    said.calls.push(call);
                }
                Piece::Echo(echo) => said.echo = Some(echo),
                Piece::Finish(Finish::Length) if most.bound.is_some() => {
                    // The answer is as long as the budget allows.
                    said.finish_reason = most.bound.map(|bound| bound.outcome().to_owned());
                }
                Piece::Finish(reason) => said.finish_reason = Some(reason.as_str().to_owned()),
                Piece::Usage(counted) => reported = Some(counted),
            }
            context.spent(step, meter.used());
        }
        talk.distinct(&mut said.calls, step);
        let usage = match reported {
            Some(counted) => {
                used(counted.input_tokens, counted.output_tokens, meter.price, counted.estimated) + meter.wasted
            }
            None => meter.used(),
        };
        if !plan && (!said.text.is_empty() || said.calls.is_empty()) {
            context.message(said.text.as_str()).await?;
        }
        let result = serde_json::to_value(&said).unwrap_or_default();
        context.step_finished(step, StepKind::Model, self.model(), result, usage).await?;
        Ok(said)
    }
}

/// What a call has used until now, as far as can be told from outside: a token is some four bytes.
struct Meter {
    asked: u64,
    /// In bytes.
    said: usize,
    price: Option<Price>,
    /// By answers that are void.
    wasted: Usage,
}

impl Meter {
    fn used(&self) -> Usage {
        used(self.asked, self.said.div_ceil(TOKEN) as u64, self.price, true) + self.wasted
    }
}

/// So many tokens, with what they cost, rounded up.
fn used(input_tokens: u64, output_tokens: u64, price: Option<Price>, estimated: bool) -> Usage {
    let cost = |price: Price| {
        let cost =
            u128::from(input_tokens) * u128::from(price.input) + u128::from(output_tokens) * u128::from(price.output);
        u64::try_from(cost.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    };
    Usage { input_tokens, output_tokens, cost_micros: price.map_or(0, cost), estimated }
}

/// How long an answer may be.
struct Most {
    /// What is reserved for it.
    reserved: u64,
    /// What the model is told, if it is told anything.
    bounded: Option<u32>,
    /// The bound of the budget that makes it shorter than it was to be.
    bound: Option<Bound>,
}

/// What is left of the run's budget for an answer to `asked` tokens of which the caller wants at most `wanted`.
fn most_tokens(
    context: &RunContext,
    asked: u64,
    wanted: Option<u32>,
    price: Option<Price>,
) -> Result<Most, AgentError> {
    let (budget, spent) = (context.spec().budget, context.used());
    let (mut left, mut tightest) = (u64::MAX, Bound::Tokens);
    if let Some(most) = budget.tokens {
        left = most.saturating_sub(spent.tokens()).saturating_sub(asked);
        if left == 0 {
            return Err(AgentError::OutOfBudget(Bound::Tokens));
        }
    }
    if let (Some(most), Some(price)) = (budget.cost_micros, price) {
        let money =
            most.saturating_sub(spent.cost_micros).saturating_sub(used(asked, 0, Some(price), true).cost_micros);
        // One millionth may be lost to each rounding.
        let affordable = match price.output {
            0 => u64::MAX,
            output => {
                u64::try_from(u128::from(money.saturating_sub(1)) * 1_000_000 / u128::from(output)).unwrap_or(u64::MAX)
            }
        };
        if affordable == 0 {
            return Err(AgentError::OutOfBudget(Bound::Cost));
        }
        if affordable < left {
            (left, tightest) = (affordable, Bound::Cost);
        }
    }
    let reserved = wanted.map_or(RESERVED_TOKENS, u64::from).min(left);
    let bounded = if left < u64::MAX || wanted.is_some() { u32::try_from(reserved).ok() } else { None };
    let bound = (left <= wanted.map_or(RESERVED_TOKENS, u64::from)).then_some(tightest);
    Ok(Most { reserved, bounded, bound })
}
