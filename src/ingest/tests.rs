use serde_json::json;

use super::*;

/// What the configuration gives with nothing but an agent.
fn plain() -> Mapping {
    Mapping {
        key_field: "run_id".to_owned(),
        agent: Some("scripted".to_owned()),
        agent_field: None,
        input_field: None,
        priority_field: "priority".to_owned(),
        params: Map::new(),
        metadata: BTreeMap::new(),
    }
}

fn text(text: &str) -> Input {
    Input::Text(text.to_owned())
}

#[test]
fn a_message_of_nothing_but_a_key_makes_a_run_when_the_mapping_names_the_agent() {
    let message = r#"{"run_id":"8f14e45f","priority":0,"retry_count":0}"#;
    let mapping = Mapping {
        params: json!({"tokens": 3}).as_object().unwrap().clone(),
        metadata: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        ..plain()
    };
    let wish = mapping.map(message.as_bytes()).unwrap();
    assert_eq!((wish.key.as_str(), wish.agent.as_str(), wish.priority), ("8f14e45f", "scripted", 0));
    assert_eq!(wish.input, text(message), "the whole message, as it came");
    assert_eq!((wish.params, wish.metadata), (mapping.params, mapping.metadata));
}

#[test]
fn fields_are_found_where_the_mapping_says() {
    let mapping = Mapping {
        key_field: "job.id".to_owned(),
        agent: Some("fallback".to_owned()),
        agent_field: Some("job.kind".to_owned()),
        input_field: Some("payload.text".to_owned()),
        priority_field: "urgency".to_owned(),
        ..plain()
    };
    let map = |message: Value| mapping.map(message.to_string().as_bytes());
    let wish = map(json!({
        "job": {"id": 17, "kind": "writer"}, "payload": {"text": "hello", "more": 1}, "urgency": "-3",
    }));
    let wish = wish.unwrap();
    assert_eq!((wish.key.as_str(), wish.agent.as_str(), wish.priority), ("17", "writer", -3));
    assert_eq!(wish.input, text("hello"));
    let unnamed = map(json!({"job": {"id": "a", "kind": null}, "payload": {"text": ""}, "urgency": null})).unwrap();
    assert_eq!((unnamed.agent.as_str(), unnamed.priority), ("fallback", 0), "null is as good as not there");
    let conversation = map(json!({"job": {"id": "a"}, "payload": {"text": [{"role": "user", "content": "hi"}]}}));
    assert_eq!(conversation.unwrap().input.last_text(), "hi");
}

#[test]
fn an_input_is_taken_from_its_usual_field_when_the_mapping_names_none() {
    assert_eq!(plain().map(br#"{"run_id": "a", "input": "hello"}"#).unwrap().input, text("hello"));
}

#[test]
fn a_priority_is_a_number_however_it_is_written_and_however_large() {
    for (written, priority) in [("7", 7), ("\" 7 \"", 7), ("-9000000000", -9_000_000_000), ("null", 0)] {
        let message = format!(r#"{{"run_id": "a", "priority": {written}}}"#);
        assert_eq!(plain().map(message.as_bytes()).unwrap().priority, priority, "{written}");
    }
}

#[test]
fn what_cannot_be_mapped_says_why() {
    let long = format!(r#"{{"run_id": "{}"}}"#, "x".repeat(256));
    let named = Mapping { agent: None, agent_field: Some("kind".to_owned()), ..plain() };
    let within = Mapping { input_field: Some("payload.text".to_owned()), ..plain() };
    let key = "run_id: expected the message's own key, a text of 1 to 255 bytes or a whole number";
    let agent = "kind: expected the name of an agent";
    for (mapping, message, reason) in [
        (&plain(), "run!", "the message is not JSON: expected value at line 1 column 1"),
        (&plain(), "", "the message is not JSON: EOF while parsing a value at line 1 column 0"),
        (&plain(), "[1]", "expected a JSON object"),
        (&plain(), "\"text\"", "expected a JSON object"),
        (&plain(), "{}", key),
        (&plain(), r#"{"run_id": ""}"#, key),
        (&plain(), r#"{"run_id": "a\u0000"}"#, key),
        (&plain(), r#"{"run_id": 1.5}"#, key),
        (&plain(), r#"{"run_id": {"id": 1}}"#, key),
        (&plain(), &long, key),
        (&plain(), r#"{"run_id": 1, "priority": "high"}"#, "priority: expected a whole number"),
        (&plain(), r#"{"run_id": 1, "priority": 1.5}"#, "priority: expected a whole number"),
        (&plain(), r#"{"run_id": 1, "input": 5}"#, "input: invalid type: integer `5`, expected a text or an array"),
        (&plain(), r#"{"run_id": 1, "input": [{"role": "god"}]}"#, "input: unknown variant `god`"),
        (&named, r#"{"run_id": 1}"#, agent),
        (&named, r#"{"run_id": 1, "kind": 5}"#, agent),
        (&within, r#"{"run_id": 1, "input": "x"}"#, "payload.text: expected a text or an array of messages"),
        (&within, r#"{"run_id": 1, "payload": "x"}"#, "payload.text: expected a text or an array of messages"),
    ] {
        let said = mapping.map(message.as_bytes()).expect_err(message);
        assert!(said.starts_with(reason), "{message}: {said}");
    }
    assert!(plain().map(&[0xff, 0xfe]).is_err());
}
