//! The entries for this device, kept as the broker has them: read whole once, then told by change.
//!
//! One question always waits at the broker, and is answered when something has changed. A list is
//! read whole only where the broker says so: at the first connection, after its restart, and when it
//! has forgotten what changed. Whoever has an entry missing asks in between, so that what an operator
//! was told to be done is known here.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::duties::Duties;
use super::uplink::{DUTIES_AT_MOST, Uplink, UplinkError, ask, ask_patiently};
use crate::model::limits::{ENTRIES_MAX, PUSH_BURST, PUSH_EVERY};
use crate::model::{Answer, Ask, DutyChanges, Since};
use crate::wire::Client;

/// After a failure to hear of the duties.
const DUTIES_AGAIN: Duration = Duration::from_secs(4);

/// What came of a question.
enum Told {
    /// This, and the rest stands.
    Changes(DutyChanges),
    /// The list must be read whole.
    Resync,
}

impl Told {
    fn is_quiet(&self, held: &Duties) -> bool {
        matches!(self, Self::Changes(DutyChanges { items, gone, bundle, federated, .. })
            if items.is_empty()
                && gone.is_empty()
                && (*bundle, *federated) == (held.bundle, held.federated))
    }
}

/// How fast answers with news are taken: some at once, and then one in a while, so that changes
/// without end come together.
struct Pace {
    /// When nothing would be owed any more.
    clear_at: Instant,
}

impl Pace {
    /// Takes a turn; how long to wait before it.
    fn turn(&mut self, now: Instant) -> Duration {
        self.clear_at = self.clear_at.max(now) + PUSH_EVERY;
        let owed = self.clear_at.saturating_duration_since(now);
        owed.saturating_sub(PUSH_EVERY.saturating_mul(PUSH_BURST))
    }
}

impl Uplink {
    /// Keeps the duties as the broker has them.
    pub(super) async fn keep_duties(&self, client: &Client) -> Infallible {
        let mut pace = Pace { clear_at: Instant::now() };
        loop {
            if let Err(why) = self.hear(client, &mut pace).await {
                tracing::warn!(error = %why, "the duties could not be asked for");
                self.shared.failed(why.to_string());
                tokio::time::sleep(DUTIES_AGAIN).await;
            }
        }
    }

    /// The next change, taken over.
    async fn hear(&self, client: &Client, pace: &mut Pace) -> Result<(), UplinkError> {
        let held = self.shared.duties();
        let (told, heard) = match held.start {
            Some(_) => self.next(client, &held).await?,
            None => (Told::Resync, self.shared.wishes()),
        };
        let quiet = told.is_quiet(&held);
        let duties = match told {
            Told::Changes(changes) => held.changed(changes),
            Told::Resync => self.read_whole(client).await?,
        };
        if duties.entries.len() > ENTRIES_MAX {
            return Err(UplinkError::Answer("as many entries as a broker may have"));
        }
        match quiet {
            true => self.shared.confirmed(duties.revision),
            false => {
                self.shared.told(duties);
                tokio::time::sleep(pace.turn(Instant::now())).await;
            }
        }
        self.shared.heard(heard);
        Ok(())
    }

    /// Waits for news. Whoever wishes to know at once is told so as soon as it is sure that there
    /// are none; with it comes up to which wish this answers.
    async fn next(&self, client: &Client, held: &Duties) -> Result<(Told, u64), UplinkError> {
        let waiting = self.since(client, held, true);
        tokio::pin!(waiting);
        let mut rested = Instant::now();
        loop {
            let wished = async {
                sleep_until(rested).await;
                self.shared.wished().await;
            };
            tokio::select! {
                told = &mut waiting => return Ok((told?, 0)),
                () = wished => {
                    let wishes = self.shared.wishes();
                    let told = self.since(client, held, false).await?;
                    if !told.is_quiet(held) {
                        return Ok((told, wishes)); // the other question is taken back
                    }
                    self.shared.heard(wishes);
                    rested = Instant::now() + DUTIES_AT_MOST;
                }
            }
        }
    }

    async fn since(&self, client: &Client, held: &Duties, wait: bool) -> Result<Told, UplinkError> {
        let Some(start) = held.start else { return Ok(Told::Resync) };
        let (bundle, federated) = (held.bundle, held.federated);
        let since = Some(Since { start, bundle, federated, wait });
        let holds = Some(self.shared.held_revision().unwrap_or(held.revision));
        let asked = Ask::Duties { after: None, holds, since };
        let answer = match wait {
            true => ask_patiently(client, asked).await?,
            false => ask(client, asked).await?,
        };
        match answer {
            Answer::Changes(DutyChanges { resync: true, .. }) => Ok(Told::Resync),
            Answer::Changes(changes) => Ok(Told::Changes(changes)),
            _ => Err(UplinkError::Answer("changes")),
        }
    }

    async fn read_whole(&self, client: &Client) -> Result<Duties, UplinkError> {
        let mut duties: Option<Duties> = None;
        loop {
            let after = duties.as_ref().and_then(|duties| duties.entries.last());
            let asked =
                Ask::Duties { after: after.map(|entry| entry.id), holds: None, since: None };
            let Answer::Entries { items, more, revision, bundle, start, federated } =
                ask(client, asked).await?
            else {
                return Err(UplinkError::Answer("entries"));
            };
            let goes_on = more && !items.is_empty();
            // The revision of the first page: what changed meanwhile is told as a change.
            let first = || Duties { revision, bundle, federated, start, ..Duties::default() };
            let all = duties.get_or_insert_with(first);
            if all.start.is_none() || all.start != start {
                return Err(UplinkError::Answer("a list of one start, as brokers of today do"));
            }
            all.entries.extend(items.into_iter().map(Arc::new));
            if all.entries.len() > ENTRIES_MAX {
                return Err(UplinkError::Answer("as many entries as a broker may have"));
            }
            if !goes_on {
                return Ok(duties.unwrap_or_default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_at_once_and_a_storm_comes_together() {
        let began = Instant::now();
        let mut pace = Pace { clear_at: began };
        for _ in 0..PUSH_BURST {
            assert_eq!(pace.turn(began), Duration::ZERO);
        }
        let mut now = began;
        for _ in 0..8 {
            let wait = pace.turn(now);
            assert_eq!(wait, PUSH_EVERY);
            now += wait;
        }
        now += PUSH_EVERY * PUSH_BURST;
        assert_eq!(pace.turn(now), Duration::ZERO, "what is quiet owes nothing");
    }
}
