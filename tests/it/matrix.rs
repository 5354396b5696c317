//! Who may do what, as one table that a person can read: `tests/matrix/policy.txt`. Every row is put
//! to the policy engine; every action on every kind of object must have a row.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use doorward::identity::{
    Bundle as Roots, Caller, DeviceStatus, EntryStatus, Holder, Identity, SvidExtension, View,
};
use doorward::model::{
    Action, Clock, DeviceClass, DeviceId, Digest, EntryId, ManualClock, Object, SpiffeId,
    TrustDomain,
};
use doorward::policy::{Bundle, BundleFiles, Explanation};
use doorward::posture::Posture;
use rcgen::{KeyPair, PublicKeyData as _};
use time::macros::datetime;

use super::forge::{Draft, Signer};

const DOMAIN: &str = "corp.example";
const NOW: &str = "2026-11-23T12:00:00Z";

/// The table, taken apart.
#[derive(Default)]
struct Matrix {
    policy: String,
    callers: BTreeMap<String, String>,
    objects: BTreeMap<String, String>,
    postures: BTreeMap<String, String>,
    rows: Vec<Row>,
}

/// One line of it.
#[derive(Debug)]
struct Row {
    line: usize,
    caller: String,
    posture: String,
    action: Action,
    object: String,
    allowed: bool,
    rule: String,
}

impl Matrix {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix/policy.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let mut matrix = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let name = |table: &mut BTreeMap<String, String>| {
                assert_eq!(words.len(), 3, "line {}: {line}", number + 1);
                let before = table.insert(words[1].to_owned(), words[2].to_owned());
                assert!(before.is_none(), "line {}: named twice", number + 1);
            };
            match words[0] {
                "policy" => {
                    matrix.policy.push_str(line.strip_prefix("policy").unwrap().trim());
                    matrix.policy.push('\n');
                }
                "caller" => name(&mut matrix.callers),
                "object" => name(&mut matrix.objects),
                "posture" => name(&mut matrix.postures),
                _ => matrix.rows.push(Row::read(number + 1, &words)),
            }
        }
        matrix
    }

    fn bundle(&self) -> Arc<Bundle> {
        let domain = TrustDomain::parse(DOMAIN).unwrap();
        let mut files = BundleFiles::defaults(&domain);
        files.files.get_mut("policy.csv").unwrap().push_str(&self.policy);
        Bundle::build(&files, 1, &domain).unwrap()
    }

    fn object(&self, row: &Row) -> &str {
        self.objects.get(&row.object).unwrap_or_else(|| panic!("line {}: no such object", row.line))
    }

    fn explain(&self, bundle: &Bundle, row: &Row) -> Explanation {
        let caller = self.callers.get(&row.caller);
        let caller = caller.unwrap_or_else(|| panic!("line {}: no such caller", row.line));
        let posture = self.postures.get(&row.posture);
        let posture = posture.unwrap_or_else(|| panic!("line {}: no such posture", row.line));
        bundle.explain(caller, row.action, self.object(row), posture, NOW)
    }
}

impl Row {
    fn read(line: usize, words: &[&str]) -> Self {
        let [caller, posture, action, object, answer, rule] = words else {
            panic!("line {line}: a row has six columns: {words:?}");
        };
        let allowed = match *answer {
            "allow" => true,
            "deny" => false,
            other => panic!("line {line}: {other} is no answer"),
        };
        let action = Action::parse(action).unwrap_or_else(|| panic!("line {line}: no such action"));
        Self {
            line,
            caller: (*caller).to_owned(),
            posture: (*posture).to_owned(),
            action,
            object: (*object).to_owned(),
            allowed,
            rule: (*rule).to_owned(),
        }
    }
}

/// The rule that a reader is told: the deciding rows, a rule of Doorward's own, or the reason.
fn rule_of(explained: &Explanation) -> String {
    let effect = if explained.allowed { "allow" } else { "deny" };
    let deciding = explained.matched.iter().filter(|row| row.effect == effect);
    let mut ids: Vec<&str> = deciding.map(|row| row.id.as_str()).collect();
    let own = explained.notes.iter().filter_map(|note| note.split_once(", a rule of Doorward's"));
    if explained.allowed {
        ids.extend(own.map(|(id, _)| id));
    }
    match ids.is_empty() {
        true => explained.reason.code().to_owned(),
        false => ids.join("+"),
    }
}

/// A word for the kind of an object. A new kind does not compile until it has one, and then lacks
/// its rows.
fn kind(object: &Object) -> &'static str {
    match object {
        Object::Secret(_) => "secret",
        Object::Tree(_) => "tree",
        Object::Svid(_) => "svid",
        Object::Entry(_, Some(_)) => "entry",
        Object::Entry(_, None) => "new-entry",
        Object::Entries => "entries",
        Object::Device(..) => "device",
        Object::NewDevice(_) => "new-device",
        Object::Devices => "devices",
        Object::Bundle(_) => "bundle",
        Object::Policy => "policy",
        Object::Log => "log",
        Object::Seal => "seal",
        Object::Backup => "backup",
        Object::BackupKeys => "backup-keys",
    }
}

const KINDS: &[&str] = &[
    "secret",
    "tree",
    "svid",
    "entry",
    "new-entry",
    "entries",
    "device",
    "new-device",
    "devices",
    "bundle",
    "policy",
    "log",
    "seal",
    "backup",
    "backup-keys",
];

#[test]
fn every_row_of_the_table_comes_out_as_it_says() {
    let matrix = Matrix::read();
    let bundle = matrix.bundle();
    let mut wrong = Vec::new();
    for row in &matrix.rows {
        let explained = matrix.explain(&bundle, row);
        let (allowed, rule) = (explained.allowed, rule_of(&explained));
        if (allowed, rule.as_str()) != (row.allowed, row.rule.as_str()) {
            let answer = if allowed { "allow" } else { "deny" };
            wrong.push(format!("line {}: {answer} {rule}, but the table has {row:?}", row.line));
        }
        let disagree = explained.notes.iter().any(|note| note.contains("disagree"));
        assert!(!disagree, "line {}: {}", row.line, explained.render());
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_action_on_every_kind_of_object_has_a_row_and_none_has_two() {
    let matrix = Matrix::read();
    let domain = TrustDomain::parse(DOMAIN).unwrap();
    let mut covered = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for row in &matrix.rows {
        let key = (&row.caller, &row.posture, row.action, &row.object);
        assert!(seen.insert(key), "line {}: the same question twice", row.line);
        if let Ok(object) = Object::parse(matrix.object(row), &domain) {
            covered.insert((row.action, kind(&object)));
        }
    }
    let mut lacking = Vec::new();
    for action in Action::ALL {
        for kind in KINDS {
            if !covered.contains(&(*action, *kind)) {
                lacking.push(format!("{action} {kind}"));
            }
        }
    }
    assert!(lacking.is_empty(), "without a row:\n{}", lacking.join("\n"));
    let known: BTreeSet<_> = covered.iter().map(|(_, kind)| *kind).collect();
    assert!(known.iter().all(|kind| KINDS.contains(kind)), "{known:?}");
    for (table, used) in [
        (&matrix.callers, matrix.rows.iter().map(|row| &row.caller).collect::<BTreeSet<_>>()),
        (&matrix.objects, matrix.rows.iter().map(|row| &row.object).collect()),
        (&matrix.postures, matrix.rows.iter().map(|row| &row.posture).collect()),
    ] {
        let idle: Vec<_> = table.keys().filter(|name| !used.contains(name)).collect();
        assert!(idle.is_empty(), "named, but in no row: {idle:?}");
    }
}

/// The callers of the table as real ones: recognised from certificates.
fn callers(matrix: &Matrix) -> HashMap<String, Caller> {
    let domain = TrustDomain::parse(DOMAIN).unwrap();
    let clock = ManualClock::at(datetime!(2026-11-23 12:00 UTC));
    let root = Draft { not_before: clock.now().wall(), ..Draft::authority("root", DOMAIN) };
    let root = Draft { not_after: clock.now().wall() + time::Duration::days(1), ..root };
    let root = Signer::root(&root, &rcgen::PKCS_ECDSA_P256_SHA256);
    let server = DeviceId::parse(&"ab".repeat(32)).unwrap();
    let person = DeviceId::of_key(b"a person's");
    let entry = EntryId::random();
    let device = |class: &str| DeviceStatus {
        resident: None,
        class: DeviceClass::parse(class).unwrap(),
        epoch: 1,
        revoked: false,
    };
    let view = View {
        trust_domain: domain.clone(),
        bundles: Arc::new(HashMap::from([(
            domain,
            Roots { roots: vec![root.certificate.clone()] },
        )])),
        own_issuers: Arc::new(HashSet::from([Digest::of(&root.key.subject_public_key_info())])),
        devices: Arc::new(HashMap::from([(server, device("server")), (person, device("person"))])),
        entries: Arc::new(HashMap::from([(entry, EntryStatus { epoch: 1, suspended: false })])),
        denied: Arc::default(),
    };
    let identity = Identity::new(view);
    let mut callers = HashMap::new();
    for (name, id) in &matrix.callers {
        let (device, entry) = match name.as_str() {
            "operator" => (person, None),
            "agent" => (server, None),
            "workload" => (server, Some(entry)),
            _ => continue,
        };
        let extension = SvidExtension {
            v: 1,
            device,
            entry,
            device_epoch: 1,
            entry_epoch: entry.map_or(0, |_| 1),
            held_by: Holder::Workload,
        };
        let mut draft = Draft::leaf(id);
        draft.not_before = clock.now().wall();
        draft.not_after = clock.now().wall() + time::Duration::hours(1);
        let oid = doorward::identity::EXTENSION_OID.to_vec();
        draft.more.push((oid, false, extension.to_der()));
        let leaf = draft.signed_by(&root, &KeyPair::generate().unwrap());
        let peer = identity.peer(&[leaf], clock.now()).unwrap();
        let caller = identity.recognise(&peer, clock.now());
        assert_eq!(caller.id(), &SpiffeId::parse(id).unwrap());
        assert_eq!(caller.standing(), doorward::identity::Standing::Live, "{name}");
        callers.insert(name.clone(), caller);
    }
    callers
}

/// `can-i` answers real callers as the table does. One question has two answers: `read` of the own
/// device is what an agent's `duties` are, and what `device show` is; only the first is its own.
#[test]
fn can_i_says_the_same_of_real_callers() {
    let matrix = Matrix::read();
    let bundle = matrix.bundle();
    let (callers, posture) = (callers(&matrix), Posture::new());
    let clock = ManualClock::at(datetime!(2026-11-23 12:00 UTC));
    let mut asked = 0;
    for row in matrix.rows.iter().filter(|row| row.posture == "unknown") {
        let Some(caller) = callers.get(&row.caller) else { continue };
        if row.rule == "self-duties" {
            continue;
        }
        let verdict = posture.look(caller.device(), &bundle.demand_all(), clock.now());
        let object = matrix.object(row);
        let (allowed, _) = bundle.can(caller, &verdict, row.action, object, clock.now());
        assert_eq!(allowed, row.allowed, "line {}: {row:?}", row.line);
        asked += 1;
    }
    assert!(asked > 200, "{asked}");
}
