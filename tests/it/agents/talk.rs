//! What is asked of a model, and when it is enough.

use super::*;

#[tokio::test]
async fn an_answer_that_does_not_follow_the_schema_is_asked_for_again() {
    let schema = r#"output_schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'"#;
    for (last, outcome) in [(r#"{"n": 7}"#, "finished"), (r#"{"n": "seven"}"#, "error")] {
        let scripts = ["seven", r#"{"n": null}"#, last].map(|text| Script::Says(text.to_owned()));
        let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([]).await);
        let node = Node::start(config(&model, &tool, schema, "")).await;
        let id = begin(&node).await;
        let run = node.wait_final(&id).await;
        assert_eq!(run["outcome"], outcome, "{run}");
        assert_log(&node.events(&id).await);
        let requests = model.requests();
        assert_eq!(requests.len(), 3);
        assert_eq!(requests[0].body["response_format"]["type"], "json_schema");
        let told = requests[2].body["messages"].as_array().unwrap().last().unwrap();
        assert!(told["content"].as_str().unwrap().contains("not what was asked for: /n: "), "{told}");
        match outcome {
            "finished" => assert_eq!(run["output"], json!({"n": 7})),
            _ => assert_eq!(run["error"]["code"], "invalid_output"),
        }
    }
}

#[tokio::test]
async fn a_plan_is_shown_carried_out_and_revised() {
    let task = |task: &str, status: &str| json!({"task": task, "status": status});
    let revised = json!([task("Look.", "done"), task("Ask.", "dropped"), task("Tell.", "active")]);
    let scripts = [
        Script::Says(r#"{"tasks": ["Look.", "Tell."]}"#.to_owned()),
        act(0),
        Script::Calls(vec![wanted("update_plan", 1, json!({"tasks": revised}))]),
        Script::Says("It is done.".to_owned()),
    ];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([Reply::Gives("done")]).await);
    let mut node = Node::start(config(&model, &tool, "plan = true", "needs_approval = true")).await;
    let id = begin(&node).await;
    let question = asked(&node, &id).await;
    node.kill9().await;
    node.restart().await;
    answer(&node, &id, &question, json!(true)).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!("It is done.")), "{run}");
    assert_promise(&node, &id).await;
    let events = node.events(&id).await;
    let plans: Vec<_> =
        events.iter().filter(|event| event.kind == "plan.updated").map(|event| &event.data["plan"]).collect();
    assert_eq!(plans, [&json!([task("Look.", "pending"), task("Tell.", "pending")]), &revised]);
    assert_eq!(model.requests().len(), 4, "the plan is not made again");
}

#[tokio::test]
async fn a_model_that_goes_round_in_circles_is_stopped() {
    let (model, tool) = (worker(50).await, FakeTool::start([Reply::Gives("done")]).await);
    let node = Node::start(config(&model, &tool, "max_steps = 6", "")).await;
    let id = begin(&node).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("completed"), &json!("max_steps")), "{run}");
    assert_promise(&node, &id).await;
    assert_eq!((model.requests().len(), tool.calls().len()), (3, 3));
}
