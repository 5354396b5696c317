//! The room's own trials: one test for each known trap of the engine, the callers that must not be
//! locked out, and the proof by comparison that index, Casbin and the native evaluator agree.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::bundle::{Bundle, Policy};
use super::engine::{enforce, prove};
use super::files::BundleFiles;
use super::index::Index;
use super::judge::{Judgement, Rules, Seen};
use super::native::{evaluate, groups_of};
use super::outcome::Matched;
use super::parser::parse;
use super::request::Request;
use super::rows::{RuleSet, position};
use super::scope::{Asker, Mode};
use crate::identity::{CallerKind, Standing, Task};
use crate::model::{
    Action, Ask, Code, DeviceClass, DeviceId, Diagnostic, Reason, SpiffeId, Target, TrustDomain,
};

const NOW: &str = "2026-11-23T00:00:00Z";
const PROFILES: [&str; 2] = ["hardened", "managed"];
/// What every policy needs.
const KEEPERS: &str = "p, keep, spiffe://d/doorward/operator/*, policy, *, any, -, -, allow\n";

fn profiles() -> Vec<String> {
    PROFILES.map(str::to_owned).to_vec()
}

fn domain() -> TrustDomain {
    TrustDomain::parse("d").unwrap()
}

fn rules(text: &str) -> Rules {
    let set = parse(text, &profiles()).unwrap_or_else(|faults| panic!("{faults:#?}"));
    Rules { index: Index::new(&set), set, domain: domain(), memory: Default::default() }
}

fn build(policy: &str) -> Result<Arc<Bundle>, Vec<Diagnostic>> {
    build_with_test(policy, None)
}

fn build_with_test(policy: &str, case: Option<&str>) -> Result<Arc<Bundle>, Vec<Diagnostic>> {
    let mut files = BundleFiles { files: Default::default() };
    files.files.insert("policy.csv".to_owned(), format!("{KEEPERS}{policy}"));
    files.files.insert("posture.toml".to_owned(), String::new());
    if let Some(case) = case {
        files.files.insert("tests/case.toml".to_owned(), case.to_owned());
    }
    Bundle::build_with(&files, 7, &domain(), Arc::default(), profiles())
}

fn faults(policy: &str) -> Vec<String> {
    let list = build(policy).err().unwrap_or_default();
    list.into_iter().map(|f| format!("{}:{} {}", f.line, f.column, f.message)).collect()
}

/// `read` by `/api` on `secret/pay/db`, on a managed device.
fn read(rules: &Rules) -> Judgement {
    judged(rules, "spiffe://d/api", "secret/pay/db", "|managed=t|", NOW)
}

fn judged(rules: &Rules, sub: &str, obj: &str, label: &str, now: &str) -> Judgement {
    rules.judge(sub, Action::Read, obj, Seen::Label(label), now, Mode::Ordinary)
}

const ALLOW: &str = "p, a, spiffe://d/api, secret/pay/**, read, managed, -, -, allow\n";

// ---- traps: policy text --------------------------------------------------------------------

#[test]
fn trap_a_mistyped_deny_row_never_vanishes() {
    assert_eq!(faults(ALLOW), [""; 0]);
    for row in [
        "p, no, spiffe://d/**, secret/**, *, any, -, -, Deny",
        "p, no, spiffe://d/**, secret/**, *, any, -, -, deny # note",
        "P, no, spiffe://d/**, secret/**, *, any, -, -, deny",
        "p2, no, spiffe://d/**, secret/**, *, any, -, -, deny",
        "p , no, spiffe://d/**, secret/**, *, any, -, -, deny,",
        "p, no, spiffe://d/**, secret/**, *, any, -, -",
        "p, no, spiffe://d/**, secret/**, *, any, -, -, deny, extra",
        "p, no, spiffe://d/**,\u{a0}secret/**, *, any, -, -, deny",
        "p, no, spiffe://d/**, secret/**, *, any, -, -, \"deny\" x",
        "p, no, spiffe://d/**, secret/**, *, any, -, -, \"deny",
    ] {
        assert_eq!(faults(&format!("{ALLOW}{row}\n")).len(), 1, "{row}");
    }
}

#[test]
fn trap_a_byte_order_mark_is_refused() {
    let files = |text: &str| parse(text, &profiles()).map(|set| set.rows.len());
    assert_eq!(files(ALLOW), Ok(1));
    assert_eq!(files(&format!("\u{feff}{ALLOW}")).unwrap_err().len(), 1);
}

#[test]
fn trap_quotes_are_read_as_rfc_4180_and_no_row_is_injected() {
    let quoted = ALLOW.replace("managed", "\"managed\"");
    assert!(read(&rules(&quoted)).allowed);
    let injected =
        "p, b, \"spiffe://d/api\np, c, spiffe://d/**\", secret/**, *, any, -, -, allow\n";
    assert!(!faults(injected).is_empty());
    assert!(!faults("p, b, \"spiffe://d/a,b\", secret/**, *, any, -, -, allow\n").is_empty());
}

#[test]
fn trap_second_policies_and_second_role_graphs_do_not_exist() {
    let row = "p2, no, spiffe://d/**, secret/**, *, any, -, -, deny\n";
    assert_eq!(faults(row), ["2:1 `p2` is no kind of row"]);
    assert_eq!(faults("g2, spiffe://d/mallory, group:admins\n"), ["2:1 `g2` is no kind of row"]);
}

#[test]
fn trap_an_extra_column_of_a_membership_is_not_ignored() {
    assert_eq!(faults("g, spiffe://d/u, group:x\n"), [""; 0]);
    assert_eq!(faults("g, spiffe://d/u, group:x, expired\n").len(), 1);
}

#[test]
fn trap_groups_count_at_every_allowed_depth_and_not_beyond() {
    let chain = |deep: usize| {
        let links: String =
            (2..=deep).map(|n| format!("g, group:l{}, group:l{n}\n", n - 1)).collect();
        format!(
            "g, spiffe://d/api, group:l1\n{links}\
             p, x, group:l{deep}, secret/**, read, any, -, -, deny\n"
        )
    };
    for deep in 1..=8 {
        let found = read(&rules(&format!("{ALLOW}{}", chain(deep))));
        assert_eq!(found.reason, Reason::DenyRow, "depth {deep}");
    }
    for deep in 9..=11 {
        assert!(!faults(&chain(deep)).is_empty(), "depth {deep}");
    }
}

#[test]
fn trap_no_caller_can_be_a_group() {
    let open =
        rules("p, a, group:ops, secret/**, *, any, -, -, allow\ng, spiffe://d/op, group:ops\n");
    assert!(judged(&open, "spiffe://d/op", "secret/pay/db", "|", NOW).allowed);
    assert!(!judged(&open, "group:ops", "secret/pay/db", "|", NOW).allowed, "g(a, a) is true");
}

#[test]
fn trap_a_policy_cannot_carry_code_or_patterns_of_another_language() {
    for subject in ["eval(true)", "loop {}", "r.sub.age > 18", "r.sub.nosuch != true"] {
        assert!(!faults(&format!("p, b, {subject}, secret/**, *, any, -, -, allow\n")).is_empty());
    }
    for object in
        ["secret/(a|b)", "secret/[", "secret/.*", "10.0.0.0/8", "secret/{id}", "secret/:id"]
    {
        let row = format!("p, b, spiffe://d/api, {object}, *, any, -, -, allow\n");
        assert!(!faults(&row).is_empty(), "{object}");
    }
}

#[test]
fn trap_times_reach_beyond_32_bits() {
    let text = ALLOW.replace("-, -, allow", "-, 2107-01-01T00:00:00Z, allow");
    let late = |now| judged(&rules(&text), "spiffe://d/api", "secret/pay/db", "|managed=t|", now);
    assert!(late("2106-12-31T23:59:59Z").allowed);
    assert_eq!(late("2107-01-01T00:00:00Z").reason, Reason::Window);
    assert!(!faults(&text.replace("2107-01-01T00:00:00Z", "4323110400")).is_empty());
}

// ---- traps: requests -----------------------------------------------------------------------

#[test]
fn trap_a_path_outside_ascii_is_denied_without_a_panic() {
    let open = rules("p, a, spiffe://d/**, secret/s/*, *, any, -, -, allow\n");
    assert!(judged(&open, "spiffe://d/api", "secret/s/e", "|", NOW).allowed);
    for object in ["secret/s\u{e9}", "secret/s/\u{e9}", "secret/\u{1f511}/x"] {
        let found = judged(&open, "spiffe://d/api", object, "|", NOW);
        assert_eq!((found.allowed, found.reason), (false, Reason::EngineError), "{object}");
    }
}

#[test]
fn trap_a_dot_of_a_trust_domain_is_no_wildcard() {
    let open = rules("p, a, spiffe://corp.example/**, secret/**, *, any, -, -, allow\n");
    assert!(judged(&open, "spiffe://corp.example/evil", "secret/a/b", "|", NOW).allowed);
    for sub in
        ["spiffe://corpxexample/evil", "spiffe://corp.example.evil/x", "spiffe://corp/example/x"]
    {
        assert!(!judged(&open, sub, "secret/a/b", "|", NOW).allowed, "{sub}");
    }
}

#[test]
fn trap_an_empty_policy_and_an_empty_request_allow_nothing() {
    let none = RuleSet::new(Vec::new(), Vec::new(), Vec::new());
    prove(&none).unwrap();
    let request =
        Request { sub: "spiffe://d/api", obj: "secret/a/b", act: "read", post: "|", now: NOW };
    assert!(!enforce(&none, &request, None, &[], &[]).unwrap().allowed);
    let empty = Request { sub: "", obj: "", act: "", post: "", now: "" };
    assert!(enforce(&none, &empty, None, &[], &[]).is_err());
    assert!(build("").is_ok(), "the keepers' row is there");
    let files = BundleFiles {
        files: [("policy.csv", "# none\n"), ("posture.toml", "")]
            .map(|(n, t)| (n.to_owned(), t.to_owned()))
            .into(),
    };
    assert!(Bundle::build_with(&files, 1, &domain(), Arc::default(), profiles()).is_err());
}

#[test]
fn trap_an_engine_error_denies_and_says_so() {
    let open = rules("p, a, spiffe://d/**, secret/**, *, any, -, -, allow\n");
    assert!(judged(&open, "spiffe://d/api", "secret/a/b", "|", NOW).allowed);
    let found = judged(&open, "spiffe://d/api", "secret/a/b", "|", "now");
    assert_eq!(
        (found.allowed, found.reason, found.code),
        (false, Reason::EngineError, Code::Denied)
    );
}

#[test]
fn trap_what_casbin_does_loosely_is_not_used() {
    let engine = include_str!("engine.rs");
    let code = engine.split("#[cfg(test)]").next().unwrap();
    for banned in [
        "CachedEnforcer",
        "FileAdapter",
        "StringAdapter",
        "MemoryAdapter",
        "MgmtApi",
        "RbacApi",
        "enable_enforce",
        "EnforceContext",
        "keyMatch",
        "regexMatch",
        "ipMatch",
        "globMatch",
        "eval(",
        "priority(",
        "Watcher",
        "set_model",
        "set_adapter",
    ] {
        assert!(!code.contains(banned), "{banned}");
    }
    let others = [
        include_str!("bundle.rs"),
        include_str!("cases.rs"),
        include_str!("decision.rs"),
        include_str!("explain.rs"),
        include_str!("files.rs"),
        include_str!("index.rs"),
        include_str!("judge.rs"),
        include_str!("native.rs"),
        include_str!("parser.rs"),
        include_str!("pattern.rs"),
        include_str!("rows.rs"),
        include_str!("scope.rs"),
    ];
    assert!(others.iter().all(|text| !text.contains("casbin::")), "casbin is fenced in");
}

#[test]
fn trap_a_failed_reload_keeps_the_last_good_bundle() {
    let policy = Policy::new(build(ALLOW).unwrap());
    let before = policy.current();
    assert!(build("p, b, alice, secret/**, *, any, -, -, allow\n").is_err());
    assert_eq!(policy.current().generation(), before.generation());
    policy.install(build("").unwrap());
    assert_ne!(policy.current().generation(), before.generation());
    let found = read(before.rules());
    assert!(found.allowed, "who took the old one keeps it to the end");
    assert_eq!(
        read(policy.current().rules()).reason,
        Reason::NoAllow,
        "and the new one is in force"
    );
}

// ---- reasons -------------------------------------------------------------------------------

#[test]
fn each_denial_has_its_reason() {
    let with = |tail: &str| rules(&format!("{ALLOW}{tail}"));
    let plain = with("");
    assert_eq!(read(&plain).reason, Reason::Allow);
    let ask = |label, now| judged(&plain, "spiffe://d/api", "secret/pay/db", label, now).reason;
    assert_eq!(ask("|", NOW), Reason::PostureUnmet);
    assert_eq!(ask("|hardened=t|", NOW), Reason::PostureUnmet);
    assert_eq!(ask("|managed=u|", NOW), Reason::PostureUnknown);
    assert_eq!(ask("unknown", NOW), Reason::PostureUnknown);
    assert_eq!(
        judged(&plain, "spiffe://d/b", "secret/pay/db", "|managed=t|", NOW).reason,
        Reason::NoAllow
    );
    assert_eq!(
        read(&with("p, n, spiffe://d/**, secret/pay/db, *, any, -, -, deny\n")).reason,
        Reason::DenyRow
    );
    let timed = rules(&ALLOW.replace("-, -, allow", "2026-12-01T00:00:00Z, -, allow"));
    assert_eq!(read(&timed).reason, Reason::Window);
    assert_eq!(
        judged(&timed, "spiffe://d/api", "secret/pay/db", "|", NOW).reason,
        Reason::NoAllow,
        "two things are lacking"
    );
}

#[test]
fn the_rules_that_decided_come_first() {
    let found = read(&rules(&format!(
        "{ALLOW}p, x, spiffe://d/**, secret/**, read, any, -, -, allow\n\
         p, no, spiffe://d/**, secret/pay/**, *, any, -, -, deny\n"
    )));
    let ids: Vec<&str> = found.rules.iter().map(|rule| &*rule.id).collect();
    assert_eq!(ids, ["no", "a", "x"]);
    assert_eq!(found.rules[0].line, 3);
}

// ---- whole asks ----------------------------------------------------------------------------

struct Who {
    id: SpiffeId,
    kind: CallerKind,
    standing: Standing,
    class: DeviceClass,
    device: DeviceId,
}

impl Who {
    fn new(kind: CallerKind, path: &str) -> Self {
        let (class, device) = (DeviceClass::parse("server").unwrap(), DeviceId::of_key(b"key"));
        Self { id: domain().id(path).unwrap(), kind, standing: Standing::Live, class, device }
    }

    fn asker(&self) -> Asker<'_> {
        Asker {
            id: &self.id,
            kind: self.kind,
            standing: self.standing,
            device: Some((&self.class, &self.device)),
        }
    }

    fn asks(&self, rules: &Rules, json: &str, target: Target) -> Judgement {
        let ask: Ask = serde_json::from_str(json).unwrap();
        rules.judge_ask(&self.asker(), Seen::Label("unknown"), &ask, &target, NOW).1
    }
}

const REPORT: &str =
    r#"{"report":{"facts":"0000000000000000000000000000000000000000000000000000000000000000"}}"#;

#[test]
fn whoever_does_not_count_is_denied_before_any_rule() {
    let open = rules("p, a, spiffe://d/**, secret/**, *, any, -, -, allow\n");
    let mut who = Who::new(CallerKind::Workload, "/api");
    let read = r#"{"read":{"name":"pay/db"}}"#;
    assert!(who.asks(&open, read, Target::Itself).allowed);
    for (standing, code, reason) in [
        (Standing::Expired, Code::Expired, Reason::IdentityExpired),
        (Standing::Revoked, Code::Denied, Reason::Revoked),
        (Standing::SvidRevoked, Code::Denied, Reason::SvidRevoked),
        (Standing::Unknown, Code::Denied, Reason::IdentityUnknown),
        (Standing::NotYet, Code::Denied, Reason::IdentityNotYet),
    ] {
        who.standing = standing;
        for json in [read, r#"{"whoami":{}}"#, REPORT] {
            let found = who.asks(&open, json, Target::Itself);
            assert_eq!((found.allowed, found.code, found.reason), (false, code, reason));
            assert_eq!(found.rules, []);
        }
    }
}

#[test]
fn a_deny_on_posture_never_locks_out_and_a_plain_one_does() {
    let bitten = rules(
        "p, halt, spiffe://d/**, device/**, *, managed, -, -, deny\n\
         p, halt-policy, spiffe://d/**, policy, *, managed, -, -, deny\n\
         p, ops, spiffe://d/doorward/operator/*, policy, *, any, -, -, allow\n",
    );
    let agent = Who::new(CallerKind::Agent, "/doorward/agent/x");
    let operator = Who::new(CallerKind::Operator, "/doorward/operator/ann");
    for (json, rule) in [
        (REPORT, "self-report"),
        (r#"{"renew":{}}"#, "self-renew"),
        (r#"{"duties":{}}"#, "self-duties"),
    ] {
        let found = agent.asks(&bitten, json, Target::Itself);
        assert_eq!((found.allowed, &*found.rules[0].id), (true, rule));
    }
    assert!(operator.asks(&bitten, r#"{"policy_rollback":{}}"#, Target::Itself).allowed);
    let activate = operator.asks(&bitten, r#"{"policy_activate":{}}"#, Target::Itself);
    assert_eq!(activate.reason, Reason::DenyRow, "only rollback is exempt");
    let shut = rules("p, no, spiffe://d/doorward/agent/x, device/**, report, any, -, -, deny\n");
    let found = agent.asks(&shut, REPORT, Target::Itself);
    assert_eq!((found.allowed, found.reason), (false, Reason::DenyRow));
    assert_eq!(found.rules.iter().map(|r| &*r.id).collect::<Vec<_>>(), ["no", "self-report"]);
}

#[test]
fn applicants_enroll_and_do_nothing_else_and_nobody_else_does() {
    let open = rules(
        "p, a, spiffe://d/**, secret/**, *, any, -, -, allow\n\
         p, b, spiffe://d/**, device/**, *, any, -, -, allow\n",
    );
    let applicant = Who::new(CallerKind::Applicant, "/doorward/applicant");
    let enroll = r#"{"enroll":{"name":"host"}}"#;
    let found = applicant.asks(&open, enroll, Target::Itself);
    assert_eq!((found.allowed, &*found.rules[0].id), (true, "self-enroll"));
    // Neither a living token nor a known key: denied like everybody without a rule, whoever may list.
    let absent = applicant.asks(&open, enroll, Target::Absent);
    assert_eq!((absent.allowed, absent.code, absent.reason), (false, Code::Denied, Reason::Absent));
    for json in [r#"{"read":{"name":"pay/db"}}"#, r#"{"whoami":{}}"#, r#"{"device_list":{}}"#] {
        assert!(!applicant.asks(&open, json, Target::Itself).allowed, "{json}");
    }
    for kind in [CallerKind::Workload, CallerKind::Agent, CallerKind::Operator] {
        assert!(!Who::new(kind, "/x").asks(&open, enroll, Target::Itself).allowed);
    }
}

#[test]
fn the_brokers_tasks_follow_a_constant_table() {
    let open = rules("p, a, spiffe://d/**, secret/**, *, any, -, -, allow\n");
    let task = Who::new(CallerKind::Broker(Task::OwnIdentity), "/doorward/task/own-identity");
    let found = task.asks(&open, r#"{"renew":{}}"#, Target::Itself);
    assert_eq!((found.allowed, &*found.rules[0].id), (true, "task-own-identity"));
    assert!(!task.asks(&open, r#"{"read":{"name":"pay/db"}}"#, Target::Itself).allowed);
    let other = Who::new(CallerKind::Broker(Task::Retention), "/doorward/task/retention");
    let found = other.asks(&open, r#"{"renew":{}}"#, Target::Itself);
    assert_eq!((found.allowed, &*found.rules[0].id), (true, "task-retention"));
    assert!(!other.asks(&open, r#"{"policy_rollback":{}}"#, Target::Itself).allowed);
}

#[test]
fn that_something_is_absent_is_said_to_who_may_list() {
    let text = "p, r, spiffe://d/**, secret/**, read, any, -, -, allow\n\
                p, w, spiffe://d/**, secret/**, write, any, -, -, allow\n\
                p, l, spiffe://d/lister, secret/**, list, any, -, -, allow\n";
    let open = rules(text);
    let read = r#"{"read":{"name":"pay/db"}}"#;
    let plain = Who::new(CallerKind::Workload, "/api").asks(&open, read, Target::Absent);
    assert_eq!((plain.allowed, plain.code, plain.reason), (false, Code::Denied, Reason::Absent));
    let lister = Who::new(CallerKind::Workload, "/lister").asks(&open, read, Target::Absent);
    assert_eq!(
        (lister.allowed, lister.code, lister.reason),
        (false, Code::NotFound, Reason::Absent)
    );
    let write = r#"{"write":{"name":"pay/db"}}"#;
    assert!(Who::new(CallerKind::Workload, "/api").asks(&open, write, Target::Absent).allowed);
    let stranger = rules(ALLOW);
    let found = Who::new(CallerKind::Workload, "/b").asks(&stranger, read, Target::Absent);
    assert_eq!(found.reason, Reason::NoAllow, "a denial comes before absence");
}

#[test]
fn what_stands_against_an_object_denies_whatever_the_rules_say() {
    let open = rules(
        "p, r, spiffe://d/api, secret/**, read, any, -, -, allow\n\
         p, i, spiffe://d/api, svid/**, issue, any, -, -, allow\n",
    );
    let who = Who::new(CallerKind::Workload, "/api");
    let issue = r#"{"issue":{"spiffe_id":"spiffe://d/ns/pay","public_key":"",
        "entry":"7d2f3c1e-0000-4000-8000-000000000000","agent_held":true,"workload":{"pid":1,
        "start_ticks":1,"uid":1,"gid":1,"pinned":true}}}"#;
    for ask in [r#"{"read":{"name":"pay/db"}}"#, issue] {
        assert!(who.asks(&open, ask, Target::Itself).allowed, "{ask}");
        for (target, code, reason) in [
            (Target::Unknown, Code::Unavailable, Reason::StoreUnavailable),
            (Target::Revoked, Code::Denied, Reason::Revoked),
        ] {
            let found = who.asks(&open, ask, target.clone());
            assert_eq!((found.allowed, found.code, found.reason), (false, code, reason));
            // Who may not have it learns nothing of what stands against it.
            let stranger = Who::new(CallerKind::Workload, "/b").asks(&open, ask, target);
            assert_eq!((stranger.code, stranger.reason), (Code::Denied, Reason::NoAllow));
        }
    }
}

#[test]
fn who_creates_an_entry_could_issue_it() {
    let entry = r#"{"entry_create":{"entry":{"spiffe_id":"spiffe://d/ns/pay","class":"server",
        "selectors":[{"uid":1}]}}}"#;
    let write = "p, w, spiffe://d/doorward/operator/*, entry/**, write, any, -, -, allow\n";
    let issue = "p, i, spiffe://d/doorward/operator/*, svid/ns/**, issue, any, -, -, allow\n";
    let operator = Who::new(CallerKind::Operator, "/doorward/operator/ann");
    assert!(!operator.asks(&rules(write), entry, Target::Itself).allowed);
    assert!(!operator.asks(&rules(issue), entry, Target::Itself).allowed);
    let found = operator.asks(&rules(&format!("{write}{issue}")), entry, Target::Absent);
    assert_eq!((found.allowed, found.rules.len()), (true, 2));
    let foreign = entry.replace("spiffe://d/", "spiffe://other/");
    assert!(!operator.asks(&rules(&format!("{write}{issue}")), &foreign, Target::Itself).allowed);
}

#[test]
fn can_i_answers_what_would_be_decided() {
    let bundle =
        build(&format!("{ALLOW}p, w, spiffe://d/**, entry/**, write, any, -, -, allow\n")).unwrap();
    let could = |who: &Who, action, object: &str| {
        bundle.could(&who.asker(), Seen::Label("|managed=t|"), action, object, NOW)
    };
    let api = Who::new(CallerKind::Workload, "/api");
    assert_eq!(could(&api, Action::Read, "secret/pay/db"), (true, Reason::Allow));
    assert_eq!(could(&api, Action::Read, "secret/pay/../db"), (false, Reason::NoAllow));
    assert_eq!(could(&api, Action::Read, "group:x"), (false, Reason::NoAllow));
    assert_eq!(could(&api, Action::Write, "entry/ns/new"), (false, Reason::NoAllow));
    let agent = Who::new(CallerKind::Agent, "/doorward/agent/x");
    let own = format!("device/server/{}", agent.device);
    assert_eq!(could(&agent, Action::Report, &own), (true, Reason::Allow));
    assert_eq!(could(&api, Action::Report, &own), (false, Reason::NoAllow));
    let gone = Who { standing: Standing::Revoked, ..Who::new(CallerKind::Workload, "/api") };
    assert!(!could(&gone, Action::Read, "secret/pay/db").0);
}

#[test]
fn a_demand_names_the_profiles_of_candidate_rows_only() {
    let bundle = build(
        "p, a, spiffe://d/api, secret/pay/**, read, managed, -, 2020-01-01T00:00:00Z, allow\n\
         p, b, spiffe://d/api, secret/pay/*/x, read, hardened, -, -, allow\n\
         p, c, spiffe://d/api, secret/pay/**, write, hardened, -, -, allow\n\
         p, e, spiffe://d/other, secret/**, read, hardened, -, -, deny\n\
         p, f, spiffe://d/**, device/**, *, hardened, -, -, deny\n",
    )
    .unwrap();
    let rows = |who: &Who, json: &str| {
        let ask: Ask = serde_json::from_str(json).unwrap();
        let found = bundle.rules().rows_in_demand(&who.asker(), &ask)?;
        Some(found.iter().map(|r| bundle.rules().set.row(*r).unwrap().id().to_owned()).collect())
    };
    let api = Who::new(CallerKind::Workload, "/api");
    let none: Option<Vec<String>> = Some(Vec::new());
    assert_eq!(
        rows(&api, r#"{"read":{"name":"pay/db"}}"#),
        Some(vec!["a".to_owned()]),
        "ended or not"
    );
    assert_eq!(rows(&api, r#"{"read":{"name":"other/db"}}"#), none);
    assert_eq!(rows(&api, r#"{"whoami":{}}"#), none);
    assert_eq!(
        rows(&api, r#"{"can_i":{"action":"write","object":"secret/pay/x"}}"#),
        Some(vec!["c".to_owned()])
    );
    assert_eq!(
        rows(&api, r#"{"list":{"prefix":"pay"}}"#),
        None,
        "the names below are not known here"
    );
    assert_eq!(rows(&Who::new(CallerKind::Agent, "/doorward/agent/x"), REPORT), none);
    let gone = Who { standing: Standing::Expired, ..api };
    assert_eq!(rows(&gone, r#"{"read":{"name":"pay/db"}}"#), none);
}

// ---- bundles -------------------------------------------------------------------------------

#[test]
fn the_faults_of_both_files_are_told_at_once() {
    let domain = TrustDomain::parse("corp.example").unwrap();
    let told = |csv: &str, posture: &str| -> Vec<String> {
        let files = [("policy.csv", csv), ("posture.toml", posture)];
        let files = files.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned()));
        let built = Bundle::build(&BundleFiles { files: files.collect() }, 1, &domain);
        built
            .unwrap_err()
            .into_iter()
            .map(|fault| format!("{}:{}", fault.file, fault.line))
            .collect()
    };
    let row = "p, a, spiffe://corp.example/api, secret/pay/**, raed, nobody-knows, -, -, allow\n";
    assert_eq!(told(row, "what"), ["posture.toml:1", "policy.csv:1"]);
    let sound = row.replace("raed", "read");
    assert_eq!(told(&sound, "what"), ["posture.toml:1"], "which profiles there are is not known");
    assert_eq!(told(&sound, ""), ["policy.csv:1"]);
}

/// What stands there to be copied must pass as it stands.
#[test]
fn every_row_that_the_default_policies_propose_passes_with_their_tests() {
    let domain = TrustDomain::parse("prod.example").unwrap();
    let defaults = BundleFiles::defaults(&domain);
    let text = &defaults.files["policy.csv"];
    let proposed: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|l| l.starts_with("p, "))
        .collect();
    assert!(proposed.iter().any(|row| row.starts_with("p, keys-backup,")), "{proposed:?}");
    let all = proposed.join("\n");
    for row in proposed.iter().copied().chain([all.as_str()]) {
        let mut files = defaults.clone();
        files.files.insert("policy.csv".to_owned(), format!("{text}{row}\n"));
        if let Err(faults) = Bundle::build(&files, 1, &domain) {
            panic!("{row}: {faults:#?}");
        }
    }
}

#[test]
fn the_default_policies_pass_and_keep_values_from_operators() {
    let domain = TrustDomain::parse("prod.example").unwrap();
    let files = BundleFiles::defaults(&domain);
    let bundle = Bundle::build(&files, 1, &domain);
    let bundle = bundle.unwrap_or_else(|faults| panic!("{faults:#?}"));
    let ask = |sub: &str, action, object: &str| {
        let sub = format!("spiffe://prod.example/doorward/{sub}");
        let label = Seen::Label("|hardened=t|managed=t|");
        bundle.rules().judge(&sub, action, object, label, NOW, Mode::Ordinary).allowed
    };
    for action in [Action::Write, Action::List, Action::Activate, Action::Delete] {
        assert!(ask("operator/ann", action, "secret/pay/db"), "{action}");
    }
    assert!(!ask("operator/ann", Action::Read, "secret/pay/db"));
    assert!(!ask("operator/ann", Action::Watch, "secret/pay/db"));
    assert!(!ask("operator/ann", Action::Take, "backup/keys"));
    assert!(!ask("operator/ann", Action::Restore, "backup"));
    for (action, object) in [
        (Action::Activate, "policy"),
        (Action::Rollback, "policy"),
        (Action::Explain, "log/decisions"),
        (Action::Take, "backup"),
        (Action::Rotate, "seal"),
        (Action::Write, "device/server/new"),
        (Action::Revoke, "svid/ns/pay"),
        (Action::Issue, "svid/ns/pay"),
        (Action::Read, "device/all"),
    ] {
        assert!(ask("operator/ann", action, object), "{action} {object}");
        assert_eq!(ask("agent/x", action, object), action == Action::Issue, "{action} {object}");
    }
}

#[test]
fn a_bundle_whose_tests_fail_is_no_bundle() {
    let case = |want: &str| {
        format!(
            "[[case]]\nname = \"n\"\nsub = \"spiffe://d/api\"\nobj = \"secret/pay/x\"\nact = \"read\"\n\
             post = [\"managed\"]\nnow = \"{NOW}\"\nwant = \"{want}\"\nrows = [\"a\"]\n"
        )
    };
    assert!(build_with_test(ALLOW, Some(&case("allow"))).is_ok());
    let found = build_with_test(ALLOW, Some(&case("deny"))).unwrap_err();
    assert_eq!((found[0].file.as_str(), found[0].line), ("tests/case.toml", 8));
}

#[test]
fn a_profile_cannot_be_called_what_has_a_meaning() {
    let files = BundleFiles {
        files: [("policy.csv", KEEPERS), ("posture.toml", "")]
            .map(|(n, t)| (n.to_owned(), t.to_owned()))
            .into(),
    };
    let with = |name: &str| {
        Bundle::build_with(&files, 1, &domain(), Arc::default(), vec![name.to_owned()])
    };
    assert!(with("managed").is_ok());
    for name in ["any", "unknown", "", "a|b", "a=t"] {
        assert!(with(name).is_err(), "{name:?}");
    }
}

#[test]
fn bundles_are_told_apart() {
    let (one, two) = (build(ALLOW).unwrap(), build(ALLOW).unwrap());
    assert_eq!((one.digest(), one.serial(), one.rule_count()), (two.digest(), 7, 2));
    assert_ne!(one.generation(), two.generation());
    assert_eq!(one.files().digest(), one.digest());
}

// ---- comparisons ---------------------------------------------------------------------------

fn segment() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned)
}

fn pattern(max: usize) -> impl Strategy<Value = String> {
    let part = prop_oneof![4 => segment(), 1 => Just("*".to_owned())];
    (prop::collection::vec(part, 1..=max), prop::bool::weighted(0.3)).prop_map(
        |(mut parts, open)| {
            if open {
                parts.push("**".to_owned());
            }
            parts.join("/")
        },
    )
}

fn subject() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => pattern(2).prop_map(|path| format!("spiffe://d/{path}")),
        1 => (0..4_u8).prop_map(|group| format!("group:g{group}")),
    ]
}

fn policy() -> impl Strategy<Value = String> {
    let time = || prop::sample::select(vec!["-", "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"]);
    let row = (
        subject(),
        pattern(3),
        prop::sample::select(vec!["read", "write", "list", "*"]),
        prop::sample::select(vec!["any", "any", "hardened", "managed"]),
        (time(), time()),
        prop::sample::select(vec!["allow", "allow", "deny"]),
    );
    let member = (subject(), 0..4_u8);
    (prop::collection::vec(row, 0..10), prop::collection::vec(member, 0..6)).prop_map(
        |(rows, members)| {
            let base = "spiffe://d/a, secret/a/**, read, any, -, -, allow\n".to_owned();
            let mut text = format!("{KEEPERS}p, base, {base}");
            let mut seen = BTreeSet::from([base]);
            // Groups hold only groups of a lower number, and every one has a member.
            for group in 0..4 {
                text.push_str(&format!("g, spiffe://d/only/g{group}, group:g{group}\n"));
            }
            for (member, group) in members {
                let lower =
                    member.strip_prefix("group:g").is_none_or(|n| n < group.to_string().as_str());
                let line = format!("g, {member}, group:g{group}\n");
                if lower && seen.insert(line.clone()) {
                    text.push_str(&line);
                }
            }
            for (at, (sub, obj, act, post, (nbf, exp), eft)) in rows.into_iter().enumerate() {
                let (nbf, exp) =
                    if nbf != "-" && exp != "-" && nbf >= exp { ("-", exp) } else { (nbf, exp) };
                let meaning = format!("{sub}, secret/{obj}, {act}, {post}, {nbf}, {exp}, {eft}\n");
                if seen.insert(meaning.clone()) {
                    text.push_str(&format!("p, r{at}, {meaning}"));
                }
            }
            text
        },
    )
}

type Asked = (String, String, Action, &'static str, &'static str);

fn asked() -> impl Strategy<Value = Asked> {
    let path = |max| prop::collection::vec(segment(), 1..=max).prop_map(|parts| parts.join("/"));
    (
        path(3).prop_map(|path| format!("spiffe://d/{path}")),
        path(4).prop_map(|path| format!("secret/{path}")),
        prop::sample::select(vec![Action::Read, Action::Write, Action::List]),
        prop::sample::select(vec![
            "unknown",
            "|",
            "|hardened=t|managed=t|",
            "|managed=t|",
            "|hardened=u|managed=t|",
        ]),
        prop::sample::select(vec![
            "2025-12-31T23:59:59Z",
            "2026-01-01T00:00:00Z",
            "2026-05-31T23:59:59Z",
            "2026-06-01T00:00:00Z",
        ]),
    )
}

/// Casbin over the candidates, Casbin over every row, and the native evaluator over every row.
fn three_verdicts(
    rules: &Rules,
    request: &Request<'_>,
    action: Action,
    full: bool,
) -> (bool, Vec<Matched>) {
    let found = rules.index.candidates(&rules.set, request.sub, request.obj, action);
    let indexed = enforce(&rules.set, request, None, &found.rows, &found.groups).unwrap();
    let (allowed, matched) = evaluate(&rules.set, request);
    let native: Vec<Matched> = matched.into_iter().map(|at| Matched::Row(position(at))).collect();
    assert_eq!(
        (indexed.allowed, &indexed.matched),
        (allowed, &native),
        "index or native: {request:?}"
    );
    if full {
        let rows: Vec<u32> = (0..position(rules.set.rows.len())).collect();
        let mut groups: Vec<u32> = groups_of(&rules.set, request.sub).into_iter().collect();
        groups.sort_unstable();
        assert_eq!(groups, found.groups, "closures: {request:?}");
        let whole = enforce(&rules.set, request, None, &rows, &groups).unwrap();
        assert_eq!((whole.allowed, whole.matched), (allowed, native), "full scan: {request:?}");
    }
    (indexed.allowed, indexed.matched)
}

fn request<'r>(asked: &'r Asked) -> Request<'r> {
    let (sub, obj, action, post, now) = asked;
    Request { sub, obj, act: action.as_str(), post, now }
}

#[test]
fn index_casbin_and_native_agree_on_everything() {
    let (start, decided, allowed) = (Instant::now(), Cell::new(0), Cell::new(0));
    let mut runner =
        TestRunner::new(Config { cases: 600, failure_persistence: None, ..Config::default() });
    let cases = (policy(), prop::collection::vec(asked(), 6));
    let run = runner.run(&cases, |(text, asks)| {
        let rules = rules(&text);
        for ask in &asks {
            if start.elapsed() < Duration::from_secs(6) {
                let (verdict, _) = three_verdicts(&rules, &request(ask), ask.2, true);
                decided.set(decided.get() + 1);
                allowed.set(allowed.get() + usize::from(verdict));
            }
        }
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
    let (decided, allowed) = (decided.get(), allowed.get());
    assert!(decided >= 500, "only {decided} comparisons were made");
    assert!(allowed >= decided / 100 && allowed <= decided / 2, "{allowed} of {decided} allowed");
}

#[test]
fn a_deny_or_a_doubt_never_grants() {
    let mut runner =
        TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let cases = (policy(), pattern(3), prop::collection::vec(asked(), 4));
    let run = runner.run(&cases, |(text, object, asks)| {
        let before = rules(&text);
        let after = rules(&format!(
            "{text}p, more, spiffe://d/**, secret/{object}, *, managed, -, -, deny\n"
        ));
        for ask in &asks {
            let of = |rules: &Rules, post: &str| {
                let request = Request { post, ..request(ask) };
                let found = rules.index.candidates(&rules.set, request.sub, request.obj, ask.2);
                enforce(&rules.set, &request, None, &found.rows, &found.groups).unwrap().allowed
            };
            prop_assert!(!of(&after, ask.3) || of(&before, ask.3), "a deny granted: {ask:?}");
            prop_assert!(!of(&before, "unknown") || of(&before, ask.3), "a doubt granted: {ask:?}");
            let doubt = ask.3.replace("managed=t", "managed=u");
            prop_assert!(!of(&before, &doubt) || of(&before, ask.3), "a doubt granted: {ask:?}");
        }
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
}

/// 100,000 rows and 9,900 groups.
fn large() -> String {
    let mut text = String::from(KEEPERS);
    for at in 0..90_000 {
        let (n, eft) = (at % 900, if at % 17 == 0 { "deny" } else { "allow" });
        text.push_str(&format!(
            "p, r{at}, spiffe://d/ns/n{n}/sa/s{at}, secret/n{n}/a{at}/**, read, any, -, -, {eft}\n"
        ));
    }
    for at in 0..9_900 {
        text.push_str(&format!(
            "p, g{at}, group:t{at}, secret/team/t{at}/*, read, any, -, -, allow\n"
        ));
        text.push_str(&format!("g, spiffe://d/team/t{at}/**, group:t{at}\n"));
    }
    for at in 0..99 {
        text.push_str(&format!(
            "p, w{at}, spiffe://d/*/n{at}/**, secret/*/shared/x{at}, *, any, -, -, allow\n"
        ));
    }
    text
}

#[test]
fn a_hundred_thousand_rows_are_judged_by_their_few_candidates() {
    let rules = rules(&large());
    assert!(rules.set.rows.len() >= 99_999);
    let mut allowed = 0;
    for at in (0..90_000).step_by(30_000).chain([17]) {
        let sub = format!("spiffe://d/ns/n{}/sa/s{at}", at % 900);
        let obj = format!("secret/n{}/a{at}/x", at % 900);
        let team = (
            format!("spiffe://d/team/t{}/web", at % 9_900),
            format!("secret/team/t{}/x", at % 9_900),
        );
        let other = (sub.clone(), format!("secret/n1/shared/x{}", at % 99));
        for (sub, obj) in [(sub, obj), team, other] {
            let request = Request { sub: &sub, obj: &obj, act: "read", post: "unknown", now: NOW };
            let found = rules.index.candidates(&rules.set, &sub, &obj, Action::Read);
            assert!(found.rows.len() <= 3, "{} candidates", found.rows.len());
            allowed += usize::from(three_verdicts(&rules, &request, Action::Read, at == 17).0);
        }
    }
    assert!(allowed >= 7, "{allowed}");
}
