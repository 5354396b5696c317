//! The living connections, so that a revocation or a drop of posture closes them at once.
//!
//! Holds no transport type: the listener hands over a closure that closes.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use time::OffsetDateTime;

use super::rates::Source;
use crate::identity::{Caller, CallerKind, Identity, Peer, Standing};
use crate::model::{DeviceId, Moment, SpiffeId, TrustDomain, limits};
use crate::policy::Bundle;
use crate::posture::Posture;
use crate::wire::CloseCode;

/// Closes one connection.
pub type Close = Box<dyn Fn(CloseCode) + Send + Sync>;

/// One living connection.
pub struct Connection {
    peer: Peer,
    counted: Vec<Whose>,
    source: Option<Source>,
    device: Option<DeviceId>,
    close: Close,
    /// Names of the profiles under which something was released here.
    relied_on: Mutex<Vec<String>>,
}

/// Whose connections are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    Caller(SpiffeId, Option<DeviceId>),
    Network(Option<Source>),
    Domain(TrustDomain),
    Foreign,
}

impl Whose {
    /// Under which names a connection of that caller is counted, and how many each may have. Another
    /// trust domain can mint as many callers as it likes, so it has a share as a whole.
    fn of(caller: &Caller, source: Option<Source>) -> Vec<(Self, usize)> {
        if caller.kind() == CallerKind::Applicant {
            return vec![(Self::Network(source), limits::APPLICANTS_PER_SOURCE)];
        }
        let own = Self::Caller(caller.id().clone(), caller.device().copied());
        let mut counted = vec![(own, limits::CONNECTIONS_PER_CALLER)];
        if caller.is_foreign() {
            let domain = caller.id().trust_domain().clone();
            counted.push((Self::Domain(domain), limits::CONNECTIONS_PER_DOMAIN));
            counted.push((Self::Foreign, limits::CONNECTIONS_FOREIGN));
        }
        counted
    }
}

impl Connection {
    /// The network that it came from.
    pub fn source(&self) -> Option<Source> {
        self.source
    }

    /// Remembers that something was released here under these profiles.
    pub fn rely_on<'a>(&self, profiles: impl Iterator<Item = &'a str>) {
        let mut names = lock(&self.relied_on);
        for profile in profiles {
            if !names.iter().any(|name| name == profile) {
                names.push(profile.to_owned());
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

/// All living connections.
#[derive(Default)]
pub struct Connections {
    next: AtomicU64,
    living: Mutex<Living>,
}

#[derive(Default)]
struct Living {
    all: HashMap<u64, Arc<Connection>>,
    counts: HashMap<Whose, usize>,
    /// Numbers of the connections of each device, so that one that changes costs the others nothing.
    of_device: HashMap<DeviceId, BTreeSet<u64>>,
}

/// A place in [`Connections`]; dropping it takes the connection out.
pub struct Place {
    connections: Arc<Connections>,
    number: u64,
    /// The connection itself.
    pub connection: Arc<Connection>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut living = lock(&self.connections.living);
        living.all.remove(&self.number);
        if let Some(device) = self.connection.device {
            let numbers = living.of_device.get_mut(&device);
            if numbers.is_some_and(|all| all.remove(&self.number) && all.is_empty()) {
                living.of_device.remove(&device);
            }
        }
        for whose in &self.connection.counted {
            if let Some(count) = living.counts.get_mut(whose) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    living.counts.remove(whose);
                }
            }
        }
    }
}

impl Connections {
    /// Takes a connection in, unless the caller, its network (for strangers), its trust domain (if it
    /// is another) or the broker has too many already.
    pub fn enter(
        self: &Arc<Self>,
        peer: Peer,
        caller: &Caller,
        source: Option<Source>,
        close: Close,
    ) -> Option<Place> {
        let counted = Whose::of(caller, source);
        let mut living = lock(&self.living);
        let count = |whose| living.counts.get(whose).copied().unwrap_or(0);
        let full = counted.iter().any(|(whose, most)| count(whose) >= *most);
        if full || living.all.len() >= limits::CONNECTIONS_MAX {
            return None;
        }
        let counted: Vec<Whose> = counted.into_iter().map(|(whose, _)| whose).collect();
        for whose in &counted {
            *living.counts.entry(whose.clone()).or_insert(0) += 1;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (device, relied_on) = (caller.device().copied(), Mutex::default());
        let connection = Arc::new(Connection { peer, counted, source, device, close, relied_on });
        living.all.insert(number, Arc::clone(&connection));
        if let Some(device) = device {
            living.of_device.entry(device).or_default().insert(number);
        }
        Some(Place { connections: Arc::clone(self), number, connection })
    }

    /// How many live.
    pub fn count(&self) -> usize {
        lock(&self.living).all.len()
    }

    fn all(&self) -> Vec<Arc<Connection>> {
        lock(&self.living).all.values().cloned().collect()
    }

    /// Closes every connection whose peer does not count any more. Gives the number closed.
    pub fn review_identities(&self, identity: &Identity, now: Moment) -> usize {
        self.review(identity, now, |standing| match standing {
            Standing::Live => None,
            Standing::Expired | Standing::NotYet => Some(CloseCode::Expired),
            Standing::Revoked | Standing::SvidRevoked | Standing::Unknown => {
                Some(CloseCode::Revoked)
            }
        })
    }

    /// Closes every connection whose certificate has ended. Each has a timer of its own, but timers
    /// stop in suspend and do not hear of a wall clock that was set. Gives the number closed.
    pub fn review_expiry(&self, identity: &Identity, now: Moment) -> usize {
        self.review(identity, now, |standing| {
            (standing == Standing::Expired).then_some(CloseCode::Expired)
        })
    }

    fn review(
        &self,
        identity: &Identity,
        now: Moment,
        reason: impl Fn(Standing) -> Option<CloseCode>,
    ) -> usize {
        let mut closed = 0;
        for connection in self.all() {
            if let Some(reason) = reason(identity.recognise(&connection.peer, now).standing()) {
                (connection.close)(reason);
                closed += 1;
            }
        }
        closed
    }

    /// Closes the device's connections on which something was released under a profile that its facts
    /// do not meet any more. Evidence that only grew old closes nothing: it is no change, and what
    /// is asked next is judged by its age. Gives the number closed.
    pub fn review_posture(
        &self,
        device: &DeviceId,
        posture: &Posture,
        bundle: &Bundle,
        now: Moment,
    ) -> usize {
        let all = self.of_device(device);
        if all.is_empty() {
            return 0;
        }
        let shown = posture.shown(device, &bundle.demand_all().profiles, now);
        let mut closed = 0;
        for connection in all {
            let met = |name: &String| shown.iter().any(|shown| shown == name);
            if !lock(&connection.relied_on).iter().all(met) {
                (connection.close)(CloseCode::Posture);
                closed += 1;
            }
        }
        closed
    }

    fn of_device(&self, device: &DeviceId) -> Vec<Arc<Connection>> {
        let living = lock(&self.living);
        let numbers = living.of_device.get(device).into_iter().flatten();
        numbers.filter_map(|number| living.all.get(number).cloned()).collect()
    }

    /// Devices that have a connection.
    pub fn devices(&self) -> Vec<DeviceId> {
        lock(&self.living).of_device.keys().copied().collect()
    }

    /// Closes all, at the end of a drain.
    pub fn close_all(&self, reason: CloseCode) {
        for connection in self.all() {
            (connection.close)(reason);
        }
    }
}

/// How long until `not_after`, from `now`; zero when it has passed.
pub fn time_left(not_after: OffsetDateTime, now: Moment) -> std::time::Duration {
    (not_after - now.wall()).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::sample;

    fn enter(connections: &Arc<Connections>, id: &str, foreign: bool) -> Option<Place> {
        let (peer, caller) = sample::visitor(id, foreign);
        connections.enter(peer, &caller, None, Box::new(|_| ()))
    }

    #[test]
    fn another_trust_domain_has_a_share_however_many_callers_it_mints() {
        let connections = Arc::new(Connections::default());
        let many = |domain: &str, count: usize| -> Vec<Place> {
            let ids = (0..count).map(|n| format!("spiffe://{domain}/w/{n}"));
            ids.filter_map(|id| enter(&connections, &id, true)).collect()
        };
        let first = many("partner.example", limits::CONNECTIONS_PER_DOMAIN + 10);
        assert_eq!(first.len(), limits::CONNECTIONS_PER_DOMAIN);
        let mut others = Vec::new();
        for domain in ["b.example", "c.example", "d.example"] {
            others.extend(many(domain, limits::CONNECTIONS_PER_DOMAIN));
        }
        assert_eq!(first.len() + others.len(), limits::CONNECTIONS_FOREIGN);
        let own = enter(&connections, "spiffe://corp.example/api", false);
        assert!(own.is_some(), "ours come in beside them all");
        drop(first);
        assert_eq!(many("partner.example", 3).len(), 3, "what ended is given back");
        drop((others, own));
        assert!(lock(&connections.living).counts.is_empty());
    }
}
