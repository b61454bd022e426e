//! What has to fit together between keys.

use super::{
    sections::{Agent, Config},
    sources::{Reader, join},
    values::{AgentKind, BrokerUrl, Role, StoreUrl},
};

/// Reports keys that contradict each other; a key that was refused on its own is not held against others.
pub(super) fn check(config: &Config, reader: &mut Reader<'_>) {
    check_role(config, reader);
    check_api_keys(config, reader);
    let runs = &config.runs;
    if runs.backoff_base > runs.backoff_max && fine(reader, &["runs.backoff_base", "runs.backoff_max"]) {
        reader.blame(&["runs.backoff_base", "runs.backoff_max"], "runs.backoff_base is longer than runs.backoff_max");
    }
    for (name, agent) in &config.agents {
        check_agent(config, &join("agents", name), agent, reader);
    }
}

fn check_role(config: &Config, reader: &mut Reader<'_>) {
    let role = config.role;
    let shared = match (&config.broker, &config.store) {
        (BrokerUrl::Memory, StoreUrl::Sqlite { .. }) => false,
    };
    if role != Role::All && !shared && fine(reader, &["role", "broker", "store"]) {
        let problem = format!(
            "role {role} needs a broker and a store that several nodes share: broker {} and store {} have one process",
            config.broker, config.store
        );
        reader.blame(&["role", "broker", "store"], problem);
    }
}

fn check_api_keys(config: &Config, reader: &mut Reader<'_>) {
    let open = !config.listen.ip().to_canonical().is_loopback() && config.server.api_keys.is_empty();
    if open && fine(reader, &["listen", "server.api_keys"]) {
        let problem = format!("listen {} is not loopback, so server.api_keys needs at least one key", config.listen);
        reader.blame(&["listen", "server.api_keys"], problem);
    }
}

fn check_agent(config: &Config, path: &str, agent: &Agent, reader: &mut Reader<'_>) {
    let key = |name| join(path, name);
    if !fine(reader, &[path, &key("kind")]) {
        return;
    }
    if !reader.origins.contains_key(&key("kind")) {
        reader.blame(&[&key("kind")], "has to be set; expected model or scripted");
        return;
    }
    match (agent.kind, &agent.model) {
        (AgentKind::Scripted, _) => {
            for only_model in ["model", "system", "temperature", "max_tokens"].map(key) {
                if reader.origins.contains_key(&only_model) && fine(reader, &[&only_model]) {
                    reader.blame(&[&only_model], "makes no sense for an agent of kind scripted");
                }
            }
        }
        (AgentKind::Model, None) if fine(reader, &[&key("model")]) => {
            reader.blame(&[&key("model")], "has to be set for an agent of kind model; expected provider/model");
        }
        (AgentKind::Model, Some(model)) if !config.providers.contains_key(&model.provider) => {
            let known: Vec<&str> = config.providers.keys().map(String::as_str).collect();
            let problem = format!("expected a provider of [providers], one of {}, got {model}", known.join(", "));
            reader.blame(&[&key("model")], problem);
        }
        (AgentKind::Model, _) => {}
    }
}

fn fine(reader: &Reader<'_>, keys: &[&str]) -> bool {
    !keys.iter().any(|key| reader.refused(key))
}
