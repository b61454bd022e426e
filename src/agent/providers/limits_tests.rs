use futures_util::{FutureExt, TryStreamExt};

use super::super::Piece;
use super::*;

/// Keeps when it was asked; refuses so often first; its answers never end.
struct Fake {
    asked: Mutex<Vec<Instant>>,
    refusals: Mutex<usize>,
    wait: Duration,
}

impl Fake {
    fn refusing(refusals: usize, wait: Duration) -> Arc<Self> {
        Arc::new(Self { asked: Mutex::default(), refusals: Mutex::new(refusals), wait })
    }

    fn limited(self: &Arc<Self>, max_concurrent: Option<usize>, requests_per_minute: Option<usize>) -> Arc<Limited> {
        let longest_wait = Duration::from_secs(90);
        let limits = Limits { max_concurrent, requests_per_minute, longest_wait };
        Arc::new(Limited::new(Arc::clone(self) as Arc<dyn Provider>, limits))
    }

    fn asked(&self) -> usize {
        self.asked.lock().len()
    }
}

#[async_trait]
impl Provider for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    async fn chat(&self, _: Chat) -> Result<Pieces, AgentError> {
        self.asked.lock().push(Instant::now());
        let mut refusals = self.refusals.lock();
        if *refusals > 0 {
            *refusals -= 1;
            return Err(AgentError::Transient {
                code: "provider_rate_limited".to_owned(),
                message: "slowly".to_owned(),
                retry_after: Some(self.wait),
            });
        }
        Ok(stream::iter([Ok(Piece::Text("Hi".to_owned()))]).chain(stream::pending()).boxed())
    }
}

fn fake() -> Arc<Fake> {
    Fake::refusing(0, Duration::ZERO)
}

#[track_caller]
fn busy(result: Result<Pieces, AgentError>) -> Duration {
    match result.map(drop) {
        Err(AgentError::Transient { code, retry_after: Some(wait), .. }) if code == "provider_busy" => wait,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_most_wait_for_an_answer_to_be_dropped_in_their_order() {
    let fake = fake();
    let limited = fake.limited(Some(1), None);
    let mut first = limited.chat(Chat::default()).await.unwrap();
    assert!(first.try_next().await.unwrap().is_some());
    let mut second = Box::pin(limited.chat(Chat::default()));
    let mut third = Box::pin(limited.chat(Chat::default()));
    let mut fourth = Box::pin(limited.chat(Chat::default()));
    assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
    assert!((&mut fourth).now_or_never().is_none());
    // One that stops waiting leaves nothing behind.
    drop(second);
    drop(first);
    assert!((&mut fourth).now_or_never().is_none(), "the third is before it");
    let third = third.await.unwrap();
    assert!((&mut fourth).now_or_never().is_none());
    drop(third);
    drop(fourth.await.unwrap());
    assert_eq!(fake.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_so_long_and_fails_in_a_way_that_may_pass() {
    let limited = fake().limited(Some(1), None);
    let _held = limited.chat(Chat::default()).await.unwrap();
    let begun = Instant::now();
    assert_eq!(busy(limited.chat(Chat::default()).await), WHEN_BUSY);
    assert_eq!(begun.elapsed(), Duration::from_secs(90));
}

#[tokio::test(start_paused = true)]
async fn no_minute_has_more_requests_than_it_may() {
    let fake = fake();
    let limited = fake.limited(None, Some(2));
    let begun = Instant::now();
    for _ in 0..4 {
        drop(limited.chat(Chat::default()).await.unwrap());
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let at: Vec<_> = fake.asked.lock().iter().map(|at| (*at - begun).as_secs()).collect();
    assert_eq!(at, [0, 1, 60, 61]);
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_for_its_minute_takes_nothing_of_it() {
    let fake = fake();
    let limited = fake.limited(None, Some(1));
    drop(limited.chat(Chat::default()).await.unwrap());
    let mut second = Box::pin(limited.chat(Chat::default()));
    let mut third = Box::pin(limited.chat(Chat::default()));
    assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
    drop(second);
    let begun = Instant::now();
    drop(third.await.unwrap());
    assert_eq!((fake.asked(), begun.elapsed()), (2, MINUTE));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_asks_for_it_is_left_alone_until_then() {
    let fake = Fake::refusing(1, Duration::from_secs(30));
    let limited = fake.limited(None, None);
    assert!(limited.chat(Chat::default()).await.is_err());
    let begun = Instant::now();
    drop(limited.chat(Chat::default()).await.unwrap());
    assert_eq!((fake.asked(), begun.elapsed()), (2, Duration::from_secs(30)));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_too_long_fails_at_once_and_is_bounded() {
    let fake = Fake::refusing(1, Duration::from_secs(1_000_000));
    let limited = fake.limited(None, None);
    assert!(limited.chat(Chat::default()).await.is_err());
    let begun = Instant::now();
    assert_eq!(busy(limited.chat(Chat::default()).await), LONGEST_PAUSE);
    assert_eq!((fake.asked(), begun.elapsed()), (1, Duration::ZERO));
    tokio::time::advance(LONGEST_PAUSE).await;
    drop(limited.chat(Chat::default()).await.unwrap());
}
