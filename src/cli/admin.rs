//! whoami, can-i, status, tokens, operators, devices.

use serde_json::json;

use super::access::{Access, Asking};
use super::args::{DeviceAction, OperatorAction, TokenAction};
use super::fault::Fault;
use super::listing::devices;
use super::output::{Output, printable, table};
use super::secrets::unexpected;
use crate::model::{
    Action, Answer, Ask, DeviceClass, DeviceId, DeviceSummary, PendingAgent, SecretValue,
    did_you_mean,
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

pub(super) fn device_class(text: &str) -> Result<DeviceClass, Fault> {
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

pub(super) async fn done_on(
    asking: &Asking,
    ask: Ask,
    said: &str,
    output: &Output,
) -> Result<(), Fault> {
    let (request, released) = asking.ask(ask, SecretValue::empty()).await?;
    match &released.answer {
        Answer::Done { revision } => {
            output.result(said, &json!({ "revision": revision, "request": request }));
        }
        Answer::Revoked { revision, pending, count } => output.result(
            &format!("{said}{}", printable(&waited_for(pending, *count))),
            &json!({
                "revision": revision, "request": request, "pending": pending,
                "pending_count": count,
            }),
        ),
        _ => return Err(unexpected(&released)),
    }
    Ok(())
}

/// The agents that have not confirmed a revocation, for people.
fn waited_for(pending: &[PendingAgent], count: u64) -> String {
    if count == 0 {
        return String::new();
    }
    let mut names: Vec<_> =
        pending.iter().map(|agent| format!("{} ({})", agent.device.short(), agent.name)).collect();
    if u64::try_from(names.len()).is_ok_and(|listed| listed < count) {
        names.push("…".to_owned());
    }
    format!(
        "\nnot confirmed yet by {count} agent{}: {}\nprocesses there keep what they were given until \
         it hears of it; here it is refused already",
        if count == 1 { "" } else { "s" },
        names.join(", ")
    )
}

/// The one device whose id begins so.
pub(super) async fn device_named(asking: &Asking, id: &str) -> Result<DeviceSummary, Fault> {
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

fn show_devices(items: Vec<DeviceSummary>, output: &Output) {
    let mut rows = Vec::new();
    for device in items {
        if output.is_json() {
            output.text(&serde_json::to_string(&device).unwrap_or_default());
            continue;
        }
        let age = device
            .evidence_age_ms
            .map_or("never".to_owned(), |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100));
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
}

pub async fn device(action: DeviceAction, access: &Access, output: &Output) -> Result<(), Fault> {
    let asking = access.connect().await?;
    match action {
        DeviceAction::List => {
            show_devices(devices(&asking).await?, output);
            Ok(())
        }
        DeviceAction::Facts { pid } => super::facts::facts(pid, output),
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
        DeviceAction::Exposure { id, since } => {
            let device = match DeviceId::parse(&id) {
                Ok(device) => device, // also one that is in no list any more
                Err(_) => device_named(&asking, &id).await?.id,
            };
            super::exposure::exposure(device, since.as_deref(), &asking, output).await
        }
        DeviceAction::Revoke { id, release } => {
            let device = device_named(&asking, &id).await?;
            let said = format!(
                "device {} ({}) has ended: every identity issued to it is dead, its connections closed",
                device.id.short(),
                device.name
            );
            let said = match release {
                true => format!("{said}\nwhat it was enrolled by may enrol another device now"),
                false => said,
            };
            let ask = Ask::DeviceRevoke { class: device.class, id: device.id, release };
            done_on(&asking, ask, &said, output).await
        }
    }
}
