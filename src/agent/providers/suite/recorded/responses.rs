use serde_json::json;

use super::super::{Subject, call, text};
use crate::agent::providers::http::HttpProvider;
use crate::agent::providers::{Finish, Piece, responses};
use crate::run::Usage;

pub(in crate::agent::providers) const SUBJECT: Subject = Subject {
    make: HttpProvider::openai_responses,
    decoder: responses::decoder,
    recorded: concat!(
        "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"resp_1\",\"object\":\"response\",\"status\":\"in_progress\",\"error\":null,\"incomplete_details\":null,\"output\":[],\"usage\":null}}\n\n",
        "event: response.in_progress\ndata: {\"type\":\"response.in_progress\",\"sequence_number\":1,\"response\":{\"id\":\"resp_1\",\"status\":\"in_progress\",\"output\":[]}}\n\n",
        "event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"output_index\":0,\"item\":{\"id\":\"rs_1\",\"type\":\"reasoning\",\"summary\":[]}}\n\n",
        "event: response.reasoning_summary_text.delta\ndata: {\"type\":\"response.reasoning_summary_text.delta\",\"item_id\":\"rs_1\",\"output_index\":0,\"summary_index\":0,\"delta\":\"hm…\"}\n\n",
        "event: response.output_item.done\ndata: {\"type\":\"response.output_item.done\",\"output_index\":0,\"item\":{\"id\":\"rs_1\",\"type\":\"reasoning\",\"summary\":[{\"type\":\"summary_text\",\"text\":\"hm…\"}],\"encrypted_content\":\"gAAA\"}}\n\n",
        "event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"output_index\":1,\"item\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[]}}\n\n",
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"item_id\":\"msg_1\",\"output_index\":1,\"content_index\":0,\"delta\":\"Grüße, \"}\n\n",
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"item_id\":\"msg_1\",\ndata: \"output_index\":1,\"delta\":\"世界 🦀\"}\n\n",
        "event: response.output_item.done\ndata: {\"type\":\"response.output_item.done\",\"output_index\":1,\"item\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\",\"text\":\"Grüße, 世界 🦀\"}]}}\n\n",
        "event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"output_index\":2,\"item\":{\"id\":\"fc_a\",\"type\":\"function_call\",\"call_id\":\"call_a\",\"name\":\"weather\",\"arguments\":\"\"}}\n\n",
        "event: response.function_call_arguments.delta\ndata: {\"type\":\"response.function_call_arguments.delta\",\"item_id\":\"fc_a\",\"output_index\":2,\"delta\":\"{\\\"city\\\": \"}\n\n",
        "event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"output_index\":3,\"item\":{\"id\":\"fc_b\",\"type\":\"function_call\",\"call_id\":\"call_b\",\"name\":\"time\",\"arguments\":\"\"}}\n\n",
        "event: response.function_call_arguments.delta\ndata: {\"type\":\"response.function_call_arguments.delta\",\"item_id\":\"fc_a\",\"output_index\":2,\"delta\":\"\\\"Zürich\\\"}\"}\n\n",
        "event: response.function_call_arguments.done\ndata: {\"type\":\"response.function_call_arguments.done\",\"item_id\":\"fc_a\",\"output_index\":2,\"arguments\":\"{\\\"city\\\": \\\"Zürich\\\"}\"}\n\n",
        "event: response.output_item.done\ndata: {\"type\":\"response.output_item.done\",\"output_index\":3,\"item\":{\"id\":\"fc_b\",\"type\":\"function_call\",\"call_id\":\"call_b\",\"name\":\"time\",\"arguments\":\"{}\"}}\n\n",
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":14,\"response\":{\"id\":\"resp_1\",\"status\":\"completed\",\"error\":null,\"incomplete_details\":null,\"output\":[],\"usage\":{\"input_tokens\":11,\"input_tokens_details\":{\"cached_tokens\":8},\"output_tokens\":5,\"output_tokens_details\":{\"reasoning_tokens\":3},\"total_tokens\":16}}}\n\n",
    ),
    finish: "\"type\":\"response.completed\"",
    pieces: || {
        let shown = json!([
            {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hm…"}],
                "encrypted_content": "gAAA"},
            {"id": "msg_1", "type": "message", "role": "assistant",
                "content": [{"type": "output_text", "text": "Grüße, 世界 🦀"}]},
            {"id": "fc_a", "type": "function_call", "call_id": "call_a", "name": "weather",
                "arguments": "{\"city\": \"Zürich\"}"},
            {"id": "fc_b", "type": "function_call", "call_id": "call_b", "name": "time", "arguments": "{}"},
        ]);
        vec![
            Piece::Reasoning("hm…".to_owned()),
            text("Grüße, "),
            text("世界 🦀"),
            call("call_a", "weather", "{\"city\": \"Zürich\"}"),
            call("call_b", "time", "{}"),
            Piece::Echo(json!({"openai_responses": shown})),
            Piece::Finish(Finish::ToolCalls),
            Piece::Usage(Usage { input_tokens: 11, output_tokens: 5, ..Usage::default() }),
        ]
    },
    whole: r#"{"object":"response","status":"completed","output":[{"type":"message","role":"assistant",
        "content":[{"type":"output_text","text":"Hi"}]}],"usage":{"input_tokens":2,"output_tokens":1}}"#,
    malformed: concat!(
        "data: {\"type\":\"response.output_item.done\",\"output_index\":0,\"item\":{\"type\":\"function_call\",\"call_id\":\"a\",\"name\":\"weather\",\"arguments\":\"{oops\"}}\n\n",
        "data: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\"}}\n\n",
    ),
    token: "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"output_index\":0,\"delta\":\"TEXT\"}\n\n",
    prologue: "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"status\":\"in_progress\"}}\n\n",
    errors: &[
        (
            "event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"out of memory\",\"param\":null}\n\n",
            "provider_unavailable",
        ),
        (
            "data: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"out of memory\"}\n\n",
            "provider_unavailable",
        ),
        ("data: {\"error\":{\"message\":\"out of memory\"}}\n\n", "provider_unavailable"),
        (
            "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"out of memory\"}}}\n\n",
            "provider_rate_limited",
        ),
        (
            "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\"error\":{\"code\":\"invalid_prompt\",\"message\":\"out of memory\"}}}\n\n",
            "provider_rejected",
        ),
    ],
    rubbish: &["data: {\"choices\":[]}\n\n", "data: {\"type\":\"response.completed\"}\n\n"],
    models: r#"{"object":"list","data":[{"id":"first"},{"id":"second"}]}"#,
    key: "authorization: Bearer ",
};
