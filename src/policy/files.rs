//! The files of a bundle: read from a directory or from one JSON object, strictly, and known by
//! one digest.
//!
//! The digest is SHA-256 over the files in order of their names; each name and each content stands
//! after its length (8 bytes, big-endian), so no two sets of files share one text.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::{Deserializer as _, MapAccess, Visitor};

use crate::model::limits::{BUNDLE_FILES_MAX, BUNDLE_MAX};
use crate::model::{Diagnostic, Digest, TrustDomain, check_segment};

/// The name of the rows' file.
pub(super) const POLICY: &str = "policy.csv";
/// The name of the profiles' file.
pub(super) const POSTURE: &str = "posture.toml";
/// Where tests lie.
const TESTS: &str = "tests";
/// The trust domain that the default policies are written for.
const PLACEHOLDER: &str = "spiffe://corp.example/";

/// The files of a bundle, as they lie in git: `policy.csv`, `posture.toml`, `tests/*.toml`. On the
/// wire and on disk one JSON object from names to texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleFiles {
    /// Name to content.
    pub files: BTreeMap<String, String>,
}

impl BundleFiles {
    /// Reads a directory such as `policies/`. Hidden files and `README.md` are passed over; any
    /// other name, a symbolic link, or a text that is not UTF-8 is refused, because what is
    /// skipped in silence can be the row that denies.
    ///
    /// # Errors
    /// Every fault of every file.
    pub fn read_dir(dir: &Path) -> Result<Self, Vec<Diagnostic>> {
        let mut reading = Reading::default();
        reading.folder(dir, "");
        if reading.faults.is_empty() {
            let files = Self { files: reading.files };
            files.check_names()?;
            return Ok(files);
        }
        Err(reading.faults)
    }

    /// Reads the JSON form. A name twice, a name that no bundle has, and anything but texts are
    /// refused.
    ///
    /// # Errors
    /// What is wrong, and at which line and column.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Vec<Diagnostic>> {
        if bytes.len() > BUNDLE_MAX {
            return Err(vec![too_large()]);
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            vec![fault("bundle", format!("not UTF-8 at byte {}", error.valid_up_to()))]
        })?;
        let mut json = serde_json::Deserializer::from_str(text);
        let read = json.deserialize_map(StrictFiles).and_then(|files| json.end().map(|()| files));
        let files = read.map_err(|error| {
            let lines = error.line().saturating_sub(1);
            let start: usize = text.split_inclusive('\n').take(lines).map(str::len).sum();
            let at = start + error.column().saturating_sub(1);
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or("not a bundle").to_owned();
            vec![Diagnostic::at("bundle", text, at, 1, message)]
        })?;
        let files = Self { files };
        files.check_names()?;
        Ok(files)
    }

    /// The JSON form, in order of names.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.files).unwrap_or_default() // texts always serialise
    }

    /// What the bundle is known by.
    pub fn digest(&self) -> Digest {
        let mut bytes = Vec::new();
        let mut add = |text: &str| {
            bytes.extend_from_slice(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        for (name, content) in &self.files {
            add(name);
            add(content);
        }
        Digest::of(&bytes)
    }

    /// The default policies for a trust domain: what `init` writes.
    pub fn defaults(domain: &TrustDomain) -> Self {
        let own = |text: &str| text.replace(PLACEHOLDER, &format!("spiffe://{domain}/"));
        let files = [
            (POLICY, include_str!("../../policies/policy.csv")),
            (POSTURE, include_str!("../../policies/posture.toml")),
            ("tests/basic.toml", include_str!("../../policies/tests/basic.toml")),
        ];
        let files = files.into_iter().map(|(name, text)| (name.to_owned(), own(text)));
        Self { files: files.collect() }
    }

    /// A file's text, if the bundle has it.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.files.get(name).map(String::as_str)
    }

    /// The tests, in order of their names.
    pub(super) fn tests(&self) -> impl Iterator<Item = (&str, &str)> {
        let in_tests = |(name, _): &(&String, &String)| name.starts_with("tests/");
        self.files.iter().filter(in_tests).map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Bytes of the JSON form: what a broker takes is what is measured everywhere.
    fn json_bytes(&self) -> usize {
        let parts = self.files.iter().map(|(name, text)| quoted(name) + quoted(text) + 2);
        parts.sum::<usize>() + 1
    }

    /// Every name allowed, both files there, no more of them and no more text than a bundle has.
    ///
    /// # Errors
    /// Every fault.
    pub(super) fn check_names(&self) -> Result<(), Vec<Diagnostic>> {
        let mut faults: Vec<Diagnostic> = Vec::new();
        for name in self.files.keys().filter(|name| !is_allowed(name)).take(BUNDLE_FILES_MAX) {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
            let help = "a bundle is policy.csv, posture.toml and tests/*.toml";
            faults.push(fault(&shown, "no file of a bundle has this name").help(help));
        }
        for needed in [POLICY, POSTURE] {
            if !self.files.contains_key(needed) {
                faults.push(fault(needed, "the bundle has no such file"));
            }
        }
        if self.files.len() > BUNDLE_FILES_MAX {
            faults.push(fault("bundle", format!("over {BUNDLE_FILES_MAX} files")));
        }
        if self.json_bytes() > BUNDLE_MAX {
            faults.push(too_large());
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }
}

fn is_allowed(name: &str) -> bool {
    let test = |name: &str| {
        let stem = name.strip_prefix("tests/").and_then(|name| name.strip_suffix(".toml"));
        stem.is_some_and(|stem| !stem.starts_with('.') && check_segment(1, stem).is_ok())
    };
    name == POLICY || name == POSTURE || test(name)
}

/// Bytes of a text as a JSON string.
fn quoted(text: &str) -> usize {
    let one = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(one).sum::<usize>() + 2
}

fn too_large() -> Diagnostic {
    fault("bundle", format!("over {BUNDLE_MAX} bytes as JSON, which is how it is sent and kept"))
        .help("a line costs one byte more than in its file, a quotation mark too")
}

/// A fault of a whole file.
pub(super) fn fault(file: &str, message: impl Into<String>) -> Diagnostic {
    Diagnostic::at(file, "", 0, 0, message)
}

#[derive(Default)]
struct Reading {
    files: BTreeMap<String, String>,
    faults: Vec<Diagnostic>,
    bytes: usize,
}

impl Reading {
    /// Reads one folder; `prefix` is empty or `tests/`.
    fn folder(&mut self, dir: &Path, prefix: &str) {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) => return self.refuse(&dir.display().to_string(), unread(&error)),
        };
        for (count, entry) in entries.enumerate() {
            let Ok(entry) = entry else {
                return self.refuse(prefix, "the directory can't be read");
            };
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let shown = format!("{prefix}{name}");
            if name.starts_with('.') || shown == "README.md" {
                continue;
            }
            if count > 4 * BUNDLE_FILES_MAX || self.faults.len() >= BUNDLE_FILES_MAX {
                return self.refuse(prefix, "too many files");
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && shown == TESTS => self.folder(&entry.path(), "tests/"),
                Ok(kind) if kind.is_symlink() => {
                    self.refuse(&shown, "a symbolic link; a bundle is made of plain files");
                }
                Ok(kind) if kind.is_file() && is_allowed(&shown) => self.file(&entry.path(), shown),
                _ => self.refuse(&shown, "no file of a bundle has this name"),
            }
        }
    }

    fn file(&mut self, path: &Path, name: String) {
        let left = BUNDLE_MAX.saturating_sub(self.bytes);
        match read_plain(path, left) {
            Ok(bytes) => {
                self.bytes += bytes.len();
                match String::from_utf8(bytes) {
                    Ok(text) => drop(self.files.insert(name, text)),
                    Err(error) => self.refuse(&name, not_utf8(error.as_bytes())),
                }
            }
            Err(error) => self.refuse(&name, unread(&error)),
        }
    }

    fn refuse(&mut self, file: &str, message: impl Into<String>) {
        let shown: String =
            file.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        self.faults.push(fault(&shown, message));
    }
}

fn unread(error: &std::io::Error) -> String {
    format!("it can't be read: {}", error.kind())
}

fn not_utf8(bytes: &[u8]) -> String {
    let valid = std::str::from_utf8(bytes).map_or_else(|e| e.valid_up_to(), str::len);
    let line = bytes.iter().take(valid).filter(|b| **b == b'\n').count() + 1;
    format!("line {line} is not UTF-8")
}

/// Reads a plain file of at most `left` bytes; a link that took its place meanwhile is not
/// followed, and a pipe does not hold us up.
fn read_plain(path: &Path, left: usize) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, ErrorKind};
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::from(ErrorKind::InvalidInput));
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(left).unwrap_or(u64::MAX);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > left {
        return Err(Error::from(ErrorKind::FileTooLarge));
    }
    Ok(bytes)
}

struct StrictFiles;

impl<'de> Visitor<'de> for StrictFiles {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from file names to texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        use serde::de::Error;
        let mut files = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if !is_allowed(&name) {
                return Err(A::Error::custom("no file of a bundle has this name"));
            }
            if files.len() >= BUNDLE_FILES_MAX {
                return Err(A::Error::custom("too many files"));
            }
            if files.insert(name, map.next_value()?).is_some() {
                return Err(A::Error::custom("a file stands twice"));
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> BundleFiles {
        BundleFiles::defaults(&TrustDomain::parse("prod.example").unwrap())
    }

    fn written() -> (tempfile::TempDir, BundleFiles) {
        let (dir, files) = (tempfile::tempdir().unwrap(), defaults());
        std::fs::create_dir(dir.path().join("tests")).unwrap();
        for (name, text) in &files.files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        (dir, files)
    }

    #[test]
    fn defaults_speak_of_the_domain_and_of_no_other() {
        let files = defaults();
        assert_eq!(files.files.len(), 3);
        assert!(files.text(POLICY).unwrap().contains("spiffe://prod.example/doorward/operator/*"));
        for text in files.files.values() {
            assert!(!text.contains("corp.example"), "{text}");
        }
    }

    #[test]
    fn a_directory_and_the_json_form_give_the_same_bundle() {
        let (dir, files) = written();
        std::fs::write(dir.path().join("README.md"), "x").unwrap();
        std::fs::write(dir.path().join(".gitignore"), "x").unwrap();
        let read = BundleFiles::read_dir(dir.path()).unwrap();
        assert_eq!(read, files);
        assert_eq!(BundleFiles::from_json(&read.to_json()).unwrap().digest(), files.digest());
    }

    #[test]
    fn what_could_be_skipped_in_silence_is_refused() {
        type Spoil = fn(&Path);
        let spoils: [(&str, Spoil); 7] = [
            ("policy2.csv", |d| std::fs::write(d.join("policy2.csv"), "x").unwrap()),
            ("policy.csv.bak", |d| std::fs::write(d.join("policy.csv.bak"), "x").unwrap()),
            ("a link", |d| {
                std::os::unix::fs::symlink("/etc/hosts", d.join("tests/x.toml")).unwrap()
            }),
            ("latin 1", |d| std::fs::write(d.join("policy.csv"), b"p, caf\xe9\n").unwrap()),
            ("a folder", |d| std::fs::create_dir(d.join("more")).unwrap()),
            ("no posture", |d| std::fs::remove_file(d.join("posture.toml")).unwrap()),
            ("a pipe", |d| {
                nix::unistd::mkfifo(&d.join("tests/p.toml"), nix::sys::stat::Mode::S_IRWXU)
                    .unwrap();
            }),
        ];
        for (what, spoil) in spoils {
            let (dir, _) = written();
            assert!(BundleFiles::read_dir(dir.path()).is_ok());
            spoil(dir.path());
            assert_eq!(BundleFiles::read_dir(dir.path()).unwrap_err().len(), 1, "{what}");
        }
        assert!(BundleFiles::read_dir(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn an_oversize_file_is_refused_before_it_is_read() {
        let (dir, _) = written();
        let big = std::fs::File::create(dir.path().join("tests/big.toml")).unwrap();
        big.set_len(u64::try_from(BUNDLE_MAX).unwrap() + 1).unwrap();
        assert!(BundleFiles::read_dir(dir.path()).is_err());
    }

    #[test]
    fn what_passes_here_is_what_a_broker_takes() {
        use crate::model::Ask;
        let mut files = defaults();
        files.files.insert("tests/odd.toml".into(), "\"\\\r\n\t\u{8}\u{c}\u{1}\u{7f}é😀/".into());
        assert_eq!(files.json_bytes(), files.to_json().len());
        let body_max = Ask::PolicyActivate {}.body_max();
        let room = body_max - files.json_bytes();
        files.files.get_mut(POLICY).unwrap().push_str(&"#".repeat(room));
        assert_eq!(files.to_json().len(), body_max);
        files.check_names().unwrap();
        BundleFiles::from_json(&files.to_json()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tests")).unwrap();
        files.files.remove("tests/odd.toml");
        for (name, text) in &files.files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        BundleFiles::read_dir(dir.path()).unwrap();
        files.files.insert("tests/odd.toml".into(), "\n".repeat(40));
        assert!(files.check_names().is_err(), "a line costs two bytes");
        assert!(BundleFiles::from_json(&files.to_json()).is_err());
    }

    #[test]
    fn a_hundred_thousand_rules_fit() {
        let row = |n: u32| {
            format!(
                "p, team-{n:06}-reads, spiffe://corp.example/ns/team-{n:06}/sa/api, \
                 secret/team-{n:06}/**, read, managed, -, 2027-01-01T00:00:00Z, allow\n"
            )
        };
        let mut files = defaults();
        files.files.insert(POLICY.into(), (0..100_000).map(row).collect());
        assert!(files.json_bytes() > 10_000_000);
        files.check_names().unwrap();
    }

    #[test]
    fn the_json_form_is_strict() {
        let good = r#"{"policy.csv":"a","posture.toml":"b"}"#;
        assert!(BundleFiles::from_json(good.as_bytes()).is_ok());
        for bad in [
            r#"{"policy.csv":"a","policy.csv":"b","posture.toml":"b"}"#,
            r#"{"policy.csv":"a"}"#,
            r#"{"policy.csv":"a","posture.toml":"b","other":"c"}"#,
            r#"{"policy.csv":"a","posture.toml":"b","tests/../x.toml":"c"}"#,
            r#"{"policy.csv":"a","posture.toml":"b","tests/.x.toml":"c"}"#,
            r#"{"policy.csv":"a","posture.toml":1}"#,
            r#"{"policy.csv":"a","posture.toml":"b"} x"#,
            "[]",
            "",
        ] {
            assert!(BundleFiles::from_json(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(BundleFiles::from_json(b"{\"policy.csv\":\"\xff\"}").is_err());
    }

    #[test]
    fn the_digest_tells_every_boundary() {
        let of = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned()));
            BundleFiles { files: pairs.collect() }.digest()
        };
        assert_ne!(of(&[("a", "bc")]), of(&[("ab", "c")]));
        assert_ne!(of(&[("a", "b"), ("c", "")]), of(&[("a", "b")]));
        assert_eq!(of(&[("a", "1"), ("b", "2")]), of(&[("b", "2"), ("a", "1")]));
    }
}
