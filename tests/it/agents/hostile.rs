//! Secrets, and models that were talked into something.

use super::*;
use crate::programs::assert_not_in_files;
use crate::tools::fake;

#[tokio::test]
async fn secrets_are_shown_nowhere_whatever_providers_and_tools_answer() {
    const KEY: &str = "canary-key-8c1b7e20";
    const TOKEN: &str = "canary-token-3fd94a61";
    let done = || Script::Says("It is done.".to_owned());
    let refusal = |status| Script::Refuse(status, "", "Incorrect API key provided: canary-key-8c1b7e20");
    // The secret without the word before it.
    let alone = Reply::Gives("you sent nothing but canary-token-3fd94a61");
    let scripts = [act(0), done(), act(0), done(), act(0), done(), refusal(401), refusal(400), refusal(503)];
    let tool = FakeTool::start([Reply::Echoes(200), Reply::Echoes(500), Reply::Echoes(500), alone]).await;
    let model = FakeModel::start(scripts).await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), format!("{TOKEN}\n")).unwrap();
    let of_tool = format!("headers = [\"Authorization=Bearer file:{}\"]\nretries = 1", secret.path().display());
    let config = config(&model, &tool, "", &of_tool).replace("max_attempts = 100", "max_attempts = 2");
    let mut options = Options::from(config.replace("prices", "api_key = \"env:MY_KEY\"\nprices"));
    options.env = vec![("MY_KEY", KEY.to_owned()), ("RUNCAST_LOG_LEVEL", "trace".to_owned())];
    let node = Node::start(options).await;
    let mut shown = Vec::new();
    for (status, told, hidden) in [
        ("completed", "you sent POST /act", "authorization: ***"),
        ("completed", "you sent POST /act", "authorization: ***"),
        ("completed", "you sent nothing but ", "nothing but ***"),
        ("failed", "provider_rejected_key", "check the key"),
        ("failed", "provider_rejected", "Incorrect API key provided: [key]"),
        ("failed", "provider_unavailable", "Incorrect API key provided: [key]"),
    ] {
        let id = begin(&node).await;
        let run = node.wait_final(&id).await;
        assert_eq!(run["status"], status, "{run}");
        let events = node.get(&format!("/v1/runs/{id}/events?limit=200")).await.text();
        assert!(events.contains(told) && events.contains(hidden), "{told}: {events}");
        shown.extend([run.to_string(), events, node.get(&format!("/v1/runs/{id}/stream")).await.text()]);
    }
    let sent = tool.calls();
    assert!(sent.iter().all(|call| call.header("authorization") == Some(&format!("Bearer {TOKEN}"))), "{sent:?}");
    assert_eq!(model.requests()[0].header("authorization"), Some(&*format!("Bearer {KEY}")));
    let config = finished_process(node.directory(), &["config"], &[("MY_KEY", KEY)]).await;
    assert_eq!(config.code, Some(0), "{config:?}");
    for path in ["/metrics", "/ready", "/v1/agents", "/v1/models", "/v1/nodes", "/v1/runs", "/v1/dead-letters"] {
        shown.push(node.get(path).await.text());
    }
    shown.extend([node.log(), config.out, config.err]);
    let told: Vec<_> = model.requests().iter().map(|request| request.body.to_string()).collect();
    for canary in [KEY, TOKEN] {
        let found: Vec<_> = shown.iter().chain(&told).filter(|text| text.contains(canary)).collect();
        assert!(found.is_empty(), "{canary}: {found:?}");
        assert_not_in_files(node.directory(), canary);
    }
}

#[tokio::test]
async fn a_server_that_tells_its_environment_shows_no_secret() {
    const TOKEN: &str = "canary-token-77e01b5d";
    let Some(server) = fake("tools = [\"environment\"]\nenv = [\"MY_TOKEN=env:SERVER_TOKEN\"]") else { return };
    let scripts =
        [Script::Calls(vec![wanted("fake_environment", 0, json!({}))]), Script::Says("It is done.".to_owned())];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([]).await);
    let directory = tempfile::tempdir().unwrap();
    let server = server.replace("{dir}", directory.path().to_str().unwrap());
    let config = config(&model, &tool, "", "").replace("tools = [\"act\",", "tools = [\"fake\",");
    let mut options = Options::from(format!("{config}{server}"));
    options.env = vec![("SERVER_TOKEN", TOKEN.to_owned()), ("RUNCAST_LOG_LEVEL", "trace".to_owned())];
    let node = Node::start(options).await;
    let id = begin(&node).await;
    completed(&node, &id, &model).await;
    let told = &shown(&model)[0];
    assert!(told.contains("\"MY_TOKEN\": \"***\""), "{told}");
    let said = async || node.log().contains("\\\"MY_TOKEN\\\": \\\"***").then_some(());
    eventually("the log has what the server says", said).await;
    let events = node.get(&format!("/v1/runs/{id}/events?limit=200")).await.text();
    for shown in [events, node.run(&id).await.to_string(), node.log(), node.get("/metrics").await.text()] {
        assert!(!shown.contains(TOKEN), "{shown}");
    }
    assert_not_in_files(node.directory(), TOKEN);
}

#[tokio::test]
async fn a_model_that_was_talked_into_it_reaches_nothing_but_its_endpoint() {
    const PLACES: [&str; 8] = [
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "@169.254.169.254/",
        "//169.254.169.254/",
        "../../etc/passwd",
        "x?next=http://[::1]/#",
        "x HTTP/1.1\r\nhost: 169.254.169.254\r\n\r\n",
    ];
    let calls = |tool: &'static str| {
        let wants = |(number, place): (usize, &&str)| wanted(tool, number, json!({"place": place}));
        [Script::Calls(PLACES.iter().enumerate().map(wants).collect()), Script::Says("It is done.".to_owned())]
    };
    // What is allowed is the endpoint, and arguments are no more than parts of its path.
    let (model, tool) = (FakeModel::start(calls("act")).await, FakeTool::start([Reply::Gives("done")]).await);
    let url = tool.url();
    let parameters = r#"{"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}"#;
    let of_tool = format!("parameters = '{parameters}'");
    let config = config(&model, &tool, "", &of_tool).replace(&url, &format!("{url}/{{place}}"));
    let node = Node::start(config).await;
    completed(&node, &begin(&node).await, &model).await;
    let requests = tool.calls();
    let reached = shown(&model).iter().filter(|told| *told == "done").count();
    assert!(requests.len() == reached && shown(&model).len() == PLACES.len(), "{:?}", shown(&model));
    for call in &requests {
        let (line, _) = call.head.split_once("\r\n").unwrap();
        let path = line.strip_prefix("POST /act/").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
        assert!(path.is_some_and(|path| !path.contains(['/', '?', ' ', '#'])), "{line}");
        assert_eq!(call.header("host"), Some(tool.address()), "{}", call.head);
    }
    // What is not allowed is not even connected to, wherever its name leads.
    let port = tool.address().rsplit(':').next().unwrap();
    let accepted = tool.accepted();
    for host in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), "169.254.169.254".to_owned()] {
        let model = FakeModel::start(calls("inside")).await;
        let node = Node::start(format!(
            "[providers.fake]\nbase_url = \"{}\"\n[tools.inside]\nurl = \"https://{host}/{{place}}\"\n\
             {of_tool}\n\
             [agents.helper]\nkind = \"model\"\nmodel = \"fake/small\"\ntools = [\"inside\"]\n",
            model.base_url()
        ))
        .await;
        completed(&node, &begin(&node).await, &model).await;
        let told = shown(&model);
        assert_eq!(told.len(), PLACES.len());
        assert!(
            told.iter().all(|told| told.contains("tools.inside.allow") || told.contains("another path")),
            "{told:?}"
        );
    }
    assert_eq!(tool.accepted(), accepted);
}
