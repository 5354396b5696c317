//! Facts: what a device says of itself, three-valued, each with the rank of who vouches.
//!
//! A claimed rank is never believed upwards: it is cut to what the table of facts allows, and
//! nothing claimed is ever «measured». What the table does not know is carried for the digest and
//! judged by nobody. Reading is strict: one type per fact, each name once, every size bounded.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::catalog::{FactKind, Origin};
use crate::model::limits::{FACT_TEXT_MAX, FACTS_MAX, SEGMENT_MAX};
use crate::model::{Digest, TpmTier};

/// A fact's name out of the closed table (`kernel.lockdown`, `net.listen_any`, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FactName(pub(super) u16);

impl fmt::Display for FactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A known value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FactValue {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Number(i64),
    /// Text, at most 512 bytes.
    Text(String),
}

impl FactValue {
    /// Its type.
    pub fn kind(&self) -> FactKind {
        match self {
            Self::Bool(_) => FactKind::Bool,
            Self::Number(_) => FactKind::Number,
            Self::Text(_) => FactKind::Text,
        }
    }
}

impl fmt::Display for FactValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "{value:?}"),
        }
    }
}

/// Why a fact is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// The place where it would stand is not there.
    Absent,
    /// The agent may not read it.
    Denied,
    /// Reading it failed otherwise, or it made no sense.
    Error,
}

impl Unknown {
    /// The word in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Denied => "denied",
            Self::Error => "error",
        }
    }
}

/// Who vouches for a fact, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rank {
    /// Another system's word.
    External,
    /// The agent's reading of files that any administrator can write.
    Agent,
    /// The agent's reading of what the kernel says.
    Kernel,
    /// Derived by the broker from signed measurements; never from a claim.
    Measured,
}

impl Rank {
    /// The word in reports and profiles.
    pub fn word(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Agent => "agent",
            Self::Kernel => "kernel",
            Self::Measured => "measured",
        }
    }
}

/// One fact.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// The value, or why there is none.
    pub value: Result<FactValue, Unknown>,
    /// Who vouches.
    pub rank: Rank,
}

impl Serialize for Fact {
    /// `{"r":"kernel","v":…}` or `{"u":"absent"}`: keys in order, so that the form is canonical.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.value {
            Ok(value) => {
                map.serialize_entry("r", &self.rank)?;
                map.serialize_entry("v", value)?;
            }
            Err(unknown) => map.serialize_entry("u", unknown)?,
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Fact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Form {
            v: Option<FactValue>,
            r: Option<Rank>,
            u: Option<Unknown>,
        }
        let form = Form::deserialize(deserializer)?;
        match (form.v, form.r, form.u) {
            (Some(FactValue::Text(text)), _, _) if text.len() > FACT_TEXT_MAX => {
                Err(D::Error::custom("a fact's text is over 512 bytes"))
            }
            (Some(value), Some(rank), None) => Ok(Self { value: Ok(value), rank }),
            (None, None, Some(unknown)) => Ok(Self { value: Err(unknown), rank: Rank::External }),
            _ => Err(D::Error::custom("a fact is {\"v\":…,\"r\":…} or {\"u\":…}")),
        }
    }
}

/// Why a fact is not taken into a report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactError {
    /// The value is of another type than the table says.
    #[error("the fact {0} must be {kind}", kind = .0.row().kind.word())]
    Type(FactName),
    /// Text over the limit.
    #[error("the fact {0} is text of over {FACT_TEXT_MAX} bytes")]
    TooLong(FactName),
    /// Only the broker states this fact.
    #[error("the fact {0} is stated by the broker alone")]
    NotTheirs(FactName),
}

/// All facts of one report; serialises as `{"name":{"v":…,"r":"kernel"}|{"u":"absent"}}` in the
/// order of the names. Names that this version does not know stand apart: they count for the digest
/// only.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    known: BTreeMap<FactName, Fact>,
    foreign: BTreeMap<String, Fact>,
    /// Of the connection that is judged, never of a report: what the broker verified of its key.
    colocated: bool,
}

impl Facts {
    /// States one fact, at the rank that the table gives it; a later statement replaces it.
    ///
    /// # Errors
    /// When the type is another one, the text too long, or the fact is the broker's to state.
    pub fn state(
        &mut self,
        name: FactName,
        value: Result<FactValue, Unknown>,
    ) -> Result<(), FactError> {
        let row = name.row();
        if row.origin == Origin::Broker {
            return Err(FactError::NotTheirs(name));
        }
        match &value {
            Ok(value) if value.kind() != row.kind => return Err(FactError::Type(name)),
            Ok(FactValue::Text(text)) if text.len() > FACT_TEXT_MAX => {
                return Err(FactError::TooLong(name));
            }
            _ => {}
        }
        self.known.insert(name, Fact { value, rank: row.rank });
        Ok(())
    }

    /// With what the broker itself knows of the device: what holds its key.
    #[must_use]
    pub(super) fn of_tier(mut self, tier: Option<TpmTier>) -> Self {
        if let Some(tier) = tier {
            let value = Ok(FactValue::Text(tier.word().to_owned()));
            self.known.insert(FactName::TPM_TIER, Fact { value, rank: Rank::Kernel });
        }
        self
    }

    /// The same on a connection of which the broker knows that it comes from that very device.
    pub(super) fn on_colocated(mut self) -> Self {
        self.colocated = true;
        self
    }

    /// Whether the connection is known to come from that device. Never known to be otherwise.
    pub(super) fn is_colocated(&self) -> bool {
        self.colocated
    }

    /// One fact as it was stated; `None` where the report is silent.
    pub fn fact(&self, name: FactName) -> Option<&Fact> {
        self.known.get(&name)
    }

    /// The known facts in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (FactName, &Fact)> {
        self.known.iter().map(|(name, fact)| (*name, fact))
    }

    /// How many known facts there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nothing was stated at all.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && self.foreign.is_empty()
    }

    /// How many facts of the report this version does not know.
    pub fn foreign(&self) -> usize {
        self.foreign.len()
    }

    /// SHA-256 of the canonical JSON of all facts that are not volatile: names in byte order, keys
    /// in order, no blanks. A profile may ask for a volatile fact all the same; whoever holds
    /// standings compares those.
    pub fn digest(&self) -> Digest {
        let steady = Ordered { facts: self, volatile: false };
        // Maps of plain values always have a JSON form; the digest of nothing matches no report.
        Digest::of(&serde_json::to_vec(&steady).unwrap_or_default())
    }

    /// Takes one stated fact over from a report.
    fn take<E: serde::de::Error>(&mut self, name: String, mut fact: Fact) -> Result<(), E> {
        if self.known.len() + self.foreign.len() >= FACTS_MAX {
            return Err(E::custom("more facts than a report may carry"));
        }
        let twice = match FactName::parse(&name) {
            Some(known) if known.row().origin == Origin::Broker => {
                return Err(E::custom(FactError::NotTheirs(known)));
            }
            Some(known) => {
                if fact.value.as_ref().is_ok_and(|value| value.kind() != known.row().kind) {
                    return Err(E::custom(FactError::Type(known)));
                }
                // What is unknown has no rank of its own; give it one form.
                let claimed = if fact.value.is_ok() { fact.rank } else { Rank::Measured };
                fact.rank = claimed.min(known.row().rank);
                self.known.insert(known, fact).is_some()
            }
            None => {
                fact.rank = fact.rank.min(Rank::Kernel);
                self.foreign.insert(name, fact).is_some()
            }
        };
        if twice { Err(E::custom("a fact stands twice")) } else { Ok(()) }
    }
}

/// The canonical order of a report's facts, known and foreign together.
struct Ordered<'a> {
    facts: &'a Facts,
    volatile: bool,
}

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let known = self.facts.known.iter();
        let kept = known.filter(|(name, _)| self.volatile || !name.row().volatile);
        let foreign = self.facts.foreign.iter().map(|(name, fact)| (name.as_str(), fact));
        let all: BTreeMap<&str, &Fact> =
            kept.map(|(name, fact)| (name.as_str(), fact)).chain(foreign).collect();
        serializer.collect_map(all)
    }
}

impl Serialize for Facts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Ordered { facts: self, volatile: true }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Facts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Report;
        impl<'de> Visitor<'de> for Report {
            type Value = Facts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of facts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Facts, A::Error> {
                let mut facts = Facts::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name.is_empty() || name.len() > SEGMENT_MAX {
                        map.next_value::<IgnoredAny>()?;
                        return Err(A::Error::custom("a fact's name is empty or over 128 bytes"));
                    }
                    facts.take(name, map.next_value()?)?;
                }
                Ok(facts)
            }
        }
        deserializer.deserialize_map(Report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Facts, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_report_is_read_and_written_in_one_form() {
        let text = r#"{"secureboot":{"v":true,"r":"kernel"},"kernel.lockdown":{"u":"absent"}}"#;
        let facts = read(text).unwrap();
        assert_eq!(facts.fact(FactName::SECUREBOOT).unwrap().value, Ok(FactValue::Bool(true)));
        assert_eq!(facts.fact(FactName::KERNEL_LOCKDOWN).unwrap().value, Err(Unknown::Absent));
        let canonical = serde_json::to_string(&facts).unwrap();
        assert_eq!(
            canonical,
            r#"{"kernel.lockdown":{"u":"absent"},"secureboot":{"r":"kernel","v":true}}"#
        );
        assert_eq!(facts.digest(), Digest::of(canonical.as_bytes()));
        assert_eq!(read(&canonical).unwrap(), facts);
    }

    #[test]
    fn every_other_form_is_refused() {
        let mut long = String::from("{\"os.id\":{\"r\":\"agent\",\"v\":\"");
        long.push_str(&"a".repeat(512));
        assert!(read(&format!("{long}\"}}}}")).is_ok(), "512 bytes are allowed");
        assert!(read(&format!("{long}a\"}}}}")).is_err(), "513 are not");
        for bad in [
            r#"{"secureboot":{"v":"true","r":"kernel"}}"#,
            r#"{"secureboot":{"v":1,"r":"kernel"}}"#,
            r#"{"secureboot":{"v":true}}"#,
            r#"{"secureboot":{"v":true,"r":"kernel","u":"absent"}}"#,
            r#"{"secureboot":{"v":true,"v":true,"r":"kernel"}}"#,
            r#"{"secureboot":{"v":null,"r":"kernel"}}"#,
            r#"{"secureboot":{"v":true,"r":"divine"}}"#,
            r#"{"secureboot":{"u":"dunno"}}"#,
            r#"{"secureboot":true}"#,
            r#"{"secureboot":{"v":true,"r":"kernel"},"secureboot":{"u":"absent"}}"#,
            r#"{"x.y":{"u":"absent"},"x.y":{"u":"absent"}}"#,
            r#"{"kernel.tainted":{"v":9223372036854775808,"r":"kernel"}}"#,
            r#"{"kernel.tainted":{"v":1.5,"r":"kernel"}}"#,
            r#"{"":{"u":"absent"}}"#,
            r#"[]"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_claimed_rank_is_cut_to_the_tables() {
        let facts = read(
            r#"{"secureboot":{"v":true,"r":"measured"},"os.id":{"v":"debian","r":"measured"},
                "selinux.enforce":{"v":true,"r":"agent"}}"#,
        )
        .unwrap();
        let rank = |name| facts.fact(name).unwrap().rank;
        assert_eq!(rank(FactName::SECUREBOOT), Rank::Kernel);
        assert_eq!(rank(FactName::OS_ID), Rank::Agent);
        assert_eq!(rank(FactName::SELINUX_ENFORCE), Rank::Agent, "a lower claim is believed");
    }

    #[test]
    fn strange_facts_are_counted_and_not_heard_and_the_brokers_are_refused() {
        let facts = read(r#"{"moon.phase":{"v":3,"r":"measured"}}"#).unwrap();
        assert_eq!((facts.len(), facts.foreign()), (0, 1));
        assert_ne!(facts.digest(), Facts::default().digest());
        let written = serde_json::to_string(&facts).unwrap();
        assert_eq!(written, r#"{"moon.phase":{"r":"kernel","v":3}}"#, "nor do they look measured");
        assert!(read(r#"{"device.enrolled":{"v":true,"r":"kernel"}}"#).is_err());
        assert!(read(r#"{"tpm.tier":{"v":"tpm","r":"measured"}}"#).is_err());
        let mut own = Facts::default();
        assert_eq!(
            own.state(FactName::DEVICE_ENROLLED, Ok(FactValue::Bool(true))),
            Err(FactError::NotTheirs(FactName::DEVICE_ENROLLED))
        );
        assert_eq!(
            own.state(FactName::SECUREBOOT, Ok(FactValue::Text("true".into()))),
            Err(FactError::Type(FactName::SECUREBOOT))
        );
    }

    #[test]
    fn a_report_is_bounded() {
        let many = |n: usize| {
            let all: Vec<_> = (0..n).map(|i| format!("\"x.{i}\":{{\"u\":\"absent\"}}")).collect();
            format!("{{{}}}", all.join(","))
        };
        assert_eq!(read(&many(FACTS_MAX)).unwrap().foreign(), FACTS_MAX);
        assert!(read(&many(FACTS_MAX + 1)).is_err());
    }

    #[test]
    fn volatile_facts_do_not_move_the_digest() {
        let mut facts = Facts::default();
        facts.state(FactName::SECUREBOOT, Ok(FactValue::Bool(true))).unwrap();
        let before = facts.digest();
        facts.state(FactName::BOOT_UPTIME_S, Ok(FactValue::Number(7))).unwrap();
        facts.state(FactName::TIME_MAX_ERROR_MS, Ok(FactValue::Number(9))).unwrap();
        assert_eq!(facts.digest(), before);
        facts.state(FactName::SECUREBOOT, Ok(FactValue::Bool(false))).unwrap();
        assert_ne!(facts.digest(), before);
    }
}
