//! Federation as it is asked for and shown: relationships with other trust domains, one way each.
//!
//! A relationship says whose bundle is trusted for that domain's own identities, and for nothing
//! else. A bundle travels as a request's or an answer's body, never in a head.

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use super::ids::RelationshipId;
use super::object::Action;
use super::spiffe_id::TrustDomain;

/// One step in the life of a relationship, or a look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FederationStep {
    /// Begins one. The body is the bundle to begin with: needed for `https_spiffe`, whose endpoint is
    /// known by it, and where there is no endpoint; else it may be empty.
    Add {
        /// With whom.
        trust_domain: TrustDomain,
        /// Where its bundle is fetched; without it, an operator brings it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<Endpoint>,
    },
    /// The bundle document of one domain, our own among them; it is the answer's body.
    Bundle {
        /// Whose.
        trust_domain: TrustDomain,
    },
    /// The bundles that the entries of the caller's own device name, as one map of bundles (SPIFFE
    /// Trust Domain and Bundle §5); it is the answer's body.
    Duties {},
    /// Looks at all.
    List {},
    /// Has the bundle fetched soon.
    Refresh {
        /// Whose.
        trust_domain: TrustDomain,
    },
    /// Ends one: nobody of that domain is known from then on.
    Remove {
        /// With whom.
        trust_domain: TrustDomain,
        /// Its id.
        id: RelationshipId,
    },
    /// Puts a bundle in force by hand; it is the body.
    SetBundle {
        /// Whose.
        trust_domain: TrustDomain,
        /// Also if its sequence number goes back.
        #[serde(default)]
        force: bool,
    },
    /// Puts in force what was fetched; it is the body. For the broker's own task alone.
    Take {
        /// Whose.
        trust_domain: TrustDomain,
        /// The relationship that it was fetched for.
        relationship: RelationshipId,
    },
}

impl FederationStep {
    /// The verb that policy judges.
    pub fn action(&self) -> Action {
        match self {
            Self::Bundle { .. } | Self::Duties {} | Self::List {} => Action::Read,
            Self::Add { .. } | Self::Refresh { .. } => Action::Write,
            Self::SetBundle { .. } | Self::Take { .. } => Action::Write,
            Self::Remove { .. } => Action::Revoke,
        }
    }

    /// The operation's word in the record.
    pub fn op(&self) -> &'static str {
        match self {
            Self::Add { .. } => "federation_add",
            Self::Bundle { .. } => "federation_bundle",
            Self::Duties {} => "federation_duties",
            Self::List {} => "federation_list",
            Self::Refresh { .. } => "federation_refresh",
            Self::Remove { .. } => "federation_remove",
            Self::SetBundle { .. } => "federation_set_bundle",
            Self::Take { .. } => "federation_take",
        }
    }

    /// The domain that it is about; none for a look at all.
    pub fn trust_domain(&self) -> Option<&TrustDomain> {
        match self {
            Self::Duties {} | Self::List {} => None,
            Self::Add { trust_domain, .. }
            | Self::Bundle { trust_domain }
            | Self::Refresh { trust_domain }
            | Self::Remove { trust_domain, .. }
            | Self::SetBundle { trust_domain, .. }
            | Self::Take { trust_domain, .. } => Some(trust_domain),
        }
    }

    /// Whether a bundle comes with it.
    pub fn brings_bundle(&self) -> bool {
        matches!(self, Self::Add { .. } | Self::SetBundle { .. } | Self::Take { .. })
    }
}

/// One relationship, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederatedDomain {
    /// The relationship's id.
    pub id: RelationshipId,
    /// With whom.
    pub trust_domain: TrustDomain,
    /// Where its bundle is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// When it began, RFC 3339.
    pub added: String,
    /// The sequence number of the bundle in force, where the domain tells one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Signing certificates in force.
    pub roots: u64,
    /// Keys for tokens in the bundle.
    pub jwt_keys: u64,
    /// Elements of the bundle that are not used.
    pub ignored: u64,
    /// Seconds since the bundle was last fetched or brought; none if there is no bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_s: Option<u64>,
    /// Seconds between two fetches; none without an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_s: Option<u64>,
    /// Fetches that have ended since the broker started.
    pub attempts: u64,
    /// What was wrong with the latest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_one_form() {
        for json in [
            r#"{"list":{}}"#,
            r#"{"add":{"trust_domain":"b.example"}}"#,
            r#"{"add":{"trust_domain":"b.example","endpoint":{"url":"https://b.example/","profile":{"https_web":{}}}}}"#,
            r#"{"add":{"trust_domain":"b.example","endpoint":{"url":"https://b.example/","profile":{"https_spiffe":{"endpoint_id":"spiffe://b.example/x"}}}}}"#,
            r#"{"set_bundle":{"trust_domain":"b.example","force":false}}"#,
        ] {
            let step: FederationStep = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&step).unwrap(), json);
        }
        for bad in [
            r#"{"add":{"trust_domain":"B.example"}}"#,
            r#"{"add":{"trust_domain":"b.example","endpoint":{"url":"https://b.example/"}}}"#,
            r#"{"add":{"trust_domain":"b.example","endpoint":{"profile":{"https_web":{}}}}}"#,
            r#"{"add":{"trust_domain":"b.example","endpoint":{"url":"http://b.example/","profile":{"https_web":{}}}}}"#,
            r#"{"list":{"trust_domain":"b.example"}}"#,
        ] {
            assert!(serde_json::from_str::<FederationStep>(bad).is_err(), "{bad}");
        }
    }
}
