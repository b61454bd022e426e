use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use super::answer::{Answer, MAX_TEXT, whole};
use super::faults::Who;
use crate::agent::AgentError;
use crate::agent::providers::Piece;
use crate::run::Usage;

pub(super) const RECORDED: &str = concat!(
    ": keep-alive\n\n",
    "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n",
    "data: {\"choices\":[{\"delta\":{\"content\":null,\"reasoning_content\":\"hm…\",\"reasoning\":\"hm…\"}}]}\n\n",
    "event: message\nid: 3\ndata: {\"choices\":[{\"delta\":{\"content\":\"Grüße, \"}}]}\n\n",
    "data: {\"choices\":[{\"delta\":\ndata: {\"content\":\"世界 🦀\"}}]}\n\n",
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":5,\"total_tokens\":16}}\n\n",
    "data: [DONE]\n\n",
);

pub(super) fn recorded_pieces() -> Vec<Piece> {
    vec![
        Piece::Reasoning("hm…".to_owned()),
        Piece::Text("Grüße, ".to_owned()),
        Piece::Text("世界 🦀".to_owned()),
        Piece::Finish("stop".into()),
        Piece::Usage(Usage { input_tokens: 11, output_tokens: 5, estimated: false, cost_micros: 0 }),
    ]
}

fn who() -> Arc<Who> {
    Arc::new(Who::new("local".to_owned(), "http://localhost".to_owned(), None))
}

async fn read(
    body: impl Stream<Item = Result<Bytes, String>> + Send + Unpin + 'static,
) -> Result<Vec<Piece>, AgentError> {
    let first_token = Duration::from_secs(120);
    let answer = Answer::new(body, who(), first_token, Instant::now() + first_token, Duration::from_secs(60));
    answer.pieces().try_collect().await
}

async fn read_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Piece>, AgentError> {
    read(stream::iter(parts.into_iter().map(|part| Ok(Bytes::copy_from_slice(part))).collect::<Vec<_>>())).await
}

fn text(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

/// The code of an error that may pass.
#[track_caller]
fn passing(result: Result<Vec<Piece>, AgentError>) -> String {
    match result {
        Err(AgentError::Transient { code, .. }) => code,
        other => panic!("expected a transient error, got {other:?}"),
    }
}

#[tokio::test]
async fn an_answer_may_be_split_anywhere() {
    for recorded in [RECORDED.to_owned(), RECORDED.replace('\n', "\r\n"), RECORDED.replace('\n', "\r")] {
        let bytes = recorded.as_bytes();
        for at in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(at);
            assert_eq!(read_parts([head, tail]).await, Ok(recorded_pieces()), "split at {at}");
        }
        assert_eq!(read_parts(bytes.chunks(1)).await, Ok(recorded_pieces()));
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_is_whole_or_an_error_that_may_pass() {
    for recorded in [RECORDED.to_owned(), RECORDED.replace('\n', "\r\n")] {
        let finish = recorded.find("\"stop\"").unwrap();
        let usage = recorded.find("prompt_tokens").unwrap();
        for cut in 0..recorded.len() {
            let head = Bytes::copy_from_slice(&recorded.as_bytes()[..cut]);
            let reset = Err("connection reset".to_owned());
            for parts in [vec![Ok(head.clone())], vec![Ok(head.clone()), reset]] {
                match read(stream::iter(parts)).await {
                    Ok(pieces) => assert!(cut > finish && pieces[..4] == recorded_pieces()[..4], "cut at {cut}"),
                    error @ Err(_) => {
                        assert!(cut < usage, "cut at {cut}");
                        assert_eq!(passing(error), "provider_stream_cut", "cut at {cut}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn an_error_in_the_stream_may_pass_and_shows_what_the_provider_says() {
    for error in [
        "data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\n",
        "data: {\"error\":\"out of memory\"}\n\n",
        "event: error\ndata: {\"message\":\"out of memory\"}\n\n",
        "event: error\ndata: out of memory\n\n",
    ] {
        let result = read_parts([text("Hi").as_bytes(), error.as_bytes(), b"data: [DONE]\n\n"]).await;
        let message = result.as_ref().unwrap_err().to_string();
        assert_eq!(passing(result), "provider_unavailable");
        assert!(message.ends_with("reports an error: out of memory"), "{message}");
    }
}

#[tokio::test]
async fn what_cannot_be_understood_may_pass() {
    for bad in [
        "data: {\"choices\":[{\"del\n\n",
        "data: [1]\n\n",
        "data: hello\n\n",
        "data: {\"choices\":\"none\"}\n\n",
        "data: [DONE]\n\n",
    ] {
        assert_eq!(passing(read_parts([bad.as_bytes()]).await), "provider_bad_answer", "{bad}");
    }
    assert_eq!(passing(read_parts([b"data: \xff\n\n".as_slice()]).await), "provider_bad_answer");
}

#[tokio::test]
async fn an_event_and_an_answer_have_bounds() {
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[b'a'; 65_536])));
    assert_eq!(passing(read(endless).await), "provider_bad_answer");

    let large = Bytes::from(text(&"a".repeat(500_000)));
    let events = MAX_TEXT / 500_000 + 1;
    let error = read(stream::iter(vec![large; events]).map(Ok)).await.unwrap_err();
    assert!(matches!(&error, AgentError::Permanent { code, .. } if code == "answer_too_large"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn comments_do_not_stand_for_the_first_token_nor_for_the_next() {
    let comments = || {
        stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok(Bytes::from_static(b": still here\n\n")), ()))
        })
        .boxed()
    };
    let begun = Instant::now();
    assert_eq!(passing(read(comments()).await), "provider_timeout");
    assert_eq!(begun.elapsed(), Duration::from_secs(120));

    let begun = Instant::now();
    let one_token = stream::iter([Ok(Bytes::from(text("Hi")))]);
    assert_eq!(passing(read(one_token.chain(comments())).await), "provider_timeout");
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn comments_without_a_pause_end_in_time_too() {
    let comments = stream::repeat_with(|| Ok(Bytes::from_static(b": x\n\n")));
    let first_token = Duration::from_millis(1);
    let answer = Answer::new(comments, who(), first_token, Instant::now() + first_token, Duration::from_secs(60));
    let read = answer.pieces().try_collect::<Vec<_>>();
    let clock = async {
        tokio::time::advance(Duration::from_millis(2)).await;
        std::future::pending::<()>().await
    };
    let result = tokio::select! { result = read => result, () = clock => unreachable!() };
    assert_eq!(passing(result), "provider_timeout");
}

#[tokio::test(start_paused = true)]
async fn a_finished_answer_does_not_wait_long_for_its_usage() {
    let finish = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"},\"finish_reason\":\"length\"}]}\n\n";
    let body = stream::iter([Ok(Bytes::from(finish))]).chain(stream::pending());
    let begun = Instant::now();
    assert_eq!(read(body).await, Ok(vec![Piece::Text("Hi".to_owned()), Piece::Finish("length".into())]));
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_the_providers_silence() {
    let body = stream::iter([text("a"), text("b"), "data: [DONE]\n\n".to_owned()].map(|part| Ok(Bytes::from(part))));
    let first_token = Duration::from_secs(120);
    let answer = Answer::new(body, who(), first_token, Instant::now() + first_token, Duration::from_secs(60));
    let mut pieces = answer.pieces();
    let mut said = Vec::new();
    while let Some(piece) = pieces.try_next().await.unwrap() {
        said.push(piece);
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    assert_eq!(said, [Piece::Text("a".to_owned()), Piece::Text("b".to_owned())]);
}

#[test]
fn an_answer_that_is_not_streamed_is_taken_when_it_is_a_completion() {
    let json = r#"{"object":"chat.completion","choices":[{"message":{"role":"assistant","content":"Hi"},
        "finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":1}}"#;
    let usage = Usage { input_tokens: 2, output_tokens: 1, estimated: false, cost_micros: 0 };
    let pieces = vec![Piece::Text("Hi".to_owned()), Piece::Finish("stop".into()), Piece::Usage(usage)];
    assert_eq!(whole(json.as_bytes(), &who()), Ok(pieces));
    for bad in ["", "{}", "<html>", r#"{"choices":[]}"#, r#"{"object":"list","data":[]}"#] {
        assert_eq!(passing(whole(bad.as_bytes(), &who())), "provider_bad_answer");
    }
    assert_eq!(passing(whole(br#"{"error":{"message":"no"}}"#, &who())), "provider_unavailable");
}
