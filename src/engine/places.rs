//! The calls of a node that are under way at once, and who has which share of them.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::run::Tenant;

/// What is waited at least, and at the most.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Who has a share of the calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    /// A receiver, so that one that is slow holds up no others: an eighth.
    Host(String),
    /// A sender, whose receivers may be many: all but an eighth.
    Tenant(Tenant),
}

#[derive(Debug)]
struct Load {
    calls: usize,
    /// How many found no place since a call has ended.
    sent_away: usize,
    /// When the last call ended, or the first began.
    since: Instant,
    /// How long calls take: each that ends counts for a quarter.
    takes: Duration,
}

impl Load {
    fn new() -> Self {
        Self { calls: 0, sent_away: 0, since: Instant::now(), takes: Duration::ZERO }
    }

    /// When about as many calls have ended as there are before one who is sent away now.
    fn wait(&mut self, most: usize) -> Duration {
        self.sent_away += 1;
        let turns = u32::try_from(self.sent_away.div_ceil(most)).unwrap_or(u32::MAX);
        let call = self.takes.max(self.since.elapsed());
        call.saturating_mul(turns).clamp(SHORTEST_WAIT, LONGEST_WAIT)
    }

    fn ended(&mut self, took: Duration) {
        let takes = if self.takes.is_zero() { took } else { (self.takes * 3 + took) / 4 };
        *self = Self { calls: self.calls - 1, sent_away: 0, since: Instant::now(), takes };
    }
}

/// The places of a node.
#[derive(Debug)]
pub(super) struct Places {
    of_host: usize,
    of_tenant: usize,
    busy: Mutex<HashMap<Subject, Load>>,
}

impl Places {
    /// So many, at least one.
    pub(super) fn new(places: usize) -> Self {
        let of_host = places.div_ceil(8).max(1);
        Self { of_host, of_tenant: places.saturating_sub(of_host).max(1), busy: Mutex::default() }
    }

    /// A place for a call of `tenant` to `host`. If there is none, what to wait: the longer, the longer calls take and
    /// the more were sent away since one has ended, so that those who come again are few, however many wait.
    pub(super) fn enter(&self, tenant: &Tenant, host: &str) -> Result<Place<'_>, Duration> {
        let subjects = [Subject::Host(host.to_owned()), Subject::Tenant(tenant.clone())];
        let mut busy = self.busy.lock();
        for (subject, most) in subjects.iter().zip([self.of_host, self.of_tenant]) {
            if let Some(load) = busy.get_mut(subject).filter(|load| load.calls >= most) {
                return Err(load.wait(most));
            }
        }
        for subject in &subjects {
            busy.entry(subject.clone()).or_insert_with(Load::new).calls += 1;
        }
        Ok(Place { places: self, subjects, since: Instant::now() })
    }
}

/// A call, for as long as it takes.
#[derive(Debug)]
pub(super) struct Place<'a> {
    places: &'a Places,
    subjects: [Subject; 2],
    since: Instant,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut busy = self.places.busy.lock();
        for subject in &self.subjects {
            match busy.get_mut(subject) {
                Some(load) if load.calls > 1 => load.ended(self.since.elapsed()),
                Some(_) | None => drop(busy.remove(subject)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_host_nor_a_tenant_has_all_places() {
        let places = Places::new(16);
        let (acme, other) = (Tenant::new("acme"), Tenant::new("other"));
        let mut held = Vec::new();
        for host in 0..7 {
            let host = host.to_string();
            held.push(places.enter(&acme, &host).unwrap());
            held.push(places.enter(&acme, &host).unwrap());
            assert!(places.enter(&acme, &host).is_err() && places.enter(&other, &host).is_err());
        }
        assert!(places.enter(&acme, "another").is_err(), "an eighth is for others");
        drop(places.enter(&other, "another").unwrap());
        held.pop();
        held.push(places.enter(&acme, "another").unwrap());
        held.clear();
        assert!(places.busy.lock().is_empty(), "nothing is left of those who have gone");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_sent_away_waits_for_about_as_many_calls_as_are_before_it() {
        let places = Places::new(16);
        let tenant = Tenant::new("acme");
        let waits = |sent_away: usize| -> Vec<u64> {
            let waits = (0..sent_away).map(|_| places.enter(&tenant, "host").unwrap_err().as_millis());
            waits.map(|wait| u64::try_from(wait).unwrap()).collect()
        };
        let (first, second) = (places.enter(&tenant, "host").unwrap(), places.enter(&tenant, "host").unwrap());
        assert_eq!(waits(5), [100; 5], "nobody knows yet how long calls take");
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(waits(5), [12_000, 16_000, 16_000, 20_000, 20_000], "the sixth to the tenth, two at a time");
        assert_eq!(waits(1_000).into_iter().max(), Some(60_000));
        drop(first);
        let first = places.enter(&tenant, "host").unwrap();
        assert_eq!(waits(3), [4_000, 4_000, 8_000], "places become free");
        // It has become faster.
        drop((first, second));
        for _ in 0..30 {
            let (first, _second) = (places.enter(&tenant, "host").unwrap(), places.enter(&tenant, "host").unwrap());
            tokio::time::advance(Duration::from_millis(10)).await;
            drop(first);
            let _first = places.enter(&tenant, "host").unwrap();
            assert_eq!(waits(1), [100]);
        }
        assert!(places.busy.lock().is_empty());
    }
}
