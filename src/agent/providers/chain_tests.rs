use futures_util::TryStreamExt;
use parking_lot::Mutex;

use super::*;

/// What a model does when it is asked.
type Act = Result<Vec<Result<Piece, AgentError>>, AgentError>;

struct Fake {
    act: Act,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Provider for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    async fn chat(&self, chat: Chat) -> Result<Pieces, AgentError> {
        let named = Piece::Model { name: format!("fake/{}", chat.model), price: None };
        self.asked.lock().push(chat.model);
        let pieces = self.act.clone()?;
        Ok(stream::iter([Ok(named)].into_iter().chain(pieces)).boxed())
    }
}

fn text(text: &str) -> Result<Piece, AgentError> {
    Ok(Piece::Text(text.to_owned()))
}

fn named(model: &str) -> Piece {
    Piece::Model { name: format!("fake/{model}"), price: None }
}

fn overloaded() -> AgentError {
    AgentError::transient("provider_unavailable", "overloaded")
}

/// What a chain of models `a`, `b`, … says, each of which acts so; and how many were asked.
async fn said(acts: Vec<Act>, restart: bool) -> (Vec<Piece>, Option<AgentError>, usize) {
    let fakes: Vec<_> = acts.into_iter().map(|act| Arc::new(Fake { act, asked: Mutex::default() })).collect();
    let mut members = fakes
        .iter()
        .zip('a'..)
        .map(|(fake, name)| Member { provider: Arc::clone(fake) as Arc<dyn Provider>, model: name.to_string() });
    let chain = Chain::new(members.next().unwrap(), members, restart);
    let mut pieces = Vec::new();
    let result = async {
        let mut answer = chain.chat(Chat::default()).await?;
        while let Some(piece) = answer.try_next().await? {
            pieces.push(piece);
        }
        Ok(())
    };
    let error = result.await.err();
    (pieces, error, fakes.iter().map(|fake| fake.asked.lock().len()).sum())
}

#[tokio::test]
async fn the_next_is_asked_when_one_fails_unseen() {
    for first in [Err(overloaded()), Ok(vec![Err(overloaded())])] {
        for restart in [false, true] {
            let acts = vec![first.clone(), Ok(vec![text("Hi")]), Ok(vec![text("never")])];
            let expected = vec![named("b"), Piece::Text("Hi".to_owned())];
            assert_eq!(said(acts, restart).await, (expected, None, 2));
        }
    }
}

#[tokio::test]
async fn what_would_happen_again_is_the_end() {
    let rejected = AgentError::permanent("provider_rejected", "no");
    for first in [Err(rejected.clone()), Ok(vec![Err(rejected.clone())])] {
        assert_eq!(said(vec![first, Ok(vec![text("never")])], true).await, (vec![], Some(rejected.clone()), 1));
    }
}

#[tokio::test]
async fn after_something_was_seen_only_a_restart_goes_on() {
    for seen in [text("Hel"), Ok(Piece::Reasoning("hm".to_owned()))] {
        let acts = || vec![Ok(vec![seen.clone(), Err(overloaded())]), Err(overloaded()), Ok(vec![text("Hello")])];
        let begun = vec![named("a"), seen.clone().unwrap()];
        assert_eq!(said(acts(), false).await, (begun.clone(), Some(overloaded()), 1));
        let (pieces, error, asked) = said(acts(), true).await;
        assert_eq!((error, asked), (None, 3));
        assert_eq!(pieces[..2], begun);
        assert!(matches!(&pieces[2], Piece::Restart { reason } if reason.contains("fake/a")), "{pieces:?}");
        assert_eq!(pieces[pieces.len() - 2..], [named("c"), Piece::Text("Hello".to_owned())]);
    }
}

#[tokio::test]
async fn the_last_error_says_what_was_tried() {
    let last = AgentError::Transient {
        code: "provider_rate_limited".to_owned(),
        message: "c says no".to_owned(),
        retry_after: Some(std::time::Duration::from_secs(7)),
    };
    let (pieces, error, asked) = said(vec![Err(overloaded()), Ok(vec![Err(overloaded())]), Err(last)], false).await;
    assert_eq!((pieces, asked), (vec![], 3));
    let Some(AgentError::Transient { code, message, retry_after: Some(_) }) = error else { panic!("{error:?}") };
    assert_eq!(code, "provider_rate_limited");
    assert!(message.starts_with("c says no; tried before: fake/a (") && message.contains("fake/b ("), "{message}");
}

#[tokio::test]
async fn a_chain_of_one_adds_nothing() {
    let acts = || vec![Ok(vec![text("Hi"), Err(overloaded())])];
    let expected = vec![named("a"), Piece::Text("Hi".to_owned())];
    assert_eq!(said(acts(), true).await, (expected, Some(overloaded()), 1));
}

#[tokio::test]
async fn an_answer_of_nothing_is_an_answer() {
    assert_eq!(said(vec![Ok(vec![]), Ok(vec![text("never")])], true).await, (vec![named("a")], None, 1));
}
