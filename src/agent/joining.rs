//! The device key of a join that has not ended: on the disk before the broker hears of it.
//!
//! A broker binds a device to a key and answers. If that answer is lost on its way, whoever holds the
//! key comes back with it, as a device does that was away; without the key nobody does, since what
//! the machine showed is spent or bound. So the key is written, synced, and only then shown; it is
//! found again by what it was to be enrolled with, and goes once its identity stands in the
//! directory. It is as secret as the key of that identity, and kept as that is.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::keys::{DeviceKey, KeyError};
use crate::model::{Digest, TrustDomain};

/// What the names of these files begin and end with.
const START: &str = "joining-";
const END: &str = ".pem";

/// A device key that may be bound at the broker already.
pub(super) struct Joining {
    dir: PathBuf,
    path: PathBuf,
    key: DeviceKey,
    was_there: bool,
}

impl Joining {
    /// The key of an earlier try with the same proof in this trust domain; otherwise a fresh one,
    /// written down. The directory must be held by the caller alone.
    ///
    /// # Errors
    /// When a file is not the agent's own, or none can be written.
    pub(super) fn in_dir(
        dir: &Path,
        domain: &TrustDomain,
        shows: &Digest,
    ) -> Result<Self, KeyError> {
        let mark = Digest::of(format!("{domain} {shows}").as_bytes()).to_string();
        let mark = mark.get(..32).unwrap_or_default();
        let path = dir.join(format!("{START}{mark}{END}"));
        if path.symlink_metadata().is_ok() {
            let key = DeviceKey::load(&path)?;
            return Ok(Self { dir: dir.to_owned(), path, key, was_there: true });
        }
        let key = DeviceKey::generate()?;
        let failed = |source| KeyError::Io { what: "write", path: path.clone(), source };
        write(dir, &path, &key).map_err(failed)?;
        Ok(Self { dir: dir.to_owned(), path, key, was_there: false })
    }

    /// The key.
    pub(super) fn key(&self) -> &DeviceKey {
        &self.key
    }

    /// Whether an earlier try may have made it a device.
    pub(super) fn was_there(&self) -> bool {
        self.was_there
    }

    /// Forgets this key: the broker has refused it for good.
    pub(super) fn give_up(self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Forgets this key and those of other tries: an identity stands in the directory.
    pub(super) fn done(self) {
        let Ok(files) = std::fs::read_dir(&self.dir) else { return };
        for file in files.flatten() {
            let name = file.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(START) && name.ends_with(END)) {
                let _ = std::fs::remove_file(file.path());
            }
        }
    }
}

/// Written whole under another name first, so that a key that is found was never shown half.
fn write(dir: &Path, path: &Path, key: &DeviceKey) -> io::Result<()> {
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(key.pem().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};

    use super::*;

    fn dir() -> (tempfile::TempDir, PathBuf) {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("state");
        std::fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
        (above, dir)
    }

    fn joining(dir: &Path, domain: &str, shows: &[u8]) -> Joining {
        let domain = TrustDomain::parse(domain).unwrap();
        Joining::in_dir(dir, &domain, &Digest::of(shows)).unwrap()
    }

    fn files(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn the_same_proof_finds_the_same_key_and_another_one_does_not() {
        let (_above, dir) = dir();
        let first = joining(&dir, "corp.example", b"token");
        assert!(!first.was_there());
        let again = joining(&dir, "corp.example", b"token");
        assert!(again.was_there());
        assert_eq!(again.key().id(), first.key().id());
        for (domain, shows) in [("corp.example", &b"other"[..]), ("b.example", b"token")] {
            let other = joining(&dir, domain, shows);
            assert!(!other.was_there() && other.key().id() != first.key().id());
        }
        let mode = first.path.metadata().unwrap().permissions().mode();
        assert_eq!((mode & 0o7777, files(&dir)), (0o600, 3));
        std::fs::write(dir.join("key.pem"), b"another's").unwrap();
        again.give_up();
        assert_eq!(files(&dir), 3);
        joining(&dir, "corp.example", b"token").done();
        assert_eq!(files(&dir), 1, "all of them, and nothing else");
    }

    #[test]
    fn a_key_that_others_could_read_or_that_is_none_is_not_used() {
        let (_above, dir) = dir();
        let first = joining(&dir, "corp.example", b"token");
        let domain = TrustDomain::parse("corp.example").unwrap();
        let open = || Joining::in_dir(&dir, &domain, &Digest::of(b"token"));
        assert!(open().is_ok());
        std::fs::set_permissions(&first.path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(open(), Err(KeyError::Loose { .. })));
        std::fs::set_permissions(&first.path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&first.path, b"").unwrap();
        assert!(matches!(open(), Err(KeyError::Content { .. })));
        std::fs::remove_file(&first.path).unwrap();
        std::os::unix::fs::symlink("/dev/null", &first.path).unwrap();
        assert!(matches!(open(), Err(KeyError::Shape { .. })));
    }

    #[test]
    fn what_was_cut_off_while_it_was_written_is_no_key() {
        let (_above, dir) = dir();
        let first = joining(&dir, "corp.example", b"token");
        let half = first.path.with_extension("new");
        std::fs::rename(&first.path, &half).unwrap();
        let next = joining(&dir, "corp.example", b"token");
        assert!(!next.was_there() && next.key().id() != first.key().id());
        assert!(!half.exists());
    }
}
