use std::sync::Arc;

use super::*;
use crate::run::{Content, Part};

fn asked(turns: Vec<Turn>) -> Result<Value, Unfit> {
    Messages.ask(&Chat { turns, ..Chat::default() }, "small").map(|request| request.body)
}

fn message(role: Role, text: &str) -> Turn {
    Turn::Said(Message { role, content: text.into() })
}

fn said_by(role: Role, parts: Vec<Part>) -> Turn {
    Turn::Said(Message { role, content: Content::Parts(parts) })
}

/// How a schema is asked for that the protocol does not promise to follow.
const BY_WORDS: &str = "Give your final answer as one JSON document that follows this JSON Schema, without anything \
    around it:\n{\"type\":\"object\"}";

#[test]
fn a_conversation_with_tools_is_asked_in_alternating_messages() {
    let weather = ToolCard {
        name: "weather".to_owned(),
        description: "Tells the weather.".to_owned(),
        parameters: json!({"type": "object"}),
    };
    let right = ToolCall { id: "a".to_owned(), name: "weather".to_owned(), arguments: "{\"x\": 1}".to_owned() };
    let wrong = ToolCall { id: "b".to_owned(), arguments: "{oops".to_owned(), ..right.clone() };
    let shown = json!([
        {"type": "thinking", "thinking": "hm", "signature": "EqQ"},
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"x": 1}},
    ]);
    let returned = |id: &str, failed| Turn::Returned {
        call_id: id.to_owned(),
        name: "weather".to_owned(),
        content: "sunny".to_owned(),
        failed,
    };
    let echo = Some(json!({"anthropic": shown}));
    let chat = Chat {
        turns: vec![
            message(Role::System, "Be brief."),
            message(Role::System, "Be kind."),
            message(Role::User, "Hi"),
            message(Role::User, "there"),
            Turn::Called { text: "Well.".to_owned(), calls: vec![right.clone(), wrong], echo: echo.clone() },
            returned("a", false),
            returned("b", true),
            message(Role::User, "go on"),
            Turn::Called { text: String::new(), calls: vec![right], echo },
            returned("a", false),
            message(Role::Assistant, ""),
            message(Role::System, "Ask whether it helped."),
        ],
        tools: Arc::from([weather]),
        parallel_tools: true,
        schema: Some(Arc::new(json!({"type": "object"}))),
        temperature: Some(1.5),
        ..Chat::default()
    };
    let body = Messages.ask(&chat, "small").unwrap().body;
    let result = |id: &str| json!({"type": "tool_result", "tool_use_id": id, "content": "sunny"});
    let mut failed = result("b");
    failed["is_error"] = json!(true);
    let expected = json!({
        "model": "small",
        "max_tokens": 8192,
        "system": format!("Be brief.\n\nBe kind.\n\n{BY_WORDS}"),
        "messages": [
            {"role": "user", "content": [text("Hi"), text("there")]},
            {"role": "assistant", "content": [
                text("Well."),
                {"type": "tool_use", "id": "a", "name": "weather", "input": {"x": 1}},
                {"type": "tool_use", "id": "b", "name": "weather", "input": {"malformed_arguments": "{oops"}},
            ]},
            {"role": "user", "content": [result("a"), failed, text("go on")]},
            {"role": "assistant", "content": shown},
            {"role": "user", "content": [result("a"), text("<system>\nAsk whether it helped.\n</system>")]},
        ],
        "stream": true,
        "tools": [{"name": "weather", "description": "Tells the weather.", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": false},
        "temperature": 1.0,
    });
    assert_eq!(body, expected);
}

#[test]
fn a_history_that_begins_with_an_answer_is_preceded_by_the_person() {
    let body = asked(vec![message(Role::Assistant, "Hello."), message(Role::User, "Hi")]).unwrap();
    let roles: Vec<_> = body["messages"].as_array().unwrap().iter().map(|message| &message["role"]).collect();
    assert_eq!(roles, ["user", "assistant", "user"]);
}

#[test]
fn images_are_shown_and_sound_is_refused() {
    let data = Source::Data { media_type: "image/png".to_owned(), base64: "AAAA".to_owned() };
    let url = Source::Url("https://example.com/cat.png".to_owned());
    let images = vec![Part::Image { source: url.clone() }, Part::Image { source: data }];
    let body = asked(vec![said_by(Role::User, images)]).unwrap();
    let expected = json!([
        {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    ]);
    assert_eq!(body["messages"][0]["content"], expected);
    assert!(asked(vec![said_by(Role::User, vec![Part::Audio { source: url.clone() }])]).is_err());
    assert!(asked(vec![said_by(Role::Assistant, vec![Part::Image { source: url }])]).is_err());
}

#[test]
fn why_it_stopped_is_told_in_the_words_of_all() {
    for (reason, finish) in [
        ("end_turn", Finish::Stop),
        ("stop_sequence", Finish::Stop),
        ("max_tokens", Finish::Length),
        ("refusal", Finish::Filtered),
        ("pause_turn", Finish::Other("pause_turn".to_owned())),
    ] {
        let (mut blocks, mut said) = (Blocks::default(), Said::default());
        blocks.finish(reason, &mut said);
        assert!(format!("{said:?}").contains(&format!("{finish:?}")), "{said:?}");
    }
}
