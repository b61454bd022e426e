use serde_json::json;

use super::super::{Subject, call, text};
use crate::agent::providers::http::HttpProvider;
use crate::agent::providers::{Finish, Piece, openai};
use crate::run::Usage;

pub(in crate::agent::providers) const SUBJECT: Subject = Subject {
    make: HttpProvider::openai,
    decoder: openai::decoder,
    recorded: concat!(
        ": keep-alive\n\n",
        "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":null,\"reasoning_content\":\"hm…\",\"reasoning\":\"hm…\"}}]}\n\n",
        "event: message\nid: 3\ndata: {\"choices\":[{\"delta\":{\"content\":\"Grüße, \"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":\ndata: {\"content\":\"世界 🦀\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"call_a\",\"type\":\"function\",\"function\":{\"name\":\"weather\",\"arguments\":\"\"}}]}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"city\\\": \"}}]}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":1,\"id\":\"call_b\",\"type\":\"function\",\"function\":{\"name\":\"time\",\"arguments\":\"\"}},{\"index\":0,\"function\":{\"arguments\":\"\\\"Zürich\\\"}\"}}]}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":5,\"total_tokens\":16,\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\n",
        "data: [DONE]\n\n",
    ),
    finish: "\"finish_reason\":\"tool_calls\"",
    pieces: || {
        vec![
            Piece::Reasoning("hm…".to_owned()),
            text("Grüße, "),
            text("世界 🦀"),
            call("call_a", "weather", "{\"city\": \"Zürich\"}"),
            call("call_b", "time", "{}"),
            Piece::Echo(json!({"openai": ["call_a", "call_b"], "reasoning_content": "hm…"})),
            Piece::Finish(Finish::ToolCalls),
            Piece::Usage(Usage { input_tokens: 11, output_tokens: 5, ..Usage::default() }),
        ]
    },
    whole: r#"{"object":"chat.completion","choices":[{"message":{"role":"assistant","content":"Hi"},
        "finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":1}}"#,
    malformed: "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"weather\",\"arguments\":\"{oops\"}}]},\"finish_reason\":\"tool_calls\"}]}\n\n",
    token: "data: {\"choices\":[{\"delta\":{\"content\":\"TEXT\"}}]}\n\n",
    prologue: "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
    errors: &[
        ("data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\n", "provider_unavailable"),
        ("data: {\"error\":\"out of memory\"}\n\n", "provider_unavailable"),
        ("event: error\ndata: {\"message\":\"out of memory\"}\n\n", "provider_unavailable"),
        ("event: error\ndata: out of memory\n\n", "provider_unavailable"),
        (
            "data: {\"error\":{\"message\":\"out of memory\",\"code\":\"rate_limit_exceeded\"}}\n\n",
            "provider_rate_limited",
        ),
        (
            "data: {\"error\":{\"message\":\"out of memory\",\"type\":\"invalid_request_error\"}}\n\n",
            "provider_rejected",
        ),
    ],
    rubbish: &["data: {\"choices\":\"none\"}\n\n", "data: {\"choices\":[{\"del\n\n", "data: [DONE]\n\n"],
    models: r#"{"object":"list","data":[{"id":"first"},{"id":"second"}]}"#,
    key: "authorization: Bearer ",
};
