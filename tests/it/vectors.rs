//! The published vectors of `tests/vectors/svid/`: SPIFFE IDs, X.509-SVIDs, bundles and JWT-SVIDs
//! with a known answer, one file each. The files are the truth; this reads them, asks our verifier
//! and, as a control, the `spiffe` crate, and holds both to what the files say. `UPDATE_VECTORS=1`
//! draws them anew, with new keys.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod bundles;
// Files of the library's own tests, once more: theirs are the chains; the forge has another draft.
#[path = "../../src/identity/vectors.rs"]
#[allow(clippy::duplicate_mod, dead_code)]
mod chains;
mod control;
#[path = "../../src/identity/draft.rs"]
#[allow(clippy::duplicate_mod, dead_code)]
mod draft;
mod ids;
mod judge;
#[path = "../../src/identity/token_draft.rs"]
#[allow(dead_code)]
pub mod token_draft;
mod tokens;
mod x509;

/// What a vector's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A text.
    SpiffeId,
    /// Certificates in DER as base64, the leaf first.
    X509Svid,
    /// The text of a bundle document.
    Bundle,
    /// The text of a map of them.
    BundleMap,
    /// A token.
    JwtSvid,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Accept,
    Reject,
    NotRun,
}

/// Who is right where two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// The standard leaves it open.
    Both,
    Ours,
    SpiffeCrate,
}

/// Why two differ.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differs {
    pub right: Right,
    pub why: String,
}

/// What the `spiffe` crate makes of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<Differs>,
}

/// One file. README.md beside them tells what each member means.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    pub name: String,
    pub kind: Kind,
    pub rule: String,
    pub by: By,
    pub expected: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    pub data: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yields: Option<Value>,
    pub spiffe_crate: Control,
}

/// Whose rule it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// A verifier that answers otherwise is wrong.
    Standard,
    /// The standard leaves it open; Doorward answers so.
    Doorward,
}

impl Vector {
    /// A vector before it was drawn: who judges it fills in the rest.
    pub fn new(kind: Kind, name: &str, rule: &str, data: Value) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            by: match rule.starts_with("Doorward") {
                true => By::Doorward,
                false => By::Standard,
            },
            rule: rule.to_owned(),
            expected: Outcome::Accept,
            reason: None,
            at: None,
            trust: None,
            trust_domain: None,
            audience: None,
            data,
            yields: None,
            spiffe_crate: Control { outcome: Outcome::NotRun, differs: None },
        }
    }

    /// … that must be refused for a reason.
    pub fn refused(mut self, reason: &str) -> Self {
        (self.expected, self.reason) = (Outcome::Reject, Some(reason.to_owned()));
        self
    }

    pub fn text(&self) -> &str {
        self.data.as_str().unwrap()
    }
}

/// Maps of bundles by the name of their file.
pub type Trust = HashMap<String, Vec<u8>>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/svid")
}

fn files_of(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "json"));
    files.sort();
    files
}

const KINDS: [&str; 5] = ["spiffe-id", "x509-svid", "bundle", "bundle-map", "jwt-svid"];

/// The vectors as they are published.
fn published() -> (BTreeMap<String, Vector>, Trust) {
    let mut vectors = BTreeMap::new();
    for kind in KINDS {
        for file in files_of(&folder().join(kind)) {
            let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
            let vector: Vector = serde_json::from_slice(&std::fs::read(&file).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            assert_eq!(serde_json::to_value(vector.kind).unwrap(), kind, "{stem}");
            vectors.insert(format!("{kind}/{stem}"), vector);
        }
    }
    let trust = files_of(&folder().join("trust")).into_iter().map(|file| {
        let name = format!("trust/{}", file.file_name().unwrap().to_string_lossy());
        (name, std::fs::read(&file).unwrap())
    });
    (vectors, trust.collect())
}

/// Draws all vectors anew and writes them, with what became of them.
fn draw() {
    for kind in KINDS.iter().chain(&["trust"]) {
        let dir = folder().join(kind);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
    }
    let (chains, of_chains) = x509::all();
    let (tokens, of_tokens) = tokens::all();
    let trust: Trust =
        [("trust/x509.json".into(), of_chains), ("trust/jwt.json".into(), of_tokens)].into();
    for (name, bytes) in &trust {
        let value: Value = serde_json::from_slice(bytes).unwrap();
        let text = serde_json::to_string_pretty(&value).unwrap() + "\n";
        std::fs::write(folder().join(name), text).unwrap();
    }
    let mut counts = [0; 5];
    let mut drawn = Vec::new();
    for mut vector in [ids::all(), chains, bundles::all(), tokens].concat() {
        let kind = vector.kind as usize;
        counts[kind] += 1;
        vector.yields = judge::ours(&vector, &trust).ok().filter(|value| !value.is_null());
        vector.spiffe_crate.outcome = control::outcome(&vector, &trust);
        vector.spiffe_crate.differs = control::differs(&vector);
        let name = format!("{}/{:03}-{}.json", KINDS[kind], counts[kind], slug(&vector.name));
        let text = serde_json::to_string_pretty(&vector).unwrap() + "\n";
        std::fs::write(folder().join(name), text).unwrap();
        drawn.push(vector);
    }
    let readme = folder().join("README.md");
    let text = std::fs::read_to_string(&readme).unwrap();
    std::fs::write(&readme, with_tables(&text, drawn.iter())).unwrap();
}

/// A name as a file's.
fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let words: String = name.chars().map(plain).collect();
    let words: Vec<&str> = words.split('-').filter(|word| !word.is_empty()).collect();
    words.join("-").chars().take(60).collect::<String>().trim_end_matches('-').to_owned()
}

const MARKS: [&str; 2] = ["<!-- drawn: begin -->\n", "<!-- drawn: end -->\n"];

/// The README with the counts and differences of these vectors between its marks.
fn with_tables<'v>(text: &str, vectors: impl Iterator<Item = &'v Vector> + Clone) -> String {
    let (head, rest) = text.split_once(MARKS[0]).unwrap();
    let (_, tail) = rest.split_once(MARKS[1]).unwrap();
    let mut out = "| kind | accept | reject |\n|---|---|---|\n".to_owned();
    for (at, kind) in KINDS.iter().enumerate() {
        let count = |outcome| {
            let same = |v: &&Vector| v.kind as usize == at && v.expected == outcome;
            vectors.clone().filter(same).count()
        };
        let (good, bad) = (count(Outcome::Accept), count(Outcome::Reject));
        out += &format!("| `{kind}` | {good} | {bad} |\n");
    }
    let mut groups: BTreeMap<(Kind, &Differs), (usize, Vec<&str>)> = BTreeMap::new();
    for vector in vectors {
        if let Some(differs) = &vector.spiffe_crate.differs {
            let group = groups.entry((vector.kind, differs)).or_default();
            group.0 += 1;
            let reason = vector.reason.as_deref().unwrap_or("accepted here");
            if !group.1.contains(&reason) {
                group.1.push(reason);
            }
        }
    }
    out += "\n| kind | vectors | our answer | right | why |\n|---|---|---|---|---|\n";
    for ((kind, differs), (count, mut reasons)) in groups {
        reasons.sort_unstable();
        let right = match differs.right {
            Right::Both => "both",
            Right::Ours => "ours",
            Right::SpiffeCrate => "the crate",
        };
        let reasons: Vec<String> = reasons.iter().map(|reason| format!("`{reason}`")).collect();
        let (kind, reasons) = (KINDS[kind as usize], reasons.join(", "));
        out += &format!("| `{kind}` | {count} | {reasons} | {right} | {} |\n", differs.why);
    }
    format!("{head}{}{out}{}{tail}", MARKS[0], MARKS[1])
}

#[test]
fn every_published_vector_has_its_answer() {
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        draw();
    }
    let (vectors, trust) = published();
    assert!(vectors.len() >= 120, "only {} vectors", vectors.len());
    for kind in KINDS {
        let of_kind = |outcome| {
            let same = |(name, v): &(&String, &Vector)| {
                name.starts_with(&format!("{kind}/")) && v.expected == outcome
            };
            vectors.iter().any(|pair| same(&pair))
        };
        assert!(of_kind(Outcome::Accept) && of_kind(Outcome::Reject), "{kind} has one side only");
    }
    let mut wrong = Vec::new();
    for (name, vector) in &vectors {
        let found = judge::ours(vector, &trust);
        let wanted = match vector.expected {
            Outcome::Accept => Ok(vector.yields.clone().unwrap_or(Value::Null)),
            _ => Err(vector.reason.clone().unwrap_or_default()),
        };
        if found != wanted {
            wrong.push(format!("{name}: {found:?}, not {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn vectors_differ_from_the_spiffe_crate_only_where_it_is_said_and_why() {
    let (vectors, trust) = published();
    let mut wrong = Vec::new();
    for (name, vector) in &vectors {
        let (found, told) = (control::outcome(vector, &trust), &vector.spiffe_crate);
        let is_other = found != Outcome::NotRun && found != vector.expected;
        if found != told.outcome {
            wrong.push(format!("{name}: the crate says {found:?}, the file {:?}", told.outcome));
        }
        if is_other != told.differs.is_some() || told.differs != control::differs(vector) {
            wrong.push(format!("{name}: the file says {:?}", told.differs));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_readme_of_the_vectors_tells_what_they_hold() {
    let (vectors, _) = published();
    let text = std::fs::read_to_string(folder().join("README.md")).unwrap();
    assert!(text == with_tables(&text, vectors.values()), "draw it anew with UPDATE_VECTORS=1");
}
