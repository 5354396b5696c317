//! Where the log's bytes go: a directory of files that only their owner can read.
//!
//! A `Sink` writes and makes durable; it never reads for anyone, decides nothing and never retries.
//! There are two: this one, and an honest faulty one for the tests.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::errno::Errno;

/// Whether a file may take the place of an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// Once written it never changes; the same bytes again are fine, others are a fault.
    Once,
    /// Replaces what is there.
    Replace,
}

/// An open segment of the write-ahead log.
pub(super) trait Segment: Send {
    /// Writes at a place that was allocated when the segment was made.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// All that was written is on the disk when this returns.
    fn sync(&mut self) -> io::Result<()>;
    /// Names that the file still has; 0 when somebody deleted it.
    fn links(&self) -> io::Result<u64>;
}

/// A directory that takes the log. Paths are relative to it, made by this folder only.
pub(super) trait Sink: Send + Sync {
    /// A new segment of exactly `bytes`, all of them allocated, beginning with `header`; durable,
    /// with its name, when this returns. A full disk shows itself here.
    fn create(&self, path: &str, bytes: u64, header: &[u8]) -> io::Result<Box<dyn Segment>>;
    /// An existing segment, for writing.
    fn open(&self, path: &str) -> io::Result<Box<dyn Segment>>;
    /// A whole file: written aside, synced, renamed. Its name is durable after
    /// [`Sink::sync_names`].
    fn put(&self, path: &str, bytes: &[u8], put: Put) -> io::Result<()>;
    /// Several whole files that never change once they are written, as [`Sink::put`] does them one
    /// by one; some of them may be there after an error.
    fn put_all(&self, files: &[(String, Vec<u8>)]) -> io::Result<()> {
        files.iter().try_for_each(|(path, bytes)| self.put(path, bytes, Put::Once))
    }
    /// Makes the names of all files put so far durable.
    fn sync_names(&self) -> io::Result<()>;
    /// Removes a file, or a directory with the files in it; absent is fine.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Bytes that an unprivileged writer may still add to the disk.
    fn free(&self) -> io::Result<u64>;
}

/// Whether an error means «no room», which may pass, and not a fault.
pub(super) fn is_full(error: &io::Error) -> bool {
    let full = [libc::ENOSPC, libc::EDQUOT];
    error.raw_os_error().is_some_and(|code| full.contains(&code))
}

/// The real thing.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    unsynced: Mutex<BTreeSet<PathBuf>>,
    /// `syncfs` says when something could not be written: since Linux 5.8.
    syncfs_tells: bool,
}

/// From so many files on, one sync of the whole file system costs less than one each.
const TOGETHER: usize = 16;

/// Bytes of zeros written at once where the file system can't allocate.
const ZEROS: usize = 1024 * 1024;

impl Files {
    /// In an existing directory.
    pub(super) fn new(root: &Path) -> Self {
        let syncfs_tells = nix::sys::utsname::uname()
            .is_ok_and(|system| is_since(&system.release().to_string_lossy(), (5, 8)));
        Self { root: root.to_owned(), unsynced: Mutex::new(BTreeSet::new()), syncfs_tells }
    }

    fn mark(&self, dir: &Path) {
        self.unsynced.lock().unwrap_or_else(|e| e.into_inner()).insert(dir.to_owned());
    }

    /// Makes the directories above `path`, and marks what that changes.
    fn make_parents(&self, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent() else { return Ok(()) };
        self.mark(parent);
        if parent == self.root || parent.is_dir() {
            return Ok(());
        }
        self.make_parents(parent)?;
        DirBuilder::new().mode(0o700).create(parent)
    }

    /// Writes many files aside, has the file system written out once, and renames them.
    fn put_together(&self, files: &[(String, Vec<u8>)]) -> io::Result<()> {
        let root = File::open(&self.root)?; // before the writes: it hears of their faults
        let mut written = Vec::with_capacity(files.len());
        for (path, bytes) in files {
            let target = self.root.join(path);
            self.make_parents(&target)?;
            if !same_or_absent(&target, bytes)? {
                let (aside, file) = self.create_aside(&format!("file-{}", written.len()))?;
                file.write_all_at(bytes, 0)?;
                written.push((aside, target));
            }
        }
        nix::unistd::syncfs(&root)?;
        written.iter().try_for_each(|(aside, target)| std::fs::rename(aside, target))
    }

    fn create_aside(&self, name: &str) -> io::Result<(PathBuf, File)> {
        let aside = self.root.join("tmp").join(name);
        self.make_parents(&aside)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&aside)?;
        Ok((aside, file))
    }
}

impl Sink for Files {
    fn create(&self, path: &str, bytes: u64, header: &[u8]) -> io::Result<Box<dyn Segment>> {
        let (aside, file) = self.create_aside("segment")?;
        let filled = allocate(&file, bytes)
            .and_then(|()| file.write_all_at(header, 0))
            .and_then(|()| file.sync_all());
        if let Err(error) = filled {
            drop(file);
            let _ = std::fs::remove_file(&aside); // gives the room back; the error is what counts
            return Err(error);
        }
        let target = self.root.join(path);
        self.make_parents(&target)?;
        std::fs::rename(&aside, &target)?;
        self.sync_names()?;
        Ok(Box::new(OpenSegment { file }))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Segment>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(self.root.join(path))?;
        Ok(Box::new(OpenSegment { file }))
    }

    fn put(&self, path: &str, bytes: &[u8], put: Put) -> io::Result<()> {
        let target = self.root.join(path);
        if put == Put::Once && same_or_absent(&target, bytes)? {
            self.make_parents(&target)?;
            return Ok(());
        }
        let (aside, file) = self.create_aside("file")?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()?;
        self.make_parents(&target)?;
        std::fs::rename(&aside, &target)
    }

    fn put_all(&self, files: &[(String, Vec<u8>)]) -> io::Result<()> {
        if files.len() >= TOGETHER && self.syncfs_tells {
            return self.put_together(files);
        }
        files.iter().try_for_each(|(path, bytes)| self.put(path, bytes, Put::Once))
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut dirs = self.unsynced.lock().unwrap_or_else(|e| e.into_inner());
        while let Some(dir) = dirs.pop_first() {
            match File::open(&dir) {
                Ok(dir) => dir.sync_all()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // removed since
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let target = self.root.join(path);
        let removed = match std::fs::symlink_metadata(&target) {
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(&target),
            Ok(_) => std::fs::remove_file(&target),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                if let Some(parent) = target.parent() {
                    self.mark(parent);
                }
                Ok(())
            }
        }
    }

    fn free(&self) -> io::Result<u64> {
        let disk = nix::sys::statvfs::statvfs(&self.root)?;
        Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
    }
}

/// Whether a kernel's release, such as `6.1.0-13-amd64`, is this one or a later one.
fn is_since(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        _ => false, // not known: the slower way
    }
}

/// True when the file is there with these very bytes (and synced now); an error when with others.
fn same_or_absent(target: &Path, bytes: &[u8]) -> io::Result<bool> {
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(target) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let length = usize::try_from(file.metadata()?.size()).unwrap_or(usize::MAX);
    let mut found = vec![0; bytes.len()];
    if length == bytes.len() {
        file.read_exact_at(&mut found, 0)?;
        if found == bytes {
            file.sync_all()?;
            return Ok(true);
        }
    }
    let text = format!("{} is there already, with other content", target.display());
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Takes the room for a whole segment from the disk.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match nix::fcntl::posix_fallocate(file, 0, length) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
            let zeros = vec![0; ZEROS];
            let mut at = 0;
            while at < bytes {
                let count = usize::try_from(bytes - at).unwrap_or(ZEROS).min(ZEROS);
                file.write_all_at(zeros.get(..count).unwrap_or(&zeros), at)?;
                at = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug)]
struct OpenSegment {
    file: File,
}

impl Segment for OpenSegment {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn links(&self) -> io::Result<u64> {
        self.file.metadata().map(|found| found.nlink())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_whole_and_never_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Files::new(dir.path());
        sink.put("tile/0/x001/234", b"abc", Put::Once).unwrap();
        sink.put("tile/0/x001/234", b"abc", Put::Once).unwrap();
        let error = sink.put("tile/0/x001/234", b"abd", Put::Once).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        sink.put("checkpoint", b"1", Put::Replace).unwrap();
        sink.put("checkpoint", b"2", Put::Replace).unwrap();
        sink.sync_names().unwrap();
        assert_eq!(std::fs::read(dir.path().join("checkpoint")).unwrap(), b"2");
        let mode = |path: &str| {
            let found = std::fs::metadata(dir.path().join(path)).unwrap();
            found.permissions().mode() & 0o777
        };
        assert_eq!((mode("tile/0/x001/234"), mode("tile/0/x001")), (0o600, 0o700));
        sink.remove("tile/0").unwrap();
        sink.remove("tile/0").unwrap();
        assert!(!dir.path().join("tile/0").exists());
    }

    #[test]
    fn many_files_are_put_as_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Files::new(dir.path());
        let files: Vec<_> =
            (0..3 * TOGETHER).map(|n| (format!("tile/0/x{n:03}/7"), vec![1; n + 1])).collect();
        for _ in 0..2 {
            sink.put_all(&files).unwrap(); // the second time all are there already
            for (path, bytes) in &files {
                let found = dir.path().join(path);
                assert_eq!(std::fs::read(&found).unwrap(), *bytes);
                assert_eq!(std::fs::metadata(&found).unwrap().permissions().mode() & 0o777, 0o600);
            }
        }
        sink.sync_names().unwrap();
        let mut other = files.clone();
        other[40].1 = vec![2; 41];
        let error = sink.put_all(&other).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(std::fs::read(dir.path().join(&files[40].0)).unwrap(), files[40].1);
    }

    #[test]
    fn releases_of_kernels_are_compared() {
        for (release, is) in
            [("5.8.0", true), ("6.1.0-13-amd64", true), ("5.7.19", false), ("4.19", false)]
        {
            assert_eq!(is_since(release, (5, 8)), is, "{release}");
        }
        assert!(!is_since("unknown", (5, 8)) && !is_since("", (5, 8)));
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        std::fs::write(&other, b"x").unwrap();
        let sink = Files::new(dir.path());
        assert!(sink.open("other").is_ok());
        std::os::unix::fs::symlink(&other, dir.path().join("link")).unwrap();
        assert!(sink.open("link").is_err());
        assert!(sink.put("link", b"x", Put::Once).is_err());
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join("tmp/file")).unwrap();
        assert!(sink.put("new", b"y", Put::Once).is_err());
        assert_eq!(std::fs::read(&other).unwrap(), b"x");
    }

    #[test]
    fn a_segment_is_allocated_before_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Files::new(dir.path());
        let mut segment = sink.create("wal/1", 65_536, b"head").unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("wal/1")).unwrap().size(), 65_536);
        segment.write_at(b"x", 512).unwrap();
        segment.sync().unwrap();
        assert_eq!(segment.links().unwrap(), 1);
        std::fs::remove_file(dir.path().join("wal/1")).unwrap();
        assert_eq!(segment.links().unwrap(), 0);
        let huge = sink.create("wal/2", 1 << 55, b"head").err().unwrap();
        assert!(is_full(&huge) || huge.raw_os_error() == Some(libc::EFBIG), "{huge}");
    }
}
