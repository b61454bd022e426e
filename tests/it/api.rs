//! The node's own routes, and who may call.

use reqwest::Method;
use reqwest::header::{HOST, LOCATION};
use serde_json::{Value, json};

use crate::harness::{FakeModel, Node, Options, Script, is_embedded};

const KEY: &str = "a-key-of-at-least-16";
const OTHER_KEY: &str = "another-key-for-rotation";

#[tokio::test]
async fn the_node_says_how_it_is_and_what_it_can_run() {
    let model = FakeModel::start([Script::Tokens(1, std::time::Duration::ZERO)]).await;
    let node = Node::start(model.config("")).await;
    let health = node.get("/health").await;
    assert_eq!(health.status, 200);
    let health = health.json();
    assert_eq!((&health["status"], &health["version"]), (&json!("ok"), &json!(env!("CARGO_PKG_VERSION"))));
    let mut parts = json!({"store": "ok", "broker": "ok", "node": "ok"});
    if !is_embedded() {
        parts["agreement"] = json!("ok");
    }
    assert_eq!(health["parts"], parts);
    assert_eq!(node.get("/ready").await.status, 200);

    let agents = node.get("/v1/agents").await.json();
    let names: Vec<_> = agents["data"].as_array().unwrap().iter().map(|card| card["name"].clone()).collect();
    assert_eq!(names, ["scripted", "writer"]);
    let [scripted, writer] = [&agents["data"][0], &agents["data"][1]];
    assert_eq!((&scripted["scripted"], &scripted["kind"]), (&json!(true), &json!("scripted")));
    assert!(scripted["description"].as_str().unwrap().contains("no model"), "{scripted}");
    assert_eq!(scripted["params_schema"]["properties"]["tokens"]["type"], "integer");
    assert_eq!((&writer["scripted"], &writer["model"]), (&json!(false), &json!("fake/small")));

    let models = node.get("/v1/models").await.json();
    let expected = json!([{"id": "fake/small", "provider": "fake", "ready": true}]);
    assert_eq!(models["data"], expected);
}

#[tokio::test]
async fn the_agent_assistant_is_there_as_soon_as_the_environment_names_a_provider() {
    let model = FakeModel::start([Script::Tokens(3, std::time::Duration::ZERO)]).await;
    let env = vec![("OPENAI_BASE_URL", model.base_url()), ("OPENAI_MODEL", "tiny".to_owned())];
    let node = Node::start(Options { env, ..Options::default() }).await;
    let id = node.create(json!({"agent": "assistant", "input": "Hello?"})).await;
    assert_eq!(node.wait_final(&id).await["output"], "t1 t2 t3 ");
    assert_eq!(model.requests()[0].body["model"], "tiny");
    let ids: Vec<_> =
        node.get("/v1/models").await.json()["data"].as_array().unwrap().iter().map(|card| card["id"].clone()).collect();
    assert_eq!(ids, ["openai/tiny"]);

    let without = Node::start("").await;
    let answer = without.post_json("/v1/runs", &json!({"agent": "assistant", "input": "Hello?"})).await;
    answer.assert_problem(400, "unknown_agent");
    assert!(without.log().contains("OPENAI_API_KEY"), "the log says what is missing");
}

#[tokio::test]
async fn the_metrics_are_prometheus_text_that_counts() {
    let node = Node::start("").await;
    for _ in 0..3 {
        let id = node.create(json!({"agent": "scripted", "input": "x"})).await;
        node.wait_final(&id).await;
    }
    node.get("/v1/runs/nonsense").await;
    node.get("/no/such/route").await;
    let answer = node.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("application/openmetrics-text"), "{answer:?}");
    let text = answer.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in text.lines() {
        let comment = ["# HELP runcast_", "# TYPE runcast_", "# UNIT runcast_", "# EOF"];
        let value = || {
            line.rsplit_once(' ')
                .is_some_and(|(name, value)| name.starts_with("runcast_") && value.parse::<f64>().is_ok())
        };
        assert!(comment.iter().any(|comment| line.starts_with(comment)) || value(), "{line}");
    }
    for (name, value) in [
        ("runcast_runs_created_total", 3.0),
        ("runcast_attempts_started_total", 3.0),
        ("runcast_runs_finished_total{status=\"completed\"}", 3.0),
        ("runcast_run_duration_seconds_count", 3.0),
        ("runcast_http_requests_total{route=\"/v1/runs\",status=\"202\"}", 3.0),
        ("runcast_http_requests_total{route=\"/v1/runs/{id}\",status=\"400\"}", 1.0),
        ("runcast_http_requests_total{route=\"none\",status=\"404\"}", 1.0),
    ] {
        assert_eq!(node.metric(name).await, value, "{name}");
    }
}

#[tokio::test]
async fn the_openapi_document_has_every_route_and_resolves_all_it_names() {
    let node = Node::start("").await;
    let answer = node.get("/openapi.json").await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/json"));
    let document = answer.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    for (path, methods) in [
        ("/v1/runs", vec!["get", "post"]),
        ("/v1/runs/{id}", vec!["get", "delete"]),
        ("/v1/runs/{id}/stream", vec!["get"]),
        ("/v1/runs/{id}/events", vec!["get"]),
        ("/v1/runs/{id}/wait", vec!["get"]),
        ("/v1/runs/{id}/cancel", vec!["post"]),
        ("/v1/runs/{id}/retry", vec!["post"]),
        ("/v1/runs/{id}/resume", vec!["post"]),
        ("/v1/threads", vec!["get", "post"]),
        ("/v1/threads/{id}", vec!["get", "patch", "delete"]),
        ("/v1/threads/{id}/messages", vec!["get", "post"]),
        ("/v1/threads/{id}/stream", vec!["get"]),
        ("/v1/threads/{id}/handoff", vec!["post"]),
        ("/v1/threads/{id}/release", vec!["post"]),
        ("/v1/agents", vec!["get"]),
        ("/v1/models", vec!["get"]),
        ("/health", vec!["get"]),
        ("/ready", vec!["get"]),
        ("/metrics", vec!["get"]),
    ] {
        for method in methods {
            assert!(document["paths"][path][method]["responses"].is_object(), "{method} {path}");
        }
    }
    // What cannot be cleared is not said to take null.
    for (body, field, cleared) in [
        ("PatchThreadBody", "metadata", false),
        ("PatchEndpointBody", "url", false),
        ("PatchEndpointBody", "agent", true),
        ("ChangeScheduleBody", "cron", false),
        ("ChangeScheduleBody", "ttl_ms", true),
    ] {
        let schema = document["components"]["schemas"][body]["properties"][field].to_string();
        assert_eq!(schema.contains("null"), cleared, "{body}.{field}: {schema}");
    }
    fn check(value: &Value, document: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(target) = fields.get("$ref").and_then(Value::as_str) {
                    assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target} leads nowhere");
                }
                fields.values().for_each(|value| check(value, document));
            }
            Value::Array(items) => items.iter().for_each(|value| check(value, document)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    check(&document, &document);
}

#[tokio::test]
async fn the_page_of_the_documentation_is_html_that_finds_its_document() {
    let node = Node::start("").await;
    let page = node.get("/docs/").await;
    assert_eq!(page.status, 200, "{page:?}");
    assert!(page.header("content-type").starts_with("text/html") && page.text().contains("<html"), "{page:?}");
    let script = node.get("/docs/swagger-initializer.js").await;
    assert!(script.text().contains("../openapi.json"), "{}", script.text());
    // Whoever types the short address gets there, too.
    let short = node.get("/docs").await;
    assert!(short.status == 200 && short.text().contains("<html"), "{short:?}");
    let off = Node::start("server.docs = false").await;
    for path in ["/docs", "/docs/"] {
        off.get(path).await.assert_problem(404, "not_found");
    }
}

#[tokio::test]
async fn with_api_keys_only_those_who_have_one_are_served() {
    let keys = vec![("RUNCAST_SERVER_API_KEYS", format!("{KEY},{OTHER_KEY}"))];
    let node = Node::start(Options { env: keys, ..Options::default() }).await;
    let body = json!({"agent": "scripted", "input": "x"});
    for wrong in [
        None,
        Some("Bearer nonsense"),
        Some("Bearer "),
        Some(KEY),
        Some("Basic YTpi"),
        Some("Bearer a-key-of-at-least-1"),
    ] {
        for (method, path) in [
            (Method::GET, "/v1/runs"),
            (Method::POST, "/v1/runs"),
            (Method::GET, "/v1/agents"),
            (Method::GET, "/v1/models"),
            (Method::GET, "/metrics"),
            (Method::GET, "/openapi.json"),
            (Method::GET, "/v1/runs/health"),
            (Method::GET, "/no/such/route"),
        ] {
            let mut request = node.request(method, path).json(&body);
            if let Some(wrong) = wrong {
                request = request.header("authorization", wrong);
            }
            let answer = node.send(request).await;
            answer.assert_problem(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    let wrong = node.request(Method::GET, "/v1/runs").header("x-api-key", "nonsense");
    node.send(wrong).await.assert_problem(401, "unauthorized");
    for open in ["/health", "/ready"] {
        assert_eq!(node.get(open).await.status, 200, "{open} is for probes, which have no key");
    }
    for key in [KEY, OTHER_KEY] {
        let bearer = node.request(Method::GET, "/v1/runs").bearer_auth(key);
        let list = node.send(bearer).await;
        assert_eq!((list.status.as_u16(), &list.json()["data"]), (200, &json!([])), "nothing was created");
        let header = node.request(Method::GET, "/v1/runs").header("x-api-key", key);
        assert_eq!(node.send(header).await.status, 200);
    }
    assert!(!node.log().contains(KEY));
}

#[tokio::test]
async fn a_node_without_keys_answers_to_loopback_names_alone() {
    let node = Node::start("").await;
    let asked = async |headers: &[(&str, &str)]| {
        let mut request = node.request(Method::GET, "/v1/runs");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        node.send(request).await
    };
    for host in ["localhost", "127.0.0.1:7070", "[::1]:1"] {
        assert_eq!(asked(&[(HOST.as_str(), host)]).await.status, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:7070", "localhost.evil.example"] {
        asked(&[(HOST.as_str(), host)]).await.assert_problem(403, "forbidden_host");
        // What a page can send along must not change it.
        asked(&[(HOST.as_str(), host), ("x-forwarded-host", "localhost")]).await.assert_problem(403, "forbidden_host");
        asked(&[(HOST.as_str(), host), ("forwarded", "host=localhost")]).await.assert_problem(403, "forbidden_host");
    }
    let body = json!({"agent": "scripted", "input": "x"});
    let foreign = node.request(Method::POST, "/v1/runs").json(&body).header(HOST, "evil.example");
    node.send(foreign).await.assert_problem(403, "forbidden_host");
    assert_eq!(asked(&[]).await.json()["data"], json!([]));

    // With keys, a node may have any name: those who have no key get nothing anyway.
    let keys = vec![("RUNCAST_SERVER_API_KEYS", KEY.to_owned())];
    let keyed = Node::start(Options { env: keys, ..Options::default() }).await;
    let request = keyed.request(Method::GET, "/v1/runs").header(HOST, "runs.example").bearer_auth(KEY);
    assert_eq!(keyed.send(request).await.status, 200);
}

#[tokio::test]
async fn the_greeting_says_where_everything_is_and_the_start_is_logged_in_stages() {
    let node = Node::start("").await;
    let said = std::fs::read_to_string(node.directory().join("out")).unwrap();
    let data = node.directory().join("data").join("runcast.db");
    let data = if is_embedded() { data.to_str().unwrap() } else { "postgres://postgres:***@" };
    for expected in [node.address(), data, "scripted", "curl -N http://", "/docs/"] {
        assert!(said.contains(expected), "{expected} is missing: {said}");
    }
    let log = node.log();
    for stage in 1..=7 {
        assert!(log.contains(&format!("start {stage}/7: ")), "stage {stage} is missing: {log}");
    }
    // The line that it proposes works as it stands.
    let command = said.lines().find_map(|line| line.trim().strip_prefix("try")).unwrap().trim().to_owned();
    let body = command.split("-d '").nth(1).unwrap().trim_end_matches('\'');
    let answer = node.post_json("/v1/runs", &serde_json::from_str(body).unwrap()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(crate::harness::parse(answer.text()).last().unwrap().kind, "run.completed");
    assert!(answer.headers.contains_key(LOCATION));
}
