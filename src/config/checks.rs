//! What has to fit together between keys.

use secrecy::ExposeSecret;

use super::{
    sections::{Agent, Config, Ingest},
    sources::{Reader, join},
    values::{AgentKind, BrokerUrl, IngestKind, Mode, Role, StoreUrl},
};

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

fn check_agent(config: &Config, path: &str, agent: &Agent, reader: &mut Reader<'_>) {
    let key = |name| join(path, name);
    if !fine(reader, &[path, &key("kind")]) {
        return;
    }
    if !reader.origins.contains_key(&key("kind")) {
        reader.blame(&[&key("kind")], "has to be set; expected model or scripted");
        return;
    }
    if let (Some(debounce), Some(longest)) = (agent.debounce, agent.debounce_max)
        && debounce > longest
    {
        let keys = [key("debounce"), key("debounce_max")];
        reader.blame(&[&keys[0], &keys[1]], "debounce is longer than debounce_max");
    }
    match (agent.kind, &agent.model) {
        (AgentKind::Scripted, _) => {
            for only_model in
                ["model", "fallback_models", "restart_on_fallback", "system", "temperature", "max_tokens"].map(key)
            {
                if reader.origins.contains_key(&only_model) && fine(reader, &[&only_model]) {
                    reader.blame(&[&only_model], "makes no sense for an agent of kind scripted");
                }
            }
        }
        (AgentKind::Model, None) if fine(reader, &[&key("model")]) => {
            reader.blame(&[&key("model")], "has to be set for an agent of kind model; expected provider/model");
        }
        (AgentKind::Model, _) => {
            let model = agent.model.iter().map(|model| ("model", model));
            let fallbacks = agent.fallback_models.iter().map(|model| ("fallback_models", model));
            for (name, model) in model.chain(fallbacks) {
                if !config.providers.contains_key(&model.provider) {
                    let known: Vec<&str> = config.providers.keys().map(String::as_str).collect();
                    let known = known.join(", ");
                    reader.blame(
                        &[&key(name)],
                        format!("expected a provider of [providers], one of {known}, got {model}"),
                    );
                }
            }
        }
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
