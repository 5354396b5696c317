//! `doorward bench posture`: what facts cost an agent, and verdicts a broker.
//!
//! Collecting is measured on this machine as it is. Verdicts are those of one device whose evidence
//! was signed, verified and taken in as any other; nothing of the path is left out but the wire.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bench::{at, cpu_seconds, round};
use super::bench_policy::recognised;
use super::stage::Stage;
use crate::agent::{DeviceKey, facts};
use crate::model::{Clock as _, DeviceId, Moment, SystemClock};
use crate::posture::{
    Challenge, Demand, EvidenceKey, FactKind, FactName, FactValue, Facts, Origin, Posture, Profiles,
};
use crate::wire::Credentials;

/// Facts that the profile of the bench asks for.
const ASKED: usize = 40;
/// Looks that are timed together, where one is shorter than a look at the clock.
const TOGETHER: u32 = 1000;
/// The agent's own cadence: a pass each second.
const CADENCE: Duration = Duration::from_secs(1);
const BROKER: &str = "spiffe://bench.doorward/doorward/broker";

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Measures each; `told` gets one JSON object a line.
///
/// # Errors
/// In words.
pub fn bench_posture(length: Duration, told: &dyn Fn(&Value)) -> Result<(), String> {
    told(&collection(length)?);
    let (posture, device) = reported()?;
    told(&appraisal(&posture, &device, length)?);
    let stage = Stage::new(None)?;
    let credentials = Credentials::load(&stage.operator_dir()).map_err(words)?;
    told(&look_again(&posture, &device, &credentials, length)?);
    Ok(())
}

/// Passes over this machine's facts, back to back.
fn collection(length: Duration) -> Result<Value, String> {
    let (mut times, began) = (Vec::new(), Instant::now());
    let before = cpu_seconds(std::process::id())?;
    let mut known = 0;
    while began.elapsed() < length {
        let start = Instant::now();
        let facts = facts::collect();
        times.push(nanos(start));
        known = facts.iter().filter(|(_, fact)| fact.value.is_ok()).count();
    }
    let spent = cpu_seconds(std::process::id())? - before;
    let passes = u32::try_from(times.len()).unwrap_or(u32::MAX);
    let each = spent / f64::from(passes.max(1));
    times.sort_unstable();
    Ok(json!({
        "shape": "collection", "passes": passes, "known": known, "p50_us": at(&times, 0.5),
        "p99_us": at(&times, 0.99), "cpu_us": round(each * 1e6),
        "core_percent": round(each / CADENCE.as_secs_f64() * 100.0),
    }))
}

fn nanos(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The facts that are asked for, all of them known and good.
fn asked() -> impl Iterator<Item = FactName> {
    FactName::all().filter(|name| name.row().origin == Origin::Device).take(ASKED)
}

fn profiles() -> Result<Arc<Profiles>, String> {
    let one = |name: FactName| match name.row().kind {
        FactKind::Bool => format!("  {{ fact = \"{name}\", eq = true }},\n"),
        FactKind::Number => format!("  {{ fact = \"{name}\", ge = 1 }},\n"),
        FactKind::Text => format!("  {{ fact = \"{name}\", ne = \"bad\" }},\n"),
    };
    let list: String = asked().map(one).collect();
    let text = format!("[profile.bench]\nmax_age = \"168h\"\nrequire = [\n{list}]\n");
    let parsed = Profiles::parse("posture.toml", &text);
    parsed
        .map(Arc::new)
        .map_err(|faults| faults.first().map_or_else(String::new, |fault| fault.render()))
}

/// A device that has reported once.
fn reported() -> Result<(Posture, DeviceId), String> {
    let mut facts = Facts::default();
    for name in asked() {
        let value = match name.row().kind {
            FactKind::Bool => FactValue::Bool(true),
            FactKind::Number => FactValue::Number(1),
            FactKind::Text => FactValue::Text("good".to_owned()),
        };
        facts.state(name, Ok(value)).map_err(words)?;
    }
    let (key, session) =
        (DeviceKey::generate().map_err(words)?, EvidenceKey::generate().map_err(words)?);
    let (posture, now) = (Posture::new(), SystemClock.now());
    let challenge = Challenge::new(now, |_| [7; 32]);
    let endorse = |message: &[u8]| key.sign_asn1(message).unwrap_or_default();
    let evidence = session.sign(
        key.id(),
        BROKER,
        challenge.nonce(),
        &[7; 32],
        key.spki(),
        &facts,
        "0-a",
        1,
        now,
        endorse,
    );
    posture.take(&key.id(), key.spki(), BROKER, &challenge, &evidence.0, now).map_err(words)?;
    Ok((posture, key.id()))
}

fn held(posture: &Posture, device: &DeviceId, demand: &Demand, now: Moment) -> Result<(), String> {
    let verdict = posture.look(Some(device), demand, now);
    match verdict.held() {
        1 => Ok(()),
        _ => Err(format!("the profile of the bench came out as {}", verdict.label())),
    }
}

/// Two sets of profiles in turn, so that no verdict is remembered from the look before.
fn appraisal(posture: &Posture, device: &DeviceId, length: Duration) -> Result<Value, String> {
    let demand = || Ok::<_, String>(Demand { profiles: profiles()?, wanted: 1, colocated: false });
    let (one, other) = (demand()?, demand()?);
    let (mut times, began) = (Vec::new(), Instant::now());
    while began.elapsed() < length {
        for demand in [&one, &other] {
            let now = SystemClock.now();
            let start = Instant::now();
            held(posture, device, demand, now)?;
            times.push(nanos(start));
        }
    }
    times.sort_unstable();
    Ok(json!({
        "shape": "appraisal", "facts": ASKED, "p50_us": at(&times, 0.5), "p99_us": at(&times, 0.99),
    }))
}

/// What each request costs again: who asks, and from what; the operator's own identity stands for
/// who.
fn look_again(
    posture: &Posture,
    device: &DeviceId,
    credentials: &Credentials,
    length: Duration,
) -> Result<Value, String> {
    let (identity, peer) = recognised(credentials)?;
    let demand = Demand { profiles: profiles()?, wanted: 1, colocated: false };
    let now = SystemClock.now();
    held(posture, device, &demand, now)?;
    let (mut both, mut alone, began) = (Vec::new(), Vec::new(), Instant::now());
    while began.elapsed() < length {
        let start = Instant::now();
        for _ in 0..TOGETHER {
            let caller = identity.recognise(&peer, now);
            std::hint::black_box(caller.epochs());
            held(posture, device, &demand, now)?;
        }
        both.push(nanos(start) / u64::from(TOGETHER));
        let start = Instant::now();
        for _ in 0..TOGETHER {
            held(posture, device, &demand, now)?;
        }
        alone.push(nanos(start) / u64::from(TOGETHER));
    }
    both.sort_unstable();
    alone.sort_unstable();
    let ns = |times: &[u64], part| (at(times, part) * 1000.0).round();
    Ok(json!({
        "shape": "re-check", "p50_ns": ns(&both, 0.5), "p99_ns": ns(&both, 0.99),
        "posture_p50_ns": ns(&alone, 0.5), "posture_p99_ns": ns(&alone, 0.99),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_of_the_bench_asks_for_forty_facts_and_is_held() {
        let (posture, device) = reported().unwrap();
        let demand = Demand { profiles: profiles().unwrap(), wanted: 1, colocated: false };
        assert_eq!(demand.profiles.facts().len(), ASKED);
        held(&posture, &device, &demand, SystemClock.now()).unwrap();
        posture.forget_all();
        assert!(held(&posture, &device, &demand, SystemClock.now()).is_err());
    }
}
