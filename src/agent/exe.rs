//! Digests of executables, through descriptors that are already open.
//!
//! A digest is remembered under everything that a rewrite would change (device, inode, size,
//! modification and change time; only root can set the last). One user's processes are hashed one
//! at a time, so that nobody keeps more than one core busy. What can't be hashed is unknown.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Condvar, Mutex, MutexGuard};

use aws_lc_rs::digest::{Context, SHA256};

use crate::model::Digest;

/// Executables over this size are not hashed: 2 GiB take about two seconds of a core.
const EXE_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// Digests remembered: more than the different executables of any honest host at work.
const REMEMBERED_MAX: usize = 1024;
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Version {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(exe: &File) -> Option<Self> {
        let found = exe.metadata().ok()?;
        found.is_file().then(|| Self {
            dev: found.dev(),
            ino: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<Version, (Digest, u64)>,
    used: u64,
    busy: HashSet<u32>,
}

/// Digests of executables, shared by all connections of the agent.
#[derive(Debug, Default)]
pub struct ExeDigests {
    inner: Mutex<Inner>,
    freed: Condvar,
}

/// A user's turn; given back on drop, also when hashing panics.
struct Turn<'a>(&'a ExeDigests, u32);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().busy.remove(&self.1);
        self.0.freed.notify_all();
    }
}

impl ExeDigests {
    /// SHA-256 of the open executable on behalf of a process of `uid`; `None` when it is no plain
    /// file, too large, unreadable, or changed while it was read. Blocks.
    pub fn of(&self, exe: &File, uid: u32) -> Option<Digest> {
        let version = Version::of(exe)?;
        if let Some(digest) = self.recall(version) {
            return Some(digest);
        }
        let _turn = self.turn(uid);
        if let Some(digest) = self.recall(version) {
            return Some(digest); // somebody hashed it while we waited
        }
        let digest = hash(exe, version.size)?;
        if Version::of(exe) != Some(version) {
            return None;
        }
        self.remember(version, digest);
        Some(digest)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    fn turn(&self, uid: u32) -> Turn<'_> {
        let free = |inner: &mut Inner| inner.busy.contains(&uid);
        let mut inner =
            self.freed.wait_while(self.lock(), free).unwrap_or_else(|broken| broken.into_inner());
        inner.busy.insert(uid);
        Turn(self, uid)
    }

    fn recall(&self, version: Version) -> Option<Digest> {
        let mut inner = self.lock();
        inner.used += 1;
        let used = inner.used;
        let (digest, last) = inner.known.get_mut(&version)?;
        *last = used;
        Some(*digest)
    }

    fn remember(&self, version: Version, digest: Digest) {
        let mut inner = self.lock();
        if inner.known.len() >= REMEMBERED_MAX {
            let oldest = inner.known.iter().min_by_key(|(_, (_, used))| *used).map(|(v, _)| *v);
            if let Some(oldest) = oldest {
                inner.known.remove(&oldest);
            }
        }
        let used = inner.used;
        inner.known.insert(version, (digest, used));
    }
}

fn hash(exe: &File, size: u64) -> Option<Digest> {
    if size > EXE_MAX {
        return None;
    }
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let read = exe.read_at(&mut chunk, at).ok().filter(|read| *read > 0)?;
        context.update(chunk.get(..read)?);
        at = at.checked_add(u64::try_from(read).ok()?)?;
    }
    <[u8; 32]>::try_from(context.finish().as_ref()).ok().map(Digest)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_rewrite_gives_the_new_digest() {
        let digests = ExeDigests::default();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        let open = File::open(file.path()).unwrap();
        assert_eq!(digests.of(&open, 1), Some(Digest::of(&[7; 100_000])));
        assert_eq!(digests.of(&open, 1), Some(Digest::of(&[7; 100_000])), "remembered");
        assert_eq!(digests.lock().known.len(), 1);

        file.write_all(b"more").unwrap();
        let mut all = vec![7; 100_000];
        all.extend(b"more");
        assert_eq!(digests.of(&open, 1), Some(Digest::of(&all)));
        assert!(digests.lock().busy.is_empty(), "the turn was given back");
    }

    #[test]
    fn what_is_no_plain_file_or_too_large_is_unknown() {
        let digests = ExeDigests::default();
        assert_eq!(digests.of(&File::open("/").unwrap(), 1), None);
        assert_eq!(digests.of(&File::open("/dev/null").unwrap(), 1), None);
        let huge = tempfile::tempfile().unwrap();
        huge.set_len(EXE_MAX + 1).unwrap();
        assert_eq!(digests.of(&huge, 1), None);
    }

    #[test]
    fn memory_is_bounded_and_forgets_the_oldest() {
        let digests = ExeDigests::default();
        let version = |ino| Version { dev: 1, ino, size: 0, modified: (0, 0), changed: (0, 0) };
        for ino in 0..=1024 {
            digests.recall(version(0)); // keeps the first one young
            digests.remember(version(ino), Digest::of(&ino.to_be_bytes()));
        }
        assert_eq!(digests.lock().known.len(), REMEMBERED_MAX);
        assert!(digests.recall(version(0)).is_some());
        assert!(digests.recall(version(1)).is_none());
    }

    #[test]
    fn one_user_waits_for_itself_and_for_nobody_else() {
        let digests = ExeDigests::default();
        let first = digests.turn(1);
        let _other = digests.turn(2); // would never return if users shared a turn
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(digests.turn(1)));
            drop(first);
            waiting.join().unwrap();
        });
        assert_eq!(digests.lock().busy.len(), 1);
    }
}
