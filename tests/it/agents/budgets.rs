//! What a run may use, and what it is charged.

use super::*;

#[tokio::test]
async fn each_bound_of_a_budget_ends_a_run() {
    for (of_agent, budget, outcome, calls) in [
        ("", json!({"tokens": 400}), "budget_tokens", 1..30),
        ("budget_tokens = 400", json!({"tokens": 100_000}), "budget_tokens", 1..30),
        ("budget_cost = 0.0006", json!(null), "budget_cost", 1..30),
        ("", json!({"cost_micros": 600}), "budget_cost", 1..30),
        ("budget_steps = 3", json!(null), "budget_steps", 1..2),
        ("", json!({"steps": 4}), "budget_steps", 2..3),
    ] {
        let (model, tool) = (worker(50).await, FakeTool::start([Reply::Gives("done")]).await);
        let node = Node::start(config(&model, &tool, of_agent, "")).await;
        let mut body = json!({"agent": "helper", "input": "Do it."});
        if !budget.is_null() {
            body["budget"] = budget;
        }
        let id = node.create(body).await;
        let run = node.wait_final(&id).await;
        assert_eq!((&run["status"], &run["outcome"]), (&json!("failed"), &json!(outcome)), "{of_agent}: {run}");
        assert_eq!(run["error"]["code"], "out_of_budget", "{run}");
        assert_promise(&node, &id).await;
        assert!(calls.contains(&tool.calls().len()), "{of_agent}: {} calls: {run}", tool.calls().len());
        let [read, written, cost] = usage(&run["usage"]);
        assert_eq!([read, written, cost], used(&node.events(&id).await), "{of_agent}: {run}");
        let asked = model.requests().len() as u64;
        assert_eq!([read, written, cost], [11, WRITTEN, 11 + 2 * WRITTEN].map(|each| each * asked), "{run}");
        let within = match outcome {
            "budget_tokens" => read + written <= 400,
            "budget_cost" => cost <= 600,
            _ => true,
        };
        assert!(within, "{run}");
    }
}

#[tokio::test]
async fn the_time_of_a_budget_ends_a_call() {
    for (of_agent, budget) in [("budget_time = \"300ms\"", json!({})), ("", json!({"time_ms": 300}))] {
        let (model, tool) = (worker(1).await, FakeTool::start([Reply::Hangs]).await);
        let node = Node::start(config(&model, &tool, of_agent, "")).await;
        let id = node.create(json!({"agent": "helper", "input": "Do it.", "budget": budget})).await;
        let run = node.wait_final(&id).await;
        assert_eq!((&run["status"], &run["outcome"]), (&json!("failed"), &json!("budget_time")), "{run}");
        assert_promise(&node, &id).await;
        eventually("the tool's socket is closed", async || (tool.open() == 0).then_some(())).await;
        assert_eq!(usage(&run["usage"]), used(&node.events(&id).await), "{run}");
    }
}

#[tokio::test]
async fn a_kill_while_the_model_talks_is_charged_as_what_the_call_had_reserved() {
    let model = FakeModel::start([Script::Hang(3), Script::Says("It is done.".to_owned())]).await;
    let tool = FakeTool::start([]).await;
    let mut node = Node::start(config(&model, &tool, "max_tokens = 50", "")).await;
    let id = begin(&node).await;
    node.until_said(&id, 3).await;
    node.kill9().await;
    node.restart().await;
    let run = node.wait_final(&id).await;
    assert_promise(&node, &id).await;
    let events = node.events(&id).await;
    let of = |kind: &str| events.iter().find(|event| event.kind == kind).expect("an event").data.clone();
    let reserved = usage(&of("step.started")["reserved"]);
    assert!(reserved[0] > 0 && reserved[1] == 50, "{reserved:?}");
    let retrying = of("run.retrying");
    assert_eq!((usage(&retrying["usage"]), &retrying["usage"]["estimated"]), (reserved, &json!(true)), "{retrying}");
    assert_eq!(usage(&run["usage"]), sum([reserved, used(&events)]), "{run}");
    assert_eq!(run["usage"]["estimated"], true, "{run}");
}

#[tokio::test]
async fn a_cancel_closes_the_socket_of_a_tool() {
    let (model, tool) = (worker(1).await, FakeTool::start([Reply::Hangs]).await);
    let node = Node::start(config(&model, &tool, "", "")).await;
    let id = begin(&node).await;
    tool.until_called(1).await;
    node.cancel(&id).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], usage(&run["usage"])), (&json!("cancelled"), used(&node.events(&id).await)), "{run}");
    assert_promise(&node, &id).await;
    eventually("the tool's socket is closed", async || (tool.open() == 0).then_some(())).await;
    assert_eq!((tool.calls().len(), model.requests().len()), (1, 1));
}

#[tokio::test]
async fn a_cancel_while_the_model_talks_charges_what_it_has_said() {
    let (model, tool) = (FakeModel::start([Script::Hang(3)]).await, FakeTool::start([]).await);
    let node = Node::start(config(&model, &tool, "", "")).await;
    let id = begin(&node).await;
    node.until_said(&id, 3).await;
    node.cancel(&id).await;
    let run = node.wait_final(&id).await;
    assert_promise(&node, &id).await;
    eventually("the model's socket is closed", async || (model.open() == 0).then_some(())).await;
    let reserved = node.events(&id).await.into_iter().find(|event| event.kind == "step.started").expect("a step");
    // A token is some four bytes; three of "t1 t2 t3 ".
    let [read, written, cost] = usage(&run["usage"]);
    assert_eq!((written, cost, &run["usage"]["estimated"]), (3, read + 6, &json!(true)), "{run}");
    assert!((1..=usage(&reserved.data["reserved"])[0]).contains(&read), "{run}");
}
