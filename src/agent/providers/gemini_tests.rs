use std::sync::Arc;

use super::super::asked::made_up_id;
use super::*;
use crate::run::{Content, Part};

fn asked(turns: Vec<Turn>) -> Result<Value, Unfit> {
    GenerateContent.ask(&Chat { turns, ..Chat::default() }, "small").map(|request| request.body)
}

fn message(role: Role, text: &str) -> Turn {
    Turn::Said(Message { role, content: text.into() })
}

/// How a schema is asked for that the protocol does not promise to follow.
const BY_WORDS: &str = "Give your final answer as one JSON document that follows this JSON Schema, without anything \
    around it:\n{\"type\":\"object\"}";

#[test]
fn a_conversation_with_tools_is_asked() {
    let weather = ToolCard {
        name: "weather".to_owned(),
        description: "Tells the weather.".to_owned(),
        parameters: json!({"type": "object"}),
    };
    let own = ToolCall { id: "fc_a".to_owned(), name: "weather".to_owned(), arguments: "{\"x\": 1}".to_owned() };
    let made_up = ToolCall { id: made_up_id(), arguments: "oops".to_owned(), ..own.clone() };
    let returned = |call: &ToolCall, failed| Turn::Returned {
        call_id: call.id.clone(),
        name: "weather".to_owned(),
        content: "sunny".to_owned(),
        failed,
    };
    let signed = json!([{"functionCall": {"name": "weather", "args": {"x": 1}}, "thoughtSignature": "EqQ"}]);
    let chat = Chat {
        turns: vec![
            message(Role::System, "Be brief."),
            message(Role::User, "Hi"),
            Turn::Called { text: "Well.".to_owned(), calls: vec![own.clone(), made_up.clone()], echo: None },
            returned(&own, false),
            returned(&made_up, true),
            Turn::Called {
                text: String::new(),
                calls: vec![made_up.clone()],
                echo: Some(json!({"gemini": [made_up.id], "parts": signed})),
            },
            returned(&made_up, false),
            message(Role::System, "Ask whether it helped."),
        ],
        tools: Arc::from([weather]),
        schema: Some(Arc::new(json!({"type": "object"}))),
        temperature: Some(1.5),
        max_tokens: Some(7),
        ..Chat::default()
    };
    let Request { path, body } = GenerateContent.ask(&chat, "models/a small?one").unwrap();
    assert_eq!(path, "/models/a%20small%3Fone:streamGenerateContent?alt=sse");
    let expected = json!({
        "systemInstruction": {"parts": [{"text": format!("Be brief.\n\n{BY_WORDS}")}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}]},
            {"role": "model", "parts": [
                {"text": "Well."},
                {"functionCall": {"id": "fc_a", "name": "weather", "args": {"x": 1}}},
                {"functionCall": {"name": "weather", "args": {"malformed_arguments": "oops"}}},
            ]},
            {"role": "user", "parts": [
                {"functionResponse": {"id": "fc_a", "name": "weather", "response": {"output": "sunny"}}},
                {"functionResponse": {"name": "weather", "response": {"error": "sunny"}}},
            ]},
            {"role": "model", "parts": signed},
            {"role": "user", "parts": [
                {"functionResponse": {"name": "weather", "response": {"output": "sunny"}}},
                {"text": "<system>\nAsk whether it helped.\n</system>"},
            ]},
        ],
        "tools": [{"functionDeclarations": [{
            "name": "weather", "description": "Tells the weather.", "parametersJsonSchema": {"type": "object"},
        }]}],
        "generationConfig": {
            "temperature": 1.5, "maxOutputTokens": 7,
        },
    });
    assert_eq!(body, expected);
}

#[test]
fn images_and_sound_are_shown_where_they_can_be() {
    let data = |media_type: &str| Source::Data { media_type: media_type.to_owned(), base64: "AAAA".to_owned() };
    let url = || Source::Url("https://example.com/cat.png".to_owned());
    let said = |parts| Turn::Said(Message { role: Role::User, content: Content::Parts(parts) });
    let body = asked(vec![said(vec![
        Part::Image { source: url() },
        Part::Image { source: data("image/png") },
        Part::Audio { source: data("audio/ogg") },
    ])]);
    let expected = json!([
        {"fileData": {"fileUri": "https://example.com/cat.png"}},
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"inlineData": {"mimeType": "audio/ogg", "data": "AAAA"}},
    ]);
    assert_eq!(body.unwrap()["contents"][0]["parts"], expected);
    assert!(asked(vec![said(vec![Part::Audio { source: url() }])]).is_err());
}

#[test]
fn a_prompt_that_is_blocked_is_filtered_and_calls_without_ids_are_given_some() {
    let mut said = Said::default();
    let blocked = r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#;
    assert!(Contents::default().take(blocked.as_bytes(), &mut said).unwrap());
    assert!(format!("{said:?}").contains("Finish(Filtered)"), "{said:?}");

    let (mut contents, mut said) = (Contents::default(), Said::default());
    let call = json!({"functionCall": {"name": "weather", "args": {}}});
    let chunk = json!({"candidates": [{"content": {"parts": [call, call]}}]}).to_string();
    assert!(!contents.take(chunk.as_bytes(), &mut said).unwrap());
    let ids: Vec<_> = contents.calls.iter().map(|call| call.id.as_str()).collect();
    assert!(is_made_up(ids[0]) && is_made_up(ids[1]) && ids[0] != ids[1], "{ids:?}");
}
