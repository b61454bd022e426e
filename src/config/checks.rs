//! What has to fit together between keys.

use secrecy::ExposeSecret;

use super::{
    sections::{Agent, Config, Ingest, Mcp, Tool},
    sources::{Reader, join},
    values::{AgentKind, BrokerUrl, IngestKind, Mode, Role, StoreUrl},
};
use crate::agent::model::{Fallback, is_own_tool};
use crate::agent::tools::http::HttpRequest;

/// Reports keys that contradict each other; a key that was refused on its own is not held against others.
pub(super) fn check(config: &Config, reader: &mut Reader<'_>) {
    check_role(config, reader);
    check_api_keys(config, reader);
    check_tls(config, reader);
    check_leases(config, reader);
    let runs = &config.runs;
    if runs.backoff_base > runs.backoff_max && fine(reader, &["runs.backoff_base", "runs.backoff_max"]) {
        reader.blame(&["runs.backoff_base", "runs.backoff_max"], "runs.backoff_base is longer than runs.backoff_max");
    }
    for (name, agent) in &config.agents {
        check_agent(config, &join("agents", name), agent, reader);
    }
    for (name, tool) in &config.tools {
        check_tool(&join("tools", name), tool, reader);
        if config.mcp.contains_key(name) {
            let keys = [join("tools", name), join("mcp", name)];
            reader.blame(&[&keys[0], &keys[1]], "have the same name, and agents could not tell them apart");
        }
    }
    for (name, mcp) in &config.mcp {
        check_mcp(&join("mcp", name), mcp, reader);
    }
    for (name, ingest) in &config.ingest {
        check_ingest(config, &join("ingest", name), ingest, reader);
    }
}

fn check_role(config: &Config, reader: &mut Reader<'_>) {
    let keys = ["role", "broker", "store"];
    if !keys.iter().all(|key| fine(reader, &[key])) {
        return;
    }
    let (role, broker, store) = (config.role, &config.broker, &config.store);
    let own_process = match (broker, store) {
        (BrokerUrl::Memory, StoreUrl::Sqlite { .. }) => Some(format!("broker {broker} and store {store} have")),
        (BrokerUrl::Memory, StoreUrl::Postgres(_)) => Some(format!("broker {broker} has")),
        (BrokerUrl::Redis(_) | BrokerUrl::Amqp(_), StoreUrl::Sqlite { .. }) => {
            let problem = format!(
                "broker {broker} is for many nodes, but store {store} has one process: \
                 set a postgres:// store, or broker memory"
            );
            return reader.blame(&["broker", "store"], problem);
        }
        (BrokerUrl::Redis(_) | BrokerUrl::Amqp(_), StoreUrl::Postgres(_)) => None,
    };
    if let Some(what) = own_process.filter(|_| role != Role::All) {
        let problem = format!("role {role} needs a broker and a store that several nodes share: {what} one process");
        reader.blame(&keys, problem);
    }
}

fn check_api_keys(config: &Config, reader: &mut Reader<'_>) {
    check_shared_keys(config, reader);
    let keys = config.tenants.values().map(|tenant| &tenant.api_keys).chain([&config.server.api_keys]);
    if keys.flatten().next().is_some() || config.role == Role::Worker {
        return;
    }
    let open = !config.listen.ip().to_canonical().is_loopback();
    if open && fine(reader, &["listen", "server.api_keys"]) {
        let problem = format!("listen {} is not loopback, so server.api_keys needs at least one key", config.listen);
        reader.blame(&["listen", "server.api_keys"], problem);
    }
    if config.mode == Mode::Production && fine(reader, &["mode", "server.api_keys"]) {
        reader.blame(&["mode", "server.api_keys"], "mode production needs at least one key in server.api_keys");
    }
}

/// A key tells whose a request is, so no two tenants may have the same.
fn check_shared_keys(config: &Config, reader: &mut Reader<'_>) {
    let default = ("server.api_keys".to_owned(), "default", &config.server.api_keys);
    let others = config
        .tenants
        .iter()
        .map(|(name, tenant)| (join(&join("tenants", name), "api_keys"), name.as_str(), &tenant.api_keys));
    let holders: Vec<_> = [default].into_iter().chain(others).collect();
    for (at, (path, tenant, keys)) in holders.iter().enumerate() {
        for (other_path, other, other_keys) in &holders[..at] {
            let shared =
                keys.iter().any(|key| other_keys.iter().any(|other| other.expose_secret() == key.expose_secret()));
            if shared && tenant != other {
                reader.blame(&[other_path, path], "share a key; each key has to be one tenant's");
            }
        }
    }
}

/// Certificates are files that come in pairs, and only a TLS connection uses them.
fn check_tls(config: &Config, reader: &mut Reader<'_>) {
    let (redis, amqp, postgres) = (&config.redis, &config.amqp, &config.postgres);
    for (section, certificate, key) in [
        ("redis", &redis.certificate, &redis.key),
        ("amqp", &amqp.certificate, &amqp.key),
        ("postgres", &postgres.certificate, &postgres.key),
    ] {
        let keys = [join(section, "certificate"), join(section, "key")];
        if certificate.is_some() != key.is_some() {
            reader.blame(&[&keys[0], &keys[1]], "certificate and key go together");
        }
    }
    let given = |authorities: &Option<_>, certificate: &Option<_>| authorities.is_some() || certificate.is_some();
    let plain = match &config.broker {
        BrokerUrl::Redis(url) if url.scheme() == "redis" && given(&redis.authorities, &redis.certificate) => {
            Some(("redis", "rediss"))
        }
        BrokerUrl::Amqp(url) if url.scheme() == "amqp" && given(&amqp.authorities, &amqp.certificate) => {
            Some(("amqp", "amqps"))
        }
        BrokerUrl::Memory | BrokerUrl::Redis(_) | BrokerUrl::Amqp(_) => None,
    };
    if let Some((section, scheme)) = plain {
        reader.blame(&["broker", section], format!("certificates are given, but the URL is not {scheme}://"));
    }
}

fn check_leases(config: &Config, reader: &mut Reader<'_>) {
    let shared = matches!(config.store, StoreUrl::Postgres(_));
    if shared && config.postgres.query_timeout >= config.recovery.lease {
        let keys = ["postgres.query_timeout", "recovery.lease"];
        reader.blame(&keys, "postgres.query_timeout has to be shorter than recovery.lease");
    }
}

/// A key that is for agents of some kinds alone, and whether an agent has something there.
type OfKinds = (&'static str, &'static [AgentKind], fn(&Agent) -> bool);

const MODEL: &[AgentKind] = &[AgentKind::Model];
const PROCESS: &[AgentKind] = &[AgentKind::Process];
const REMOTE: &[AgentKind] = &[AgentKind::Remote];

/// All of them. What is written as it is by default, as in a rendered configuration, is not held against anyone.
const OF_KINDS: [OfKinds; 24] = [
    ("model", MODEL, |agent| agent.model.is_some()),
    ("fallback_models", MODEL, |agent| !agent.fallback_models.is_empty()),
    ("restart_on_fallback", MODEL, |agent| agent.restart_on_fallback),
    ("system", MODEL, |agent| agent.system.is_some()),
    ("temperature", MODEL, |agent| agent.temperature.is_some()),
    ("max_tokens", MODEL, |agent| agent.max_tokens.is_some()),
    ("tools", &[AgentKind::Model, AgentKind::Process], |agent| !agent.tools.is_empty()),
    ("parallel_tools", MODEL, |agent| agent.parallel_tools),
    ("max_steps", MODEL, |agent| agent.max_steps != Agent::default().max_steps),
    ("output_schema", MODEL, |agent| agent.output_schema.is_some()),
    ("plan", MODEL, |agent| agent.plan),
    ("answer_within", MODEL, |agent| agent.answer_within.is_some()),
    ("fallback_reply", MODEL, |agent| agent.fallback_reply.is_some()),
    ("fallback_extract", MODEL, |agent| !agent.fallback_extract.is_empty()),
    ("command", PROCESS, |agent| !agent.command.is_empty()),
    ("env", PROCESS, |agent| !agent.env.is_empty()),
    ("directory", PROCESS, |agent| agent.directory.is_some()),
    ("cancel_grace", PROCESS, |agent| agent.cancel_grace != Agent::default().cancel_grace),
    ("url", REMOTE, |agent| agent.url.is_some()),
    ("headers", REMOTE, |agent| !agent.headers.is_empty()),
    ("connect_timeout", REMOTE, |agent| agent.connect_timeout != Agent::default().connect_timeout),
    ("first_event_timeout", REMOTE, |agent| agent.first_event_timeout != Agent::default().first_event_timeout),
    ("idle_timeout", REMOTE, |agent| agent.idle_timeout != Agent::default().idle_timeout),
    ("params_schema", &[AgentKind::Process, AgentKind::Remote], |agent| agent.params_schema.is_some()),
];

fn check_agent(config: &Config, path: &str, agent: &Agent, reader: &mut Reader<'_>) {
    let key = |name| join(path, name);
    if !fine(reader, &[path, &key("kind")]) {
        return;
    }
    if !reader.origins.contains_key(&key("kind")) {
        let expected = AgentKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(" or ");
        return reader.blame(&[&key("kind")], format!("has to be set; expected {expected}"));
    }
    if let (Some(debounce), Some(longest)) = (agent.debounce, agent.debounce_max)
        && debounce > longest
    {
        let keys = [key("debounce"), key("debounce_max")];
        reader.blame(&[&keys[0], &keys[1]], "debounce is longer than debounce_max");
    }
    let own = |name: &str| agent.kind == AgentKind::Model && is_own_tool(name);
    let known = |name: &str| own(name) || config.tools.contains_key(name) || config.mcp.contains_key(name);
    if let Some(name) = agent.tools.iter().find(|name| !known(name)) {
        let own = "complete, ask and hand_off";
        let expected = format!("expected names of entries of tools and mcp, or for a model {own}; got {name:?}");
        reader.blame(&[&key("tools")], expected);
    }
    if let Err(error) = Fallback::new(Some(String::new()), agent.fallback_extract.clone()) {
        reader.blame(&[&key("fallback_extract")], format!("expected regular expressions; {error}"));
    }
    let kind = agent.kind;
    for (name, kinds, is_set) in OF_KINDS {
        let key = key(name);
        if !kinds.contains(&kind) && is_set(agent) && fine(reader, &[&key]) {
            reader.blame(&[&key], format!("makes no sense for an agent of kind {kind}"));
        }
    }
    let needed = match kind {
        AgentKind::Model => agent.model.is_none().then_some(("model", "provider/model")),
        AgentKind::Process => agent.command.is_empty().then_some(("command", "a program and its arguments, as a list")),
        AgentKind::Remote => agent.url.is_none().then_some(("url", "an http:// or https:// URL")),
        AgentKind::Scripted => None,
    };
    if let Some((name, expected)) = needed
        && fine(reader, &[&key(name)])
    {
        reader.blame(&[&key(name)], format!("has to be set for an agent of kind {kind}; expected {expected}"));
    }
    let model = agent.model.iter().filter(|_| kind == AgentKind::Model).map(|model| ("model", model));
    let others = agent.fallback_models.iter().map(|model| ("fallback_models", model));
    for (name, model) in model.chain(others) {
        if !config.providers.contains_key(&model.provider) {
            let known = config.providers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let problem = format!("expected a provider of [providers], one of {known}, got {model}");
            reader.blame(&[&key(name)], problem);
        }
    }
}

fn check_tool(path: &str, tool: &Tool, reader: &mut Reader<'_>) {
    let keys = ["url", "parameters", "body", "headers"].map(|name| join(path, name));
    if tool.url.is_none() && fine(reader, &[path, &keys[0]]) {
        return reader.blame(&[&keys[0]], "has to be set; expected the URL of the endpoint");
    }
    if let (Some(url), true) = (&tool.url, fine(reader, &keys.each_ref().map(String::as_str)))
        && let Err(problem) =
            HttpRequest::new(tool.method.as_str(), url, &tool.headers, tool.body.as_ref(), &tool.parameters)
    {
        reader.blame(&[&join(path, problem.key)], problem.text);
    }
}

fn check_mcp(path: &str, mcp: &Mcp, reader: &mut Reader<'_>) {
    let key = |name| join(path, name);
    let (command, url) = (key("command"), key("url"));
    if !fine(reader, &[path, &command, &url]) {
        return;
    }
    let (others, other) = match (mcp.command.is_empty(), &mcp.url) {
        (true, None) => return reader.blame(&[&command, &url], "one of them has to be set"),
        (false, Some(_)) => return reader.blame(&[&command, &url], "only one of them can be set"),
        (false, None) => (["headers", "allow"].map(key), "command"),
        (true, Some(_)) => (["env", "env"].map(key), "url"),
    };
    if let Some(odd) = others.iter().find(|odd| reader.origins.contains_key(*odd)) {
        reader.blame(&[odd], format!("makes no sense for a server with {other}"));
    }
}

fn check_ingest(config: &Config, path: &str, ingest: &Ingest, reader: &mut Reader<'_>) {
    let key = |name| join(path, name);
    if !fine(reader, &[path, &key("kind")]) {
        return;
    }
    if !reader.origins.contains_key(&key("kind")) {
        let expected = IngestKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(" or ");
        return reader.blame(&[&key("kind")], format!("has to be set; expected {expected}"));
    }
    let kind = ingest.kind;
    let (schemes, broker) = match (kind, &config.broker) {
        (IngestKind::RedisList | IngestKind::RedisStream, broker) => {
            (["redis", "rediss"], matches!(broker, BrokerUrl::Redis(_)))
        }
        (IngestKind::AmqpQueue, broker) => (["amqp", "amqps"], matches!(broker, BrokerUrl::Amqp(_))),
    };
    let scheme = schemes[0];
    match &ingest.url {
        Some(url) if !schemes.contains(&url.scheme()) => {
            reader.blame(&[&key("kind"), &key("url")], format!("kind {kind} needs a {scheme}:// URL"));
        }
        None if !broker && fine(reader, &[&key("url"), "broker"]) => {
            let problem = format!("has to be set for kind {kind}, unless the broker is {scheme}://");
            reader.blame(&[&key("url"), "broker"], problem);
        }
        Some(_) | None => {}
    }
    if ingest.queue.is_none() && fine(reader, &[&key("queue")]) {
        reader.blame(&[&key("queue")], "has to be set; expected the name of the list, stream or queue");
    }
    let (agent, agent_field) = (key("agent"), key("agent_field"));
    if ingest.agent.is_none() && ingest.agent_field.is_none() && fine(reader, &[&agent, &agent_field]) {
        reader.blame(&[&agent, &agent_field], "one of them has to be set");
    }
    for only_stream in ["group", "payload_field"].map(key) {
        if kind != IngestKind::RedisStream && reader.origins.contains_key(&only_stream) {
            reader.blame(&[&only_stream], format!("makes no sense for kind {kind}"));
        }
    }
    // Those of the mapping and two of its own.
    if ingest.metadata.len() + 2 > config.limits.max_metadata_entries {
        let problem = "metadata and the labels ingest_source and ingest_key are more than limits.max_metadata_entries";
        reader.blame(&[&key("metadata"), "limits.max_metadata_entries"], problem);
    }
}

fn fine(reader: &Reader<'_>, keys: &[&str]) -> bool {
    !keys.iter().any(|key| reader.refused(key))
}
