//! The words that every other room speaks: names, identities, requests, answers, time, limits.
//!
//! Pure values. Nothing here does I/O, waits, or reads a clock on its own. Each type that stands for
//! something from outside is parsed once, here, and can't be wrong afterwards; policy, vault and log
//! are handed the same value (invariant I6).

mod answer;
mod ask;
mod audience;
mod authority;
mod client_ref;
mod clock;
mod device;
mod device_summary;
mod diagnostic;
mod duty;
mod endpoint;
mod enrolment;
mod entry;
mod federation;
mod hint;
mod ids;
mod items;
mod join_secret;
mod kind;
pub mod limits;
mod name;
mod object;
mod outcome;
mod page;
mod printable;
mod secret;
mod spiffe_id;
mod strict_json;
mod target;

pub use answer::{Answer, Code, OperatorToken, Reason, Refusal};
pub use ask::Ask;
pub use audience::{Audience, AudienceError};
pub use authority::{
    AuthorityState, AuthoritySummary, BundleHeld, BundleRoot, CaStanding, CaStep, PendingDevice,
    UpstreamSummary,
};
pub use client_ref::{ClientRef, ClientRefError};
pub use clock::{Clock, ManualClock, Moment, SystemClock, rfc3339, rfc3339_millis};
pub use device::{DeviceClass, DeviceId, Digest, DigestError};
pub use device_summary::DeviceSummary;
pub use diagnostic::{Diagnostic, did_you_mean};
pub use duty::{DutyChanges, PendingAgent, Since};
pub use endpoint::{Endpoint, EndpointProfile, EndpointUrl, EndpointUrlError};
pub use enrolment::{EkKind, EnrolBy, EnrolledBy, Proven, Resident, Shown, TpmTier};
pub use entry::{
    Entry, EntryDraft, EntryError, RetractedSvid, Selector, TokenAlgorithm, WorkloadFacts,
    is_pod_uid,
};
pub use federation::{FederatedDomain, FederationStep};
pub use hint::{Hint, HintError};
pub use ids::{EntryId, IdError, RelationshipId, RequestId, Serial, SerialError, StartId};
pub use items::{SecretItem, VersionItem, VersionState};
pub use join_secret::join_secret_digest;
pub use kind::Kind;
pub use name::{NameError, Namespace, SecretName, SecretPrefix, check_segment};
pub use object::{Action, Object, ObjectError};
pub use outcome::{Failure, Released};
pub use page::{fit_page, next_items};
pub use secret::{Labels, LabelsError, SecretValue, WipedBytes};
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
pub use strict_json::{StrictJsonError, read_strict_json};
pub use target::Target;
