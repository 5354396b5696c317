//! The authorities of one trust domain as the store keeps them: one row, so that what is active,
//! prepared and trusted changes in one step and by one writer at a time.
//!
//! prepared → active → old → (tainted) → revoked. Exactly one is active: it alone signs for others.
//! All in the row are trusted; what is revoked is not in it any more, only its name is. Nothing here
//! reads a clock or signs; a step that must not be is refused with the way to mend it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ca::Root;
use super::error::AuthorityError;
use super::jwt_key::JwtKeyRow;
use super::records::damaged;
use super::upstream::Above;
use crate::model::limits::{AUTHORITIES_MAX, REVOKED_AUTHORITIES_MAX};
use crate::model::{AuthorityState as State, Digest, Failure, TrustDomain};
use crate::store::Table;

/// The row.
pub(super) const CA_KEY: &[u8] = b"ca/1";
/// The row's format before there were several: one root, whose key is in `ca.sealed`.
const ONE: u64 = 1;
/// The format before authorities signed JWT-SVIDs. A program that knows one root only refuses it,
/// instead of going on with a root that is old.
const SEVERAL: u64 = 2;
/// The format before authorities could stand below a company's: with a key for JWT-SVIDs of each. A
/// program that knows no such keys refuses it, instead of going on without telling them.
const WITH_JWT_KEYS: u64 = 3;
/// The format that is written: as the one before, with what stands above each.
const WITH_ABOVE: u64 = 4;

/// The row of a store with one root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OneRecord {
    pub v: u64,
    /// DER, base64.
    pub certificate: String,
}

impl OneRecord {
    pub(super) fn new(certificate: String) -> Self {
        Self { v: ONE, certificate }
    }
}

/// One trusted authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Member {
    /// SHA-256 of the certificate.
    pub id: Digest,
    /// DER, base64.
    pub certificate: String,
    pub state: State,
    /// When it was made and published; seconds since 1970, like the others.
    pub prepared: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activated: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tainted: Option<i64>,
    /// Its key as the vault sealed it, base64; none for the first, whose key is in `ca.sealed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its key for JWT-SVIDs; none for one that ended, or will end, without ever having signed any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtKeyRow>,
    /// Its key for JWT-SVIDs that are asked for with RS256; made when the first entry wants such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rs256: Option<JwtKeyRow>,
    /// What stands above it; none for a root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<Above>,
}

/// The row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Authorities {
    v: u64,
    /// Raised by each change.
    pub sequence: u64,
    /// The first that there ever was.
    pub first: Digest,
    /// The younger before the older: who signs changes no order, and so no bundle.
    pub members: Vec<Member>,
    /// What was revoked, and when; the latest ones.
    pub revoked: BTreeMap<Digest, i64>,
}

impl Authorities {
    /// Reads the row, of any format that there was.
    pub(super) fn read(value: &[u8], domain: &TrustDomain) -> Result<Self, AuthorityError> {
        #[derive(Deserialize)]
        struct Format {
            v: u64,
        }
        let bad = |_| damaged(Table::Authority, CA_KEY);
        let Format { v } = serde_json::from_slice(value).map_err(bad)?;
        match v {
            ONE => {
                let one: OneRecord = serde_json::from_slice(value).map_err(bad)?;
                let root = Root::read(&one.certificate, domain, false)?;
                Ok(Self::first(&root, one.certificate))
            }
            SEVERAL | WITH_JWT_KEYS | WITH_ABOVE => {
                let read: Self = serde_json::from_slice(value).map_err(bad)?;
                read.check(domain)?;
                Ok(Self { v: WITH_ABOVE, ..read })
            }
            version => Err(AuthorityError::Newer { table: "authority", version }),
        }
    }

    fn first(root: &Root, certificate: String) -> Self {
        let since = root.not_before.unix_timestamp();
        let member = Member {
            id: root.id,
            certificate,
            state: State::Active,
            prepared: since,
            activated: Some(since),
            retired: None,
            tainted: None,
            key: None,
            jwt: None,
            rs256: None,
            above: None,
        };
        let revoked = BTreeMap::new();
        Self { v: WITH_ABOVE, sequence: 1, first: root.id, members: vec![member], revoked }
    }

    /// Whoever changed the row must not gain two that sign, or a root of another name.
    fn check(&self, domain: &TrustDomain) -> Result<(), AuthorityError> {
        let bad = AuthorityError::CaDamaged;
        let of = |state| self.members.iter().filter(move |member| member.state == state).count();
        if of(State::Active) != 1 || of(State::Prepared) > 1 || self.members.len() > AUTHORITIES_MAX
        {
            return Err(bad("not exactly one authority is active, or too many are there"));
        }
        for member in &self.members {
            let below = member.above.is_some();
            if Root::read(&member.certificate, domain, below)?.id != member.id {
                return Err(bad("a root is another than its name says"));
            }
            member.above.as_ref().map(Above::read).transpose()?;
            if self.revoked.contains_key(&member.id) {
                return Err(bad("a revoked authority is trusted"));
            }
            if member.key.is_none() && member.id != self.first {
                return Err(bad("an authority has no key"));
            }
        }
        Ok(())
    }

    /// One of them.
    pub(super) fn member(&self, id: &Digest) -> Option<&Member> {
        self.members.iter().find(|member| member.id == *id)
    }

    /// The one that signs.
    pub(super) fn active(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.state == State::Active)
    }

    /// The one that will.
    pub(super) fn prepared(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.state == State::Prepared)
    }

    /// Takes a new one in: trusted from now on, and signing nothing yet.
    pub(super) fn prepare(&self, member: Member) -> Result<Self, Failure> {
        if let Some(there) = self.prepared() {
            let hint = format!("{} is prepared already; activate or revoke it", short(&there.id));
            return Err(Failure::conflict(hint));
        }
        if self.members.len() >= AUTHORITIES_MAX {
            let hint = "too many authorities are trusted; revoke an old one first";
            return Err(Failure::conflict(hint));
        }
        let mut next = self.next();
        next.members.push(member);
        Ok(next.sorted())
    }

    /// Lets the prepared one sign, and the active one no more.
    pub(super) fn activate(&self, now: i64) -> Result<Self, Failure> {
        let mut next = self.next();
        let Some(coming) = next.members.iter_mut().find(|it| it.state == State::Prepared) else {
            return Err(Failure::conflict("no authority is prepared; `doorward ca prepare` first"));
        };
        coming.state = State::Active;
        coming.activated = Some(now);
        let id = coming.id;
        for former in next.members.iter_mut().filter(|it| it.state == State::Active) {
            if former.id != id {
                former.state = State::Old;
                former.retired = Some(now);
            }
        }
        Ok(next)
    }

    /// Marks an old one as not to be relied on: whoever lives by it shall renew now.
    pub(super) fn taint(&self, id: &Digest, now: i64) -> Result<Self, Failure> {
        let mut next = self.next();
        let member = next.members.iter_mut().find(|it| it.id == *id).ok_or_else(unknown)?;
        match member.state {
            State::Old => {}
            State::Tainted => return Ok(self.clone()),
            State::Active | State::Prepared => return Err(not_old("taint")),
        }
        member.state = State::Tainted;
        member.tainted = Some(now);
        Ok(next)
    }

    /// Takes one out: it is trusted no more. Never the active one.
    pub(super) fn revoke(&self, id: &Digest, now: i64) -> Result<Self, Failure> {
        if self.revoked.contains_key(id) {
            return Ok(self.clone());
        }
        match self.member(id).ok_or_else(unknown)?.state {
            State::Active => Err(not_old("revoke")),
            State::Prepared | State::Old | State::Tainted => Ok(self.without(id, now)),
        }
    }

    /// What the decision log says was revoked, taken out, also if the store has it as active: then
    /// the prepared one is active, which many know already, or `fresh`, which nobody does. Nothing if
    /// the store knows all of it.
    pub(super) fn forget(&self, ids: &[Digest], fresh: Option<Member>, now: i64) -> Option<Self> {
        let known: Vec<_> = ids.iter().filter(|id| self.member(id).is_some()).collect();
        if known.is_empty() {
            return None;
        }
        let mut next = self.clone();
        for id in known {
            next = next.without(id, now);
        }
        if next.active().is_none() {
            match next.members.iter_mut().find(|it| it.state == State::Prepared) {
                Some(coming) => (coming.state, coming.activated) = (State::Active, Some(now)),
                None => next.members.push(fresh?),
            }
        }
        next.sequence = self.sequence.saturating_add(1);
        Some(next.sorted())
    }

    fn without(&self, id: &Digest, now: i64) -> Self {
        let mut next = self.next();
        next.members.retain(|member| member.id != *id);
        next.revoked.insert(*id, now);
        while next.revoked.len() > REVOKED_AUTHORITIES_MAX {
            let oldest = next.revoked.iter().min_by_key(|(_, at)| **at).map(|(id, _)| *id);
            let Some(oldest) = oldest else { break };
            next.revoked.remove(&oldest);
        }
        next
    }

    /// The same as a change begins.
    pub(super) fn next(&self) -> Self {
        Self { v: WITH_ABOVE, sequence: self.sequence.saturating_add(1), ..self.clone() }
    }

    fn sorted(mut self) -> Self {
        self.members.sort_by_key(|it| std::cmp::Reverse(it.prepared));
        self
    }
}

fn unknown() -> Failure {
    Failure::absent("there is no such authority; `doorward ca show` lists them")
}

fn not_old(what: &str) -> Failure {
    let hint = format!("only an authority that signs no more can be asked to {what}");
    Failure::conflict(format!("{hint}; activate the next one first"))
}

/// The name that people see.
pub(super) fn short(id: &Digest) -> String {
    id.to_string().chars().take(16).collect()
}
