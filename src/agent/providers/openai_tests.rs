use std::sync::Arc;

use super::super::suite::{call, unnamed};
use super::super::{Piece, answer};
use super::*;
use crate::run::{Content, Part};

fn asked(turns: Vec<Turn>) -> Result<Value, Unfit> {
    let protocol = ChatCompletions { genuine: false };
    protocol.ask(&Chat { turns, ..Chat::default() }, "small").map(|request| request.body)
}

fn user(parts: Vec<Part>) -> Turn {
    Turn::Said(Message { role: Role::User, content: Content::Parts(parts) })
}

/// The pieces of an answer that is not streamed, without the model and the usage.
fn read(message: Value) -> Vec<Piece> {
    let body = json!({"choices": [{"message": message, "finish_reason": "stop"}]}).to_string();
    let who = super::super::faults::Who::new("local".to_owned(), "http://localhost".to_owned(), None);
    let first = Piece::Model { name: "local/small".to_owned(), price: None };
    let pieces = answer::whole(body.as_bytes(), decoder(), first, &who).unwrap();
    unnamed(pieces).split_off(1)
}

/// The calls in these events.
fn calls(deltas: &[Value]) -> Vec<Piece> {
    let (mut decoder, mut said) = (Completions::default(), Said::default());
    for delta in deltas {
        let event = json!({"choices": [{"delta": {"tool_calls": [delta]}}]}).to_string();
        decoder.event(&event, &mut said).unwrap();
    }
    let open = decoder.calls.drain(..).map(|open| Piece::Call(completed(open.id, open.name, open.arguments)));
    unnamed(open.collect())
}

#[test]
fn a_conversation_with_tools_is_asked() {
    let weather = ToolCard {
        name: "weather".to_owned(),
        description: "Tells the weather.".to_owned(),
        parameters: json!({"type": "object"}),
    };
    let right =
        ToolCall { id: "a".to_owned(), name: "weather".to_owned(), arguments: "{\"z\": 1, \"a\": 2}".to_owned() };
    let wrong = ToolCall { id: "b".to_owned(), arguments: "{oops".to_owned(), ..right.clone() };
    let echo = json!({"openai": ["a", "b"], "reasoning_content": "hm"});
    let foreign = json!({"anthropic": []});
    let returned = |id: &str| Turn::Returned {
        call_id: id.to_owned(),
        name: "weather".to_owned(),
        content: "sunny".to_owned(),
        failed: false,
    };
    let chat = Chat {
        turns: vec![
            Turn::Said(Message { role: Role::System, content: "Be brief.".into() }),
            Turn::Called { text: String::new(), calls: vec![right.clone(), wrong], echo: Some(echo) },
            returned("a"),
            returned("b"),
            Turn::Called { text: "again".to_owned(), calls: vec![right], echo: Some(foreign) },
            returned("a"),
        ],
        tools: Arc::from([weather]),
        schema: Some(Arc::new(
            json!({"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": false}),
        )),
        max_tokens: Some(7),
        ..Chat::default()
    };
    let body = ChatCompletions { genuine: true }.ask(&chat, "small").unwrap().body;
    let function = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}});
    let calls = [function("a", "{\"z\": 1, \"a\": 2}"), function("b", r#"{"malformed_arguments":"{oops"}"#)];
    let expected = json!({
        "model": "small",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "assistant", "content": null, "tool_calls": calls, "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "a", "content": "sunny"},
            {"role": "tool", "tool_call_id": "b", "content": "sunny"},
            {"role": "assistant", "content": "again", "tool_calls": [calls[0]]},
            {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        ],
        "stream": true,
        "stream_options": {"include_usage": true},
        "tools": [{"type": "function", "function": {
            "name": "weather", "description": "Tells the weather.", "parameters": {"type": "object"},
        }}],
        "parallel_tool_calls": false,
        "response_format": {"type": "json_schema", "json_schema": {
            "name": "answer", "schema": chat.schema, "strict": true,
        }},
        "max_completion_tokens": 7,
    });
    assert_eq!(body, expected);
}

#[test]
fn images_and_sound_are_shown_where_they_can_be() {
    let data = |media_type: &str| Source::Data { media_type: media_type.to_owned(), base64: "AAAA".to_owned() };
    let body = asked(vec![user(vec![
        Part::Text { text: "what is this?".to_owned() },
        Part::Image { source: Source::Url("https://example.com/cat.png".to_owned()) },
        Part::Image { source: data("image/png") },
        Part::Audio { source: data("audio/wav") },
    ])]);
    let expected = json!([
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]);
    assert_eq!(body.unwrap()["messages"][0]["content"], expected);
    for source in [Source::Url("https://example.com/a.wav".to_owned()), data("audio/ogg")] {
        assert!(asked(vec![user(vec![Part::Audio { source }])]).is_err());
    }
    let content = Content::Parts(vec![Part::Image { source: data("image/png") }]);
    assert!(asked(vec![Turn::Said(Message { role: Role::System, content })]).is_err());
}

#[test]
fn calls_are_told_apart_however_servers_number_them() {
    let piece = |index: Option<u64>, id: &str, name: &str, arguments: Value| json!({"index": index, "id": id, "function": {"name": name, "arguments": arguments}});
    let (one, two) = (call("a", "one", "{\"x\":1}"), call("b", "two", "{}"));
    // Without an index; with the same index for all; with the id and the name again in each piece.
    for index in [None, Some(0)] {
        let deltas = [
            piece(index, "a", "one", json!("{\"x\"")),
            piece(index, "", "", json!(":1}")),
            piece(index, "b", "two", json!(null)),
        ];
        assert_eq!(calls(&deltas), [one.clone(), two.clone()]);
        let again = [piece(index, "a", "one", json!("{\"x\"")), piece(index, "a", "one", json!(":1}"))];
        assert_eq!(calls(&again), std::slice::from_ref(&one));
    }
    // Without ids, and with arguments that are no text.
    let deltas = [piece(None, "", "one", json!({"x": 1})), piece(None, "", "two", json!({}))];
    assert_eq!(calls(&deltas), [call("made up 0", "one", "{\"x\":1}"), call("made up 1", "two", "{}")]);
    let deltas = [piece(Some(0), "", "one", json!({"x": 1})), piece(Some(1), "", "two", json!({}))];
    assert_eq!(calls(&deltas), [call("made up 0", "one", "{\"x\":1}"), call("made up 1", "two", "{}")]);
}

#[test]
fn who_says_stop_after_calls_means_the_calls() {
    let message = json!({"content": null, "tool_calls": [{"function": {"name": "one", "arguments": {}}}]});
    assert_eq!(read(message), [call("made up 1", "one", "{}"), Piece::Finish(Finish::ToolCalls)]);
}

#[test]
fn thoughts_that_only_the_total_counts_are_counted() {
    let tokens = |total_tokens| Tokens { prompt_tokens: Some(11), completion_tokens: Some(2), total_tokens };
    assert_eq!(tokens(Some(16)).usage().map(|usage| usage.output_tokens), Some(5));
    assert_eq!(tokens(Some(13)).usage().map(|usage| usage.output_tokens), Some(2));
    assert_eq!(tokens(None).usage().map(|usage| usage.output_tokens), Some(2));
}
