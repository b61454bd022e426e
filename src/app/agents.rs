//! From the configuration's agents and providers to those of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::tools::{Tools, toolbox};
use crate::agent::model::{Fallback, InvalidFallback, ModelAgent, ModelAgentOptions, is_own_tool};
use crate::agent::process::{ProcessAgent, ProcessAgentOptions};
use crate::agent::providers::chain::{Chain, Member};
use crate::agent::providers::http::{AUTO, HttpProvider, InvalidProvider, ProviderOptions};
use crate::agent::providers::limits::{Limited, Limits};
use crate::agent::providers::{Provider, Timeouts};
use crate::agent::remote::{RemoteAgent, RemoteAgentOptions};
use crate::agent::scripted::ScriptedAgent;
use crate::agent::{Agent, AgentCard, Agents, Manners};
use crate::api::ModelCard;
use crate::config::{self, AgentKind, Config, ModelRef, Protocol};
use crate::engine::LONGEST_WAIT;
use crate::run::{Budget, Price};
use crate::thread::{FollowUpRule, Quiet};

/// The configured agents, the built-in ones, and those of the embedding service, later ones in place of
/// earlier ones of the same name.
pub(super) fn all_agents(
    config: &Config,
    given: Vec<Arc<dyn Agent>>,
    supervisor: Option<&Path>,
) -> Result<Agents, String> {
    let mut agents = Agents::default();
    agents.register(Arc::new(ScriptedAgent::new("scripted")))?;
    let tools = Tools::new(config)?;
    // Only those that agents use: what nobody uses need not work.
    let mut providers: BTreeMap<&str, Arc<dyn Provider>> = BTreeMap::new();
    let mut provider = |name: &str| -> Result<Arc<dyn Provider>, String> {
        if let Some(built) = providers.get(name) {
            return Ok(Arc::clone(built));
        }
        let (name, settings) =
            config.providers.get_key_value(name).ok_or_else(|| format!("there is no provider {name}"))?;
        let built = build_provider(name, settings).map_err(|error| format!("provider {name}: {error}"))?;
        providers.insert(name, Arc::clone(&built));
        Ok(built)
    };
    if let Some(model) = assistant_model(config) {
        let mut options = ModelAgentOptions::new("assistant", model.model);
        options.description = "A helpful assistant on the model that the environment names.".to_owned();
        agents.register(Arc::new(ModelAgent::new(options, provider(&model.provider)?)?))?;
    }
    for (name, agent) in &config.agents {
        let built: Arc<dyn Agent> = match (agent.kind, &agent.model) {
            (AgentKind::Scripted, _) => Arc::new(ScriptedAgent::with_card(card(name, agent))),
            (AgentKind::Process, _) => {
                let supervisor = supervisor.ok_or_else(|| {
                    format!("agent {name}: a program needs Builder::supervisor, the path of a runcast binary")
                })?;
                Arc::new(ProcessAgent::new(ProcessAgentOptions {
                    card: card(name, agent),
                    command: agent.command.clone(),
                    env: agent.env.clone(),
                    directory: agent.directory.clone(),
                    cancel_grace: agent.cancel_grace,
                    tools: toolbox(&tools, &agent.tools)?,
                    supervisor: supervisor.to_owned(),
                }))
            }
            (AgentKind::Remote, _) => {
                let options = RemoteAgentOptions {
                    card: card(name, agent),
                    url: agent.url.clone().unwrap_or_default(),
                    headers: agent.headers.clone(),
                    connect_timeout: agent.connect_timeout,
                    first_event_timeout: agent.first_event_timeout,
                    idle_timeout: agent.idle_timeout,
                };
                Arc::new(RemoteAgent::new(options).map_err(|error| format!("agent {name}: {error}"))?)
            }
            (AgentKind::Model, Some(model)) => {
                let mut member = |model: &ModelRef| -> Result<Member, String> {
                    let provider = provider(&model.provider).map_err(|error| format!("agent {name}: {error}"))?;
                    Ok(Member { provider, model: model.model.clone() })
                };
                let first = member(model)?;
                let others = agent.fallback_models.iter().map(member).collect::<Result<Vec<_>, _>>()?;
                let provider = Arc::new(Chain::new(first, others, agent.restart_on_fallback));
                let mut options = ModelAgentOptions::new(name, &model.model);
                options.version.clone_from(&agent.version);
                options.description.clone_from(&agent.description);
                options.system.clone_from(&agent.system);
                options.temperature = agent.temperature;
                options.max_tokens = agent.max_tokens;
                let (own, named): (Vec<_>, _) = agent.tools.iter().cloned().partition(|name| is_own_tool(name));
                (options.own_tools, options.tools) = (own, vec![toolbox(&tools, &named)?]);
                options.parallel_tools = agent.parallel_tools;
                options.max_steps = agent.max_steps;
                options.output_schema = agent.output_schema.clone().map(|schema| Arc::new(schema.into()));
                options.plan = agent.plan;
                options.answer_within = agent.answer_within;
                options.fallback = fallback(agent).map_err(|error| format!("agent {name}: fallback: {error}"))?;
                options.lacking = what_lacks(config, agent);
                options.price = highest_price(config, model, &agent.fallback_models);
                options.budget = budget(agent);
                options.timeout = agent.timeout;
                options.max_attempts = agent.max_attempts;
                options.manners = manners(agent);
                Arc::new(ModelAgent::new(options, provider).map_err(|error| format!("agent {name}: {error}"))?)
            }
            (AgentKind::Model, None) => return Err(format!("agent {name}: agents of kind model need a model")),
        };
        agents.register(built)?;
    }
    for agent in given {
        agents.register(agent)?;
    }
    Ok(agents)
}

/// What a configured agent says of itself; those of other kinds know better what params they take.
fn card(name: &str, agent: &config::Agent) -> AgentCard {
    let schema = agent.params_schema.clone().map_or_else(|| serde_json::json!({"type": "object"}), Into::into);
    AgentCard {
        version: agent.version.clone(),
        description: agent.description.clone(),
        params_schema: schema,
        timeout: agent.timeout,
        max_attempts: agent.max_attempts,
        budget: budget(agent),
        manners: manners(agent),
        ..AgentCard::new(name, agent.kind.as_str())
    }
}

/// What each run of a configured agent may use.
fn budget(agent: &config::Agent) -> Budget {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Budget {
        tokens: agent.budget_tokens,
        cost_micros: agent.budget_cost.map(|cost| (cost * 1e6).round() as u64),
        steps: agent.budget_steps,
        time_ms: agent.budget_time.map(millis),
    }
}

/// What answers in place of a configured agent's models.
fn fallback(agent: &config::Agent) -> Result<Option<Fallback>, InvalidFallback> {
    if agent.fallback_reply.is_none() && agent.fallback_extract.is_empty() {
        return Ok(None);
    }
    Fallback::new(agent.fallback_reply.clone(), agent.fallback_extract.clone()).map(Some)
}

/// The most that a token may cost, whichever of an agent's models is asked.
fn highest_price(config: &Config, model: &ModelRef, others: &[ModelRef]) -> Option<Price> {
    let price = |model: &ModelRef| {
        let prices = &config.providers.get(&model.provider)?.prices;
        Some(prices.iter().find(|entry| entry.model == model.model)?.price)
    };
    let prices = [model].into_iter().chain(others).filter_map(price);
    prices.reduce(|one, other| Price { input: one.input.max(other.input), output: one.output.max(other.output) })
}

/// How a configured agent converses.
fn manners(agent: &config::Agent) -> Manners {
    let quiet = |quiet: Duration| Quiet { quiet, longest: agent.debounce_max.unwrap_or(quiet * LONGEST_WAIT) };
    let rule = |follow_up: &config::FollowUp| FollowUpRule {
        after: follow_up.after,
        instruction: follow_up.instruction.clone(),
        times: follow_up.times,
        hours: follow_up.hours.as_ref().and_then(|hours| hours.read().ok()),
    };
    Manners {
        debounce: agent.debounce.map(quiet),
        on_busy: agent.on_busy,
        follow_ups: agent.follow_ups.iter().map(rule).collect(),
        history_messages: agent.history_messages,
        history_tokens: agent.history_tokens,
    }
}

fn build_provider(name: &str, settings: &config::Provider) -> Result<Arc<dyn Provider>, InvalidProvider> {
    let options = ProviderOptions {
        name: name.to_owned(),
        base_url: settings.base_url().to_owned(),
        api_key: settings.api_key.clone(),
        timeouts: Timeouts {
            connect: settings.connect_timeout,
            first_token: settings.first_token_timeout,
            idle: settings.idle_timeout,
            total: settings.total_timeout,
        },
        prices: settings.prices.iter().map(|entry| (entry.model.clone(), entry.price)).collect(),
    };
    let provider = match settings.protocol {
        Protocol::OpenAi => HttpProvider::openai(options)?,
        Protocol::OpenAiResponses => HttpProvider::openai_responses(options)?,
        Protocol::Anthropic => HttpProvider::anthropic(options)?,
        Protocol::Gemini => HttpProvider::gemini(options)?,
    };
    let limits = Limits {
        max_concurrent: settings.max_concurrent,
        requests_per_minute: settings.requests_per_minute,
        longest_wait: settings.first_token_timeout,
    };
    Ok(Arc::new(Limited::new(Arc::new(provider), limits)))
}

/// The model of the agent `assistant`, which is there as soon as the environment names a provider: that of OpenAI goes
/// before the others.
fn assistant_model(config: &Config) -> Option<ModelRef> {
    let of = |provider: &str, model: &str| ModelRef { provider: provider.to_owned(), model: model.to_owned() };
    let named = |name: &&str| {
        let provider = config.providers.get(*name);
        provider.is_some_and(|provider| provider.api_key.is_some() || !is_at_home(provider))
    };
    let name = ["openai", "anthropic", "gemini"].into_iter().find(named)?;
    if name != "openai" {
        return Some(of(name, AUTO));
    }
    let default = if config.providers.get(name).is_some_and(is_at_home) { "gpt-4o-mini" } else { AUTO };
    Some(of(name, config.openai_model.as_deref().unwrap_or(default)))
}

/// The models that the agents of the configuration may ask.
fn models_of_agents(config: &Config) -> impl Iterator<Item = &ModelRef> {
    config.agents.values().flat_map(|agent| agent.model.iter().chain(&agent.fallback_models))
}

/// The models that the configuration names, with what they lack.
pub fn models(config: &Config) -> Vec<ModelCard> {
    let mut models = BTreeSet::new();
    for (provider, settings) in &config.providers {
        models.extend(settings.models.iter().map(|model| (provider.clone(), model.clone())));
    }
    let used = assistant_model(config).into_iter().chain(models_of_agents(config).cloned());
    models.extend(used.map(|model| (model.provider, model.model)));
    let card = |(provider, model): (String, String)| {
        let missing = config.providers.get(&provider).and_then(|settings| missing_key(&provider, settings));
        let id = format!("{provider}/{model}");
        ModelCard { id, provider, ready: missing.is_none(), missing }
    };
    models.into_iter().map(card).collect()
}

/// Whether a provider is the one that made its protocol, and so asks for a key. One of one's own may need none.
fn is_at_home(provider: &config::Provider) -> bool {
    provider.base_url() == provider.protocol.home()
}

/// What a provider without a key lacks.
fn missing_key(name: &str, provider: &config::Provider) -> Option<String> {
    (is_at_home(provider) && provider.api_key.is_none()).then(|| match name {
        "openai" => "no key: set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own".to_owned(),
        "anthropic" => "no key: set ANTHROPIC_API_KEY".to_owned(),
        "gemini" => "no key: set GEMINI_API_KEY".to_owned(),
        _ => format!("no key: set providers.{name}.api_key"),
    })
}

/// The providers that are configured or used: of the built-in ones, that of OpenAI stands for all when there is none.
pub fn providers(config: &Config) -> impl Iterator<Item = (&str, &config::Provider)> {
    let is_used = move |name: &str| {
        config.is_set(&format!("providers.{name}")) || models_of_agents(config).any(|model| model.provider == name)
    };
    let none = !config.providers.keys().any(|name| is_used(name));
    let providers = config.providers.iter().map(|(name, provider)| (name.as_str(), provider));
    providers.filter(move |(name, _)| is_used(name) || (none && *name == "openai"))
}

/// What each of them without a key lacks, for the warnings at start.
pub fn missing_keys(config: &Config) -> impl Iterator<Item = (&str, String)> {
    providers(config).filter_map(|(name, provider)| Some((name, missing_key(name, provider)?)))
}

/// What agents lack to work. What has a fallback answers all the same, and says so.
pub(super) fn lacking(config: &Config) -> BTreeMap<String, String> {
    let helpless = config.agents.iter().filter(|(_, agent)| matches!(fallback(agent), Ok(None)));
    helpless.filter_map(|(name, agent)| Some((name.clone(), what_lacks(config, agent)?))).collect()
}

/// What all of an agent's models lack.
fn what_lacks(config: &Config, agent: &config::Agent) -> Option<String> {
    let missing = |model: &ModelRef| {
        let missing = missing_key(&model.provider, config.providers.get(&model.provider)?)?;
        Some(format!("provider {} has {missing}", model.provider))
    };
    let models = agent.model.iter().chain(&agent.fallback_models);
    models.map(missing).collect::<Option<Vec<_>>>()?.into_iter().next()
}
