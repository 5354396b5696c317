//! Bundles of other trust domains, for the workloads whose entries name them.
//!
//! What the broker tells is one map of whole bundles, each under its own domain's name; it replaces
//! the one before. The agent itself trusts none of them: it only passes them on. Without a broker,
//! the last ones stay.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::uplink::{ATTEMPT_MAX, LOOK, Uplink, UplinkError};
use super::workloads::Workloads;
use crate::identity::BundleDocument;
use crate::model::{Answer, Ask, Entry, FederationStep, SecretValue, TrustDomain};
use crate::wire::Client;

/// The roots of each federated domain that some entry of this device names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Federated(BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>);

impl Federated {
    /// Out of the broker's map; `None` for other bytes.
    fn told(body: &[u8]) -> Option<Self> {
        let map = BundleDocument::parse_map(body).ok()?;
        let roots = |it: BundleDocument| it.x509_roots().to_vec();
        Some(Self(map.into_iter().map(|(domain, it)| (domain, roots(it))).collect()))
    }

    /// What a process with these entries is told: roots, one behind the other, by `spiffe://<domain>`.
    pub(super) fn of(&self, entries: &[Entry]) -> HashMap<String, Vec<u8>> {
        let named = entries.iter().flat_map(|entry| &entry.draft.federates_with);
        let told = named.filter_map(|domain| {
            // A domain that trusts nobody any more is not told of: so it is taken back.
            let roots = self.0.get(domain).filter(|roots| !roots.is_empty())?;
            let der = roots.iter().flat_map(|root| root.as_ref().iter().copied()).collect();
            Some((format!("spiffe://{domain}"), der))
        });
        told.collect()
    }
}

impl Uplink {
    /// Takes the bundles over whenever the broker says that there are others, or other entries.
    pub(super) async fn keep_federated(&self, client: &Client) -> Infallible {
        let mut told = self.shared.duties_told();
        let mut held = None;
        loop {
            let (news, named) = {
                let duties = told.borrow_and_update();
                let named = duties.entries.iter().any(|it| !it.draft.federates_with.is_empty());
                ((duties.revision, duties.federated), named)
            };
            if !named {
                // A broker from before federation is never asked.
                self.shared.federated(Federated::default());
                held = None;
            } else if held != Some(news) {
                match ask_federated(client).await {
                    Ok(federated) => {
                        self.shared.federated(federated);
                        held = Some(news);
                    }
                    Err(why) => {
                        tracing::warn!(error = %why, "federated bundles could not be asked for");
                        self.shared.failed(why.to_string());
                    }
                }
            }
            let _ = tokio::time::timeout(LOOK, told.changed()).await;
        }
    }
}

impl Workloads {
    /// The bundles of other trust domains, and each time that they change.
    pub(super) fn federated(&self) -> FederatedTold {
        self.shared.federated_told()
    }
}

async fn ask_federated(client: &Client) -> Result<Federated, UplinkError> {
    let asking = client.ask(Ask::Federation(FederationStep::Duties {}), SecretValue::empty());
    let answered = tokio::time::timeout(ATTEMPT_MAX, asking).await;
    let (_, released) = answered.map_err(|_| UplinkError::Late)??;
    let told = match &released.answer {
        Answer::File { .. } => Federated::told(released.body.expose()),
        _ => None,
    };
    told.ok_or(UplinkError::Answer("a map of bundles"))
}

/// As the streams of the Workload API hear of it.
pub(super) type FederatedTold = tokio::sync::watch::Receiver<Arc<Federated>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DeviceClass, EntryDraft, EntryId, Selector, SpiffeId};

    #[test]
    fn a_process_is_told_of_the_domains_that_its_entries_name_and_of_no_other() {
        let domain = |name: &str| TrustDomain::parse(name).unwrap();
        let root = |n: u8| CertificateDer::from(vec![n]);
        let held = Federated(BTreeMap::from([
            (domain("b.example"), vec![root(1), root(2)]),
            (domain("c.example"), vec![root(3)]),
            (domain("e.example"), Vec::new()),
        ]));
        let entry = |names: &[&str]| Entry {
            id: EntryId::random(),
            draft: EntryDraft {
                spiffe_id: SpiffeId::parse("spiffe://corp.example/api").unwrap(),
                class: DeviceClass::parse("server").unwrap(),
                device: None,
                selectors: vec![Selector::Uid(1)],
                ttl_s: None,
                default: false,
                federates_with: names.iter().map(|name| domain(name)).collect(),
            },
            epoch: 1,
            created: String::new(),
        };
        assert!(held.of(&[entry(&[])]).is_empty());
        let told = held.of(&[entry(&["b.example"]), entry(&["d.example", "e.example"])]);
        assert_eq!(told, [("spiffe://b.example".to_owned(), vec![1, 2])].into());
        assert!(Federated::told(b"{}").is_none() && Federated::told(b"").is_none());
        assert_eq!(Federated::told(b"{\"trust_domains\":{}}"), Some(Federated::default()));
    }
}
