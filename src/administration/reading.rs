//! Reading the log, explaining one record, and the broker's own state.
//!
//! The log is read and searched on threads of their own: a search may look at a quarter of a million
//! records, and every other request would wait for it.

use serde_json::{Value, json};

use super::Administration;
use crate::decision_log::DecisionLog;
use crate::model::{
    Action, Answer, Code, Failure, Reason, Released, RequestId, SecretValue, limits,
};
use crate::policy::Bundle;

/// Records in one answer.
const PAGE: u32 = 1000;

impl Administration {
    /// One JSON object a line; the answer says where to go on.
    pub(super) async fn read_log(
        &self,
        from: u64,
        limit: u32,
        holding: Option<&str>,
    ) -> Result<Released, Failure> {
        if holding.is_some_and(|text| text.is_empty() || text.len() > limits::NAME_MAX) {
            return Err(Failure::invalid("`holding` is 1 to 512 bytes of text"));
        }
        let (log, holding) = (self.log.clone(), holding.map(str::to_owned));
        let (body, next) = aside(move || page(&log, from, limit, holding.as_deref())).await??;
        let size = self.log.size();
        Ok(Released { answer: Answer::Records { from, next, size }, body: SecretValue::new(body) })
    }

    /// The record of a request; for a denial also what was missing, under the policy in force.
    pub(super) async fn explain(&self, request: RequestId) -> Result<Released, Failure> {
        let (log, bundle) = (self.log.clone(), self.policy().current());
        let (found, why) = aside(move || {
            let found = log.find(request).map_err(|_| unavailable())?;
            let why = found.iter().find_map(|(_, text)| near(&bundle, text));
            Ok::<_, Failure>((found, why))
        })
        .await??;
        if found.is_empty() {
            return Err(Failure::absent(
                "no record of that request; look for it with `doorward log tail`",
            ));
        }
        let records: Vec<Value> = found
            .iter()
            .map(|(index, text)| {
                json!({ "index": index, "record": serde_json::from_str::<Value>(text).ok() })
            })
            .collect();
        Ok(Released::head(Answer::Report {
            value: json!({ "records": records, "explanation": why }),
        }))
    }

    /// How the broker stands.
    pub(super) async fn status(&self) -> Result<Released, Failure> {
        let bundle = self.policy().current();
        let log = self.log.clone();
        let head = aside(move || log.head()).await?;
        let revision = self.store.revision().await.map_err(|_| Failure::store())?;
        Ok(Released::head(Answer::Report {
            value: json!({
                "version": env!("CARGO_PKG_VERSION"),
                "trust_domain": self.domain,
                "time": self.clock.now().rfc3339(),
                "log": { "size": head.size, "root": head.root, "ready": self.log.is_ready() },
                "policy": {
                    "serial": bundle.serial(),
                    "digest": format!("sha256:{}", bundle.digest()),
                },
                "store": { "revision": revision },
            }),
        }))
    }
}

/// Runs what takes long on a thread of its own.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|_| unavailable())
}

/// Records as one JSON object a line, and the index to go on from.
fn page(
    log: &DecisionLog,
    from: u64,
    limit: u32,
    holding: Option<&str>,
) -> Result<(Vec<u8>, u64), Failure> {
    let (records, mut next) =
        log.read(from, limit.clamp(1, PAGE), holding).map_err(|_| unavailable())?;
    let mut body = Vec::new();
    for (index, record) in records {
        if body.len() + record.len() + 64 > limits::BODY_MAX {
            next = index;
            break;
        }
        body.extend_from_slice(format!("{{\"index\":{index},\"record\":{record}}}\n").as_bytes());
    }
    Ok((body, next))
}

/// Near misses of a recorded decision, computed now.
fn near(bundle: &Bundle, record: &str) -> Option<Value> {
    let record: Value = serde_json::from_str(record).ok()?;
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
    let action = Action::parse(text("/req/act")?)?;
    let label = label_of(&record);
    let at = text("/t").and_then(|t| t.get(..19)).map(|t| format!("{t}Z"))?;
    let explanation = bundle.explain(text("/sub/spiffe")?, action, text("/req/obj")?, &label, &at);
    let mut value = serde_json::to_value(explanation.clone()).ok()?;
    if let Value::Object(map) = &mut value {
        map.insert("text".into(), explanation.render().into());
        let same = text("/pol/bundle").is_some_and(|d| d.ends_with(&bundle.digest().to_string()));
        map.insert("same_policy".into(), same.into());
    }
    Some(value)
}

/// The device's posture as the record tells it: the profiles that held, or that it had no evidence.
fn label_of(record: &Value) -> String {
    if record.pointer("/dev/evidence").is_none() {
        return "unknown".to_owned();
    }
    let held = record.pointer("/dev/held").and_then(Value::as_array);
    let names = held.into_iter().flatten().filter_map(Value::as_str);
    names.fold("|".to_owned(), |label, name| format!("{label}{name}=t|"))
}

pub(super) fn unavailable() -> Failure {
    Failure::new(Code::Unavailable, Reason::LogUnavailable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_long_search_does_not_hold_up_the_one_thread_that_answers() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let search = aside(move || receiver.recv_timeout(Duration::from_secs(30)).is_ok());
        let other = async { sender.send(()).is_ok() };
        let (found, answered) = tokio::join!(search, other);
        assert!(found.unwrap() && answered, "the other request came to its turn meanwhile");
    }
}
