//! A question that waits for its answer: an agent asks for what has changed in its duties, and is
//! answered when something has.
//!
//! It is decided and recorded when it comes, and once more before anything leaves. While it waits it
//! is no running request: nothing is held for it but its seat, a drain does not wait for it, and it
//! ends with its connection or when the agent takes it back. When the policy changes, it is judged
//! again; a caller without the right hears so, and the log has it.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::stream::{Incoming, Stream};
use crate::authority::{Crowded, Wait};
use crate::broker::outcome::Ready;
use crate::model::{
    Answer, Ask, ClientRef, Code, DutyChanges, Reason, Refusal, Released, RequestId, Target, limits,
};
use crate::wire::Ahead;

/// Why a wait ends.
enum Woken {
    /// Something has changed that concerns it.
    News,
    /// Another policy is in force.
    Policy,
    /// Long enough: nothing has changed.
    Late,
    /// The broker is stopping.
    Draining,
    /// The agent took the question back, or its connection has ended.
    Gone,
}

/// Whether an ask may wait for its answer.
pub(super) fn may_wait(ask: &Ask) -> bool {
    matches!(ask, Ask::Duties { since: Some(since), .. } if since.wait)
}

/// Whether there is nothing in an answer that its asker does not know.
fn is_quiet(ask: &Ask, released: &Released) -> bool {
    let (
        Ask::Duties { since: Some(since), .. },
        Answer::Changes(DutyChanges { items, gone, bundle, federated, resync, .. }),
    ) = (ask, &released.answer)
    else {
        return false;
    };
    let nothing = items.is_empty() && gone.is_empty() && !resync;
    nothing && (*bundle, *federated) == (since.bundle, since.federated)
}

impl Stream<'_> {
    /// Serves a question that may wait.
    pub(super) async fn hang(
        self,
        mut send: quinn::SendStream,
        recv: Ahead<quinn::RecvStream>,
        client: Option<ClientRef>,
        ask: Arc<Ask>,
    ) {
        let parts = self.line.parts();
        let caller = parts.identity.recognise(self.peer, self.clock.now());
        // Before the first look, so that no change falls between it and the wait.
        let mut installed = parts.policy.installed();
        let seat = match (self.hanging.try_acquire(), parts.authority.wait(&caller)) {
            (Ok(here), Ok(seat)) => seat.map(|seat| (here, seat)),
            (Err(_), _) | (_, Err(Crowded::Device | Crowded::All)) => {
                parts.log.count(caller.id().as_str(), "too many waits");
                let request = RequestId::new(self.clock.now());
                let hint = Some("too many of this device's questions for changes wait".to_owned());
                let (code, reason) = (Code::Limited, Reason::Limited);
                let refusal = Refusal { request, code, reason, hint };
                return self.reply(&mut send, request, Err(refusal)).await;
            }
        };
        let until = Instant::now() + limits::PUSH_WAIT;
        let running = self.line.begin();
        let mut body = Incoming::none(recv);
        let (request, outcome) = self
            .line
            .answer(self.peer, Some(self.registered), client.clone(), Arc::clone(&ask), &mut body)
            .await;
        let (quiet, (_here, mut seat)) = match (outcome, seat) {
            (Ok(released), Some(seat)) if is_quiet(&ask, &released) => (released, seat),
            (outcome, _) => return self.reply(&mut send, request, outcome).await,
        };
        drop(running);
        self.prove();
        parts.metrics.waits.inc();
        let woken = loop {
            let woken = self.woken(&send, &mut seat, &mut installed, until).await;
            match woken {
                Woken::Policy if self.still_may(&ask) => {}
                woken => break woken,
            }
        };
        parts.metrics.waits.dec();
        match woken {
            Woken::Gone => {}
            Woken::Late => self.reply(&mut send, request, Ok(quiet)).await,
            // What drains is refused by the line itself.
            Woken::News | Woken::Policy | Woken::Draining => {
                let _running = self.line.begin();
                parts.metrics.pushes.inc_by(u64::from(matches!(woken, Woken::News)));
                let (request, outcome) = self
                    .line
                    .answer(self.peer, Some(self.registered), client, ask, &mut Ready(None))
                    .await;
                self.reply(&mut send, request, outcome).await;
            }
        }
    }

    async fn woken(
        &self,
        send: &quinn::SendStream,
        seat: &mut Wait,
        installed: &mut tokio::sync::watch::Receiver<u64>,
        until: Instant,
    ) -> Woken {
        tokio::select! {
            biased;
            _ = self.connection.closed() => Woken::Gone,
            _ = send.stopped() => Woken::Gone,
            () = self.line.drained() => Woken::Draining,
            () = seat.news() => Woken::News,
            Ok(()) = installed.changed() => Woken::Policy,
            () = sleep_until(until) => Woken::Late,
        }
    }

    /// Whether the policy in force would let the caller ask now; only looked at, not recorded.
    fn still_may(&self, ask: &Arc<Ask>) -> bool {
        let (parts, now) = (self.line.parts(), self.clock.now());
        let caller = Arc::new(parts.identity.recognise(self.peer, now));
        let bundle = parts.policy.current();
        let verdict = parts.posture.look(caller.device(), &bundle.demand(&caller, ask), now);
        let (id, ask) = (RequestId::new(now), Arc::clone(ask));
        bundle.decide(id, caller, verdict, ask, None, Target::Itself, now).allowed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EntryId, Since, StartId};

    #[test]
    fn only_what_the_asker_knows_is_kept_back() {
        let since = |wait| Since { start: StartId::random(), bundle: 3, federated: 5, wait };
        let ask = |since| Ask::Duties { after: None, holds: Some(7), since };
        assert!(may_wait(&ask(Some(since(true)))));
        assert!(!may_wait(&ask(Some(since(false)))) && !may_wait(&ask(None)));
        assert!(!may_wait(&Ask::Whoami {}));
        let ask = ask(Some(since(true)));
        let told = |gone: Vec<EntryId>, (bundle, federated), resync| {
            let same = DutyChanges { gone, revision: 9, bundle, federated, resync, items: vec![] };
            is_quiet(&ask, &Released::head(Answer::Changes(same)))
        };
        assert!(told(Vec::new(), (3, 5), false));
        assert!(!told(vec![EntryId::random()], (3, 5), false));
        assert!(!told(Vec::new(), (4, 5), false), "other roots");
        assert!(!told(Vec::new(), (3, 6), false), "other roots of another domain");
        assert!(!told(Vec::new(), (3, 5), true));
        assert!(!is_quiet(&ask, &Released::head(Answer::Done { revision: 9 })));
    }
}
