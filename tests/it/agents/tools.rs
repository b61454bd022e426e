//! Calls of tools that the model wants.

use super::*;
use crate::threads::{post_message, thread, thread_of};
use crate::tools::fake;

#[tokio::test]
async fn a_call_waits_for_its_approval_also_over_a_kill() {
    let (model, tool) = (worker(1).await, FakeTool::start([Reply::Gives("done")]).await);
    let mut node = Node::start(config(&model, &tool, "", "needs_approval = true")).await;
    let id = begin(&node).await;
    let question = asked(&node, &id).await;
    let prompt =
        json!({"question": "May act be called?", "call_id": "call-0", "tool": "act", "arguments": {"number": 0}});
    assert_eq!((&question["for"], &question["prompt"]), (&json!("approval"), &prompt));
    node.kill9().await;
    node.restart().await;
    assert_eq!(asked(&node, &id).await, question);
    assert_eq!((tool.calls().len(), model.requests().len()), (0, 1));
    let approved = json!({"approved": true});
    assert_eq!(answer(&node, &id, &question, approved.clone()).await.status, 200);
    let second = answer(&node, &id, &question, approved).await;
    assert_eq!(second.status, 409, "{second:?}");
    completed(&node, &id, &model).await;
    assert_eq!(tool.keys().into_values().collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_refusal_is_told_to_the_model() {
    let (model, tool) = (worker(1).await, FakeTool::start([Reply::Gives("done")]).await);
    let node = Node::start(config(&model, &tool, "", "needs_approval = true")).await;
    let id = begin(&node).await;
    let question = asked(&node, &id).await;
    let refused = json!({"approved": false, "why": "too dear"});
    assert_eq!(answer(&node, &id, &question, refused).await.status, 200);
    completed(&node, &id, &model).await;
    assert!(tool.calls().is_empty());
    let told = &shown(&model)[0];
    assert!(told.contains("did not approve") && told.contains("too dear"), "{told}");
}

#[tokio::test]
async fn a_model_ends_its_run_with_a_result() {
    let result = json!({"sum": 3, "of": [1, 2]});
    let script = Script::Calls(vec![wanted("complete", 0, json!({"result": result}))]);
    let (model, tool) = (FakeModel::start([script]).await, FakeTool::start([]).await);
    let node = Node::start(config(&model, &tool, "", "")).await;
    let id = begin(&node).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["outcome"], &run["output"]), (&json!("completed"), &json!("finished"), &result));
    assert_log(&node.events(&id).await);
    assert_eq!(model.requests().len(), 1);
}

#[tokio::test]
async fn a_model_asks_a_person() {
    let ask = json!({"question": "Which one?", "options": ["red", "blue"]});
    let scripts = [Script::Calls(vec![wanted("ask", 0, ask)]), Script::Says("It is done.".to_owned())];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([]).await);
    let mut node = Node::start(config(&model, &tool, "", "")).await;
    let id = begin(&node).await;
    let question = asked(&node, &id).await;
    assert_eq!((&question["for"], &question["prompt"]["question"]), (&json!("input"), &json!("Which one?")));
    assert_eq!(question["prompt"]["options"], json!(["red", "blue"]));
    node.kill9().await;
    node.restart().await;
    assert_eq!(answer(&node, &id, &question, json!("blue")).await.status, 200);
    completed(&node, &id, &model).await;
    assert_eq!(shown(&model), ["blue"]);
}

#[tokio::test]
async fn calls_of_one_answer_are_made_at_once_where_that_is_allowed() {
    let calls = (0..3).map(|number| wanted("act", number, json!({"number": number}))).collect();
    let scripts = [Script::Calls(calls), Script::Says("It is done.".to_owned())];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([Reply::Meets(3)]).await);
    let node = Node::start(config(&model, &tool, "parallel_tools = true", "")).await;
    let id = begin(&node).await;
    completed(&node, &id, &model).await;
    assert_eq!(tool.keys().into_values().collect::<Vec<_>>(), [1; 3]);
    assert_eq!(shown(&model), ["met"; 3]);
}

#[tokio::test]
async fn a_model_hands_its_thread_to_people() {
    let hand_off = Script::Calls(vec![wanted("hand_off", 0, json!({"reason": "too hard"}))]);
    let says = |text: &str| Script::Says(text.to_owned());
    let (model, tool) = (
        FakeModel::start([hand_off, says("A person will answer."), says("It is done.")]).await,
        FakeTool::start([]).await,
    );
    let config = config(&model, &tool, "", "").replace("\"complete\"]", "\"hand_off\"]");
    let node = Node::start(config).await;
    let thread = thread(&node).await;
    let say = async |content: &str| {
        let sent = post_message(&node, &thread, &json!({"agent": "helper", "content": content})).await;
        assert_eq!(sent.status, 202, "{sent:?}");
        sent.json()
    };
    let run = id_of(&say("Help!").await["run"]);
    assert_eq!(node.wait_final(&run).await["output"], "A person will answer.");
    assert_promise(&node, &run).await;
    assert_eq!(shown(&model), ["people have the conversation now"]);
    let handed = thread_of(&node, &thread).await;
    assert_eq!((&handed["status"], &handed["handed_off"]["reason"]), (&json!("handed_off"), &json!("too hard")));
    assert_eq!(handed["handed_off"]["by"], run);
    assert_eq!(say("Anybody?").await["how"], "kept");
    assert_eq!(model.requests().len(), 2, "nobody answers but people");
    assert_eq!(node.post(&format!("/v1/threads/{thread}/release")).await.status, 200);
    let run = id_of(&say("And now?").await["run"]);
    assert_eq!(node.wait_final(&run).await["output"], "It is done.");
}

#[tokio::test]
async fn a_model_calls_the_tools_of_a_server_and_goes_on_when_that_dies() {
    let Some(server) = fake("tools = [\"victim\", \"die\"]\n") else { return };
    let scripts = [
        Script::Calls(vec![wanted("fake_victim", 0, json!({}))]),
        Script::Calls(vec![wanted("fake_die", 1, json!({}))]),
        Script::Calls(vec![wanted("fake_victim", 2, json!({}))]),
        Script::Says("It is done.".to_owned()),
    ];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([]).await);
    let directory = tempfile::tempdir().unwrap();
    let server = server.replace("{dir}", directory.path().to_str().unwrap());
    let config = config(&model, &tool, "", "").replace("tools = [\"act\",", "tools = [\"fake\",");
    let node = Node::start(format!("{config}{server}")).await;
    let id = begin(&node).await;
    let run = node.wait_final(&id).await;
    assert_eq!(
        (&run["status"], &run["output"], &run["attempt"]),
        (&json!("completed"), &json!("It is done."), &json!(1))
    );
    assert_promise(&node, &id).await;
    let offered = &model.requests()[0].body["tools"];
    let offered: Vec<_> =
        offered.as_array().unwrap().iter().map(|tool| tool["function"]["name"].as_str().unwrap()).collect();
    assert_eq!(offered, ["ask", "complete", "fake_die", "fake_victim"]);
    let shown = shown(&model);
    assert_eq!((shown.len(), &*shown[0], &*shown[2]), (3, "added", "added"), "{shown:?}");
}
