//! What policies speak of: objects and actions (the table in docs/POLICY.md).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::device::{DeviceClass, DeviceId};
use super::ids::EntryId;
use super::name::{NameError, SecretName, SecretPrefix, check_segment};
use super::spiffe_id::{SpiffeId, TrustDomain};

macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)?) => {
        /// A verb that a policy row can name. The set is closed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Action { $($(#[$doc])* $variant),+ }

        impl Action {
            /// Every action, in the order of their names.
            pub const ALL: &'static [Action] = &[$(Action::$variant),+];

            /// The word of the policy file.
            pub fn as_str(self) -> &'static str {
                match self { $(Action::$variant => $text),+ }
            }

            /// The action of this name.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Action::$variant),)+ _ => None }
            }
        }
    };
}

actions! {
    /// Make a version, a policy the one that is served.
    Activate = "activate",
    /// Hide a secret or a version; it can be brought back.
    Delete = "delete",
    /// Become a device.
    Enroll = "enroll",
    /// See why a decision came out as it did.
    Explain = "explain",
    /// Take the log away.
    Export = "export",
    /// Get an identity.
    Issue = "issue",
    /// See names and versions, never values.
    List = "list",
    /// Get a value, an entry, a device, the policy, the log.
    Read = "read",
    /// Renew one's own identity.
    Renew = "renew",
    /// Report one's own evidence.
    Report = "report",
    /// Bring a backup back.
    Restore = "restore",
    /// End an identity, an entry, a device, now.
    Revoke = "revoke",
    /// Go back to an earlier policy.
    Rollback = "rollback",
    /// Renew the seal's wrap.
    Rotate = "rotate",
    /// Take a backup.
    Take = "take",
    /// Hear of changes.
    Watch = "watch",
    /// Create or change.
    Write = "write",
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text names no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The first word is not one of the kinds.
    #[error(
        "{0:?} is no kind of object; kinds are secret, svid, entry, device, bundle, policy, log, seal, backup"
    )]
    Kind(String),
    /// What follows the kind is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// What follows the kind is not of that kind's form.
    #[error("an object of kind `{0}` is written `{1}`")]
    Form(&'static str, &'static str),
}

/// One thing that a request is about, in the form that policy, vault and log share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Object {
    /// `secret/<namespace>/<path…>`
    Secret(SecretName),
    /// `secret/<prefix>`: a part of the tree, for `list`.
    Tree(SecretPrefix),
    /// `svid/<path of the SPIFFE ID>`
    Svid(SpiffeId),
    /// `entry/<path of the SPIFFE ID>/<id>`; without id when it does not exist yet.
    Entry(SpiffeId, Option<EntryId>),
    /// `entry/all`: the list of entries.
    Entries,
    /// `device/<class>/<id>`
    Device(DeviceClass, DeviceId),
    /// `device/<class>/new`: a device that is still to come.
    NewDevice(DeviceClass),
    /// `device/all`: the list of devices.
    Devices,
    /// `bundle/<trust domain>`
    Bundle(TrustDomain),
    /// `policy`
    Policy,
    /// `log/decisions`
    Log,
    /// `seal`
    Seal,
    /// `backup`: the sealed data.
    Backup,
    /// `backup/keys`: the keys, for who holds the recipient's private one.
    BackupKeys,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "secret/{name}"),
            Self::Tree(prefix) => write!(f, "secret/{prefix}"),
            Self::Svid(id) => write!(f, "svid{}", id.path()),
            Self::Entry(id, Some(entry)) => write!(f, "entry{}/{entry}", id.path()),
            Self::Entry(id, None) => write!(f, "entry{}/new", id.path()),
            Self::Entries => f.write_str("entry/all"),
            Self::Device(class, id) => write!(f, "device/{class}/{id}"),
            Self::NewDevice(class) => write!(f, "device/{class}/new"),
            Self::Devices => f.write_str("device/all"),
            Self::Bundle(domain) => write!(f, "bundle/{domain}"),
            Self::Policy => f.write_str("policy"),
            Self::Log => f.write_str("log/decisions"),
            Self::Seal => f.write_str("seal"),
            Self::Backup => f.write_str("backup"),
            Self::BackupKeys => f.write_str("backup/keys"),
        }
    }
}

impl Object {
    /// Parses the form of policies and of the command line: `secret/pay/db/url`, `svid/ns/pay`, ….
    /// `domain` is the trust domain that SPIFFE paths belong to.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str, domain: &TrustDomain) -> Result<Self, ObjectError> {
        let (kind, rest) = text.split_once('/').unwrap_or((text, ""));
        let id = |path: &str| {
            let form = ObjectError::Form("svid", "svid/<path of the SPIFFE ID>");
            if path.is_empty() {
                Err(form)
            } else {
                domain.id(&format!("/{path}")).map_err(|_| form)
            }
        };
        match (kind, rest) {
            ("policy", "") => Ok(Self::Policy),
            ("seal", "") => Ok(Self::Seal),
            ("backup", "") => Ok(Self::Backup),
            ("backup", "keys") => Ok(Self::BackupKeys),
            ("backup", _) => Err(ObjectError::Form("backup", "backup` or `backup/keys")),
            ("log", "decisions") => Ok(Self::Log),
            ("log", _) => Err(ObjectError::Form("log", "log/decisions")),
            ("entry", "all") => Ok(Self::Entries),
            ("device", "all") => Ok(Self::Devices),
            ("secret", name) => match SecretName::parse(name) {
                Ok(name) => Ok(Self::Secret(name)),
                Err(NameError::NoSecret) => Ok(Self::Tree(SecretPrefix::parse(name)?)),
                Err(error) => Err(error.into()),
            },
            ("svid", path) => Ok(Self::Svid(id(path)?)),
            ("entry", path) => {
                let form = ObjectError::Form("entry", "entry/<path of the SPIFFE ID>/<id or new>");
                let (path, last) = path.rsplit_once('/').ok_or(form.clone())?;
                let entry = match last {
                    "new" => None,
                    text => Some(EntryId::parse(text).map_err(|_| form)?),
                };
                Ok(Self::Entry(id(path)?, entry))
            }
            ("device", rest) => {
                let form = ObjectError::Form("device", "device/<class>/<id or new>");
                let (class, last) = rest.split_once('/').ok_or(form.clone())?;
                check_segment(1, class)?;
                let class = DeviceClass::parse(class)?;
                match last {
                    "new" => Ok(Self::NewDevice(class)),
                    text => Ok(Self::Device(class, DeviceId::parse(text).map_err(|_| form)?)),
                }
            }
            ("bundle", name) => TrustDomain::parse(name)
                .map(Self::Bundle)
                .map_err(|_| ObjectError::Form("bundle", "bundle/<trust domain>")),
            (other, _) => Err(ObjectError::Kind(other.chars().take(40).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let domain = TrustDomain::parse("corp.example").unwrap();
        let device = "ab".repeat(32);
        for text in [
            "secret/pay/db/url",
            "secret/pay",
            "svid/ns/pay",
            "entry/ns/pay/new",
            "entry/all",
            "device/all",
            "device/server/new",
            "bundle/corp.example",
            "policy",
            "log/decisions",
            "seal",
            "backup",
            "backup/keys",
            &format!("device/server/{device}"),
            "entry/ns/pay/0192a0b0-0000-7000-8000-000000000000",
        ] {
            assert_eq!(Object::parse(text, &domain).unwrap().to_string(), text);
        }
        for text in [
            "",
            "secrets/pay/x",
            "secret/pay/../x",
            "svid/",
            "svid",
            "log/x",
            "policy/x",
            "backup/x",
            "entry/x",
        ] {
            assert!(Object::parse(text, &domain).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_action_has_one_word() {
        for action in Action::ALL {
            assert_eq!(Action::parse(action.as_str()), Some(*action));
        }
        assert_eq!(Action::parse("Read"), None);
    }
}
