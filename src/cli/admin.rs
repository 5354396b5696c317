//! whoami, can-i, status, tokens, operators, devices, entries, identities.

use serde_json::json;

use super::access::{Access, Asking};
use super::args::{DeviceAction, EntryAction, IdentityAction, OperatorAction, TokenAction};
use super::fault::Fault;
use super::listing::{devices, entries};
use super::logs::issued_to;
use super::output::{Output, printable, table};
use super::secrets::unexpected;
use crate::app;
use crate::model::{
    Action, Answer, Ask, DeviceClass, DeviceId, DeviceSummary, Digest, Entry, EntryDraft, EntryId,
    SecretValue, Selector, Serial, SpiffeId, TrustDomain, did_you_mean,
};

pub async fn whoami(access: &Access, output: &Output) -> Result<(), Fault> {
    if let Some(socket) = access.agent() {
        let (text, value) = super::workload::identity(&socket).await?;
        output.result(&text, &value);
        return Ok(());
    }
    let (_, released) = access.ask(Ask::Whoami {}, SecretValue::empty()).await?;
    let Answer::Identity { spiffe_id, device, class, until, posture } = &released.answer else {
        return Err(unexpected(&released));
    };
    let device_text = match (device, class) {
        (Some(id), Some(class)) => format!("{class} {id}"),
        _ => "unknown".to_owned(),
    };
    output.result(
        &format!(
            "identity  {spiffe_id}\ndevice    {device_text}\nposture   {posture}\nuntil     {until}"
        ),
        &json!({
            "spiffe_id": spiffe_id, "device": device, "class": class, "posture": posture,
            "until": until,
        }),
    );
    Ok(())
}

pub async fn can_i(
    action: &str,
    object: &str,
    access: &Access,
    output: &Output,
) -> Result<(), Fault> {
    let words = || Action::ALL.iter().map(|action| action.as_str());
    let action = Action::parse(action).ok_or_else(|| {
        let fault = Fault::usage(format!("`{action}` is no action"));
        match did_you_mean(action, words()) {
            Some(near) => fault.hint(format!("did you mean `{near}`?")),
            None => fault.hint(words().collect::<Vec<_>>().join(", ")),
        }
    })?;
    let ask = Ask::CanI { action, object: object.to_owned() };
    let (request, released) = access.ask(ask, SecretValue::empty()).await?;
    let Answer::Can { allowed, reason } = released.answer else {
        return Err(unexpected(&released));
    };
    let word = if allowed { "yes" } else { "no" };
    output.result(
        &format!("{word} ({} {})", reason.code(), reason.word()),
        &json!({ "allowed": allowed, "reason": reason, "request": request }),
    );
    match allowed {
        true => Ok(()),
        false => {
            Err(Fault { exit: 3, ..Fault::failed(format!("{action} of {object} is not allowed")) }
                .cause(format!("{} {}", reason.code(), reason.word())))
        }
    }
}

pub async fn status(access: &Access, output: &Output) -> Result<(), Fault> {
    let (_, released) = access.ask(Ask::Status {}, SecretValue::empty()).await?;
    let Answer::Report { value } = &released.answer else {
        return Err(unexpected(&released));
    };
    output.result(&serde_json::to_string_pretty(value).unwrap_or_default(), value);
    Ok(())
}

/// Tokens go to standard output, because they are what was asked for; nothing else does then.
fn token_out(output: &Output, answer: &Answer, body: &SecretValue) -> Result<(), Fault> {
    let Answer::Token(token) = answer else {
        return Err(Fault::failed("the broker answered something else"));
    };
    let text = String::from_utf8_lossy(body.expose());
    output.result(&text, &json!({ "token": text, "name": token.name, "until": token.until }));
    if !output.is_json() {
        eprintln!("single use, until {}; hand it over like a password", printable(&token.until));
    }
    Ok(())
}

pub async fn token(action: TokenAction, access: &Access, output: &Output) -> Result<(), Fault> {
    let TokenAction::Create { class, ttl } = action;
    let ask = Ask::TokenCreate { class: device_class(&class)?, ttl_s: ttl };
    let (_, released) = access.ask(ask, SecretValue::empty()).await?;
    token_out(output, &released.answer, &released.body)
}

fn device_class(text: &str) -> Result<DeviceClass, Fault> {
    DeviceClass::parse(text).map_err(|error| {
        Fault::usage(format!("`{text}` is no device class")).cause(error.to_string())
    })
}

pub async fn operator(
    action: OperatorAction,
    access: &Access,
    output: &Output,
) -> Result<(), Fault> {
    match action {
        OperatorAction::Add { name } => {
            let (_, released) = access.ask(Ask::OperatorAdd { name }, SecretValue::empty()).await?;
            token_out(output, &released.answer, &released.body)
        }
        OperatorAction::Remove { name } => {
            let said = format!("operator {name} has ended; live connections are closed");
            done(access, Ask::OperatorRemove { name }, &said, output).await
        }
    }
}

async fn done(access: &Access, ask: Ask, said: &str, output: &Output) -> Result<(), Fault> {
    let asking = access.connect().await?;
    done_on(&asking, ask, said, output).await
}

async fn done_on(asking: &Asking, ask: Ask, said: &str, output: &Output) -> Result<(), Fault> {
    let (request, released) = asking.ask(ask, SecretValue::empty()).await?;
    let Answer::Done { revision } = released.answer else {
        return Err(unexpected(&released));
    };
    output.result(said, &json!({ "revision": revision, "request": request }));
    Ok(())
}

/// The one device whose id begins so.
async fn device_named(asking: &Asking, id: &str) -> Result<DeviceSummary, Fault> {
    let mut fitting: Vec<_> =
        devices(asking).await?.into_iter().filter(|d| d.id.to_string().starts_with(id)).collect();
    match (fitting.pop(), fitting.is_empty()) {
        (Some(device), true) if !id.is_empty() => Ok(device),
        (Some(_), _) => {
            Err(Fault::usage(format!("`{id}` fits several devices")).hint("give more of it"))
        }
        (None, _) => Err(Fault::failed(format!("no device begins with `{id}`"))
            .hint("`doorward device list` shows all")),
    }
}

pub async fn device(action: DeviceAction, access: &Access, output: &Output) -> Result<(), Fault> {
    let asking = access.connect().await?;
    match action {
        DeviceAction::List => {
            let mut rows = Vec::new();
            for device in devices(&asking).await? {
                if output.is_json() {
                    output.text(&serde_json::to_string(&device).unwrap_or_default());
                    continue;
                }
                let age = device.evidence_age_ms.map_or("never".to_owned(), |ms| {
                    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
                });
                let state = if device.revoked { "revoked" } else { "enrolled" };
                rows.push(vec![
                    device.id.short(),
                    device.class.to_string(),
                    device.name,
                    state.to_owned(),
                    device.posture,
                    age,
                ]);
            }
            if !rows.is_empty() {
                output.text(&printable(&table(&rows)));
            }
            Ok(())
        }
        DeviceAction::Show { id } => {
            let device = device_named(&asking, &id).await?;
            let ask = Ask::DeviceShow { class: device.class, id: device.id };
            let (_, released) = asking.ask(ask, SecretValue::empty()).await?;
            let Answer::Devices { items, .. } = &released.answer else {
                return Err(unexpected(&released));
            };
            for device in items {
                let value = serde_json::to_value(device).unwrap_or_default();
                output.result(&serde_json::to_string_pretty(&value).unwrap_or_default(), &value);
            }
            Ok(())
        }
        DeviceAction::Revoke { id } => {
            let device = device_named(&asking, &id).await?;
            let said = format!(
                "device {} ({}) has ended: every identity issued to it is dead, its connections closed",
                device.id.short(),
                device.name
            );
            let ask = Ask::DeviceRevoke { class: device.class, id: device.id };
            done_on(&asking, ask, &said, output).await
        }
    }
}

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
        Fault::usage(format!("`{text}` is no selector"))
            .hint("`uid:N`, `gid:N`, `path:/…`, `exe_sha256:…` or `unit:x.service`")
    };
    let (kind, value) = text.split_once(':').ok_or_else(fault)?;
    match kind {
        "uid" => value.parse().map(Selector::Uid).map_err(|_| fault()),
        "gid" => value.parse().map(Selector::Gid).map_err(|_| fault()),
        "path" => Ok(Selector::Path(value.to_owned())),
        "exe_sha256" => Digest::parse(value).map(Selector::ExeSha256).map_err(|_| fault()),
        "unit" => Ok(Selector::Unit(value.to_owned())),
        _ => Err(fault()),
    }
}

pub async fn entry(action: EntryAction, access: &Access, output: &Output) -> Result<(), Fault> {
    let asking = access.connect().await?;
    match action {
        EntryAction::Create { id, class, device, selector: selectors, ttl, default } => {
            let draft = EntryDraft {
                spiffe_id: spiffe_id(&id, &asking.credentials.domain)?,
                class: device_class(&class)?,
                device: match device {
                    Some(id) => Some(device_named(&asking, &id).await?.id),
                    None => None::<DeviceId>,
                },
                selectors: selectors.iter().map(|s| selector(s)).collect::<Result<_, _>>()?,
                ttl_s: ttl,
                default,
            };
            draft
                .check()
                .map_err(|error| Fault::usage("the entry is refused").cause(error.to_string()))?;
            let ask = Ask::EntryCreate { entry: draft };
            let (_, released) = asking.ask(ask, SecretValue::empty()).await?;
            let Answer::Entries { items, .. } = &released.answer else {
                return Err(unexpected(&released));
            };
            show_entries(items, output);
            Ok(())
        }
        EntryAction::List => {
            show_entries(&entries(&asking).await?, output);
            Ok(())
        }
        EntryAction::Delete { id } => {
            let found = entries(&asking).await?.into_iter().find(|e| e.id.to_string() == id);
            let entry = found.ok_or_else(|| {
                Fault::failed(format!("there is no entry `{id}`"))
                    .hint("`doorward entry list` shows all")
            })?;
            let said = format!("entry {id} has ended, and every identity that it gave");
            let ask = Ask::EntryDelete { spiffe_id: entry.draft.spiffe_id, id: entry.id };
            done_on(&asking, ask, &said, output).await
        }
        EntryAction::Explain { pid } => {
            let facts = app::attest_pid(pid).map_err(|error| Fault::of(&error))?;
            explain_entry(&entries(&asking).await?, &facts, output);
            Ok(())
        }
    }
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

/// Which entries fit; for each other one what is missing, nearest first.
fn explain_entry(entries: &[Entry], facts: &crate::model::WorkloadFacts, output: &Output) {
    let mut all: Vec<(EntryId, &SpiffeId, Vec<String>)> = entries
        .iter()
        .map(|entry| {
            let missing = entry.missing(facts).iter().map(ToString::to_string).collect();
            (entry.id, &entry.draft.spiffe_id, missing)
        })
        .collect();
    all.sort_by_key(|(_, _, missing)| missing.len());
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
    for (id, spiffe_id, missing) in &all {
        let line = match missing.is_empty() {
            true => format!("fits     {spiffe_id}  (entry {id})\n"),
            false => format!("does not {spiffe_id}  (entry {id}) lacks {}\n", missing.join(", ")),
        };
        text.push_str(&line);
    }
    if all.is_empty() {
        text.push_str("there are no entries: make one with `doorward entry create`\n");
    }
    let items: Vec<_> = all
        .iter()
        .map(|(id, spiffe_id, missing)| {
            json!({ "entry": id, "spiffe_id": spiffe_id, "missing": missing })
        })
        .collect();
    output.result(text.trim_end(), &json!({ "facts": facts, "entries": items }));
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
