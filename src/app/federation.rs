//! Fetches the bundles of federated trust domains: each when its own domain wishes, a few at once, none
//! for longer than ten seconds.
//!
//! Whatever an endpoint does, nothing but a whole, newer document of that very domain goes any
//! further, and that goes through the line. Everything else is a fault that is told once: the last
//! good bundle stays in force, and its age is shown. An endpoint has proven itself before the first
//! byte of a request is sent to it.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::supervise::Supervisor;
use crate::authority::DueFetch;
use crate::broker::{Line, Ready};
use crate::decision_log::Note;
use crate::identity::Task;
use crate::model::limits::{
    BUNDLE_ADDRESSES_MAX, BUNDLE_DOCUMENT_MAX, BUNDLE_FETCH_TIMEOUT, BUNDLE_FETCHES, WEB_ROOTS_MAX,
};
use crate::model::{Ask, EndpointProfile, EndpointUrl, FederationStep, SecretValue};
use crate::wire::{HttpGetError, HttpResponse, HttpsClient, HttpsError, TlsStream, web_roots};

/// How often it is looked at what is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Bytes of a fault that are kept.
const FAULT_MAX: usize = 300;

/// Why a fetch gave nothing.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the endpoint's host is not found: {0}")]
    Name(io::Error),
    #[error(
        "the endpoint's host has no address that may be asked (link-local and multicast may not)"
    )]
    Address,
    #[error("the endpoint can't be reached: {0}")]
    Connect(io::Error),
    #[error("the endpoint did not prove itself: {0}")]
    Handshake(io::Error),
    #[error("the connection to the endpoint broke: {0}")]
    Broke(io::Error),
    #[error(transparent)]
    Answer(#[from] HttpGetError),
    #[error(transparent)]
    Https(#[from] HttpsError),
    #[error("the roots of the web can't be read from `{0}`: {1}")]
    WebRoots(PathBuf, io::Error),
    #[error("nothing whole came within {} s", BUNDLE_FETCH_TIMEOUT.as_secs())]
    Late,
}

/// Goes on until `stop`. `roots` is the PEM file by which endpoints with certificates of the web are
/// judged; it is read anew for each fetch.
pub(super) async fn run(
    line: Arc<Line>,
    roots: PathBuf,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Infallible> {
    let mut running = FuturesUnordered::new();
    let (line, roots) = (&*line, roots.as_path());
    loop {
        tokio::select! {
            Some(()) = running.next(), if !running.is_empty() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        let parts = line.parts();
        let now = parts.clock.now();
        let (domains, oldest) = parts.authority.federation_figures(now);
        parts.metrics.federated(domains, oldest);
        let room = BUNDLE_FETCHES.saturating_sub(running.len());
        for due in parts.authority.due_fetches(room, now) {
            let fetching = AssertUnwindSafe(one(line, roots, due.clone(), stop.clone()));
            running.push(async move {
                // A fault of ours in reading one domain's bytes must not take the broker with it.
                if fetching.catch_unwind().await.is_err() {
                    let fault = Some("its answer could not be read".to_owned());
                    tracing::error!(domain = %due.trust_domain, "a fetch ended in a panic");
                    parts.authority.fetch_ended(&due, fault, 128, parts.clock.now());
                }
            });
        }
    }
    // What has been fetched is put in force to its end; what has not is let go.
    while running.next().await.is_some() {}
    Ok(())
}

/// One fetch, from its beginning to what is said of it.
async fn one(line: &Line, roots: &Path, due: DueFetch, mut stop: watch::Receiver<bool>) {
    let parts = line.parts();
    let fetched = tokio::select! {
        fetched = timeout(BUNDLE_FETCH_TIMEOUT, fetch(line, roots, &due)) => fetched,
        () = stopped(&mut stop) => return,
    };
    let fetched = match fetched {
        Ok(fetched) => fetched,
        Err(_) => Err(FetchError::Late),
    };
    let outcome = match fetched {
        Ok(body) => take(line, &due, body).await,
        Err(error) => Err(error.to_string()),
    };
    let fault = outcome.err().map(|fault| fault.chars().take(FAULT_MAX).collect::<String>());
    if fault.is_some() {
        parts.metrics.federation_fetches_failed.inc();
    }
    let mut chance = [128];
    let _ = aws_lc_rs::rand::fill(&mut chance);
    let [chance] = chance;
    let now = parts.clock.now();
    if !parts.authority.fetch_ended(&due, fault.clone(), chance, now) {
        return;
    }
    let fault = fault.unwrap_or_default();
    tracing::warn!(domain = %due.trust_domain, fault, "no new bundle; the last good one stays");
    let detail = format!("no new bundle of {}: {fault}; the last good one stays", due.trust_domain);
    let _ = parts.log.note(Note::Alarm { what: "federation", detail }).await;
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Puts in force what was fetched, if it is another one or long confirmed.
async fn take(line: &Line, due: &DueFetch, body: Vec<u8>) -> Result<(), String> {
    let (authority, now) = (&line.parts().authority, line.parts().clock.now());
    if !authority.weigh_fetched(due, &body, now).map_err(|error| error.to_string())? {
        return Ok(());
    }
    let (trust_domain, relationship) = (due.trust_domain.clone(), due.relationship);
    let step = FederationStep::Take { trust_domain, relationship };
    let peer = Supervisor::broker_peer(Task::Federation);
    let mut body = Ready(Some(SecretValue::new(body)));
    let asked = line.answer(&peer, None, None, Arc::new(Ask::Federation(step)), &mut body).await;
    let why = |refusal: crate::model::Refusal| match &refusal.hint {
        Some(hint) => format!("{refusal}: {hint}"),
        None => refusal.to_string(),
    };
    asked.1.map(|_| ()).map_err(why)
}

async fn fetch(line: &Line, roots: &Path, due: &DueFetch) -> Result<Vec<u8>, FetchError> {
    let (parts, url) = (line.parts(), &due.endpoint.url);
    let clock = Arc::clone(&parts.clock);
    let client = match &due.endpoint.profile {
        EndpointProfile::HttpsSpiffe { endpoint_id } => {
            HttpsClient::spiffe(Arc::clone(&parts.identity), endpoint_id.clone(), clock)?
        }
        EndpointProfile::HttpsWeb {} => HttpsClient::web(web_roots(&read_roots(roots)?)?, clock)?,
    };
    let tcp = connect(url).await?;
    let tls = client.begin(url.host())?;
    let mut stream = TlsStream::shake(tcp, tls).await.map_err(FetchError::Handshake)?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\nConnection: close\r\n\
         User-Agent: doorward\r\n\r\n",
        url.target(),
        url.host_header()
    );
    stream.write_all(request.as_bytes()).await.map_err(FetchError::Broke)?;
    let mut response = HttpResponse::new(BUNDLE_DOCUMENT_MAX);
    loop {
        let came = stream.read().await.map_err(FetchError::Broke)?;
        if let Some(body) = response.take(&came, came.is_empty())? {
            return Ok(body);
        }
    }
}

fn read_roots(path: &Path) -> Result<Vec<u8>, FetchError> {
    let fault = |error| FetchError::WebRoots(path.to_owned(), error);
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(fault)?;
    let most = u64::try_from(WEB_ROOTS_MAX).unwrap_or(u64::MAX);
    io::Read::read_to_end(&mut io::Read::take(file, most), &mut pem).map_err(fault)?;
    Ok(pem)
}

/// The first address that answers. What was looked up is what is connected to.
async fn connect(url: &EndpointUrl) -> Result<TcpStream, FetchError> {
    let found =
        tokio::net::lookup_host((url.host(), url.port())).await.map_err(FetchError::Name)?;
    let may = found.filter(|address| may_be_asked(address.ip()));
    let mut last = FetchError::Address;
    for address in may.take(BUNDLE_ADDRESSES_MAX).collect::<Vec<SocketAddr>>() {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = FetchError::Connect(error),
        }
    }
    Err(last)
}

/// Link-local addresses are where clouds keep what a machine may tell of itself; nobody federates
/// from there, nor from multicast addresses. Private ones may well be a partner's.
fn may_be_asked(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast())
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => may_be_asked(IpAddr::V4(v4)),
            None => !(v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_machine_itself_and_of_everybody_are_not_asked() {
        for good in ["192.0.2.1", "10.0.0.1", "127.0.0.1", "::1", "2001:db8::1", "fd00::1"] {
            assert!(may_be_asked(good.parse().unwrap()), "{good}");
        }
        for bad in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!may_be_asked(bad.parse().unwrap()), "{bad}");
        }
    }
}
