//! What answers where no model does.

use super::*;

/// Waits until the run has ended as its fallback says it.
async fn fell_back(node: &Node, id: &str, output: &str) {
    let run = node.wait_final(id).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("completed"), &json!("fallback")), "{run}");
    assert_eq!((&run["output"], &run["attempt"]), (&json!(output), &json!(1)), "{run}");
    assert_promise(node, id).await;
}

#[tokio::test]
async fn a_fallback_answers_where_the_provider_is_away_and_the_node_says_so() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let agent = |name: &str, model: &str| {
        format!(
            "[agents.{name}]\nkind = \"model\"\nmodel = \"{model}\"\nfallback_reply = \"Nobody is here: {{input}}\"\n"
        )
    };
    let node = Node::start(format!(
        "[providers.gone]\nbase_url = \"http://{address}/v1\"\n{}{}",
        agent("away", "gone/small"),
        agent("keyless", "openai/gpt-4o-mini"),
    ))
    .await;
    // That a key is missing is known before anybody asks.
    let fallbacks = node.get("/ready").await.json()["fallbacks"].clone();
    assert!(fallbacks["keyless"].is_string() && fallbacks["away"].is_null(), "{fallbacks}");
    for (name, why) in [("away", address.to_string()), ("keyless", "no key".to_owned())] {
        let id = node.create(json!({"agent": name, "input": "Help!"})).await;
        fell_back(&node, &id, "Nobody is here: Help!").await;
        let ready = node.get("/ready").await;
        assert_eq!(ready.status, 200, "{ready:?}");
        let fallbacks = &ready.json()["fallbacks"];
        assert!(fallbacks[name].as_str().is_some_and(|told| told.contains(&why)), "{fallbacks}");
        let logged = |event: &Event| event.kind == "log" && event.data["level"] == "warn";
        assert!(node.events(&id).await.iter().any(logged));
    }
}

#[tokio::test]
async fn what_a_model_has_said_before_its_fallback_answers_is_void() {
    let scripts = [Script::Cut(3), Script::Says("It is done.".to_owned())];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([]).await);
    let node = Node::start(config(&model, &tool, "fallback_reply = \"Nobody is here.\"", "")).await;
    let id = begin(&node).await;
    fell_back(&node, &id, "Nobody is here.").await;
    assert!(node.get("/ready").await.json()["fallbacks"]["helper"].is_string());
    let id = begin(&node).await;
    assert_eq!(node.wait_final(&id).await["output"], "It is done.");
    assert_eq!(node.get("/ready").await.json()["fallbacks"], json!(null), "the model is there again");
}

#[tokio::test]
async fn a_run_that_has_begun_is_gone_on_with_and_no_fallback_answers() {
    let scripts = [act(0), Script::Refuse(503, "", "overloaded"), Script::Says("It is done.".to_owned())];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([Reply::Gives("done")]).await);
    let node = Node::start(config(&model, &tool, "fallback_reply = \"Nobody is here.\"", "")).await;
    let id = begin(&node).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["outcome"], &run["output"]), (&json!("finished"), &json!("It is done.")), "{run}");
    assert_promise(&node, &id).await;
    assert_eq!(tool.calls().len(), 1);
}
