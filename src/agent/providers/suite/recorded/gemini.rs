use serde_json::json;

use super::super::{Subject, call, text};
use crate::agent::providers::http::HttpProvider;
use crate::agent::providers::{Finish, Piece, gemini};
use crate::run::Usage;

pub(in crate::agent::providers) const SUBJECT: Subject = Subject {
    make: HttpProvider::gemini,
    decoder: gemini::decoder,
    recorded: concat!(
        "data: {\"candidates\": [{\"content\": {\"parts\": [{\"text\": \"hm…\",\"thought\": true}],\"role\": \"model\"},\"index\": 0}],\"usageMetadata\": {\"promptTokenCount\": 11,\"totalTokenCount\": 11},\"modelVersion\": \"small\"}\n\n",
        "data: {\"candidates\": [{\"content\": {\"parts\": [{\"text\": \"Grüße, \"}],\"role\": \"model\"},\"index\": 0}]}\n\n",
        "data: {\"candidates\": [{\"content\": {\"parts\": [\ndata: {\"text\": \"世界 🦀\"}],\"role\": \"model\"},\"index\": 0}]}\n\n",
        "data: {\"candidates\": [{\"content\": {\"parts\": [{\"functionCall\": {\"name\": \"weather\",\"args\": {\"city\": \"Zürich\"},\"id\": \"fc_a\"},\"thoughtSignature\": \"EqQ\"},{\"functionCall\": {\"name\": \"time\",\"args\": {},\"id\": \"fc_b\"}}],\"role\": \"model\"},\"index\": 0}]}\n\n",
        "data: {\"candidates\": [{\"content\": {\"parts\": [{\"text\": \"\"}],\"role\": \"model\"},\"finishReason\": \"STOP\",\"index\": 0}],\"usageMetadata\": {\"promptTokenCount\": 11,\"candidatesTokenCount\": 2,\"thoughtsTokenCount\": 3,\"cachedContentTokenCount\": 8,\"totalTokenCount\": 16}}\n\n",
    ),
    finish: "\"finishReason\"",
    pieces: || {
        let parts = json!([
            {"text": "Grüße, 世界 🦀"},
            {"functionCall": {"name": "weather", "args": {"city": "Zürich"}, "id": "fc_a"}, "thoughtSignature": "EqQ"},
            {"functionCall": {"name": "time", "args": {}, "id": "fc_b"}},
            {"text": ""},
        ]);
        vec![
            Piece::Reasoning("hm…".to_owned()),
            text("Grüße, "),
            text("世界 🦀"),
            call("fc_a", "weather", "{\"city\":\"Zürich\"}"),
            call("fc_b", "time", "{}"),
            Piece::Echo(json!({"gemini": ["fc_a", "fc_b"], "parts": parts})),
            Piece::Finish(Finish::ToolCalls),
            Piece::Usage(Usage { input_tokens: 11, output_tokens: 5, ..Usage::default() }),
        ]
    },
    whole: r#"{"candidates":[{"content":{"parts":[{"text":"Hi"}],"role":"model"},"finishReason":"STOP"}],
        "usageMetadata":{"promptTokenCount":2,"candidatesTokenCount":1}}"#,
    malformed: "",
    token: "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"TEXT\"}],\"role\":\"model\"}}]}\n\n",
    prologue: "data: {\"candidates\":[{\"content\":{\"role\":\"model\"}}],\"usageMetadata\":{\"promptTokenCount\":11}}\n\n",
    errors: &[
        (
            "data: {\"error\":{\"code\":503,\"message\":\"out of memory\",\"status\":\"UNAVAILABLE\"}}\n\n",
            "provider_unavailable",
        ),
        ("data: {\"error\":\"out of memory\"}\n\n", "provider_unavailable"),
        (
            "data: {\"error\":{\"code\":429,\"message\":\"out of memory\",\"status\":\"RESOURCE_EXHAUSTED\"}}\n\n",
            "provider_rate_limited",
        ),
        (
            "data: {\"error\":{\"code\":400,\"message\":\"out of memory\",\"status\":\"INVALID_ARGUMENT\"}}\n\n",
            "provider_rejected",
        ),
    ],
    rubbish: &[
        "data: {\"choices\":[]}\n\n",
        "data: {\"candidates\":[{\"finishReason\":\"MALFORMED_FUNCTION_CALL\"}]}\n\n",
    ],
    models: r#"{"models":[{"name":"models/embed","supportedGenerationMethods":["embedContent"]},
        {"name":"models/first","supportedGenerationMethods":["generateContent"]},{"name":"models/second"}]}"#,
    key: "x-goog-api-key: ",
};
