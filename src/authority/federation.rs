//! The steps of a relationship with another trust domain, and what our own publishes.
//!
//! Nothing here opens a connection: the fetching is the work of a task, which brings what it got.

use std::collections::BTreeSet;

use super::federated::{FederationError, FederationRecord, Relationship, read, weigh};
use super::fetches::{age, every};
use super::mirror::{Mirror, Step};
use super::records::FORMAT;
use super::room::Authority;
use crate::identity::{BundleDocument, Caller, CallerKind, Task};
use crate::model::{
    Answer, Endpoint, EndpointProfile, Failure, FederatedDomain, FederationStep, Moment,
    RelationshipId, Released, SecretValue, Target, TrustDomain, rfc3339,
};

impl Authority {
    /// Whether the relationship that a step is about is there.
    pub(super) fn locate_federated(&self, step: &FederationStep) -> Target {
        let mirror = self.mirror();
        let is_there = match step {
            FederationStep::Add { .. } | FederationStep::Duties {} | FederationStep::List {} => {
                true
            }
            FederationStep::Bundle { trust_domain } if *trust_domain == self.domain => true,
            FederationStep::Remove { trust_domain, id } => {
                mirror.federated().of(trust_domain).is_some_and(|it| it.record.id == *id)
            }
            FederationStep::Take { trust_domain, relationship } => {
                mirror.federated().of(trust_domain).is_some_and(|it| it.record.id == *relationship)
            }
            FederationStep::Bundle { trust_domain }
            | FederationStep::Refresh { trust_domain }
            | FederationStep::SetBundle { trust_domain, .. } => {
                mirror.federated().of(trust_domain).is_some()
            }
        };
        if is_there { Target::Itself } else { Target::Absent }
    }

    /// One step.
    pub(super) async fn federation_step(
        &self,
        caller: &Caller,
        step: &FederationStep,
        body: &SecretValue,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        match step {
            FederationStep::Duties {} => self.federation_duties(caller),
            FederationStep::List {} => Ok(self.federation_list(now)),
            FederationStep::Bundle { trust_domain } => self.federation_bundle(trust_domain),
            FederationStep::Refresh { trust_domain } => {
                let mirror = self.mirror();
                let held = mirror.federated().of(trust_domain).ok_or_else(unknown)?;
                if held.record.endpoint.is_none() {
                    return Err(Failure::conflict(
                        "this relationship has no endpoint; bring its bundle with `set-bundle`",
                    ));
                }
                self.fetches.with(trust_domain, held.record.id, |it| it.wanted = true);
                self.federation_shown(trust_domain, now)
            }
            FederationStep::Add { trust_domain, endpoint } => {
                let planned = |mirror: &Mirror| {
                    self.added(mirror, trust_domain, endpoint.as_ref(), body.expose(), now)
                };
                self.change(under, |mirror| Ok((vec![planned(mirror)?], ()))).await?;
                self.federation_shown(trust_domain, now)
            }
            FederationStep::Remove { trust_domain, id } => {
                let gone = self.change_done(under, |mirror| {
                    let held = mirror.federated().of(trust_domain);
                    held.filter(|it| it.record.id == *id).ok_or_else(unknown)?;
                    Ok(vec![Step::Federation(trust_domain.clone(), None)])
                });
                let gone = gone.await?;
                self.fetches.all().remove(trust_domain);
                Ok(gone)
            }
            FederationStep::SetBundle { trust_domain, force } => {
                self.take_bundle(trust_domain, None, *force, (body.expose(), under), now).await
            }
            FederationStep::Take { trust_domain, relationship } => {
                if caller.kind() != CallerKind::Broker(Task::Federation) {
                    return Err(Failure::invalid("only the broker takes what it has fetched"));
                }
                let id = Some(*relationship);
                self.take_bundle(trust_domain, id, false, (body.expose(), under), now).await
            }
        }
    }

    /// A new relationship.
    fn added(
        &self,
        mirror: &Mirror,
        domain: &TrustDomain,
        endpoint: Option<&Endpoint>,
        body: &[u8],
        now: Moment,
    ) -> Result<Step, Failure> {
        if *domain == self.domain {
            return Err(Failure::invalid(
                "this is our own trust domain; nobody else speaks for it",
            ));
        }
        if mirror.federated().of(domain).is_some() {
            return Err(Failure::conflict(format!(
                "there is a relationship with {domain} already; `doorward federation remove` ends it"
            )));
        }
        let needs = match endpoint.map(|it| &it.profile) {
            None => Some("without an endpoint, the bundle must be brought"),
            Some(EndpointProfile::HttpsWeb {}) => None,
            Some(EndpointProfile::HttpsSpiffe { endpoint_id }) => {
                let known = endpoint_id.trust_domain();
                let is_known = *known == self.domain || mirror.federated().of(known).is_some();
                if endpoint_id.path().is_empty() || !(known == domain || is_known) {
                    return Err(Failure::invalid(
                        "the endpoint's id must be one of that domain, of ours, or of one that is \
                         federated with already",
                    ));
                }
                (known == domain).then_some(
                    "an endpoint that proves itself with an SVID of its own domain needs that \
                     domain's bundle to begin with",
                )
            }
        };
        let document = match (body.is_empty(), needs) {
            (true, Some(why)) => return Err(Failure::invalid(why)),
            (true, None) => None,
            (false, _) => Some(self.read_bundle(domain, body)?),
        };
        let bundle = document.as_ref().map(text_of).transpose()?;
        mirror.federated().check_room(domain, bundle.as_ref().map_or(0, String::len))?;
        let record = FederationRecord {
            v: FORMAT,
            id: RelationshipId::random(),
            trust_domain: domain.clone(),
            endpoint: endpoint.cloned(),
            added: now.unix_s(),
            fetched: bundle.is_some().then(|| now.unix_s()),
            bundle,
        };
        Ok(Step::Federation(domain.clone(), Some(record)))
    }

    /// Puts a bundle in force; with `only`, for this relationship and no other.
    async fn take_bundle(
        &self,
        domain: &TrustDomain,
        only: Option<RelationshipId>,
        force: bool,
        (body, under): (&[u8], Option<u64>),
        now: Moment,
    ) -> Result<Released, Failure> {
        let next = self.read_bundle(domain, body)?;
        let text = text_of(&next)?;
        let plan = |mirror: &Mirror| {
            let held = mirror.federated().of(domain);
            let held = held.filter(|it| only.is_none_or(|id| it.record.id == id));
            let held = held.ok_or_else(unknown)?;
            if !force {
                weigh(held.document.as_deref(), &next).map_err(refused)?;
            }
            mirror.federated().check_room(domain, text.len())?;
            let record = FederationRecord {
                bundle: Some(text.clone()),
                fetched: Some(now.unix_s()),
                ..(*held.record).clone()
            };
            Ok((vec![Step::Federation(domain.clone(), Some(record))], held.record.id))
        };
        let (_, id) = self.change(under, plan).await?;
        self.fetches.with(domain, id, |it| it.confirmed = Some(now.unix_s()));
        self.federation_shown(domain, now)
    }

    fn read_bundle(&self, domain: &TrustDomain, body: &[u8]) -> Result<BundleDocument, Failure> {
        let document = read(domain, body, &self.issuers().all_keys).map_err(refused)?;
        self.check_apart(&document).map_err(refused)?;
        Ok(document)
    }

    /// That it holds no root under which devices enrol here.
    pub(super) fn check_apart(&self, document: &BundleDocument) -> Result<(), FederationError> {
        self.apart_from_methods(document).map_err(FederationError::DeviceRoot)
    }

    fn federation_list(&self, now: Moment) -> Released {
        let mirror = self.mirror();
        let items = mirror.federated().all().map(|it| self.federated_summary(it, now)).collect();
        Released::head(Answer::Federation { items })
    }

    fn federation_shown(&self, domain: &TrustDomain, now: Moment) -> Result<Released, Failure> {
        let mirror = self.mirror();
        let held = mirror.federated().of(domain).ok_or_else(unknown)?;
        let items = vec![self.federated_summary(held, now)];
        Ok(Released::head(Answer::Federation { items }))
    }

    fn federation_bundle(&self, domain: &TrustDomain) -> Result<Released, Failure> {
        let bytes = match *domain == self.domain {
            true => self.bundle_document().to_json(),
            false => {
                let mirror = self.mirror();
                let held = mirror.federated().of(domain).ok_or_else(unknown)?;
                let document = held.document.as_ref().ok_or_else(no_bundle)?;
                document.to_json()
            }
        };
        let answer = Answer::File { kind: "bundle".to_owned() };
        Ok(Released { answer, body: SecretValue::new(bytes) })
    }

    /// The bundles in force of the domains that the living entries of the caller's own device name.
    fn federation_duties(&self, caller: &Caller) -> Result<Released, Failure> {
        let (CallerKind::Agent, Some(device), Some(class)) =
            (caller.kind(), caller.device(), caller.class())
        else {
            return Err(Failure::invalid("only a device's agent has duties"));
        };
        let mirror = self.mirror();
        let mut named = BTreeSet::new();
        let mut after = None;
        loop {
            let page = mirror.duties(class, device, after.as_ref());
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            named.extend(page.into_iter().flat_map(|entry| entry.draft.federates_with));
        }
        let bundle = |domain: &TrustDomain| mirror.federated().of(domain)?.record.bundle.clone();
        // Each is a JSON object as this program has written it.
        let members = named.iter().filter_map(|domain| {
            let text = bundle(domain)?;
            Some(format!("\"{domain}\":{text}"))
        });
        let map = format!("{{\"trust_domains\":{{{}}}}}", members.collect::<Vec<_>>().join(","));
        let answer = Answer::File { kind: "bundle-map".to_owned() };
        Ok(Released { answer, body: SecretValue::new(map.into_bytes()) })
    }

    fn federated_summary(&self, held: &Relationship, now: Moment) -> FederatedDomain {
        let record = &held.record;
        let fetched = self.fetches.with(&record.trust_domain, record.id, |it| it.clone());
        let document = held.document.as_deref();
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        FederatedDomain {
            id: record.id,
            trust_domain: record.trust_domain.clone(),
            endpoint: record.endpoint.clone(),
            added: text(record.added),
            sequence: document.and_then(BundleDocument::sequence),
            roots: count(document.map_or(0, |it| it.x509_roots().len())),
            jwt_keys: count(document.map_or(0, |it| it.jwt_keys().len())),
            ignored: count(self.unusable(&record.trust_domain)),
            age_s: document.and_then(|_| age(record, &fetched, now)),
            every_s: record.endpoint.is_some().then(|| every(document).as_secs()),
            attempts: fetched.attempts,
            fault: fetched.fault,
        }
    }

    /// Roots of a domain that break a rule, so that nothing is trusted by them.
    fn unusable(&self, domain: &TrustDomain) -> usize {
        self.identity.unusable_roots().iter().filter(|(of, _)| of == domain).count()
    }
}

fn text_of(document: &BundleDocument) -> Result<String, Failure> {
    String::from_utf8(document.to_json()).map_err(|_| Failure::invalid("it is not text"))
}

fn text(seconds: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(seconds).map(rfc3339).unwrap_or_default()
}

fn refused(error: FederationError) -> Failure {
    match error {
        FederationError::Older { .. }
        | FederationError::SameSequence(_)
        | FederationError::NoSequence(_) => Failure::conflict(format!(
            "{error}; nothing was changed; `--force` takes it all the same"
        )),
        other => Failure::invalid(format!("{other}; nothing was changed")),
    }
}

fn unknown() -> Failure {
    Failure::absent("there is no such relationship; `doorward federation list` shows all")
}

fn no_bundle() -> Failure {
    Failure::absent("nothing was fetched yet; `doorward federation list` says why")
}
