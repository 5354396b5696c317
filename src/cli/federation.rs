//! Federation: whose identities of other trust domains are known here, and by which bundle.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::json;

use super::access::{Access, Asking};
use super::fault::Fault;
use super::output::{Output, printable, table};
use super::secrets::unexpected;
use crate::model::limits::{BUNDLE_DOCUMENT_MAX, BUNDLE_FETCH_TIMEOUT};
use crate::model::{
    Answer, Ask, Endpoint, EndpointProfile, EndpointUrl, FederatedDomain, FederationStep, Released,
    SecretValue, SpiffeId, TrustDomain,
};

/// Between two looks while a fetch is waited for.
const LOOK: Duration = Duration::from_millis(200);

/// `doorward federation …`
#[derive(Debug, Subcommand)]
pub enum FederationAction {
    /// Know another trust domain's identities by its own bundle
    Add {
        /// The trust domain
        #[arg(value_name = "TRUST-DOMAIN")]
        trust_domain: String,
        /// Fetch its bundle here; without it, `--bundle` brings it and `set-bundle` renews it
        #[arg(long, value_name = "URL", requires = "profile")]
        url: Option<String>,
        /// How the endpoint proves itself: a certificate of the web, or an SVID
        #[arg(long, value_name = "PROFILE", requires = "url", value_parser = ["https_web", "https_spiffe"])]
        profile: Option<String>,
        /// The SPIFFE ID of the endpoint, for `https_spiffe`
        #[arg(long, value_name = "SPIFFE-ID", requires = "url")]
        endpoint_id: Option<String>,
        /// The bundle to begin with; `-` is standard input
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
    },
    /// Print the bundle document of a trust domain; without a name, our own
    Bundle {
        /// The trust domain
        #[arg(value_name = "TRUST-DOMAIN")]
        trust_domain: Option<String>,
    },
    /// List the relationships, with the age of each bundle
    List,
    /// Fetch a bundle now, and say what came of it
    Refresh {
        /// The trust domain
        #[arg(value_name = "TRUST-DOMAIN")]
        trust_domain: String,
    },
    /// End a relationship: nobody of that trust domain is known any more
    Remove {
        /// The trust domain
        #[arg(value_name = "TRUST-DOMAIN")]
        trust_domain: String,
    },
    /// Put a bundle in force by hand
    SetBundle {
        /// The trust domain
        #[arg(value_name = "TRUST-DOMAIN")]
        trust_domain: String,
        /// The bundle document; `-` is standard input
        file: PathBuf,
        /// Also if its sequence number goes back
        #[arg(long)]
        force: bool,
    },
    /// Show one relationship
    Show {
        /// The trust domain
        #[arg(value_name = "TRUST-DOMAIN")]
        trust_domain: String,
    },
}

pub async fn federation(
    action: FederationAction,
    access: &Access,
    output: &Output,
) -> Result<(), Fault> {
    match action {
        FederationAction::Add { trust_domain, url, profile, endpoint_id, bundle } => {
            let endpoint = endpoint(url.as_deref(), profile.as_deref(), endpoint_id.as_deref())?;
            let trust_domain = domain(&trust_domain)?;
            let body = bundle.as_deref().map(read).transpose()?;
            let asking = access.connect().await?;
            let step = FederationStep::Add { trust_domain, endpoint };
            let made = one(asked(&asking, step, body).await?)?;
            show(&[made], output);
            Ok(())
        }
        FederationAction::Bundle { trust_domain } => {
            let named = trust_domain.as_deref().map(domain).transpose()?;
            let asking = access.connect().await?;
            let trust_domain = named.unwrap_or_else(|| asking.credentials.domain.clone());
            let released = asked(&asking, FederationStep::Bundle { trust_domain }, None).await?;
            output.text(&String::from_utf8_lossy(released.body.expose()));
            Ok(())
        }
        FederationAction::List => {
            show(&list(&access.connect().await?).await?, output);
            Ok(())
        }
        FederationAction::Refresh { trust_domain } => refresh(&trust_domain, access, output).await,
        FederationAction::Remove { trust_domain } => {
            let asking = access.connect().await?;
            let held = named(&asking, &trust_domain).await?;
            let (trust_domain, id) = (held.trust_domain, held.id);
            let text = format!("nobody of {trust_domain} is known any more");
            let value = json!({ "removed": trust_domain });
            asked(&asking, FederationStep::Remove { trust_domain, id }, None).await?;
            output.result(&text, &value);
            Ok(())
        }
        FederationAction::SetBundle { trust_domain, file, force } => {
            let (trust_domain, body) = (domain(&trust_domain)?, read(&file)?);
            let asking = access.connect().await?;
            let step = FederationStep::SetBundle { trust_domain, force };
            let held = one(asked(&asking, step, Some(body)).await?)?;
            show(&[held], output);
            Ok(())
        }
        FederationAction::Show { trust_domain } => {
            let held = named(&access.connect().await?, &trust_domain).await?;
            show(&[held], output);
            Ok(())
        }
    }
}

fn endpoint(
    url: Option<&str>,
    profile: Option<&str>,
    id: Option<&str>,
) -> Result<Option<Endpoint>, Fault> {
    let Some(url) = url else { return Ok(None) };
    let url = EndpointUrl::parse(url).map_err(|error| {
        Fault::usage(format!("`{url}` is no address of an endpoint")).cause(error.to_string())
    })?;
    let profile = match (profile, id) {
        (Some("https_web"), None) => EndpointProfile::HttpsWeb {},
        (Some("https_spiffe"), Some(id)) => {
            let endpoint_id = SpiffeId::parse(id).map_err(|error| {
                Fault::usage(format!("`{id}` is not a SPIFFE ID")).cause(error.to_string())
            })?;
            EndpointProfile::HttpsSpiffe { endpoint_id }
        }
        (Some("https_spiffe"), None) => {
            return Err(Fault::usage("`https_spiffe` needs `--endpoint-id`")
                .hint("it is told apart from the trust domain and the address, never guessed"));
        }
        _ => return Err(Fault::usage("`--endpoint-id` goes with `--profile https_spiffe`")),
    };
    Ok(Some(Endpoint { url, profile }))
}

fn domain(text: &str) -> Result<TrustDomain, Fault> {
    TrustDomain::parse(text).map_err(|error| {
        Fault::usage(format!("`{text}` is not a trust domain")).cause(error.to_string())
    })
}

fn read(file: &Path) -> Result<SecretValue, Fault> {
    use std::io::Read as _;
    let fault = |error: std::io::Error| {
        Fault::failed(format!("can't read `{}`", file.display())).cause(error.to_string())
    };
    let most = u64::try_from(BUNDLE_DOCUMENT_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().lock().take(most.saturating_add(1)).read_to_end(&mut bytes),
        false => std::fs::File::open(file)
            .and_then(|open| open.take(most.saturating_add(1)).read_to_end(&mut bytes)),
    };
    read.map_err(fault)?;
    match bytes.len() > BUNDLE_DOCUMENT_MAX {
        true => Err(Fault::failed(format!("`{}` is too large for a bundle", file.display()))),
        false => Ok(SecretValue::new(bytes)),
    }
}

async fn asked(
    asking: &Asking,
    step: FederationStep,
    body: Option<SecretValue>,
) -> Result<Released, Fault> {
    let body = body.unwrap_or_else(SecretValue::empty);
    Ok(asking.ask(Ask::Federation(step), body).await?.1)
}

async fn list(asking: &Asking) -> Result<Vec<FederatedDomain>, Fault> {
    let released = asked(asking, FederationStep::List {}, None).await?;
    match released.answer {
        Answer::Federation { items } => Ok(items),
        _ => Err(unexpected(&released)),
    }
}

fn one(released: Released) -> Result<FederatedDomain, Fault> {
    match &released.answer {
        Answer::Federation { items } => items.first().cloned().ok_or_else(|| unexpected(&released)),
        _ => Err(unexpected(&released)),
    }
}

async fn named(asking: &Asking, name: &str) -> Result<FederatedDomain, Fault> {
    let domain = domain(name)?;
    let found = list(asking).await?.into_iter().find(|it| it.trust_domain == domain);
    found.ok_or_else(|| {
        Fault::failed(format!("there is no relationship with `{domain}`"))
            .hint("`doorward federation list` shows all")
    })
}

/// Asks for a fetch, and waits for its end.
async fn refresh(name: &str, access: &Access, output: &Output) -> Result<(), Fault> {
    let asking = access.connect().await?;
    let before = named(&asking, name).await?;
    let trust_domain = before.trust_domain.clone();
    asked(&asking, FederationStep::Refresh { trust_domain }, None).await?;
    let began = Instant::now();
    // One that was under way may end first, and the next waits for a moment.
    let most = BUNDLE_FETCH_TIMEOUT * 3;
    let held = loop {
        let held = named(&asking, name).await?;
        if held.attempts > before.attempts {
            break held;
        }
        if began.elapsed() > most {
            return Err(Fault::failed("the broker did not fetch the bundle in time")
                .hint("`doorward federation list` shows how it stands"));
        }
        tokio::time::sleep(LOOK).await;
    };
    if let Some(fault) = &held.fault {
        let age = held.age_s.map(|age| format!("; the last good bundle is {age} s old"));
        return Err(Fault::failed(format!("no new bundle of {}", held.trust_domain))
            .cause(format!("{fault}{}", age.unwrap_or_default())));
    }
    show(&[held], output);
    Ok(())
}

fn show(items: &[FederatedDomain], output: &Output) {
    let head = ["trust domain", "profile", "sequence", "roots", "age", "endpoint"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut below = String::new();
    for item in items {
        if output.is_json() {
            output.text(&json!(item).to_string());
            continue;
        }
        let endpoint = item.endpoint.as_ref();
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |it| it.to_string());
        let unused = match item.ignored {
            0 => String::new(),
            ignored => format!(" ({ignored} unusable)"),
        };
        rows.push(vec![
            item.trust_domain.to_string(),
            endpoint.map_or("-", |it| it.profile.as_str()).to_owned(),
            number(item.sequence),
            format!("{}{unused}", item.roots),
            item.age_s.map_or("no bundle yet".to_owned(), |age| format!("{age} s")),
            endpoint.map_or("-".to_owned(), |it| it.url.to_string()),
        ]);
        if let Some(fault) = &item.fault {
            below.push_str(&format!("\n{}: {fault}", item.trust_domain));
        }
    }
    if !output.is_json() {
        output.text(&printable(&format!("{}{below}", table(&rows))));
    }
}
