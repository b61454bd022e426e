//! What a model is shown of what a server's tool gave. Pure.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

/// The result as text: texts as they are, what is none as what it is.
pub(super) fn render(result: &CallToolResult) -> String {
    let shown: Vec<String> = result.content.iter().map(block).collect();
    match &result.structured_content {
        // Servers say the same as text for clients that know no better.
        Some(structured) if shown.is_empty() => structured.to_string(),
        Some(_) | None => shown.join("\n"),
    }
}

fn block(block: &ContentBlock) -> String {
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => unseen("image", &image.mime_type, &image.data),
        ContentBlock::Audio(audio) => unseen("audio", &audio.mime_type, &audio.data),
        ContentBlock::Resource(resource) => match &resource.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => format!("[resource {uri}]\n{text}"),
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                let kind = mime_type.as_deref().unwrap_or("data");
                unseen(&format!("resource {uri}"), kind, blob)
            }
            _ => "[a resource of another kind]".to_owned(),
        },
        ContentBlock::ResourceLink(link) => {
            let about = link.description.as_deref().map(|about| format!(": {about}")).unwrap_or_default();
            format!("[link to resource {} ({}){about}]", link.uri, link.name)
        }
        _ => "[content of another kind]".to_owned(),
    }
}

/// Stands for what a model is not shown.
fn unseen(what: &str, kind: &str, base64: &str) -> String {
    let bytes = base64.len() / 4 * 3;
    format!("[{what}, {kind}, some {bytes} bytes, not shown]")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(result: serde_json::Value) -> String {
        render(&serde_json::from_value(result).unwrap())
    }

    #[test]
    fn what_is_no_text_is_shown_as_what_it_is() {
        let result = json!({"content": [
            {"type": "text", "text": "two\nlines"},
            {"type": "image", "data": "AAAAAAAA", "mimeType": "image/png"},
            {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
            {"type": "resource", "resource": {"uri": "a://b", "mimeType": "text/plain", "text": "within"}},
            {"type": "resource", "resource": {"uri": "a://c", "blob": "AAAA"}},
            {"type": "resource_link", "uri": "a://d", "name": "d", "description": "the fourth"},
        ]});
        assert_eq!(
            shown(result),
            "two\nlines\n[image, image/png, some 6 bytes, not shown]\n[audio, audio/wav, some 3 bytes, not shown]\n\
             [resource a://b]\nwithin\n[resource a://c, data, some 3 bytes, not shown]\n\
             [link to resource a://d (d): the fourth]"
        );
    }

    #[test]
    fn a_structure_is_shown_when_there_is_no_text_of_it() {
        assert_eq!(shown(json!({"content": [], "structuredContent": {"a": [1]}})), r#"{"a":[1]}"#);
        let both = json!({"content": [{"type": "text", "text": "a is 1"}], "structuredContent": {"a": 1}});
        assert_eq!(shown(both), "a is 1");
        assert_eq!(shown(json!({"content": []})), "");
    }
}
