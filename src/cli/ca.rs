//! The authorities: how they stand, each step of their life, and a whole rotation with its drill.
//!
//! A rotation waits where the broker would refuse; it forces nothing. Stopped half way, it is taken
//! up where it was by the same command.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::json;

use super::access::{Access, Asking};
use super::fault::Fault;
use super::output::{Output, printable, table};
use super::secrets::unexpected;
use crate::model::{
    Answer, Ask, AuthorityState, AuthoritySummary, CaStanding, CaStep, Digest, SecretValue,
};

/// Between two looks while a rotation waits.
const LOOK: Duration = Duration::from_millis(500);
/// Digits of an authority's id in a table.
const DIGITS: usize = 16;

/// `doorward ca …`
#[derive(Debug, Subcommand)]
pub enum CaAction {
    /// List the authorities, and who lives by which
    Show,
    /// Make the next authority and publish it; it signs nothing yet
    Prepare,
    /// Let the prepared authority sign, once every living agent has it in force
    Activate {
        /// Also if it was published so many seconds ago, whoever has not been heard of
        #[arg(long, value_name = "SECONDS")]
        after: Option<u32>,
        /// Wait for nobody
        #[arg(long)]
        force: bool,
    },
    /// Have everybody who lives by an old authority renew now
    Taint {
        /// The authority, or the beginning of its id
        id: String,
    },
    /// End trust in an authority that does not sign; its certificates are refused from then on
    Revoke {
        /// The authority, or the beginning of its id
        id: String,
        /// Also while agents or workloads live by it
        #[arg(long)]
        force: bool,
    },
    /// Prepare, wait for every living agent, activate
    Rotate {
        /// The compromise drill: taint the former one too, wait until nobody lives by it, revoke it
        #[arg(long)]
        drill: bool,
        /// How long to wait at each point before giving up
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        wait: u64,
    },
}

pub async fn ca(action: CaAction, access: &Access, output: &Output) -> Result<(), Fault> {
    if let CaAction::Rotate { drill, wait } = action {
        return rotate(drill, Duration::from_secs(wait), access, output).await;
    }
    let dir = access.identity().map(Path::to_owned);
    let mut asking = access.connect().await?;
    if matches!(action, CaAction::Revoke { .. }) {
        // By a certificate of the authority that signs: it outlives the one that is revoked.
        asking.renew(dir.as_deref()).await;
        asking = access.connect().await?;
    }
    let step = match action {
        CaAction::Show | CaAction::Rotate { .. } => CaStep::Show {},
        CaAction::Prepare => CaStep::Prepare {},
        CaAction::Activate { after, force } => CaStep::Activate { after_s: after, force },
        CaAction::Taint { id } => CaStep::Taint { id: named(&asking, &id).await? },
        CaAction::Revoke { id, force } => CaStep::Revoke { id: named(&asking, &id).await?, force },
    };
    let looks = step == CaStep::Show {};
    let standing = stepped(&asking, step).await?;
    if !looks {
        asking.renew(dir.as_deref()).await; // so that this very directory knows the roots
    }
    output.result(&shown(&standing), &json!(standing));
    Ok(())
}

async fn stepped(asking: &Asking, step: CaStep) -> Result<CaStanding, Fault> {
    let (_, released) = asking.ask(Ask::Ca(step), SecretValue::empty()).await?;
    match released.answer {
        Answer::Authorities(standing) => Ok(standing),
        _ => Err(unexpected(&released)),
    }
}

/// The one authority whose id begins so.
async fn named(asking: &Asking, begin: &str) -> Result<Digest, Fault> {
    let standing = stepped(asking, CaStep::Show {}).await?;
    let fits = |it: &&AuthoritySummary| it.id.to_string().starts_with(begin);
    let mut fitting = standing.authorities.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(one), None) if !begin.is_empty() => Ok(one.id),
        (None, _) => Err(Fault::failed(format!("no trusted authority begins with `{begin}`"))
            .hint("`doorward ca show` lists all")),
        _ => {
            Err(Fault::usage(format!("`{begin}` fits several authorities")).hint("give more of it"))
        }
    }
}

fn short(id: &Digest) -> String {
    id.to_string().chars().take(DIGITS).collect()
}

fn shown(standing: &CaStanding) -> String {
    let head = ["authority", "state", "published", "until", "agents", "operators"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for it in &standing.authorities {
        rows.push(vec![
            short(&it.id),
            it.state.as_str().to_owned(),
            it.prepared.clone(),
            it.until.clone(),
            it.agents.to_string(),
            it.operators.to_string(),
        ]);
    }
    let mut text = table(&rows);
    for it in &standing.authorities {
        if let Some(upstream) = &it.upstream {
            let roots: Vec<_> = upstream.roots.iter().map(short).collect();
            let (id, serial) = (short(&it.id), &upstream.serial);
            text.push_str(&format!("\n{id}  below {}, serial {serial}", roots.join(" ")));
        }
    }
    for (id, at) in &standing.revoked {
        text.push_str(&format!("\n{}  revoked {at}", short(id)));
    }
    text.push_str(&format!(
        "\n{} of {} living agents have bundle {} in force",
        standing.acknowledged, standing.live, standing.sequence
    ));
    for it in &standing.pending {
        text.push_str(&format!("\n  waiting for {} ({} {})", it.name, it.class, it.id.short()));
    }
    printable(&text)
}

/// One rotation: where it stands, and how long it may wait at each point.
struct Rotation<'a> {
    output: &'a Output,
    wait: Duration,
}

impl Rotation<'_> {
    fn say(&self, stage: &str, text: &str, standing: &CaStanding) {
        let value = json!({
            "stage": stage, "live": standing.live, "acknowledged": standing.acknowledged,
            "tainted": standing.tainted, "sequence": standing.sequence,
        });
        self.output.result(text, &value);
    }

    /// Looks until `done`, and says so whenever the figures have changed.
    async fn until(
        &self,
        asking: &Asking,
        stage: &str,
        done: impl Fn(&CaStanding) -> bool,
        figures: impl Fn(&CaStanding) -> String,
    ) -> Result<CaStanding, Fault> {
        let (began, mut said) = (Instant::now(), String::new());
        loop {
            let standing = stepped(asking, CaStep::Show {}).await?;
            let figures = figures(&standing);
            if figures != said {
                self.say(stage, &figures, &standing);
                said = figures;
            }
            if done(&standing) {
                return Ok(standing);
            }
            if began.elapsed() >= self.wait {
                let waits = standing.pending.iter().map(|it| it.name.as_str());
                let waits = waits.collect::<Vec<_>>().join(", ");
                return Err(Fault::failed(format!("the rotation waits: {said}"))
                    .cause(if waits.is_empty() {
                        "not all have renewed".to_owned()
                    } else {
                        format!("not heard of: {}", printable(&waits))
                    })
                    .hint(
                        "the same command goes on from here; `doorward ca activate --force` and \
                         `doorward ca revoke ID --force` wait for nobody",
                    ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn of(standing: &CaStanding, state: AuthorityState) -> Option<&AuthoritySummary> {
    standing.authorities.iter().find(|it| it.state == state)
}

fn knows(standing: &CaStanding) -> bool {
    standing.acknowledged == standing.live
}

async fn rotate(
    drill: bool,
    wait: Duration,
    access: &Access,
    output: &Output,
) -> Result<(), Fault> {
    let dir = access.identity().map(Path::to_owned);
    let rotation = Rotation { output, wait };
    let mut asking = access.connect().await?;
    let mut standing = stepped(&asking, CaStep::Show {}).await?;
    // A drill that was stopped after the activation has a tainted one to end, and makes no other.
    let left = of(&standing, AuthorityState::Tainted).filter(|_| drill).map(|it| it.id);
    let former = match left {
        Some(former) => former,
        None => {
            let signing = of(&standing, AuthorityState::Active).map(|it| it.id);
            let former = signing.ok_or_else(|| Fault::failed("no authority signs"))?;
            if of(&standing, AuthorityState::Prepared).is_none() {
                standing = stepped(&asking, CaStep::Prepare {}).await?;
            }
            if let Some(next) = of(&standing, AuthorityState::Prepared) {
                let text =
                    format!("published  {} is trusted and signs nothing yet", short(&next.id));
                rotation.say("published", &text, &standing);
            }
            asking.renew(dir.as_deref()).await; // so that this very directory knows the next root
            let told = |it: &CaStanding| {
                format!(
                    "told       {} of {} living agents have it in force",
                    it.acknowledged, it.live
                )
            };
            rotation.until(&asking, "told", knows, told).await?;
            let step = CaStep::Activate { after_s: None, force: false };
            standing = stepped(&asking, step).await?;
            let next = of(&standing, AuthorityState::Active).map(|it| short(&it.id));
            let text = format!("activated  {} signs from now on", next.unwrap_or_default());
            rotation.say("activated", &text, &standing);
            former
        }
    };
    asking.renew(dir.as_deref()).await;
    if !drill {
        let text = format!(
            "done       {} is trusted for what it signed, and ends by itself in 30 days",
            short(&former)
        );
        rotation.say("done", &text, &standing);
        return Ok(());
    }
    // On a connection of the new certificate: those of the old one end with the authority.
    let asking = access.connect().await?;
    end(&rotation, &asking, former).await
}

/// The drill's second half: everybody off the old key, then its end.
async fn end(rotation: &Rotation<'_>, asking: &Asking, former: Digest) -> Result<(), Fault> {
    let standing = stepped(asking, CaStep::Taint { id: former }).await?;
    let text = format!("tainted    who lives by {} renews now", short(&former));
    rotation.say("tainted", &text, &standing);
    let lives = |it: &CaStanding| {
        let of = it.authorities.iter().find(|it| it.id == former);
        of.map_or((0, 0), |it| (it.agents, it.operators))
    };
    let renewed = |it: &CaStanding| {
        format!(
            "renewing   {} agents and {} identities are on the old key",
            lives(it).0,
            it.tainted
        )
    };
    let done = |it: &CaStanding| knows(it) && lives(it).0 == 0 && it.tainted == 0;
    let standing = rotation.until(asking, "renewing", done, renewed).await?;
    let operators = lives(&standing).1;
    let step = CaStep::Revoke { id: former, force: false };
    let standing = stepped(asking, step).await?;
    let mut text = format!(
        "revoked    {} is trusted by nobody; zero workloads and zero agents are on it",
        short(&former)
    );
    if operators > 0 {
        text.push_str(&format!(
            "\n           {operators} operators' logins ended with it: they log in again"
        ));
    }
    rotation.say("revoked", &text, &standing);
    Ok(())
}
