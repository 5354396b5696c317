//! Profiles: named sets of requirements, each with the age that its evidence may have.
//!
//! A profile in mode `monitor` is for trying it out: what it adds to the profile that it extends is
//! judged and not asked for, and the verdict remembers who would have been refused. What it
//! takes over from a profile that refuses is asked for as ever, and freshness is never suspended: a
//! device that fell silent holds no profile, whatever its mode.

use std::collections::BTreeSet;
use std::time::Duration;

use super::explained::{Explained, millis};
use super::fact::{FactName, Facts};
use super::notice::Notice;
use super::profile_file;
use super::requirement::{Ground, Requirement, Tri};
use crate::model::Diagnostic;
use crate::model::limits::STEP_UP_AGE;

/// The age that evidence may have where no profile says otherwise.
pub(super) const DEFAULT_MAX_AGE: Duration = Duration::from_secs(60);

/// Whether a profile refuses or only watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Devices that do not meet it do not hold it.
    #[default]
    Enforce,
    /// Devices that do not meet what it adds hold it, and the verdict says so.
    Monitor,
}

impl Mode {
    /// The word in files and reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Monitor => "monitor",
        }
    }
}

/// One profile, inheritance resolved.
#[derive(Debug)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The age that its evidence may have.
    pub max_age: Duration,
    /// Whether it refuses or only watches.
    pub mode: Mode,
    /// So many of the requirements, the first ones, are asked for in mode `monitor` too.
    pub(super) floor: usize,
    pub(super) requirements: Vec<Requirement>,
}

/// When facts are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct When {
    /// Age of the evidence; zero to ask what fresh evidence would give.
    pub(super) age: Duration,
    /// Seconds since 1970: reference values end.
    pub(super) now_s: i64,
}

impl When {
    /// The same as if the evidence were of this moment.
    pub(super) fn fresh(self) -> Self {
        Self { age: Duration::ZERO, ..self }
    }
}

impl Profile {
    fn ground<'a>(&self, facts: &'a Facts, when: When) -> Ground<'a> {
        Ground { facts, age: when.age, max_age: self.max_age, now_s: when.now_s }
    }

    /// The plain value of its requirements, mode aside.
    fn meets(&self, facts: &Facts, when: When) -> Tri {
        let ground = self.ground(facts, when);
        Tri::all(self.requirements.iter().map(|requirement| requirement.judge(ground)))
    }

    /// What policies see, and whether only its mode makes it hold.
    fn judge(&self, facts: &Facts, when: When) -> (Tri, bool) {
        let meets = self.meets(facts, when);
        if meets == Tri::True || self.mode == Mode::Enforce {
            return (meets, false);
        }
        if when.age > self.max_age {
            return (Tri::Unknown, false);
        }
        let ground = self.ground(facts, when);
        let asked = self.requirements.iter().take(self.floor);
        let floor = Tri::all(asked.map(|requirement| requirement.judge(ground)));
        (floor, floor == Tri::True)
    }

    /// Requirement by requirement.
    pub(super) fn explain(&self, facts: &Facts, when: When) -> Explained {
        let ground = self.ground(facts, when);
        let (result, would_deny) = self.judge(facts, when);
        let mut requirements = Vec::new();
        for requirement in &self.requirements {
            requirement.explain(ground, 0, true, &mut requirements);
        }
        Explained {
            profile: self.name.clone(),
            mode: self.mode.word(),
            meets: self.meets(facts, when),
            result,
            would_deny,
            max_age_s: self.max_age.as_secs(),
            age_ms: millis(when.age),
            requirements,
        }
    }

    /// The facts that it asks for.
    fn facts(&self) -> BTreeSet<FactName> {
        let mut facts = BTreeSet::new();
        self.requirements.iter().for_each(|requirement| requirement.facts(&mut facts));
        facts
    }
}

/// What all profiles came to; bit i is profile i.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// They hold.
    pub(super) held: u32,
    /// Nobody can say.
    pub(super) unknown: u32,
    /// Unknown for no other reason than age.
    pub(super) stale: u32,
    /// Held by mode `monitor` only.
    pub(super) would_deny: u32,
}

impl Outcome {
    /// Nobody can say anything.
    pub(super) const UNKNOWN: Self = Self { held: 0, unknown: u32::MAX, stale: 0, would_deny: 0 };

    /// Only these profiles.
    pub(super) fn only(self, wanted: u32) -> Self {
        Self {
            held: self.held & wanted,
            unknown: self.unknown & wanted,
            stale: self.stale & wanted,
            would_deny: self.would_deny & wanted,
        }
    }
}

/// All profiles of one posture.toml, in order of their names. Index of a profile = its bit.
#[derive(Debug, Default)]
pub struct Profiles {
    pub(super) all: Vec<Profile>,
    /// Every age limit that occurs, ascending: between two of them nothing can change by ageing.
    ages: Vec<Duration>,
    /// Every end of a reference value that occurs, ascending; likewise.
    ends: Vec<i64>,
    notices: Vec<Notice>,
}

/// Between which limits of age and ends of reference values a moment lies.
pub(super) type Stretch = (usize, usize);

impl Profiles {
    /// Parses posture.toml; every fault at once, with caret.
    ///
    /// # Errors
    /// All faults of the file, in the order of their places.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let (all, notices) = profile_file::parse(file, text)?;
        Ok(Self { notices, ..Self::new(all) })
    }

    /// From profiles in the order of their names, at most 32.
    fn new(all: Vec<Profile>) -> Self {
        let mut ages: Vec<Duration> = all.iter().map(|profile| profile.max_age).collect();
        for requirement in all.iter().flat_map(|profile| &profile.requirements) {
            requirement.ages(&mut ages);
        }
        ages.sort_unstable();
        ages.dedup();
        let mut ends = Vec::new();
        for requirement in all.iter().flat_map(|profile| &profile.requirements) {
            requirement.ends(&mut ends);
        }
        ends.sort_unstable();
        ends.dedup();
        Self { all, ages, ends, notices: Vec::new() }
    }

    /// Position of the profile of that name.
    pub fn position(&self, name: &str) -> Option<u8> {
        let at = self.all.binary_search_by(|profile| profile.name.as_str().cmp(name)).ok()?;
        u8::try_from(at).ok()
    }

    /// Names in order of position.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|profile| profile.name.as_str())
    }

    /// One profile by name.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        self.all.get(usize::from(self.position(name)?))
    }

    /// The bits of all profiles.
    pub fn every(&self) -> u32 {
        self.all.iter().zip(bits()).fold(0, |sum, (_, bit)| sum | bit)
    }

    /// The shortest age limit of all; 60 s where there is no profile.
    pub fn shortest(&self) -> Duration {
        self.ages.first().copied().unwrap_or(DEFAULT_MAX_AGE)
    }

    /// The shortest age limit of those that periodic reports meet, 60 s where there is none. Shorter
    /// ones ([`STEP_UP_AGE`]) are met by challenges when somebody asks.
    pub fn shortest_steady(&self) -> Duration {
        self.ages.iter().copied().find(|age| *age > STEP_UP_AGE).unwrap_or(DEFAULT_MAX_AGE)
    }

    /// Which of the stretches between limits and ends a moment lies in.
    pub(super) fn stretch(&self, when: When) -> Stretch {
        let age = self.ages.partition_point(|limit| *limit < when.age);
        (age, self.ends.partition_point(|end| *end <= when.now_s))
    }

    /// Judges facts by every profile.
    pub(super) fn evaluate(&self, facts: &Facts, when: When) -> Outcome {
        let mut outcome = Outcome { held: 0, unknown: 0, stale: 0, would_deny: 0 };
        for (profile, bit) in self.all.iter().zip(bits()) {
            match profile.judge(facts, when) {
                (Tri::True, only_by_mode) => {
                    outcome.held |= bit;
                    outcome.would_deny |= if only_by_mode { bit } else { 0 };
                }
                (Tri::Unknown, _) => {
                    let fresh = profile.judge(facts, when.fresh()).0;
                    outcome.unknown |= bit;
                    outcome.stale |= if fresh == Tri::Unknown { 0 } else { bit };
                }
                (Tri::False, _) => {}
            }
        }
        outcome
    }

    /// What an author should know at that time (seconds since 1970): values that end soon or have
    /// ended, profiles that only watch, sets that nobody names.
    pub fn warnings(&self, now_s: i64) -> Vec<Diagnostic> {
        self.notices.iter().filter_map(|notice| notice.at(now_s)).collect()
    }

    /// The bits of profiles that only watch.
    pub fn monitored(&self) -> u32 {
        let watching = |(profile, bit): (&Profile, u32)| {
            if profile.mode == Mode::Monitor { bit } else { 0 }
        };
        self.all.iter().zip(bits()).map(watching).fold(0, |sum, bit| sum | bit)
    }

    /// Why a profile comes out as it does on facts of that age at that time (seconds since 1970);
    /// `None` if there is none of the name.
    pub fn explain(
        &self,
        name: &str,
        facts: &Facts,
        age: Duration,
        now_s: i64,
    ) -> Option<Explained> {
        self.profile(name).map(|profile| profile.explain(facts, When { age, now_s }))
    }

    /// The facts that keep a profile from being met; none if it is. `None` if there is no such profile.
    pub fn lacking(
        &self,
        name: &str,
        facts: &Facts,
        age: Duration,
        now_s: i64,
    ) -> Option<BTreeSet<FactName>> {
        let profile = self.profile(name)?;
        let ground = profile.ground(facts, When { age, now_s });
        let mut lacking = BTreeSet::new();
        profile.requirements.iter().for_each(|asked| asked.lacking(ground, &mut lacking));
        Some(lacking)
    }

    /// Every fact that some profile asks for.
    pub fn facts(&self) -> BTreeSet<FactName> {
        self.all.iter().flat_map(Profile::facts).collect()
    }

    /// The canonical text of an outcome: `|a=t|b=u|`, false left out, `|` alone for nothing.
    pub(super) fn label(&self, held: u32, unknown: u32) -> String {
        let mut label = String::from("|");
        for (profile, bit) in self.all.iter().zip(bits()) {
            let value = match (held & bit != 0, unknown & bit != 0) {
                (true, _) => "=t|",
                (_, true) => "=u|",
                _ => continue,
            };
            label.push_str(&profile.name);
            label.push_str(value);
        }
        label
    }

    /// For tests of other rooms: profiles of these names that require nothing.
    #[cfg(test)]
    pub(super) fn sample(names: &[&str]) -> Self {
        let profile = |name: &&str| Profile {
            name: (*name).to_owned(),
            max_age: DEFAULT_MAX_AGE,
            mode: Mode::Enforce,
            floor: 0,
            requirements: Vec::new(),
        };
        Self::new(names.iter().map(profile).collect())
    }
}

/// 1, 2, 4, … 2³¹.
pub(super) fn bits() -> impl Iterator<Item = u32> {
    (0..u32::BITS).map(|at| 1 << at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::posture::fact::{FactName, FactValue, Unknown};

    pub(crate) const FILE: &str = r#"
[profile.managed]
max_age = "120s"
require = [ { fact = "device.enrolled", eq = true } ]

[profile.hardened]
extends = "managed"
max_age = "60s"
mode = "enforce"
require = [
  { fact = "kernel.lockdown", in = ["integrity", "confidentiality"] },
  { fact = "kernel.tainted", mask_clear = ["unsigned_module", "forced_module", "out_of_tree"] },
  { fact = "disk.root_crypt", eq = true },
  { any = [ { fact = "selinux.enforce", eq = true }, { fact = "apparmor.enabled", eq = true } ] },
  { fact = "kernel.release", version_ge = "6.1" },
  { fact = "os.patch_age_days", le = 30, max_age = "2h" },
]

[profile.attested]
extends = "hardened"
require = [
  { fact = "tpm.tier", eq = "tpm" },
  { fact = "secureboot", eq = true, min_rank = "measured" },
]
"#;

    fn good() -> Facts {
        let mut facts = Facts::default();
        for (name, value) in [
            (FactName::KERNEL_LOCKDOWN, FactValue::Text("integrity".into())),
            (FactName::KERNEL_TAINTED, FactValue::Number(1)),
            (FactName::DISK_ROOT_CRYPT, FactValue::Bool(true)),
            (FactName::SELINUX_ENFORCE, FactValue::Bool(false)),
            (FactName::APPARMOR_ENABLED, FactValue::Bool(true)),
            (FactName::KERNEL_RELEASE, FactValue::Text("6.1.0-13-amd64".into())),
            (FactName::OS_PATCH_AGE_DAYS, FactValue::Number(30)),
            (FactName::SECUREBOOT, FactValue::Bool(true)),
        ] {
            facts.state(name, Ok(value)).unwrap();
        }
        facts
    }

    fn when(age_s: u64) -> When {
        When { age: Duration::from_secs(age_s), now_s: 0 }
    }

    fn label(profiles: &Profiles, facts: &Facts, age_s: u64) -> String {
        let outcome = profiles.evaluate(facts, when(age_s));
        profiles.label(outcome.held, outcome.unknown)
    }

    #[test]
    fn a_good_device_holds_what_software_can_prove() {
        let profiles = Profiles::parse("posture.toml", FILE).unwrap();
        assert_eq!(profiles.names().collect::<Vec<_>>(), ["attested", "hardened", "managed"]);
        assert_eq!(profiles.position("managed"), Some(2));
        assert_eq!(profiles.every(), 0b111);
        assert_eq!(profiles.shortest(), Duration::from_secs(60));
        assert_eq!(
            label(&profiles, &good(), 0),
            "|hardened=t|managed=t|",
            "soft is not tpm: false"
        );
    }

    #[test]
    fn each_fact_alone_decides() {
        let profiles = Profiles::parse("posture.toml", FILE).unwrap();
        let names = [
            FactName::KERNEL_LOCKDOWN,
            FactName::KERNEL_TAINTED,
            FactName::DISK_ROOT_CRYPT,
            FactName::APPARMOR_ENABLED,
            FactName::KERNEL_RELEASE,
            FactName::OS_PATCH_AGE_DAYS,
        ];
        for name in names {
            let mut facts = good();
            facts.state(name, Err(Unknown::Absent)).unwrap();
            assert_eq!(label(&profiles, &facts, 0), "|hardened=u|managed=t|", "{name}");
        }
        assert_eq!(label(&profiles, &Facts::default(), 0), "|hardened=u|managed=t|");
        for (name, value) in [
            (FactName::KERNEL_LOCKDOWN, FactValue::Text("none".into())),
            (FactName::KERNEL_TAINTED, FactValue::Number(1 << 13)),
            (FactName::DISK_ROOT_CRYPT, FactValue::Bool(false)),
            (FactName::APPARMOR_ENABLED, FactValue::Bool(false)),
            (FactName::KERNEL_RELEASE, FactValue::Text("5.10.0".into())),
            (FactName::OS_PATCH_AGE_DAYS, FactValue::Number(31)),
        ] {
            let mut facts = good();
            facts.state(name, Ok(value)).unwrap();
            assert_eq!(label(&profiles, &facts, 0), "|managed=t|", "{name}");
        }
    }

    #[test]
    fn a_rank_can_not_be_claimed() {
        let text = r#"[profile.p]
require = [ { fact = "secureboot", eq = true, min_rank = "measured" } ]"#;
        let profiles = Profiles::parse("posture.toml", text).unwrap();
        assert_eq!(label(&profiles, &good(), 0), "|p=u|");
        let claimed: Facts =
            serde_json::from_str(r#"{"secureboot":{"v":true,"r":"measured"}}"#).unwrap();
        assert_eq!(label(&profiles, &claimed, 0), "|p=u|");
        let kernel = Profiles::parse("posture.toml", &text.replace("measured", "kernel")).unwrap();
        assert_eq!(label(&kernel, &claimed, 0), "|p=t|");
    }

    #[test]
    fn age_ends_each_profile_at_its_own_limit() {
        let profiles = Profiles::parse("posture.toml", FILE).unwrap();
        assert_eq!(label(&profiles, &good(), 60), "|hardened=t|managed=t|");
        assert_eq!(label(&profiles, &good(), 61), "|attested=u|hardened=u|managed=t|");
        assert_eq!(label(&profiles, &good(), 121), "|attested=u|hardened=u|managed=u|");
        let outcome = profiles.evaluate(&good(), when(61));
        assert_eq!(outcome.stale, 0b011, "both would be known if they were fresh");
        let unknown = profiles.evaluate(&Facts::default(), when(61));
        assert_eq!(unknown.stale & 0b010, 0, "hardened would be unknown anyway");
    }

    #[test]
    fn a_monitored_profile_is_held_while_fresh_and_remembers() {
        let text = FILE.replace("mode = \"enforce\"", "mode = \"monitor\"");
        let profiles = Profiles::parse("posture.toml", &text).unwrap();
        let met = profiles.evaluate(&good(), when(0));
        assert_eq!((met.held, met.would_deny), (0b110, 0));
        let unmet = profiles.evaluate(&Facts::default(), when(0));
        assert_eq!((unmet.held, unmet.would_deny), (0b110, 0b010));
        let silent = profiles.evaluate(&Facts::default(), when(61));
        assert_eq!((silent.held, silent.would_deny, silent.stale & 0b010), (0b100, 0, 0b010));
        let profile = profiles.profile("hardened").unwrap();
        let lines = profile.explain(&good(), when(5)).lines().join("\n");
        assert!(lines.contains("kernel.tainted mask_clear [unsigned_module"), "{lines}");
        assert!(
            lines
                .contains("\nany of: true\n  selinux.enforce eq true: false; it is false (kernel)"),
            "{lines}"
        );
        assert!(lines.ends_with("what it adds is judged and not asked for"), "{lines}");
    }

    #[test]
    fn a_monitored_profile_opens_no_further_than_the_one_that_it_extends() {
        let text = r#"
[profile.base]
require = [ { fact = "secureboot", eq = true } ]
[profile.trial]
extends = "base"
mode = "monitor"
require = [ { fact = "disk.root_crypt", eq = true } ]
[profile.trial2]
extends = "trial"
mode = "monitor"
require = [ { fact = "swap.active", eq = false } ]
[profile.strict]
extends = "trial"
"#;
        let profiles = Profiles::parse("posture.toml", text).unwrap();
        let facts = |boot: Option<bool>, crypt: bool| {
            let mut facts = Facts::default();
            let boot = boot.map(FactValue::Bool).ok_or(Unknown::Denied);
            facts.state(FactName::SECUREBOOT, boot).unwrap();
            facts.state(FactName::DISK_ROOT_CRYPT, Ok(FactValue::Bool(crypt))).unwrap();
            facts
        };
        let all = label(&profiles, &facts(Some(true), true), 0);
        assert_eq!(all, "|base=t|strict=t|trial=t|trial2=t|");
        let trial = label(&profiles, &facts(Some(true), false), 0);
        assert_eq!(trial, "|base=t|trial=t|trial2=t|", "what they add is not asked for");
        assert_eq!(label(&profiles, &facts(Some(false), true), 0), "|", "what they take over is");
        let unknown = label(&profiles, &facts(None, true), 0);
        assert_eq!(unknown, "|base=u|strict=u|trial=u|trial2=u|");
        let outcome = profiles.evaluate(&facts(Some(true), false), when(0));
        assert_eq!(outcome.would_deny, 0b1100);
        assert_eq!(profiles.monitored(), 0b1100);
        let told: Vec<String> =
            profiles.warnings(0).into_iter().map(|warning| warning.message).collect();
        assert_eq!(told.len(), 2);
        assert!(told[0].contains("`trial` only watches") && told[0].contains("`base`"), "{told:?}");
    }

    #[test]
    fn a_reference_value_ends_and_is_told_of_before() {
        let day = 86_400;
        let text = r#"
[profile.image]
require = [ { fact = "os.version", in_refset = "images" } ]
[refset.images]
values = [ { value = "12", label = "bookworm", until = "1970-03-01" },
           { value = "13", label = "trixie" } ]
[refset.unused]
values = [ { value = 1, label = "one" } ]
"#;
        let profiles = Profiles::parse("posture.toml", text).unwrap();
        let end = 59 * day;
        let held = |version: &str, now_s: i64| {
            let mut facts = Facts::default();
            facts.state(FactName::OS_VERSION, Ok(FactValue::Text(version.into()))).unwrap();
            let when = When { age: Duration::ZERO, now_s };
            let outcome = profiles.evaluate(&facts, when);
            assert_eq!(outcome.unknown, 0);
            (outcome.held, profiles.stretch(when).1)
        };
        assert_eq!(held("12", end - 1), (1, 0));
        assert_eq!(held("12", end), (0, 1), "half-open; and no cached verdict outlives it");
        assert_eq!((held("13", end).0, held("11", 0).0), (1, 0));
        let told = |now_s: i64| -> Vec<String> {
            let all = profiles.warnings(now_s).into_iter();
            all.map(|told| format!("{}:{} {}", told.line, told.column, told.message)).collect()
        };
        let unused = "7:9 no profile names the reference set `unused`".to_owned();
        assert_eq!(told(end - 31 * day), std::slice::from_ref(&unused));
        assert_eq!(
            told(end - 30 * day),
            ["5:22 bookworm of `images` ends 1970-03-01T00:00:00Z", unused.as_str()]
        );
        assert!(told(end)[0].contains("ended 1970-03-01T00:00:00Z: it matches nothing any more"));
        let mut facts = Facts::default();
        facts.state(FactName::OS_VERSION, Ok(FactValue::Text("12".into()))).unwrap();
        let why = profiles.explain("image", &facts, Duration::ZERO, end).unwrap();
        assert_eq!(
            why.lines(),
            [
                "os.version in_refset images: false; it is \"12\" (agent); bookworm ended 1970-03-01T00:00:00Z"
            ]
        );
        assert_eq!(why.mends(), ["os.version must be in_refset images"]);
    }
}
