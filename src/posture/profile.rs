//! Profiles: named sets of requirements, each with the age that its evidence may have.
//!
//! A profile in mode `monitor` is for trying it out: it counts as held by every device whose
//! evidence is fresh, and the verdict remembers who would have been refused. Freshness is never
//! suspended: a device that fell silent holds no profile, whatever its mode.

use std::time::Duration;

use super::fact::Facts;
use super::profile_file;
use super::requirement::{Ground, Requirement, Tri};
use crate::model::Diagnostic;

/// The age that evidence may have where no profile says otherwise.
pub(super) const DEFAULT_MAX_AGE: Duration = Duration::from_secs(60);

/// Whether a profile refuses or only watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Devices that do not meet it do not hold it.
    #[default]
    Enforce,
    /// Devices that do not meet it hold it, and the verdict says so.
    Monitor,
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
    pub(super) requirements: Vec<Requirement>,
}

impl Profile {
    /// The plain value of its requirements, mode aside.
    fn judge(&self, facts: &Facts, age: Duration) -> Tri {
        let ground = Ground { facts, age, max_age: self.max_age };
        Tri::all(self.requirements.iter().map(|requirement| requirement.judge(ground)))
    }

    /// One line for each requirement, for explanations.
    pub(super) fn explain(&self, facts: &Facts, age: Duration) -> Vec<String> {
        let ground = Ground { facts, age, max_age: self.max_age };
        let mut lines = Vec::new();
        for requirement in &self.requirements {
            requirement.explain(ground, 0, &mut lines);
        }
        if self.mode == Mode::Monitor {
            lines.push("the profile is in mode monitor: fresh evidence holds it".to_owned());
        }
        lines
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
}

impl Profiles {
    /// Parses posture.toml; every fault at once, with caret.
    ///
    /// # Errors
    /// All faults of the file, in the order of their places.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Diagnostic>> {
        profile_file::parse(file, text).map(Self::new)
    }

    /// From profiles in the order of their names, at most 32.
    fn new(all: Vec<Profile>) -> Self {
        let mut ages: Vec<Duration> = all.iter().map(|profile| profile.max_age).collect();
        for requirement in all.iter().flat_map(|profile| &profile.requirements) {
            requirement.ages(&mut ages);
        }
        ages.sort_unstable();
        ages.dedup();
        Self { all, ages }
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

    /// Which of the stretches between age limits an age lies in.
    pub(super) fn stretch(&self, age: Duration) -> usize {
        self.ages.partition_point(|limit| *limit < age)
    }

    /// Judges facts of that age by every profile.
    pub(super) fn evaluate(&self, facts: &Facts, age: Duration) -> Outcome {
        let aged: Vec<Tri> = self.all.iter().map(|profile| profile.judge(facts, age)).collect();
        let fresh = |profile: &Profile| profile.judge(facts, Duration::ZERO);
        let is = |at: usize, value: Tri| aged.get(at) == Some(&value);
        let mut outcome = Outcome { held: 0, unknown: 0, stale: 0, would_deny: 0 };
        for (at, (profile, bit)) in self.all.iter().zip(bits()).enumerate() {
            let ended = is(at, Tri::Unknown) && fresh(profile) != Tri::Unknown;
            if is(at, Tri::True) {
                outcome.held |= bit;
            } else if profile.mode == Mode::Monitor && age <= profile.max_age {
                outcome.held |= bit;
                outcome.would_deny |= bit;
            } else if is(at, Tri::Unknown) || profile.mode == Mode::Monitor {
                outcome.unknown |= bit;
                outcome.stale |= if ended || profile.mode == Mode::Monitor { bit } else { 0 };
            }
        }
        outcome
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

    fn label(profiles: &Profiles, facts: &Facts, age_s: u64) -> String {
        let outcome = profiles.evaluate(facts, Duration::from_secs(age_s));
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
        let outcome = profiles.evaluate(&good(), Duration::from_secs(61));
        assert_eq!(outcome.stale, 0b011, "both would be known if they were fresh");
        let unknown = profiles.evaluate(&Facts::default(), Duration::from_secs(61));
        assert_eq!(unknown.stale & 0b010, 0, "hardened would be unknown anyway");
    }

    #[test]
    fn a_monitored_profile_is_held_while_fresh_and_remembers() {
        let text = FILE.replace("mode = \"enforce\"", "mode = \"monitor\"");
        let profiles = Profiles::parse("posture.toml", &text).unwrap();
        let met = profiles.evaluate(&good(), Duration::ZERO);
        assert_eq!((met.held, met.would_deny), (0b110, 0));
        let unmet = profiles.evaluate(&Facts::default(), Duration::ZERO);
        assert_eq!((unmet.held, unmet.would_deny), (0b110, 0b010));
        let silent = profiles.evaluate(&Facts::default(), Duration::from_secs(61));
        assert_eq!((silent.held, silent.would_deny, silent.stale & 0b010), (0b100, 0, 0b010));
        let profile = profiles.profile("hardened").unwrap();
        let lines = profile.explain(&good(), Duration::from_secs(5)).join("\n");
        assert!(lines.contains("kernel.tainted mask_clear [unsigned_module"), "{lines}");
        assert!(
            lines
                .contains("\nany of: true\n  selinux.enforce eq true: false; it is false (kernel)"),
            "{lines}"
        );
        assert!(lines.ends_with("mode monitor: fresh evidence holds it"), "{lines}");
    }
}
