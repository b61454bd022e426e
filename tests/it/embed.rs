//! The example of an embedding service, as a user of it would call it.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::harness::{parse, soon};

#[expect(unreachable_pub, reason = "the example is a program of its own")]
#[path = "../../examples/embedded.rs"]
mod embedded;

#[test]
fn a_service_mounts_the_api_under_a_prefix_and_runs_its_own_agent() {
    let data = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let directory = data.path().to_owned();
    actix::System::new().block_on(async move {
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        actix::spawn(async move { embedded::serve(listener, directory).await.unwrap() });
        let client = reqwest::Client::new();
        let own = soon("the service's own page", client.get(&base).send()).await.unwrap().text().await.unwrap();
        assert_eq!(own, "the service's own page");

        let body = json!({"agent": "shout", "input": "hello there", "params": {"marks": 3}});
        let created = client.post(format!("{base}/agents/v1/runs")).json(&body).send().await.unwrap();
        assert_eq!(created.status(), 202);
        let location = created.headers()["location"].to_str().unwrap().to_owned();
        assert!(location.starts_with("/agents/v1/runs/"), "{location}");
        let run: Value = created.json().await.unwrap();
        let stream = format!("{base}{}", run["links"]["stream"].as_str().unwrap());
        let text = soon("the stream", client.get(stream).send()).await.unwrap().text().await.unwrap();
        let events = parse(&text);
        assert_eq!(events.last().unwrap().data["output"], "HELLO THERE!!!");

        let refused = json!({"agent": "shout", "input": "x", "params": {"marks": 11}});
        let refused = client.post(format!("{base}/agents/v1/runs")).json(&refused).send().await.unwrap();
        assert_eq!(refused.status(), 400);
        let document: Value =
            client.get(format!("{base}/agents/openapi.json")).send().await.unwrap().json().await.unwrap();
        assert_eq!(document["servers"][0]["url"], "/agents");
    });
}
