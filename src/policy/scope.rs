//! What a request is about, in the words of policies; and the rules that are Doorward's own.
//!
//! | ask | object |
//! |---|---|
//! | read, write, list, versions, activate, delete, undelete, label | `secret/<name>` |
//! | whoami, can-i | `svid/<own path>` |
//! | report, renew, duties, retract | the caller's `device/<class>/<id>`; without a device `svid/<own path>` |
//! | bundle, federation duties, ca show, prepare, activate, taint, revoke | `bundle/<trust domain>` |
//! | federation add, refresh, set-bundle, bundle, remove · list | `bundle/<that trust domain>` · `bundle/<ours>` |
//! | enroll | `device/any/applicant` |
//! | issue, revoke, revoke svid | `svid/<path>` |
//! | operator remove | `svid/doorward/operator/<name>` |
//! | operator add, token create | `device/person/new`, `device/<class>/new` |
//! | device list, show, revoke | `device/all`, `device/<class>/<id>` |
//! | entry create, list, delete | `entry/<path>/new`, `entry/all`, `entry/<path>/<id>` |
//! | policy read, activate, rollback | `policy` |
//! | log read, explain, exposure | `log/decisions` |
//! | status · backup of data, of keys | `seal` · `backup`, `backup/keys` |
//!
//! Who may not be locked out: some asks take their object from the caller, never from the request.
//! For those a built-in rule allows, and of the policy only deny rows with posture `any` count.
//! `policy rollback` has no built-in rule, but deny rows with a posture do not count against it.

use crate::identity::{Caller, CallerKind, Standing, Task};
use crate::model::{
    Action, Ask, CaStep, DeviceClass, DeviceId, FederationStep, Object, SpiffeId, TrustDomain,
    check_segment,
};

/// What `enroll` is about: there is no device yet, and whoever it is can't choose.
pub(super) const APPLICANT_OBJECT: &str = "device/any/applicant";

/// The part of a caller that rules speak of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) id: &'a SpiffeId,
    pub(super) kind: CallerKind,
    pub(super) standing: Standing,
    pub(super) device: Option<(&'a DeviceClass, &'a DeviceId)>,
}

impl<'a> Asker<'a> {
    /// Out of a recognised caller.
    pub(super) fn of(caller: &'a Caller) -> Self {
        Self {
            id: caller.id(),
            kind: caller.kind(),
            standing: caller.standing(),
            device: caller.class().zip(caller.device()),
        }
    }

    /// `svid/<own path>`.
    pub(super) fn own_svid(&self) -> String {
        format!("svid{}", self.id.path())
    }

    /// `device/<class>/<id>`, where one of our own certificates says which.
    pub(super) fn own_device(&self) -> Option<String> {
        self.device.map(|(class, id)| format!("device/{class}/{id}"))
    }
}

/// Which rows count for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// All of them.
    Ordinary,
    /// The built-in rule of this id, and deny rows with posture `any`.
    Own(&'static str),
    /// All but deny rows with a posture.
    Rollback,
}

/// Why a request has no object that a rule could speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoObject {
    /// A name in it is of no allowed form.
    Invalid,
    /// It names what nobody may have: another trust domain, or a path of Doorward's own.
    Forbidden,
}

/// An ID that an object is made of: one of ours, with a path.
fn own(id: &SpiffeId, domain: &TrustDomain) -> Result<SpiffeId, NoObject> {
    if id.path().is_empty() {
        Err(NoObject::Invalid)
    } else if id.trust_domain() != domain {
        Err(NoObject::Forbidden)
    } else {
        Ok(id.clone())
    }
}

/// The object of an ask, in policy notation.
pub(super) fn object(
    asker: &Asker<'_>,
    ask: &Ask,
    domain: &TrustDomain,
) -> Result<String, NoObject> {
    let own = |id: &SpiffeId| own(id, domain);
    let object = match ask {
        Ask::Read { name, .. } | Ask::Write { name, .. } | Ask::Versions { name } => secret(name),
        Ask::Activate { name, .. } | Ask::Delete { name, .. } => secret(name),
        Ask::Undelete { name, .. } | Ask::Label { name, .. } => secret(name),
        Ask::List { prefix, .. } => return Ok(format!("secret/{prefix}")),
        Ask::Whoami {} | Ask::CanI { .. } => return Ok(asker.own_svid()),
        // What is taken from the caller must not be read as a path of our own.
        Ask::Report { .. } | Ask::Renew {} | Ask::Duties { .. } | Ask::Retract { .. }
            if asker.id.trust_domain() != domain =>
        {
            return Err(NoObject::Forbidden);
        }
        Ask::Report { .. } | Ask::Renew {} | Ask::Duties { .. } | Ask::Retract { .. } => {
            return Ok(asker.own_device().unwrap_or_else(|| asker.own_svid()));
        }
        Ask::Bundle { .. } | Ask::Ca(_) => Object::Bundle(domain.clone()),
        Ask::Federation(step) => Object::Bundle(step.trust_domain().unwrap_or(domain).clone()),
        Ask::Enroll { .. } => return Ok(APPLICANT_OBJECT.to_owned()),
        Ask::Issue { spiffe_id, .. } | Ask::IssueJwt { spiffe_id, .. } => {
            if spiffe_id.is_reserved() {
                return Err(NoObject::Forbidden);
            }
            Object::Svid(own(spiffe_id)?)
        }
        Ask::Revoke { spiffe_id, .. } | Ask::RevokeSvid { spiffe_id, .. } => {
            Object::Svid(own(spiffe_id)?)
        }
        Ask::TokenCreate { class, .. } => Object::NewDevice(class.clone()),
        Ask::OperatorAdd { name } => {
            check_segment(1, name).map_err(|_| NoObject::Invalid)?;
            Object::NewDevice(DeviceClass::person())
        }
        Ask::OperatorRemove { name } => {
            check_segment(1, name).map_err(|_| NoObject::Invalid)?;
            return Ok(format!("svid/doorward/operator/{name}"));
        }
        Ask::DeviceList { .. } => Object::Devices,
        Ask::DeviceShow { class, id } | Ask::DeviceRevoke { class, id, .. } => {
            Object::Device(class.clone(), *id)
        }
        Ask::EntryCreate { entry } => Object::Entry(own(&entry.spiffe_id)?, None),
        Ask::EntryList { .. } => Object::Entries,
        Ask::EntryDelete { spiffe_id, id } => Object::Entry(own(spiffe_id)?, Some(*id)),
        Ask::PolicyRead {} | Ask::PolicyActivate {} | Ask::PolicyRollback {} => Object::Policy,
        Ask::LogRead { .. } | Ask::Explain { .. } | Ask::Exposure { .. } => Object::Log,
        Ask::Status {} => Object::Seal,
        Ask::BackupData {} => Object::Backup,
        Ask::BackupKeys { .. } => Object::BackupKeys,
    };
    Ok(object.to_string())
}

fn secret(name: &crate::model::SecretName) -> Object {
    Object::Secret(name.clone())
}

/// Which rows count for this ask of this caller.
pub(super) fn mode(asker: &Asker<'_>, ask: &Ask) -> Mode {
    if matches!(ask, Ask::PolicyRollback {}) {
        return Mode::Rollback;
    }
    own_rule(asker, ask).map_or(Mode::Ordinary, Mode::Own)
}

/// The built-in rules. Reports and duties are an agent's, about its own device; whoever was given
/// an identity for itself (agents, people) renews it; a workload's identity comes from its agent,
/// which attests it anew, so a workload renews only where a row says so.
fn own_rule(asker: &Asker<'_>, ask: &Ask) -> Option<&'static str> {
    let has_device = asker.device.is_some();
    match (ask, asker.kind) {
        (Ask::Enroll { .. }, CallerKind::Applicant) => Some("self-enroll"),
        (_, CallerKind::Applicant | CallerKind::Broker(_)) => None,
        (Ask::Whoami {} | Ask::CanI { .. }, _) => Some("self-read"),
        (Ask::Report { .. } | Ask::Retract { .. }, CallerKind::Agent) if has_device => {
            Some("self-report")
        }
        (Ask::Duties { .. }, CallerKind::Agent) if has_device => Some("self-duties"),
        (Ask::Bundle { .. }, CallerKind::Agent | CallerKind::Operator) if has_device => {
            Some("self-bundle")
        }
        (Ask::Federation(FederationStep::Duties {}), CallerKind::Agent) if has_device => {
            Some("self-bundle")
        }
        (Ask::Renew {}, CallerKind::Agent | CallerKind::Operator) if has_device => {
            Some("self-renew")
        }
        _ => None,
    }
}

/// Whether only the kind of caller decides: applicants ask for nothing but `enroll`, and nobody
/// else asks for that.
pub(super) fn is_out_of_place(asker: &Asker<'_>, ask: &Ask) -> bool {
    let enrolls = matches!(ask, Ask::Enroll { .. });
    enrolls != (asker.kind == CallerKind::Applicant)
}

/// The constant table of the broker's own tasks.
pub(super) fn task_rule(task: Task, ask: &Ask) -> Option<&'static str> {
    match (task, ask) {
        (Task::OwnIdentity, Ask::Renew {}) => Some("task-own-identity"),
        (Task::Retention, Ask::Renew {}) => Some("task-retention"),
        (Task::Rotation, Ask::Ca(CaStep::Taint { .. })) => None,
        (Task::Rotation, Ask::Ca(_)) => Some("task-rotation"),
        (Task::Federation, Ask::Federation(FederationStep::Take { .. })) => Some("task-federation"),
        (Task::Federation | Task::OwnIdentity | Task::Retention | Task::Rotation, _) => None,
    }
}

/// Whether the ask makes what it names, so that finding nothing there is as it should be.
pub(super) fn creates(ask: &Ask) -> bool {
    matches!(
        ask,
        Ask::Write { .. }
            | Ask::EntryCreate { .. }
            | Ask::TokenCreate { .. }
            | Ask::OperatorAdd { .. }
    )
}

/// A second judgement that must come out as allowed too: nobody creates an entry for a path that
/// he could not issue, or lets a machine in again who could not make a token for it.
pub(super) fn also_needs(ask: &Ask) -> Option<(Action, String)> {
    match ask {
        Ask::EntryCreate { entry } => {
            Some((Action::Issue, format!("svid{}", entry.spiffe_id.path())))
        }
        Ask::DeviceRevoke { class, release: true, .. } => {
            Some((Action::Write, Object::NewDevice(class.clone()).to_string()))
        }
        _ => None,
    }
}

/// What a caller must be allowed, to be told that an object is not there.
pub(super) fn may_know_of(ask: &Ask, object: &str) -> (Action, String) {
    let list_of = |all: Object| (Action::Read, all.to_string());
    match ask {
        Ask::DeviceShow { .. } | Ask::DeviceRevoke { .. } => list_of(Object::Devices),
        Ask::OperatorRemove { .. } => list_of(Object::Devices),
        Ask::EntryDelete { .. } => list_of(Object::Entries),
        Ask::Issue { .. } | Ask::IssueJwt { .. } => list_of(Object::Entries),
        Ask::Revoke { .. } | Ask::RevokeSvid { .. } => list_of(Object::Entries),
        _ => (Action::List, object.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(json: &str) -> Ask {
        serde_json::from_str(json).unwrap()
    }

    fn asker<'a>(id: &'a SpiffeId, kind: CallerKind) -> Asker<'a> {
        Asker { id, kind, standing: Standing::Live, device: None }
    }

    #[test]
    fn every_ask_has_its_object() {
        let domain = TrustDomain::parse("corp.example").unwrap();
        let id = domain.id("/ns/pay").unwrap();
        let (class, device) = (DeviceClass::parse("server").unwrap(), DeviceId::of_key(b"k"));
        let with = Asker { device: Some((&class, &device)), ..asker(&id, CallerKind::Agent) };
        let own = format!("device/server/{device}");
        for (json, want) in [
            (r#"{"read":{"name":"pay/x"}}"#, "secret/pay/x"),
            (r#"{"list":{"prefix":"pay"}}"#, "secret/pay"),
            (r#"{"whoami":{}}"#, "svid/ns/pay"),
            (r#"{"renew":{}}"#, &own),
            (r#"{"duties":{}}"#, &own),
            (r#"{"enroll":{"name":"x"}}"#, APPLICANT_OBJECT),
            (r#"{"operator_add":{"name":"ann"}}"#, "device/person/new"),
            (r#"{"operator_remove":{"name":"ann"}}"#, "svid/doorward/operator/ann"),
            (r#"{"token_create":{"class":"server","ttl_s":60}}"#, "device/server/new"),
            (r#"{"revoke":{"spiffe_id":"spiffe://corp.example/a"}}"#, "svid/a"),
            (r#"{"policy_read":{}}"#, "policy"),
            (r#"{"status":{}}"#, "seal"),
            (r#"{"backup_data":{}}"#, "backup"),
            (r#"{"backup_keys":{"recipient":"x"}}"#, "backup/keys"),
        ] {
            assert_eq!(object(&with, &ask(json), &domain).as_deref(), Ok(want), "{json}");
        }
        for (json, want) in [
            (r#"{"operator_remove":{"name":"a/../../x"}}"#, NoObject::Invalid),
            (r#"{"operator_add":{"name":""}}"#, NoObject::Invalid),
            (r#"{"revoke":{"spiffe_id":"spiffe://other.example/a"}}"#, NoObject::Forbidden),
            (r#"{"revoke":{"spiffe_id":"spiffe://corp.example"}}"#, NoObject::Invalid),
        ] {
            assert_eq!(object(&with, &ask(json), &domain), Err(want), "{json}");
        }
    }

    #[test]
    fn releasing_a_machine_needs_the_right_to_let_one_in() {
        let device = "0".repeat(64);
        let revoke = |release| {
            let json = r#"{"device_revoke":{"class":"server","id":"DEVICE","release":RELEASE}}"#;
            ask(&json.replace("DEVICE", &device).replace("RELEASE", release))
        };
        assert_eq!(also_needs(&revoke("false")), None);
        let want = Some((Action::Write, "device/server/new".to_owned()));
        assert_eq!(also_needs(&revoke("true")), want);
        assert_eq!(revoke("true").action(), Action::Revoke);
    }

    #[test]
    fn built_in_rules_are_for_those_they_are_for() {
        let domain = TrustDomain::parse("corp.example").unwrap();
        let id = domain.id("/x").unwrap();
        let (class, device) = (DeviceClass::parse("server").unwrap(), DeviceId::of_key(b"k"));
        let rule = |kind, json: &str| {
            let with = Asker { device: Some((&class, &device)), ..asker(&id, kind) };
            mode(&with, &ask(json))
        };
        use CallerKind as K;
        let report = format!(r#"{{"report":{{"facts":"{}"}}}}"#, "0".repeat(64));
        assert_eq!(rule(K::Agent, &report), Mode::Own("self-report"));
        assert_eq!(rule(K::Workload, &report), Mode::Ordinary);
        assert_eq!(rule(K::Operator, r#"{"renew":{}}"#), Mode::Own("self-renew"));
        assert_eq!(rule(K::Workload, r#"{"renew":{}}"#), Mode::Ordinary);
        assert_eq!(rule(K::Workload, r#"{"whoami":{}}"#), Mode::Own("self-read"));
        assert_eq!(rule(K::Applicant, r#"{"whoami":{}}"#), Mode::Ordinary);
        assert_eq!(rule(K::Operator, r#"{"policy_rollback":{}}"#), Mode::Rollback);
        assert_eq!(mode(&asker(&id, K::Agent), &ask(&report)), Mode::Ordinary, "no device");
        assert!(is_out_of_place(&asker(&id, K::Applicant), &ask(r#"{"whoami":{}}"#)));
        assert!(is_out_of_place(&asker(&id, K::Operator), &ask(r#"{"enroll":{"name":"x"}}"#)));
        assert!(!is_out_of_place(&asker(&id, K::Applicant), &ask(r#"{"enroll":{"name":"x"}}"#)));
        assert_eq!(task_rule(Task::Retention, &ask(r#"{"renew":{}}"#)), Some("task-retention"));
        assert_eq!(task_rule(Task::Retention, &ask(r#"{"policy_rollback":{}}"#)), None);
    }
}
