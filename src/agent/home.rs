//! A directory that is about to hold an identity: whose it is now, and whether another may take its
//! place.
//!
//! A new identity comes with a key of its own, so that no record of another device is touched at the
//! broker. What stands in the directory counts until the new one is there whole, and nobody's living
//! identity goes without a word.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::keys::{KeyError, check_dir};
use super::settings::FILE as SETTINGS;
use crate::model::limits::REENROLL_WINDOW;
use crate::model::{SpiffeId, TrustDomain, rfc3339};
use crate::wire::{Credentials, CredentialsError};

/// The paths of operators' identities.
const OPERATORS: &str = "/doorward/operator/";

/// Why a directory can't take the new identity. No token is spent then.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// An agent lives there, and an operator would move in.
    #[error("{} is the state of an agent; choose another directory", .0.display())]
    Agents(PathBuf),
    /// Somebody else is at work in it.
    #[error("{} is in use by another agent: stop that one first", .0.display())]
    Busy(PathBuf),
    /// It is not what only its user can read.
    #[error(transparent)]
    Closed(#[from] KeyError),
    /// Another identity is in it, and counts.
    #[error("{} holds {id}, which counts until {until}", dir.display())]
    Held {
        /// Which.
        dir: PathBuf,
        /// Whose.
        id: Box<SpiffeId>,
        /// Its end, for an agent that of the time in which it may come back.
        until: String,
    },
    /// An identity of another trust domain is in it.
    #[error("{} holds {id}, of another trust domain", dir.display())]
    OtherDomain {
        /// Which.
        dir: PathBuf,
        /// Whose.
        id: Box<SpiffeId>,
    },
    /// There is an identity in it that can't be read.
    #[error("{} holds an identity that can't be read", dir.display())]
    Unreadable {
        /// Which.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Box<CredentialsError>,
    },
}

impl HomeError {
    /// What to do, where that can be said.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Held { id, .. } if !id.path().starts_with(OPERATORS) => Some(
                "an agent that was away comes back by itself: start it; `--replace` makes this \
                 machine a new device in its place",
            ),
            Self::Held { .. } | Self::OtherDomain { .. } | Self::Unreadable { .. } => Some(
                "choose another directory, or put the new identity in its place by `--replace`",
            ),
            Self::Agents(_) | Self::Busy(_) | Self::Closed(_) => None,
        }
    }
}

/// Who wants to move in.
#[derive(Debug, Clone, Copy)]
pub struct Newcomer<'a> {
    /// The trust domain of the token.
    pub domain: &'a TrustDomain,
    /// The operator's name; a device has none before it is enrolled.
    pub operator: Option<&'a str>,
    /// Whether whatever is there may go.
    pub replace: bool,
}

/// A directory that is ours alone until this is dropped.
#[derive(Debug)]
pub struct Home {
    dir: PathBuf,
    _lock: File,
}

impl Home {
    /// Takes a directory for a newcomer; it is made (0700) if it is missing.
    ///
    /// # Errors
    /// When it is not its user's alone, is in use, or holds what must not go without a word.
    pub fn take(
        dir: &Path,
        newcomer: &Newcomer<'_>,
        now: OffsetDateTime,
    ) -> Result<Self, HomeError> {
        make_dir(dir)?;
        let home = Self { dir: dir.to_owned(), _lock: lock(dir)? };
        if newcomer.operator.is_some() && dir.join(SETTINGS).exists() {
            return Err(HomeError::Agents(home.dir));
        }
        match Credentials::load_if_any(dir).and_then(|held| held.map(standing).transpose()) {
            Ok(None) => Ok(home),
            Ok(Some(held)) => home.yields(newcomer, held, now),
            Err(_) if newcomer.replace => Ok(home),
            Err(source) => Err(HomeError::Unreadable { dir: home.dir, source: source.into() }),
        }
    }

    /// Puts the new identity in, with the files that belong to it: all of it, or nothing.
    ///
    /// # Errors
    /// When it can't be written; what was there is there still.
    pub fn keep(
        &self,
        credentials: &Credentials,
        beside: &[(&str, &[u8])],
    ) -> Result<(), CredentialsError> {
        credentials.replace(&self.dir, beside)
    }

    /// Puts a renewed identity in the place of the one that it renews. Where another one is put in
    /// meanwhile, or was, that one counts, and nothing is written.
    ///
    /// # Errors
    /// When it can't be written; what was there is there still.
    pub fn renew(
        dir: &Path,
        former: &[CertificateDer<'_>],
        renewed: &Credentials,
    ) -> Result<(), CredentialsError> {
        let Ok(_lock) = lock(dir) else { return Ok(()) };
        match Credentials::load(dir) {
            Ok(held) if held.chain == former => renewed.save(dir),
            _ => Ok(()),
        }
    }

    fn yields(
        self,
        newcomer: &Newcomer<'_>,
        (id, not_after): (SpiffeId, OffsetDateTime),
        now: OffsetDateTime,
    ) -> Result<Self, HomeError> {
        if newcomer.replace {
            return Ok(self);
        }
        if id.trust_domain() != newcomer.domain {
            return Err(HomeError::OtherDomain { dir: self.dir, id: id.into() });
        }
        let operator = id.path().strip_prefix(OPERATORS);
        let until = match operator {
            Some(_) => not_after,
            None => not_after + REENROLL_WINDOW,
        };
        if until <= now || (operator.is_some() && operator == newcomer.operator) {
            return Ok(self);
        }
        Err(HomeError::Held { dir: self.dir, id: id.into(), until: rfc3339(until) })
    }
}

fn standing(held: Credentials) -> Result<(SpiffeId, OffsetDateTime), CredentialsError> {
    Ok((held.spiffe_id()?, held.not_after()?))
}

/// Takes the directory's lock, for as long as the file is open.
pub(super) fn lock(dir: &Path) -> Result<File, HomeError> {
    let busy = || HomeError::Busy(dir.to_owned());
    let opened = File::open(dir).map_err(|_| busy())?;
    opened.try_lock().map_err(|_| busy())?;
    Ok(opened)
}

fn make_dir(dir: &Path) -> Result<(), KeyError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    match made {
        // A link to a directory, or a file: the check says which.
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(KeyError::Io { what: "make", path: dir.into(), source })
        }
        _ => check_dir(dir),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use time::macros::datetime;

    use super::super::keys::DeviceKey;
    use super::*;

    const END: OffsetDateTime = datetime!(2027-01-02 03:04:05 UTC);
    const BEFORE: OffsetDateTime = datetime!(2027-01-02 03:04:04 UTC);

    fn domain() -> TrustDomain {
        TrustDomain::parse("corp.example").unwrap()
    }

    fn identity(path: &str) -> Credentials {
        identity_of(&rcgen::KeyPair::generate().unwrap(), path)
    }

    fn identity_of(key: &rcgen::KeyPair, path: &str) -> Credentials {
        let mut params = rcgen::CertificateParams::default();
        let id = format!("spiffe://corp.example{path}");
        params.subject_alt_names = vec![rcgen::SanType::URI(id.as_str().try_into().unwrap())];
        params.not_after = END;
        let certificate = params.self_signed(key).unwrap().der().clone();
        Credentials {
            domain: domain(),
            broker: "broker.corp.example:8443".into(),
            chain: vec![certificate.clone()],
            key: rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            bundle: vec![certificate],
        }
    }

    fn newcomer<'a>(domain: &'a TrustDomain, operator: Option<&'a str>) -> Newcomer<'a> {
        Newcomer { domain, operator, replace: false }
    }

    fn taken(dir: &Path, newcomer: &Newcomer<'_>, now: OffsetDateTime) -> Result<(), HomeError> {
        Home::take(dir, newcomer, now).map(|_| ())
    }

    #[test]
    fn an_operator_comes_back_into_the_same_directory_and_nobody_else_while_the_login_lives() {
        let above = tempfile::tempdir().unwrap();
        let (dir, domain) = (above.path().join("a/b"), domain());
        let alice = newcomer(&domain, Some("alice"));
        let home = Home::take(&dir, &alice, BEFORE).unwrap();
        home.keep(&identity("/doorward/operator/alice"), &[]).unwrap();
        drop(home);
        taken(&dir, &alice, BEFORE).unwrap();
        let bob = newcomer(&domain, Some("bob"));
        for other in [bob, newcomer(&domain, None)] {
            let refused = taken(&dir, &other, BEFORE).unwrap_err();
            assert!(matches!(refused, HomeError::Held { .. }), "{refused}");
            assert!(refused.hint().unwrap().starts_with("choose another"));
            taken(&dir, &Newcomer { replace: true, ..other }, BEFORE).unwrap();
            taken(&dir, &other, END).unwrap();
        }
        let elsewhere = TrustDomain::parse("other.example").unwrap();
        let other = newcomer(&elsewhere, Some("alice"));
        let refused = taken(&dir, &other, END).unwrap_err();
        assert!(
            matches!(refused, HomeError::OtherDomain { .. }),
            "ended, and asked for: {refused}"
        );
        taken(&dir, &Newcomer { replace: true, ..other }, END).unwrap();
    }

    #[test]
    fn an_agent_that_may_come_back_by_itself_does_not_yield() {
        let above = tempfile::tempdir().unwrap();
        let (dir, domain) = (above.path().join("state"), domain());
        let device = newcomer(&domain, None);
        let home = Home::take(&dir, &device, BEFORE).unwrap();
        home.keep(&identity("/doorward/agent/server/00"), &[(SETTINGS, b"x = 1\n")]).unwrap();
        assert!(matches!(taken(&dir, &device, END), Err(HomeError::Busy(_))), "it is in use");
        drop(home);
        let window = END + REENROLL_WINDOW;
        let held = taken(&dir, &device, window - Duration::from_secs(1)).unwrap_err();
        assert!(held.to_string().ends_with("until 2027-02-01T03:04:05Z"), "{held}");
        assert!(held.hint().unwrap().contains("comes back by itself"));
        taken(&dir, &device, window).unwrap();
        let alice = Newcomer { replace: true, ..newcomer(&domain, Some("alice")) };
        assert!(matches!(taken(&dir, &alice, window), Err(HomeError::Agents(_))));
    }

    #[test]
    fn a_damaged_identity_goes_only_when_that_is_asked_for() {
        let above = tempfile::tempdir().unwrap();
        let (dir, domain) = (above.path().join("state"), domain());
        let alice = newcomer(&domain, Some("alice"));
        let home = Home::take(&dir, &alice, BEFORE).unwrap();
        home.keep(&identity("/doorward/operator/alice"), &[]).unwrap();
        drop(home);
        std::fs::remove_file(dir.join("doorward.json")).unwrap();
        let refused = taken(&dir, &alice, END).unwrap_err();
        assert!(matches!(refused, HomeError::Unreadable { .. }), "{refused}");
        let home = Home::take(&dir, &Newcomer { replace: true, ..alice }, END).unwrap();
        home.keep(&identity("/doorward/operator/alice"), &[]).unwrap();
        assert!(Credentials::load(&dir).is_ok());
    }

    #[test]
    fn a_key_that_is_kept_is_the_one_that_was_made() {
        let above = tempfile::tempdir().unwrap();
        let (dir, domain) = (above.path().join("state"), domain());
        let made = DeviceKey::generate().unwrap();
        let home = Home::take(&dir, &newcomer(&domain, None), BEFORE).unwrap();
        let pair = rcgen::KeyPair::try_from(&made.private()).unwrap();
        home.keep(&identity_of(&pair, "/doorward/agent/server/00"), &[]).unwrap();
        assert_eq!(DeviceKey::open(&dir).unwrap().id(), made.id());
    }
}
