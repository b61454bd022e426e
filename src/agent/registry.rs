//! The agents of a node.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Agent, AgentCard};

/// The agents of a node, by name.
#[derive(Default)]
pub struct Agents {
    by_name: BTreeMap<String, Registered>,
}

struct Registered {
    agent: Arc<dyn Agent>,
    card: AgentCard,
    params: jsonschema::Validator,
}

/// Params that do not fit the agent's JSON Schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidParams {
    /// Which part: `params`, or a path below it such as `params.tokens`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl Agents {
    /// Adds an agent, in place of an earlier one of the same name. The error says what is wrong with
    /// its JSON Schema, or that its follow-ups, which are runs without params, do not fit that.
    pub fn register(&mut self, agent: Arc<dyn Agent>) -> Result<(), String> {
        let card = agent.card();
        let params = jsonschema::validator_for(&card.params_schema)
            .map_err(|error| format!("agent {}: params_schema is not a JSON Schema: {error}", card.name))?;
        if !card.manners.follow_ups.is_empty() && !params.is_valid(&serde_json::json!({})) {
            return Err(format!("agent {}: its params_schema demands params, and its follow-ups have none", card.name));
        }
        self.by_name.insert(card.name.clone(), Registered { agent, card, params });
        Ok(())
    }

    /// The agent called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Agent>> {
        self.by_name.get(name).map(|registered| &registered.agent)
    }

    /// The card of the agent called `name`.
    #[must_use]
    pub fn card(&self, name: &str) -> Option<&AgentCard> {
        self.by_name.get(name).map(|registered| &registered.card)
    }

    /// All cards, by name.
    pub fn cards(&self) -> impl Iterator<Item = &AgentCard> {
        self.by_name.values().map(|registered| &registered.card)
    }

    /// The agents whose fallbacks answer, and why.
    pub fn standing_in(&self) -> impl Iterator<Item = (&str, String)> {
        self.by_name.iter().filter_map(|(name, registered)| Some((name.as_str(), registered.agent.stands_in()?)))
    }

    /// Checks `params` against the schema of the agent called `name`.
    pub fn check_params(&self, name: &str, params: &Map<String, Value>) -> Result<(), InvalidParams> {
        let Some(registered) = self.by_name.get(name) else { return Ok(()) };
        if params.is_empty() && registered.card.params_schema.get("required").is_none() {
            return Ok(());
        }
        // The validator wants a `Value`; the map is small and bounded by the body limit.
        registered.params.validate(&Value::Object(params.clone())).map_err(|error| InvalidParams {
            field: format!("params{}", error.instance_path().to_string().replace('/', ".")),
            message: error.to_string(),
        })
    }
}
