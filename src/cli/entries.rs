//! entries and identities: who gets which, why not, and the end of what was given.

use std::path::Path;

use serde_json::json;

use super::access::{Access, Asking};
use super::admin::{device_class, device_named, done_on};
use super::args::{EntryAction, IdentityAction, NewEntry};
use super::fault::Fault;
use super::listing::entries;
use super::logs::issued_to;
use super::output::{Output, printable, table};
use super::secrets::unexpected;
use crate::app;
use crate::model::{
    Answer, Ask, DeviceId, Digest, Entry, EntryDraft, Hint, SecretValue, Selector, Serial,
    SpiffeId, TokenAlgorithm, TrustDomain, WorkloadFacts,
};

/// A SPIFFE ID, or its path in the broker's own trust domain.
fn spiffe_id(text: &str, domain: &TrustDomain) -> Result<SpiffeId, Fault> {
    let whole = match text.starts_with("spiffe:") {
        true => SpiffeId::parse(text),
        false => domain.id(&format!("/{}", text.trim_start_matches('/'))),
    };
    whole.map_err(|error| {
        Fault::usage(format!("`{text}` is not a SPIFFE ID")).cause(error.to_string())
    })
}

fn selector(text: &str) -> Result<Selector, Fault> {
    let fault = || {
        Fault::usage(format!("`{text}` is no selector")).hint(
            "`uid:N`, `gid:N`, `path:/…`, `exe_sha256:…`, `unit:x.service`, `k8s_pod_uid:…`, \
                 `container_id:…` or `image_digest:sha256:…`",
        )
    };
    let (kind, value) = text.split_once(':').ok_or_else(fault)?;
    match kind {
        "uid" => value.parse().map(Selector::Uid).map_err(|_| fault()),
        "gid" => value.parse().map(Selector::Gid).map_err(|_| fault()),
        "path" => Ok(Selector::Path(value.to_owned())),
        "exe_sha256" => Digest::parse(value).map(Selector::ExeSha256).map_err(|_| fault()),
        "unit" => Ok(Selector::Unit(value.to_owned())),
        "k8s_pod_uid" => Ok(Selector::K8sPodUid(value.to_owned())),
        "container_id" => Digest::parse(value).map(Selector::ContainerId).map_err(|_| fault()),
        "image_digest" => {
            let digest = value.strip_prefix("sha256:").map(Digest::parse);
            digest.and_then(Result::ok).map(Selector::ImageDigest).ok_or_else(fault)
        }
        _ => Err(fault()),
    }
}

pub async fn entry(action: EntryAction, access: &Access, output: &Output) -> Result<(), Fault> {
    let asking = access.connect().await?;
    match action {
        EntryAction::Create(options) => create(options, &asking, output).await,
        EntryAction::List => {
            show_entries(&entries(&asking).await?, output);
            Ok(())
        }
        EntryAction::Show { id } => {
            let entry = entry_named(&asking, &id).await?;
            output.result(&whole(&entry), &json!(entry));
            Ok(())
        }
        EntryAction::Delete { id } => {
            let entry = entry_named(&asking, &id).await?;
            let said = format!("entry {id} has ended, and every identity that it gave");
            let ask = Ask::EntryDelete { spiffe_id: entry.draft.spiffe_id, id: entry.id };
            done_on(&asking, ask, &said, output).await
        }
        EntryAction::Explain { pid, container_runtime } => {
            let facts = app::attest_pid(pid).map_err(|error| Fault::of(&error))?;
            let (facts, unknown) = with_image(facts, container_runtime.as_deref()).await;
            explain_entry(&entries(&asking).await?, &facts, unknown, output);
            Ok(())
        }
    }
}

/// Makes one entry and shows it.
async fn create(options: NewEntry, asking: &Asking, output: &Output) -> Result<(), Fault> {
    let others = options.federates_with.iter().map(|name| {
        TrustDomain::parse(name).map_err(|error| {
            Fault::usage(format!("`{name}` is not a trust domain")).cause(error.to_string())
        })
    });
    let hint = options.hint.as_deref().map(Hint::parse).transpose();
    let draft = EntryDraft {
        spiffe_id: spiffe_id(&options.id, &asking.credentials.domain)?,
        class: device_class(&options.class)?,
        device: match &options.device {
            Some(id) => Some(device_named(asking, id).await?.id),
            None => None::<DeviceId>,
        },
        selectors: options.selector.iter().map(|text| selector(text)).collect::<Result<_, _>>()?,
        ttl_s: options.ttl,
        default: options.default,
        jwt_alg: match options.jwt_alg.as_str() {
            "RS256" => TokenAlgorithm::Rs256,
            _ => TokenAlgorithm::Es256,
        },
        federates_with: others.collect::<Result<_, _>>()?,
        hint: hint.map_err(|error| Fault::usage("the hint is refused").cause(error.to_string()))?,
    };
    draft.check().map_err(|error| Fault::usage("the entry is refused").cause(error.to_string()))?;
    let ask = Ask::EntryCreate { entry: draft };
    let (_, released) = asking.ask(ask, SecretValue::empty()).await?;
    let Answer::Entries { items, .. } = &released.answer else {
        return Err(unexpected(&released));
    };
    show_entries(items, output);
    Ok(())
}

async fn entry_named(asking: &Asking, id: &str) -> Result<Entry, Fault> {
    let found = entries(asking).await?.into_iter().find(|entry| entry.id.to_string() == id);
    found.ok_or_else(|| {
        Fault::failed(format!("there is no entry `{id}`")).hint("`doorward entry list` shows all")
    })
}

/// Everything about an entry, for people.
fn whole(entry: &Entry) -> String {
    let draft = &entry.draft;
    let mut rows = vec![
        ("entry", entry.id.to_string()),
        ("identity", draft.spiffe_id.to_string()),
        ("class", draft.class.to_string()),
    ];
    rows.extend(draft.device.map(|device| ("device", device.to_string())));
    rows.extend(draft.selectors.iter().map(|selector| ("selector", selector.to_string())));
    rows.extend(draft.ttl_s.map(|ttl| ("life", format!("{ttl} s"))));
    rows.extend(draft.default.then(|| ("default", "yes".to_owned())));
    rows.extend(draft.hint.iter().map(|hint| ("hint", hint.to_string())));
    rows.extend(draft.federates_with.iter().map(|name| ("federates with", name.to_string())));
    rows.push(("epoch", entry.epoch.to_string()));
    rows.push(("made", entry.created.clone()));
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    table(&rows).trim_end().to_owned()
}

fn show_entries(items: &[Entry], output: &Output) {
    let mut rows = Vec::new();
    for entry in items {
        if output.is_json() {
            output.text(&serde_json::to_string(entry).unwrap_or_default());
            continue;
        }
        let selectors: Vec<String> =
            entry.draft.selectors.iter().map(ToString::to_string).collect();
        rows.push(vec![
            entry.id.to_string(),
            entry.draft.spiffe_id.to_string(),
            entry.draft.class.to_string(),
            selectors.join(" "),
        ]);
    }
    if !rows.is_empty() {
        output.text(&printable(&table(&rows)));
    }
}

/// Entries that do not fit and are told of all the same: the nearest ones.
const NEAREST: usize = 3;

/// The facts with the image of the container, or why it is unknown; nothing outside of containers.
async fn with_image(
    mut facts: WorkloadFacts,
    runtime: Option<&Path>,
) -> (WorkloadFacts, Option<String>) {
    let unknown = match (facts.container_id, runtime) {
        (None, _) => None,
        (Some(_), None) => Some("no runtime is named: add `--container-runtime`".to_owned()),
        (Some(container), Some(socket)) => match app::image_of(socket, &container).await {
            Ok(image) => {
                facts.image_digest = Some(image);
                None
            }
            Err(why) => Some(why.to_string()),
        },
    };
    (facts, unknown)
}

/// Which entries fit; and of the nearest others what is missing.
fn explain_entry(
    entries: &[Entry],
    facts: &WorkloadFacts,
    image_unknown: Option<String>,
    output: &Output,
) {
    let told = told(entries, facts);
    let unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let mut text = format!(
        "pid {}: uid {} gid {} path {} unit {}\n",
        facts.pid,
        facts.uid,
        facts.gid,
        unknown(&facts.path),
        unknown(&facts.unit)
    );
    if let Some(digest) = &facts.exe_sha256 {
        text.push_str(&format!("  exe_sha256:{digest}\n"));
    }
    if let Some(id) = &facts.container_id {
        let pod = facts.pod_uid.as_ref().map(|uid| format!(" k8s_pod_uid:{uid}"));
        text.push_str(&format!("  container_id:{id}{}\n", pod.unwrap_or_default()));
    }
    if let Some(digest) = &facts.image_digest {
        text.push_str(&format!("  image_digest:sha256:{digest}\n"));
    }
    if let Some(why) = &image_unknown {
        text.push_str(&format!("  image_digest unknown: {why}\n"));
    }
    for (entry, missing) in &told {
        let (id, draft) = (entry.id, &entry.draft);
        let whose = format!("{}  (entry {id}, class {})", draft.spiffe_id, draft.class);
        let line = match missing.is_empty() {
            true => format!("fits     {whose}\n"),
            false => format!("does not {whose} lacks {}\n", missing.join(", ")),
        };
        text.push_str(&line);
    }
    let left = entries.len().saturating_sub(told.len());
    if left > 0 {
        text.push_str(&format!("{left} more are further off\n"));
    }
    if told.is_empty() {
        text.push_str("there are no entries: make one with `doorward entry create`\n");
    }
    let items: Vec<_> = told
        .iter()
        .map(|(entry, missing)| {
            json!({ "entry": entry.id, "spiffe_id": entry.draft.spiffe_id, "missing": missing })
        })
        .collect();
    let value = json!({
        "facts": facts, "entries": items, "further_off": left, "image_unknown": image_unknown,
    });
    output.result(&printable(text.trim_end()), &value);
}

/// All that fit, and then the nearest others, each with the selectors that are not shown.
fn told<'a>(entries: &'a [Entry], facts: &WorkloadFacts) -> Vec<(&'a Entry, Vec<String>)> {
    let missing = |entry: &'a Entry| {
        let missing = entry.missing(facts).iter().map(ToString::to_string).collect();
        (entry, missing)
    };
    let (mut fitting, mut others): (Vec<_>, Vec<(_, Vec<String>)>) =
        entries.iter().map(missing).partition(|(_, missing): &(_, Vec<String>)| missing.is_empty());
    others.sort_by_key(|(entry, missing)| (missing.len(), entry.id));
    fitting.extend(others.into_iter().take(NEAREST));
    fitting
}

pub async fn identity(
    action: IdentityAction,
    access: &Access,
    output: &Output,
) -> Result<(), Fault> {
    let IdentityAction::Revoke { id, resume, serial } = action;
    let asking = access.connect().await?;
    let id = id.map(|id| spiffe_id(&id, &asking.credentials.domain)).transpose()?;
    if let Some(serial) = serial {
        return revoke_svid(&asking, id, &serial, output).await;
    }
    let spiffe_id = id.ok_or_else(|| Fault::usage("no identity is named"))?;
    let said = match resume {
        true => format!("{spiffe_id} may be issued again"),
        false => {
            format!("every SVID of {spiffe_id} is dead at this broker; connections are closed")
        }
    };
    done_on(&asking, Ask::Revoke { spiffe_id, resume }, &said, output).await
}

/// Ends one SVID. Whose it is stands in the record of its issue, unless it is said.
async fn revoke_svid(
    asking: &Asking,
    id: Option<SpiffeId>,
    serial: &str,
    output: &Output,
) -> Result<(), Fault> {
    // As other tools write it: upper case, colons between the bytes, a zero byte before a high bit.
    let plain = serial.replace(':', "").to_ascii_lowercase();
    let plain = plain.strip_prefix("00").unwrap_or(&plain);
    let serial = Serial::parse(plain).map_err(|error| {
        Fault::usage(format!("`{serial}` is no serial number")).cause(error.to_string())
    })?;
    let spiffe_id = match id {
        Some(id) => id,
        None => issued_to(asking, &serial).await?.ok_or_else(|| {
            Fault::failed(format!("the log knows of no SVID with the serial number {serial}"))
                .hint("name its SPIFFE ID too: `doorward identity revoke ID --serial HEX`")
        })?,
    };
    let said = format!(
        "the SVID {serial} of {spiffe_id} is dead at this broker, its connections closed; the \
         workload may be given another one"
    );
    done_on(asking, Ask::RevokeSvid { spiffe_id, serial }, &said, output).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DeviceClass, EntryId};

    #[test]
    fn everything_that_fits_is_told_and_three_of_the_rest_the_nearest_first() {
        let facts = WorkloadFacts {
            pid: 7,
            start_ticks: 1,
            uid: 1000,
            gid: 1000,
            path: None,
            exe_sha256: None,
            unit: None,
            pod_uid: None,
            container_id: None,
            image_digest: None,
            pinned: true,
        };
        let entry = |n: u128, selectors: &[&str]| Entry {
            id: EntryId(uuid::Uuid::from_u128(n)),
            draft: EntryDraft {
                spiffe_id: SpiffeId::parse(&format!("spiffe://corp.example/{n}")).unwrap(),
                class: DeviceClass::parse("server").unwrap(),
                device: None,
                selectors: selectors.iter().map(|text| selector(text).unwrap()).collect(),
                ttl_s: None,
                default: false,
                jwt_alg: Default::default(),
                federates_with: Vec::new(),
                hint: None,
            },
            epoch: 1,
            created: String::new(),
        };
        let entries = [
            entry(1, &["uid:1", "gid:1", "path:/a"]),
            entry(2, &["uid:1000", "unit:a.service"]),
            entry(3, &["uid:1000"]),
            entry(4, &["uid:1", "gid:1"]),
            entry(5, &["gid:5"]),
            entry(6, &["gid:1000", "uid:1000"]),
        ];
        let told = told(&entries, &facts);
        let told: Vec<_> =
            told.iter().map(|(entry, missing)| (entry.id.0.as_u128(), missing.join(" "))).collect();
        let want = [(3, ""), (6, ""), (2, "unit:a.service"), (5, "gid:5"), (4, "uid:1 gid:1")];
        assert_eq!(told, want.map(|(n, missing)| (n, missing.to_owned())));
    }
}
