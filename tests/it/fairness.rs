//! Tenants on one installation: each has its share, its limits and its own runs, and none is delayed by another's flood.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::harness::{Answer, Node, Options, eventually, id_of};

const OPERATOR: &str = "the-key-of-the-operator";

/// A node whose tenants are `acme` and `other`, with what `config` adds; lost wake-ups are not made up for.
async fn start(config: &str, acme: &str) -> Node {
    let config = format!(
        "{config}\nserver.api_keys = [\"{OPERATOR}\"]\n[tenants.acme]\napi_keys = [\"{}\"]\n{acme}\n\
         [tenants.other]\napi_keys = [\"{}\"]\n",
        key("acme"),
        key("other")
    );
    let mut options = Options::from(config);
    options.env = vec![("RUNCAST_RECOVERY_SWEEP_INTERVAL", "10m".to_owned())];
    Node::start(options).await
}

fn key(tenant: &str) -> String {
    format!("the-key-of-the-tenant-{tenant}")
}

/// A client that is a tenant.
#[derive(Clone, Copy)]
struct As<'a>(&'a Node, &'a str);

impl As<'_> {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.0.request(method, path).bearer_auth(key(self.1))
    }

    async fn get(&self, path: &str) -> Answer {
        self.0.send(self.request(Method::GET, path)).await
    }

    async fn post(&self, body: &Value) -> Answer {
        self.0.send(self.request(Method::POST, "/v1/runs").json(body)).await
    }

    async fn post_keyed(&self, body: &Value, key: &str) -> Answer {
        self.0.send(self.request(Method::POST, "/v1/runs").json(body).header("idempotency-key", key)).await
    }

    async fn create(&self, body: &Value) -> String {
        let answer = self.post(body).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        id_of(&answer.json())
    }

    async fn until(&self, id: &str, status: &str) -> Value {
        eventually(&format!("run {id} is {status}"), async || {
            let run = self.get(&format!("/v1/runs/{id}")).await.json();
            (run["status"] == status).then_some(run)
        })
        .await
    }

    /// All its runs.
    async fn runs(&self) -> Vec<Value> {
        let page = self.get("/v1/runs?limit=200").await.json();
        page["data"].as_array().expect("a page").clone()
    }
}

/// What the queues say of a tenant.
async fn depths(node: &Node, tenant: &str) -> Value {
    let queues = node.send(node.request(Method::GET, "/v1/queues").bearer_auth(OPERATOR)).await.json();
    let tenants = queues["tenants"].as_array().expect("tenants");
    let none = json!({"tenant": tenant, "queued": 0, "running": 0});
    tenants.iter().find(|found| found["tenant"] == tenant).cloned().unwrap_or(none)
}

/// Waits until all runs of the tenant have ended; the most of them that were running at a time.
async fn most_running(node: &Node, tenant: &str) -> u64 {
    let mut most = 0;
    eventually("all runs of the tenant have ended", async || {
        let depths = depths(node, tenant).await;
        most = most.max(depths["running"].as_u64().expect("a number"));
        (depths["queued"] == 0 && depths["running"] == 0).then_some(())
    })
    .await;
    most
}

fn short() -> Value {
    json!({"agent": "scripted", "input": "x", "params": {"tokens": 2, "delay_ms": 10}})
}

#[tokio::test]
async fn the_flood_of_one_tenant_does_not_delay_another() {
    let node = start("worker.concurrency = 1", "").await;
    let (acme, other) = (As(&node, "acme"), As(&node, "other"));
    // Nothing starts until all of it is queued.
    let hanging = json!({"agent": "scripted", "input": "x", "params": {"tokens": 1, "hang_at": 1}});
    let first = acme.create(&hanging).await;
    acme.until(&first, "running").await;
    for _ in 0..60 {
        acme.create(&short()).await;
    }
    let late = other.create(&short()).await;
    assert_eq!(depths(&node, "acme").await, json!({"tenant": "acme", "queued": 60, "running": 1}));
    node.send(acme.request(Method::POST, &format!("/v1/runs/{first}/cancel"))).await;

    let late = other.until(&late, "completed").await;
    assert!(most_running(&node, "acme").await <= 1);
    let started = late["started_at"].as_str().expect("a time").to_owned();
    let earlier = acme.runs().await.into_iter().filter(|run| run["started_at"].as_str() < Some(&started)).count();
    assert!(earlier <= 3, "{earlier} runs of the flood went first, the one before it among them");
}

#[tokio::test]
async fn a_tenant_never_runs_more_than_its_limit_and_its_room_is_used_at_once() {
    let node = start("agents.second.kind = \"scripted\"", "max_running = 2").await;
    let (acme, other) = (As(&node, "acme"), As(&node, "other"));
    for number in 0..40 {
        let mut body = short();
        if number % 2 == 0 {
            body["agent"] = json!("second");
        }
        acme.create(&body).await;
    }
    // Whoever has no limit is not held up.
    let free = other.create(&short()).await;
    other.until(&free, "completed").await;
    assert!(depths(&node, "acme").await["queued"].as_u64() > Some(0), "the others have waited for their limit");
    let most = most_running(&node, "acme").await;
    assert_eq!(most, 2);
    assert!(acme.runs().await.iter().all(|run| run["status"] == "completed"));
}

#[tokio::test]
async fn agents_and_keys_run_no_more_than_their_limits() {
    let agents = "agents.one.kind = \"scripted\"\nagents.one.max_running = 1\nagents.keyed.kind = \"scripted\"\n\
         agents.keyed.max_running_per_key = 1";
    let node = start(agents, "").await;
    let (acme, other) = (As(&node, "acme"), As(&node, "other"));
    for number in 0..12 {
        let mut body = short();
        body["agent"] = json!("one");
        acme.create(&body).await;
        body["agent"] = json!("keyed");
        body["concurrency_key"] = json!(format!("key-{}", number % 2));
        let id = other.create(&body).await;
        assert_eq!(other.get(&format!("/v1/runs/{id}")).await.json()["concurrency_key"], body["concurrency_key"]);
    }
    let (one, two) = tokio::join!(most_running(&node, "acme"), most_running(&node, "other"));
    assert_eq!((one, two <= 2), (1, true), "{two}");
    // A run that is let go, and one that fails, make room as well.
    let failing = json!({"agent": "one", "input": "x", "max_attempts": 1, "params": {"tokens": 2, "fail_at": 2}});
    let failed = acme.create(&failing).await;
    let after = acme.create(&json!({"agent": "one", "input": "x"})).await;
    acme.until(&failed, "failed").await;
    acme.until(&after, "completed").await;

    let mut body = short();
    body["concurrency_key"] = json!("k".repeat(129));
    acme.post(&body).await.assert_problem(400, "invalid_field");
    body["concurrency_key"] = json!("");
    acme.post(&body).await.assert_problem(400, "invalid_field");
}

#[tokio::test]
async fn a_tenant_has_no_more_waiting_than_its_bound() {
    let node = start("worker.enabled = false", "max_waiting = 2").await;
    let (acme, other) = (As(&node, "acme"), As(&node, "other"));
    let first = acme.post_keyed(&short(), "k").await;
    assert_eq!(first.status, 202, "{first:?}");
    acme.create(&json!({"agent": "scripted", "input": "x", "delay_ms": 600_000})).await;
    let refused = acme.post(&short()).await;
    let detail = refused.assert_problem(429, "too_many_waiting");
    assert!(detail.contains("tenant acme") && detail.contains('2'), "{detail}");
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    other.create(&short()).await;
    // What was accepted once is accepted again.
    let again = acme.post_keyed(&short(), "k").await;
    assert_eq!((again.status.as_u16(), id_of(&again.json())), (202, id_of(&first.json())));
    let metrics = node.send(node.request(Method::GET, "/metrics").bearer_auth(OPERATOR)).await.text();
    for line in [
        "runcast_runs_refused_total{tenant=\"acme\",reason=\"too_many_of_tenant\"} 1",
        "runcast_tenant_runs{tenant=\"acme\",status=\"queued\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing: {metrics}");
    }
}

#[tokio::test]
async fn a_tenant_is_served_at_its_rate() {
    let node = start("", "rate = 30\nburst = 3").await;
    let (acme, other) = (As(&node, "acme"), As(&node, "other"));
    let accepted = acme.post_keyed(&short(), "k").await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    // Repeating it costs nothing.
    for _ in 0..9 {
        let again = acme.post_keyed(&short(), "k").await;
        assert_eq!((again.status.as_u16(), id_of(&again.json())), (202, id_of(&accepted.json())));
    }
    for _ in 0..2 {
        acme.create(&short()).await;
    }
    let refused = acme.post(&short()).await;
    let detail = refused.assert_problem(429, "rate_limited");
    assert!(detail.contains("acme"), "{detail}");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=2).contains(&wait), "{refused:?}");
    // Nor does the rate stand in the way of a repetition, or of the truth about one.
    let again = acme.post_keyed(&short(), "k").await;
    assert_eq!((again.status.as_u16(), id_of(&again.json())), (202, id_of(&accepted.json())));
    acme.post_keyed(&json!({"agent": "scripted", "input": "y"}), "k")
        .await
        .assert_problem(409, "idempotency_key_reused");
    acme.post_keyed(&short(), "new").await.assert_problem(429, "rate_limited");
    other.create(&short()).await;
    eventually("the rate lets another in", async || (acme.post(&short()).await.status == 202).then_some(())).await;
}

#[tokio::test]
async fn a_tenant_sees_its_own_runs_and_nothing_of_others() {
    let node = start("", "").await;
    let (acme, other) = (As(&node, "acme"), As(&node, "other"));
    let id = acme.create(&short()).await;
    assert_eq!(acme.until(&id, "completed").await["tenant"], "acme");
    for path in ["", "/events", "/stream", "/wait"] {
        other.get(&format!("/v1/runs/{id}{path}")).await.assert_problem(404, "not_found");
    }
    assert_eq!(other.runs().await.len(), 0);
    assert_eq!(acme.runs().await.len(), 1);
    let operator = |path: &str| node.request(Method::GET, path).bearer_auth(OPERATOR);
    node.send(operator(&format!("/v1/runs/{id}"))).await.assert_problem(404, "not_found");
    for path in ["/v1/queues", "/v1/queues/dead", "/v1/nodes", "/metrics"] {
        acme.get(path).await.assert_problem(403, "operators_only");
        assert_eq!(node.send(operator(path)).await.status, 200, "{path}");
    }
    node.get("/v1/runs").await.assert_problem(401, "unauthorized");
    node.send(node.request(Method::GET, "/v1/runs").bearer_auth(key("nobody")))
        .await
        .assert_problem(401, "unauthorized");
    for path in ["/v1/agents", "/v1/models", "/openapi.json"] {
        assert_eq!(acme.get(path).await.status, 200, "{path}");
    }
}
