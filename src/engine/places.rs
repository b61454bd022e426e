//! The calls of a node that are under way at once, and who has which share of them.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::run::Tenant;

/// What the first wait that find no place.
const WAIT: Duration = Duration::from_secs(1);

/// What is waited at the most.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Who has a share of the calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    /// A receiver, so that one that is slow holds up no others: an eighth.
    Host(String),
    /// A sender, whose receivers may be many: all but an eighth.
    Tenant(Tenant),
}

#[derive(Debug, Default)]
struct Load {
    calls: usize,
    /// How many found no place since a call has ended.
    sent_away: usize,
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

    /// A place for a call of `tenant` to `host`. If there is none, what to wait: the longer, the more were sent away
    /// since a call has ended, so that those who come again are few, however many wait.
    pub(super) fn enter(&self, tenant: &Tenant, host: &str) -> Result<Place<'_>, Duration> {
        let subjects = [Subject::Host(host.to_owned()), Subject::Tenant(tenant.clone())];
        let mut busy = self.busy.lock();
        for (subject, most) in subjects.iter().zip([self.of_host, self.of_tenant]) {
            if let Some(load) = busy.get_mut(subject).filter(|load| load.calls >= most) {
                load.sent_away += 1;
                let turns = u32::try_from(load.sent_away.div_ceil(most)).unwrap_or(u32::MAX);
                return Err(WAIT.saturating_mul(turns).min(LONGEST_WAIT));
            }
        }
        for subject in &subjects {
            busy.entry(subject.clone()).or_default().calls += 1;
        }
        Ok(Place { places: self, subjects })
    }
}

/// A call, for as long as it takes.
#[derive(Debug)]
pub(super) struct Place<'a> {
    places: &'a Places,
    subjects: [Subject; 2],
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut busy = self.places.busy.lock();
        for subject in &self.subjects {
            match busy.get_mut(subject) {
                Some(load) if load.calls > 1 => *load = Load { calls: load.calls - 1, sent_away: 0 },
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

    #[test]
    fn the_more_are_sent_away_the_longer_they_wait() {
        let places = Places::new(16);
        let tenant = Tenant::new("acme");
        let held = (places.enter(&tenant, "slow").unwrap(), places.enter(&tenant, "slow").unwrap());
        let waits: Vec<_> = (0..5).map(|_| places.enter(&tenant, "slow").unwrap_err().as_secs()).collect();
        assert_eq!(waits, [1, 1, 2, 2, 3]);
        let longest = (0..1_000).filter_map(|_| places.enter(&tenant, "slow").err()).max();
        assert_eq!(longest, Some(LONGEST_WAIT));
        drop(held.0);
        let _held = places.enter(&tenant, "slow").unwrap();
        assert_eq!(places.enter(&tenant, "slow").unwrap_err(), WAIT, "places become free");
    }
}
