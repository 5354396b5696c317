//! Step-up: a device is challenged live when what is asked for needs younger evidence than there is.
//!
//! One challenge at a time for each device, however many requests want it; they wait together, for
//! two seconds at most, and whoever waits for one device holds up nobody of another. No answer, a
//! late one, or one that does not hold leaves everything as it was: unknown, and so refused. Nothing
//! here believes anything: evidence comes in through the line and [`Posture::take`](super::Posture::take)
//! alone, and this only tells those who wait to look again. It starts no task and keeps none.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::room::Posture;
use super::verdict::Demand;
use crate::model::limits::{
    STEP_UP_GAP, STEP_UP_PER_DEVICE, STEP_UP_REST, STEP_UP_WAIT, STEP_UP_WAITING,
};
use crate::model::{Clock, DeviceId};

/// What came of a wish for younger evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepUp {
    /// Nobody waited: what there is suffices, or no challenge could help.
    Idle,
    /// The device answered in time; judge anew.
    Answered,
    /// It did not, or not with what was needed; judge by what there is.
    Unanswered,
}

/// The agents that can be challenged, and the challenges under way.
#[derive(Debug, Default)]
pub(super) struct Challenges(Mutex<Reached>);

#[derive(Debug, Default)]
struct Reached {
    agents: HashMap<DeviceId, Agent, ahash::RandomState>,
    /// Of doors and flights; never used twice.
    next: u64,
    waiting: usize,
}

/// One device that has an agent's connection. It goes with the last of them.
#[derive(Debug, Default)]
struct Agent {
    /// Its connections, the newest last: that one is rung at.
    doors: Vec<(u64, Arc<Notify>)>,
    flight: Option<Flight>,
    /// Boot time before which it is left alone.
    rest: Duration,
}

/// One challenge that is under way. Dropped, it tells those who wait that it is over.
#[derive(Debug)]
struct Flight {
    number: u64,
    /// Boot time at which it began: evidence under an older nonce is no answer to it.
    began: Duration,
    until: Instant,
    waiting: usize,
    told: watch::Sender<()>,
}

impl Challenges {
    fn lock(&self) -> MutexGuard<'_, Reached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evidence was taken whose nonce was made then. Those who wait look again; a flight that it
    /// answers is over.
    pub(super) fn answered(&self, device: &DeviceId, issued: Duration) {
        let mut reached = self.lock();
        let Some(agent) = reached.agents.get_mut(device) else { return };
        let Some(flight) = &agent.flight else { return };
        flight.told.send_replace(());
        if issued >= flight.began {
            agent.flight = None;
        }
    }

    /// A seat at the challenge of this device, which begins if none is under way; `None` where there
    /// is no agent to ask, it rests, or too many wait.
    fn join(&self, device: &DeviceId, boot: Duration) -> Option<Seat<'_>> {
        let mut guard = self.lock();
        let reached = &mut *guard;
        if reached.waiting >= STEP_UP_WAITING {
            return None;
        }
        let agent = reached.agents.get_mut(device)?;
        let now = Instant::now();
        // One that everybody who waited for it has left, and whose time is over.
        if agent.flight.as_ref().is_some_and(|flight| flight.until <= now) {
            agent.flight = None;
        }
        let flight = match &mut agent.flight {
            Some(flight) if flight.waiting >= STEP_UP_PER_DEVICE => return None,
            Some(flight) => flight,
            None if boot < agent.rest => return None,
            none => {
                let (_, bell) = agent.doors.last()?;
                bell.notify_one();
                agent.rest = boot.saturating_add(STEP_UP_GAP);
                reached.next = reached.next.wrapping_add(1);
                let (number, until) = (reached.next, now + STEP_UP_WAIT);
                let told = watch::channel(()).0;
                none.insert(Flight { number, began: boot, until, waiting: 0, told })
            }
        };
        flight.waiting = flight.waiting.saturating_add(1);
        reached.waiting = reached.waiting.saturating_add(1);
        let (number, until, told) = (flight.number, flight.until, flight.told.subscribe());
        Some(Seat { of: self, device: *device, number, until, told })
    }

    /// Nobody answered in time: those who wait hear so now, and the device is left alone for a while.
    fn give_up(&self, device: &DeviceId, number: u64, boot: Duration) {
        let mut reached = self.lock();
        let Some(agent) = reached.agents.get_mut(device) else { return };
        if agent.flight.as_ref().is_some_and(|flight| flight.number == number) {
            agent.flight = None;
            agent.rest = agent.rest.max(boot.saturating_add(STEP_UP_REST));
        }
    }
}

/// One request's place among those that wait.
struct Seat<'a> {
    of: &'a Challenges,
    device: DeviceId,
    number: u64,
    until: Instant,
    told: watch::Receiver<()>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut reached = self.of.lock();
        reached.waiting = reached.waiting.saturating_sub(1);
        let flight = reached.agents.get_mut(&self.device).and_then(|agent| agent.flight.as_mut());
        if let Some(flight) = flight.filter(|flight| flight.number == self.number) {
            flight.waiting = flight.waiting.saturating_sub(1);
        }
    }
}

/// An agent's connection, over which its device can be challenged. Dropping it takes it out.
pub struct Reachable {
    posture: Arc<Posture>,
    device: DeviceId,
    number: u64,
    bell: Arc<Notify>,
}

impl Reachable {
    /// Resolves when the agent shall be asked to report. Rings that nobody heard come together.
    pub async fn challenged(&self) {
        self.bell.notified().await;
    }
}

impl Drop for Reachable {
    fn drop(&mut self) {
        let mut reached = self.posture.challenges().lock();
        if let Some(agent) = reached.agents.get_mut(&self.device) {
            agent.doors.retain(|(number, _)| *number != self.number);
            if agent.doors.is_empty() {
                // With it goes the flight: nobody waits for an agent that is gone.
                reached.agents.remove(&self.device);
            }
        }
    }
}

impl fmt::Debug for Reachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reachable").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Posture {
    /// A device's agent can be challenged over this connection, as long as the value lives.
    pub fn reachable(self: &Arc<Self>, device: DeviceId) -> Reachable {
        let bell = Arc::new(Notify::new());
        let mut reached = self.challenges().lock();
        reached.next = reached.next.wrapping_add(1);
        let number = reached.next;
        reached.agents.entry(device).or_default().doors.push((number, Arc::clone(&bell)));
        drop(reached);
        Reachable { posture: Arc::clone(self), device, number, bell }
    }

    /// Has the device challenged where that could help: where a profile of the demand is unknown for
    /// no other reason than the age of the evidence, or there is none. Waits for the answer, two
    /// seconds at most, together with all others that wait for this device. After anything but
    /// [`StepUp::Idle`] time has passed: whoever judges then reads clock and policy anew.
    pub async fn step_up(
        &self,
        device: Option<&DeviceId>,
        demand: &Demand,
        clock: &dyn Clock,
    ) -> StepUp {
        let Some(device) = device.filter(|device| self.is_wanting(device, demand, clock)) else {
            return StepUp::Idle;
        };
        let Some(mut seat) = self.challenges().join(device, clock.now().boot()) else {
            return StepUp::Idle;
        };
        loop {
            // After the seat was taken: what came before it is seen, what comes later is told.
            if !self.is_wanting(device, demand, clock) {
                return StepUp::Answered;
            }
            match timeout_at(seat.until, seat.told.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_over)) if !self.is_wanting(device, demand, clock) => {
                    return StepUp::Answered;
                }
                Ok(Err(_over)) => return StepUp::Unanswered,
                Err(_late) => {
                    self.challenges().give_up(device, seat.number, clock.now().boot());
                    return StepUp::Unanswered;
                }
            }
        }
    }

    /// Whether younger evidence could make a profile of the demand known.
    fn is_wanting(&self, device: &DeviceId, demand: &Demand, clock: &dyn Clock) -> bool {
        if demand.wanted == 0 {
            return false;
        }
        let verdict = self.look(Some(device), demand, clock.now());
        verdict.is_stale() || !verdict.is_reported()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    fn id(n: u8) -> DeviceId {
        DeviceId(Digest([n; 32]))
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn who_waits_is_bounded_and_leaves_nothing_behind() {
        let posture = Arc::new(Posture::new());
        let challenges = posture.challenges();
        assert!(challenges.join(&id(1), S).is_none(), "nobody to ask");
        let doors: Vec<_> = (1..=17).map(|n| posture.reachable(id(n))).collect();
        let all: Vec<_> =
            (0..STEP_UP_PER_DEVICE).map(|_| challenges.join(&id(1), S).unwrap()).collect();
        assert!(challenges.join(&id(1), S).is_none(), "one device has its share");
        let others: Vec<_> = (2..=16)
            .flat_map(|n| (0..STEP_UP_PER_DEVICE).map(move |_| n))
            .map(|n| challenges.join(&id(n), S).unwrap())
            .collect();
        assert!(challenges.join(&id(17), S).is_none(), "and so have all");
        drop(others);
        assert!(challenges.join(&id(17), S).is_some());
        drop(all);
        assert_eq!(challenges.lock().waiting, 0);
        drop(doors);
        assert!(challenges.lock().agents.is_empty(), "with the last connection goes all of it");
    }

    #[test]
    fn challenges_have_a_distance_and_the_silent_rest() {
        let posture = Arc::new(Posture::new());
        let (challenges, _door) = (posture.challenges(), posture.reachable(id(1)));
        let first = challenges.join(&id(1), S).unwrap();
        let number = first.number;
        assert_eq!(challenges.join(&id(1), S).unwrap().number, number, "the one under way");
        challenges.answered(&id(1), S / 2);
        assert_eq!(challenges.join(&id(1), S).unwrap().number, number, "older evidence is none");
        challenges.answered(&id(1), S);
        assert!(challenges.join(&id(1), S + STEP_UP_GAP / 2).is_none(), "too soon for another");
        let second = challenges.join(&id(1), S + STEP_UP_GAP).unwrap();
        assert_ne!(second.number, number);
        challenges.give_up(&id(1), number, S * 9);
        assert!(challenges.join(&id(1), S * 2).is_some(), "that one was over already");
        challenges.give_up(&id(1), second.number, S * 2);
        assert!(challenges.join(&id(1), S * 2).is_none(), "it did not answer");
        assert!(challenges.join(&id(1), S * 2 + STEP_UP_REST).is_some());
    }

    #[tokio::test]
    async fn the_newest_connection_is_rung_at_and_then_the_one_before() {
        let posture = Arc::new(Posture::new());
        let (challenges, old) = (posture.challenges(), posture.reachable(id(1)));
        let new = posture.reachable(id(1));
        drop(challenges.join(&id(1), S));
        new.challenged().await;
        let mut waiting = challenges.join(&id(1), S).unwrap();
        drop(new);
        assert!(waiting.told.has_changed().is_ok(), "there is another one: it goes on");
        drop(old);
        assert!(waiting.told.changed().await.is_err(), "nobody is left to wait for");
    }
}
