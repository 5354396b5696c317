//! Bundles of other trust domains, for the workloads whose entries name them.
//!
//! What the broker tells is one map of whole bundles, each under its own domain's name; it replaces
//! the one before. The agent itself trusts none of them: it only passes them on. Without a broker,
//! the last ones stay.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;

use super::uplink::{ATTEMPT_MAX, LOOK, Uplink, UplinkError};
use super::workloads::Workloads;
use crate::identity::BundleDocument;
use crate::model::{Answer, Ask, Entry, FederationStep, SecretValue, TrustDomain};
use crate::wire::Client;

/// The bundle of each federated domain that some entry of this device names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Federated(BTreeMap<TrustDomain, Told>);

/// One bundle. It may be large and there may be many streams: they share it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    bundle: Arc<BundleDocument>,
    /// Its roots, one behind the other.
    roots: Arc<Vec<u8>>,
}

impl Federated {
    /// Out of the broker's map; `None` for other bytes. What is as before is shared with `former`.
    fn told(body: &[u8], former: &Self) -> Option<Self> {
        let map = BundleDocument::parse_map(body).ok()?;
        let one = |(domain, bundle): (TrustDomain, BundleDocument)| {
            let told = match former.0.get(&domain).filter(|held| *held.bundle == bundle) {
                Some(held) => held.clone(),
                None => Told::new(bundle),
            };
            (domain, told)
        };
        Some(Self(map.into_iter().map(one).collect()))
    }

    /// What a process with these entries is told: roots, one behind the other, by `spiffe://<domain>`.
    pub(super) fn of(&self, entries: &[Entry]) -> HashMap<String, Arc<Vec<u8>>> {
        // A domain that trusts nobody any more is not told of: so it is taken back.
        let with_roots = self.named(entries).filter(|(_, told)| !told.roots.is_empty());
        let one = |(domain, told): (&TrustDomain, &Told)| {
            (format!("spiffe://{domain}"), Arc::clone(&told.roots))
        };
        with_roots.map(one).collect()
    }

    /// The bundles by which such a process may check tokens of other domains.
    pub(super) fn keys_of(&self, entries: &[Entry]) -> HashMap<TrustDomain, Arc<BundleDocument>> {
        let with_keys = self.named(entries).filter(|(_, told)| !told.bundle.jwt_keys().is_empty());
        with_keys.map(|(domain, told)| (domain.clone(), Arc::clone(&told.bundle))).collect()
    }

    fn named<'f>(
        &'f self,
        entries: &'f [Entry],
    ) -> impl Iterator<Item = (&'f TrustDomain, &'f Told)> {
        let named = entries.iter().flat_map(|entry| &entry.draft.federates_with);
        named.filter_map(|domain| self.0.get_key_value(domain))
    }
}

impl Told {
    fn new(bundle: BundleDocument) -> Self {
        let roots = bundle.x509_roots().iter().flat_map(|root| root.as_ref().iter().copied());
        Self { roots: Arc::new(roots.collect()), bundle: Arc::new(bundle) }
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
                let former = self.shared.federated_told().borrow().clone();
                match ask_federated(client, &former).await {
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

async fn ask_federated(client: &Client, former: &Federated) -> Result<Federated, UplinkError> {
    let asking = client.ask(Ask::Federation(FederationStep::Duties {}), SecretValue::empty());
    let answered = tokio::time::timeout(ATTEMPT_MAX, asking).await;
    let (_, released) = answered.map_err(|_| UplinkError::Late)??;
    let told = match &released.answer {
        Answer::File { .. } => Federated::told(released.body.expose(), former),
        _ => None,
    };
    told.ok_or(UplinkError::Answer("a map of bundles"))
}

/// As the streams of the Workload API hear of it.
pub(super) type FederatedTold = tokio::sync::watch::Receiver<Arc<Federated>>;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::{DeviceClass, EntryDraft, EntryId, Selector, SpiffeId};

    #[test]
    fn a_process_is_told_of_the_domains_that_its_entries_name_and_of_no_other() {
        let domain = |name: &str| TrustDomain::parse(name).unwrap();
        let of = |name: &str, file: &str| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/svid/bundle");
            let text = std::fs::read(folder.join(file)).unwrap();
            let vector: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let document = vector["data"].as_str().unwrap().as_bytes();
            (domain(name), Told::new(BundleDocument::parse(domain(name), document).unwrap()))
        };
        let held = Federated(BTreeMap::from([
            of("b.example", "001-the-good-document.json"),
            of("c.example", "002-only-keys-for-x-509.json"),
            of("e.example", "004-no-keys.json"),
            of("f.example", "003-only-keys-for-tokens.json"),
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
                jwt_alg: Default::default(),
                federates_with: names.iter().map(|name| domain(name)).collect(),
                hint: None,
            },
            epoch: 1,
            created: String::new(),
        };
        let none = [entry(&[])];
        assert!(held.of(&none).is_empty() && held.keys_of(&none).is_empty());
        let names = |some: &[Entry]| {
            let (roots, keys) = (held.of(some), held.keys_of(some));
            let mut all: [Vec<String>; 2] =
                [roots.into_keys().collect(), keys.keys().map(ToString::to_string).collect()];
            all.iter_mut().for_each(|names| names.sort());
            all
        };
        let some = [entry(&["b.example"]), entry(&["d.example", "e.example", "f.example"])];
        assert_eq!(names(&some), [vec!["spiffe://b.example"], vec!["b.example", "f.example"]]);
        assert_eq!(names(&[entry(&["c.example"])]), [vec!["spiffe://c.example"], vec![]]);
        let roots = held.0[&domain("b.example")].bundle.x509_roots();
        let roots: Vec<u8> = roots.iter().flat_map(|root| root.to_vec()).collect();
        assert_eq!(*held.of(&some)["spiffe://b.example"], roots);
        let told = |body: &str| Federated::told(body.as_bytes(), &held);
        assert!(told("{}").is_none() && told("").is_none());
        assert_eq!(told(r#"{"trust_domains":{}}"#), Some(Federated::default()));
        let text = String::from_utf8(held.0[&domain("b.example")].bundle.to_json()).unwrap();
        let map = format!(r#"{{"trust_domains":{{"b.example":{text},"g.example":{text}}}}}"#);
        let again = told(&map).unwrap();
        let same = |name: &str, one: &Federated| {
            Arc::ptr_eq(&one.0[&domain(name)].roots, &held.0[&domain("b.example")].roots)
        };
        assert!(!same("g.example", &again));
        let once_more = Federated::told(map.as_bytes(), &again).unwrap();
        let kept = |name: &str| {
            Arc::ptr_eq(&once_more.0[&domain(name)].roots, &again.0[&domain(name)].roots)
        };
        assert!(kept("b.example") && kept("g.example"), "what is as before is not held twice");
    }
}
