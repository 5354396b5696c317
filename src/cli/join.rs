//! `doorward agent join`: with a join token, or by what the machine has already.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::json;

use super::block_on;
use super::fault::Fault;
use super::output::Output;
use super::serve::{as_text, clock, enrol_fault, token};
use crate::app::{self, BrokerPlace, Proof, TpmPlace};
use crate::model::{Digest, TrustDomain};

/// The port of a broker that was set up without saying another.
const BROKER_PORT: u16 = 8443;
/// Where the manifests put a pod's token.
const POD_TOKEN: &str = "/var/run/secrets/tokens/doorward";

/// `doorward agent join`
#[derive(Debug, ClapArgs)]
pub struct JoinOptions {
    /// The single-use token; `-` reads it from standard input
    #[arg(required_unless_present_any = ["x509", "kubernetes_token", "tpm"])]
    token: Option<String>,
    /// Enrol by a device certificate: the PEM file with it and its intermediates
    #[arg(
        long, value_name = "FILE", requires_all = ["key", "address"],
        conflicts_with_all = ["token", "kubernetes_token"]
    )]
    x509: Option<PathBuf>,
    /// The certificate's private key, PKCS#8 PEM, 0600; it signs once and goes nowhere
    #[arg(long, value_name = "FILE", requires = "x509")]
    key: Option<PathBuf>,
    /// Enrol by the projected service account token of a Kubernetes pod
    #[arg(
        long, value_name = "FILE", num_args = 0..=1, default_missing_value = POD_TOKEN,
        requires = "address", conflicts_with = "token"
    )]
    kubernetes_token: Option<PathBuf>,
    /// Enrol by the machine's TPM, which then holds the device key: /dev/tpmrm0, unix:/PATH or
    /// tcp:HOST:PORT
    #[arg(
        long, value_name = "TPM", requires = "address",
        conflicts_with_all = ["token", "x509", "kubernetes_token"]
    )]
    tpm: Option<TpmPlace>,
    /// Without a token: the broker's enrolment port
    #[arg(
        long, value_name = "HOST:PORT", requires_all = ["trust_domain", "roots"],
        conflicts_with = "token"
    )]
    address: Option<String>,
    /// Without a token: the broker's own port; by default 8443 of the same host
    #[arg(long, value_name = "HOST:PORT", requires = "address")]
    broker: Option<String>,
    /// Without a token: the trust domain to join
    #[arg(long, value_name = "NAME", requires = "address")]
    trust_domain: Option<String>,
    /// Without a token: SHA-256 of the broker's root certificate: an `id` of `ca show --json`
    #[arg(long, value_name = "HEX", group = "roots", requires = "address")]
    root_digest: Option<String>,
    /// Without a token: the broker's root certificate, PEM, in place of its digest
    #[arg(long, value_name = "FILE", group = "roots", requires = "address")]
    root: Option<PathBuf>,
    /// The socket that workloads will ask
    #[arg(long, value_name = "SOCKET", default_value = "/run/doorward/agent.sock")]
    listen: PathBuf,
    /// A word for people; without it the host's name
    #[arg(long)]
    name: Option<String>,
    /// Also in place of another identity that still counts; that one is gone then
    #[arg(long)]
    replace: bool,
}

pub(super) fn join(dir: &Path, options: JoinOptions, output: &Output) -> Result<(), Fault> {
    let name = options.name.clone().unwrap_or_else(app::host_name);
    let (listen, replace) = (&options.listen, options.replace);
    let settings = match (&options.token, proof(&options)) {
        (Some(text), _) => {
            let token = token(text)?;
            block_on(async {
                let join = app::join(as_text(&token)?, dir, listen, &name, replace, clock());
                join.await.map_err(|error| enrol_fault(error, "the token"))
            })?
        }
        (None, Some((proof, what))) => {
            let place = place(&options)?;
            let runtime = app::runtime_beside_tpm()
                .map_err(|error| Fault::failed("no runtime").cause(error.to_string()))?;
            runtime.block_on(async {
                let join = app::join_by(place, &proof, dir, listen, (&name, replace), clock());
                join.await.map_err(|error| enrol_fault(error, what))
            })?
        }
        (None, None) => return Err(Fault::usage("there is nothing to join with")),
    };
    output.result(
        &format!(
            "joined {} as `{name}`\nstart it:  doorward agent --dir {}",
            settings.domain,
            dir.display()
        ),
        &json!({ "dir": dir, "trust_domain": settings.domain, "name": name }),
    );
    Ok(())
}

/// What the machine shows, and a word for it.
fn proof(options: &JoinOptions) -> Option<(Proof, &'static str)> {
    if let Some(place) = &options.tpm {
        return Some((Proof::Tpm(place.clone()), "the tpm"));
    }
    match (&options.x509, &options.key, &options.kubernetes_token) {
        (Some(certificate), Some(key), _) => {
            let (certificate, key) = (certificate.clone(), key.clone());
            Some((Proof::X509 { certificate, key }, "the certificate"))
        }
        (_, _, Some(token)) => Some((Proof::Kubernetes(token.clone()), "the pod's token")),
        _ => None,
    }
}

/// The broker, as the options name it.
fn place(options: &JoinOptions) -> Result<BrokerPlace, Fault> {
    let enrolment = options.address.clone().unwrap_or_default();
    let broker = match &options.broker {
        Some(broker) => broker.clone(),
        None => beside(&enrolment)
            .ok_or_else(|| Fault::usage(format!("`--address {enrolment}` is not `host:port`")))?,
    };
    let text = options.trust_domain.as_deref().unwrap_or_default();
    let domain = TrustDomain::parse(text).map_err(|error| {
        Fault::usage(format!("`{text}` is not a trust domain")).cause(error.to_string())
    })?;
    let root = match (&options.root_digest, &options.root) {
        (Some(text), _) => Digest::parse(text)
            .map_err(|error| Fault::usage("`--root-digest` is not one").cause(error.to_string()))?,
        (None, Some(path)) => app::root_of(path).map_err(|error| Fault::of(&error))?,
        (None, None) => return Err(Fault::usage("the broker's root is not named")),
    };
    Ok(BrokerPlace { enrolment, broker, domain, root })
}

/// The broker's usual port on the host of an address.
fn beside(address: &str) -> Option<String> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => None, // it stands in brackets
        _ if host.is_empty() => None,
        _ => {
            let inner = host.strip_prefix('[').map(|rest| rest.strip_suffix(']'));
            match inner {
                None => Some(format!("{host}:{BROKER_PORT}")),
                Some(Some(inner)) if inner.parse::<Ipv6Addr>().is_ok() => {
                    Some(format!("{host}:{BROKER_PORT}"))
                }
                Some(_) => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_is_looked_for_on_the_host_of_its_enrolment_port() {
        for (address, want) in [
            ("broker.corp.example:8444", Some("broker.corp.example:8443")),
            ("10.0.0.1:1", Some("10.0.0.1:8443")),
            ("[2001:db8::1]:8444", Some("[2001:db8::1]:8443")),
            ("2001:db8::1:8444", None),
            ("[2001:db8::1:8444", None),
            ("[x]:8444", None),
            (":8444", None),
            ("host", None),
            ("host:port", None),
        ] {
            assert_eq!(beside(address).as_deref(), want, "{address}");
        }
    }
}
