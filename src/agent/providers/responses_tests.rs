use std::sync::Arc;

use super::*;
use crate::run::{Content, Part, Source};

fn asked(turns: Vec<Turn>, model: &str) -> Result<Value, Unfit> {
    Responses.ask(&Chat { turns, ..Chat::default() }, model).map(|request| request.body)
}

fn message(role: Role, text: &str) -> Turn {
    Turn::Said(Message { role, content: text.into() })
}

#[test]
fn a_conversation_with_tools_is_asked() {
    let weather = ToolCard {
        name: "weather".to_owned(),
        description: "Tells the weather.".to_owned(),
        parameters: json!({"type": "object", "properties": {"x": {}}}),
    };
    let call = ToolCall { id: "a".to_owned(), name: "weather".to_owned(), arguments: "{\"x\": 1}".to_owned() };
    let returned = Turn::Returned {
        call_id: "a".to_owned(),
        name: "weather".to_owned(),
        content: "sunny".to_owned(),
        failed: false,
    };
    let shown = json!([
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
        {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "weather", "arguments": "{\"x\": 1}"},
    ]);
    let chat = Chat {
        turns: vec![
            message(Role::System, "Be brief."),
            message(Role::User, "Hi"),
            Turn::Called { text: "Well.".to_owned(), calls: vec![call.clone()], echo: None },
            returned.clone(),
            Turn::Called { text: String::new(), calls: vec![call], echo: Some(json!({"openai_responses": shown})) },
            returned,
            message(Role::System, "Ask whether it helped."),
        ],
        tools: Arc::from([weather]),
        parallel_tools: true,
        schema: Some(Arc::new(json!({"type": "string"}))),
        temperature: Some(0.5),
        max_tokens: Some(7),
        ..Chat::default()
    };
    let result = json!({"type": "function_call_output", "call_id": "a", "output": "sunny"});
    let expected = json!({
        "model": "small",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Well."},
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{\"x\": 1}"},
            result,
            shown[0],
            shown[1],
            result,
            {"role": "system", "content": "Ask whether it helped."},
        ],
        "stream": true,
        "store": false,
        "include": ["reasoning.encrypted_content"],
        "tools": [{
            "type": "function", "name": "weather", "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"x": {}}}, "strict": false,
        }],
        "parallel_tool_calls": true,
        "text": {"format": {"type": "json_schema", "name": "answer", "schema": {"type": "string"}, "strict": true}},
        "temperature": 0.5,
        "max_output_tokens": 7,
    });
    assert_eq!(Responses.ask(&chat, "small").unwrap().body, expected);
}

#[test]
fn models_that_do_not_reason_are_not_asked_for_what_they_thought() {
    for (model, reasons) in [("gpt-4o-mini", false), ("gpt-4.1", false), ("gpt-5", true), ("o3", true)] {
        let body = asked(vec![message(Role::User, "Hi")], model).unwrap();
        assert_eq!(body.get("include").is_some(), reasons, "{model}");
    }
}

#[test]
fn images_are_shown_and_sound_is_refused() {
    let said = |part| Turn::Said(Message { role: Role::User, content: Content::Parts(vec![part]) });
    let data = || Source::Data { media_type: "image/png".to_owned(), base64: "AAAA".to_owned() };
    let body = asked(vec![said(Part::Image { source: data() })], "small").unwrap();
    let expected = json!([{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]);
    assert_eq!(body["input"][0]["content"], expected);
    assert!(asked(vec![said(Part::Audio { source: data() })], "small").is_err());
}

#[test]
fn an_answer_that_is_incomplete_says_why() {
    for (reason, finish) in [("max_output_tokens", "Finish(Length)"), ("content_filter", "Finish(Filtered)")] {
        let (mut items, mut said) = (Items::default(), Said::default());
        let response = json!({"status": "incomplete", "incomplete_details": {"reason": reason}});
        let event = json!({"type": "response.incomplete", "response": response}).to_string();
        items.event(&event, &mut said).unwrap();
        assert!(format!("{said:?}").contains(finish), "{said:?}");
    }
}

#[test]
fn what_comes_only_at_the_end_is_taken_from_there() {
    let (mut items, mut said) = (Items::default(), Said::default());
    let output = json!([
        {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": {"x": 1}},
    ]);
    let event = json!({"type": "response.completed", "response": {"output": output}}).to_string();
    items.event(&event, &mut said).unwrap();
    let said = format!("{said:?}");
    assert!(said.contains(r#"Text("Hi")"#) && said.contains(r#"{\"x\":1}"#), "{said}");
}
