//! Casbin, fenced in. The only file that names it.
//!
//! Casbin's own evaluation decides every request: the pinned model, over the candidate rows, with
//! our total functions and our effector. What Casbin does loosely is not used: no file or string
//! adapter, no management calls, no cache, no stock matching functions, no second policy type, no
//! priority. Each thread owns one enforcer; the rows of a request are put into it and stay there
//! until a request needs others. A panic, an error, or a row count that does not add up is an
//! [`EngineError`], and its caller denies.

use std::cell::RefCell;
use std::sync::OnceLock;

use async_trait::async_trait;
use casbin::function_map::OperatorFunction::{Arg2, Arg3};
use casbin::rhai::Dynamic;
use casbin::{
    Adapter, CoreApi, DefaultModel, EffectKind, Effector, EffectorStream, Enforcer, Filter, Model,
};

use super::outcome::{BuiltIn, EngineError, Matched, Outcome, at_once, guarded};
use super::pattern::{act_match, in_window, path_match, posture_ok};
use super::request::Request;
use super::rows::{RuleSet, Subject, digest, sentinel};
use crate::model::Digest;

/// The model. Its text is pinned: whoever changes it changes the digest below, and is seen.
const MODEL: &str = "\
[request_definition]
r = sub, obj, act, post, now
[policy_definition]
p = id, sub, obj, act, post, nbf, exp, eft
[role_definition]
g = _, _
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = actMatch(r.act, p.act) && pathMatch(r.obj, p.obj) && \
    (pathMatch(r.sub, p.sub) || g(r.sub, p.sub)) && \
    inWindow(r.now, p.nbf, p.exp) && postureOk(r.post, p.post, p.eft)
";
/// SHA-256 of [`MODEL`].
const MODEL_SHA256: &str = "77b9805adc47a73ece0906c4a7f4cde0956f3dffe4aed3ac96af88aafc4e6b48";

/// Lets Casbin decide over these rows (positions in the set, ascending). `groups` is the subject's
/// closure, ascending.
///
/// # Errors
/// Whenever Casbin did not judge every row; the caller denies.
pub(super) fn enforce(
    set: &RuleSet,
    request: &Request<'_>,
    built_in: Option<BuiltIn>,
    rows: &[u32],
    groups: &[u32],
) -> Result<Outcome, EngineError> {
    if !request.is_sound() {
        return Err(EngineError::Request);
    }
    guarded(|| {
        SEAT.try_with(|seat| {
            let mut slot = seat.try_borrow_mut().map_err(|_| EngineError::Casbin("its seat"))?;
            // Taken out while in use: whatever goes wrong, the next request gets a fresh one.
            let mut seat = match slot.take() {
                Some(seat) => seat,
                None => Seat::new()?,
            };
            let outcome = seat.enforce(set, request, built_in, rows, groups)?;
            *slot = Some(seat);
            Ok(outcome)
        })
        .unwrap_or(Err(EngineError::Casbin("its seat")))
    })
}

/// Loads a whole policy through the adapter once, reads it back, and asks one question that no
/// rule can answer with yes. Also proves the pinned model, once a process.
///
/// # Errors
/// When Casbin holds anything else than what was given, or can't evaluate a row.
pub(super) fn prove(set: &RuleSet) -> Result<(), EngineError> {
    guarded(|| {
        prove_model()?;
        let rows: Vec<Vec<String>> = set.rows.iter().map(|row| row.columns()).collect();
        let member =
            |m: &super::rows::Membership| vec![m.member.to_string(), set.group(m.group).to_owned()];
        let members: Vec<Vec<String>> = set.members.iter().map(member).collect();
        let want = digest(std::iter::once(&sentinel()).chain(&rows).chain(&members));
        let mut enforcer = enforcer(MODEL, RuleAdapter { rows, members })?;
        let loading = enforcer.load_policy();
        at_once(loading)?.map_err(|_| EngineError::Casbin("loading"))?;
        let model = enforcer.get_model();
        let (rows, members) = (model.get_policy("p", "p"), model.get_policy("g", "g"));
        if digest(rows.iter().chain(&members)) != want {
            return Err(EngineError::Rows);
        }
        let nobody = vec!["spiffe://-/-", "-/-", "-", "unknown", "2000-01-01T00:00:00Z"];
        match enforcer.enforce(nobody) {
            Ok(false) => Ok(()),
            Ok(true) => Err(EngineError::Rows),
            Err(_) => Err(EngineError::Casbin("the first request")),
        }
    })
}

thread_local! {
    static SEAT: RefCell<Option<Seat>> = const { RefCell::new(None) };
    static TRACE: RefCell<Trace> = const { RefCell::new(Trace { judged: 0, matched: Vec::new() }) };
}

/// What the effector saw in the request that runs on this thread.
struct Trace {
    judged: usize,
    matched: Vec<usize>,
}

/// One thread's enforcer, and what stands in it.
struct Seat {
    enforcer: Enforcer,
    /// Generation and positions of the rows that are loaded, without a built-in one.
    loaded: Option<(u64, Vec<u32>)>,
    /// Generation, subject and groups that the role manager holds.
    linked: (u64, String, Vec<u32>),
}

impl Seat {
    fn new() -> Result<Self, EngineError> {
        let adapter = RuleAdapter { rows: Vec::new(), members: Vec::new() };
        let enforcer = enforcer(MODEL, adapter)?;
        Ok(Self { enforcer, loaded: None, linked: (0, String::new(), Vec::new()) })
    }

    fn enforce(
        &mut self,
        set: &RuleSet,
        request: &Request<'_>,
        built_in: Option<BuiltIn>,
        rows: &[u32],
        groups: &[u32],
    ) -> Result<Outcome, EngineError> {
        self.load(set, request, built_in, rows)?;
        self.link(set, request.sub, rows, groups);
        TRACE.with_borrow_mut(|trace| {
            trace.judged = 0;
            trace.matched.clear();
        });
        let values = vec![request.sub, request.obj, request.act, request.post, request.now];
        let allowed =
            self.enforcer.enforce(values).map_err(|_| EngineError::Casbin("a request"))?;
        let first = 1 + usize::from(built_in.is_some());
        let (judged, matched) =
            TRACE.with_borrow_mut(|trace| (trace.judged, std::mem::take(&mut trace.matched)));
        if judged != first + rows.len() {
            return Err(EngineError::Rows);
        }
        let name = |at: usize| match at.checked_sub(first) {
            Some(row) => rows.get(row).map(|row| Matched::Row(*row)),
            None if at == 1 => Some(Matched::BuiltIn),
            None => None, // the sentinel matches no sound request
        };
        let matched: Option<Vec<Matched>> = matched.into_iter().map(name).collect();
        Ok(Outcome { allowed, matched: matched.ok_or(EngineError::Rows)? })
    }

    /// Puts the sentinel, the built-in rule and these rows into the `p` assertion.
    fn load(
        &mut self,
        set: &RuleSet,
        request: &Request<'_>,
        built_in: Option<BuiltIn>,
        rows: &[u32],
    ) -> Result<(), EngineError> {
        let same = |(generation, loaded): &(u64, Vec<u32>)| {
            *generation == set.generation && loaded == rows
        };
        if built_in.is_none() && self.loaded.as_ref().is_some_and(same) {
            return Ok(());
        }
        self.loaded = None;
        let model = self.enforcer.get_mut_model().get_mut_model();
        let assertion = model.get_mut("p").and_then(|section| section.get_mut("p"));
        let policy = assertion.ok_or(EngineError::Model)?.get_mut_policy();
        policy.clear();
        let mut sound = policy.insert(sentinel());
        if let Some(rule) = built_in {
            let columns =
                [rule.id, request.sub, request.obj, request.act, "any", "-", "-", "allow"];
            sound &= policy.insert(columns.map(str::to_owned).to_vec());
        }
        for row in rows {
            let row = set.row(*row).ok_or(EngineError::Rows)?;
            sound &= policy.insert(row.columns());
        }
        if !sound {
            return Err(EngineError::Rows);
        }
        if built_in.is_none() {
            self.loaded = Some((set.generation, rows.to_vec()));
        }
        Ok(())
    }

    /// Tells the role manager which of the groups that these rows name the subject belongs to. The
    /// closure is flat, so every link is one hop, and nobody else's links are there.
    fn link(&mut self, set: &RuleSet, subject: &str, rows: &[u32], groups: &[u32]) {
        let named = rows.iter().filter_map(|row| match set.row(*row)?.subject {
            Subject::Group(group) => groups.binary_search(&group).ok().map(|_| group),
            Subject::Pattern => None,
        });
        let mut wanted: Vec<u32> = named.collect();
        wanted.sort_unstable();
        wanted.dedup();
        let (generation, linked, present) = &self.linked;
        let same = *generation == set.generation && linked == subject && *present == wanted;
        if same || (wanted.is_empty() && present.is_empty()) {
            return;
        }
        let roles = self.enforcer.get_role_manager();
        let mut roles = roles.write();
        roles.clear();
        for group in &wanted {
            roles.add_link(subject, set.group(*group), None);
        }
        self.linked = (set.generation, subject.to_owned(), wanted);
    }
}

/// An enforcer over the model, with our functions and our effector, empty.
fn enforcer(model: &str, adapter: RuleAdapter) -> Result<Enforcer, EngineError> {
    let model = at_once(DefaultModel::from_str(model))?.map_err(|_| EngineError::Model)?;
    let raw = at_once(Enforcer::new_raw(model, adapter))?;
    let mut enforcer = raw.map_err(|_| EngineError::Model)?;
    enforcer.enable_auto_build_role_links(false);
    enforcer.enable_auto_save(false);
    enforcer.set_effector(Box::new(AllowAndNotDeny));
    enforcer.add_function("pathMatch", Arg2(|a, b| texts([a, b], |[a, b]| path_match(a, b))));
    enforcer.add_function("actMatch", Arg2(|a, b| texts([a, b], |[a, b]| act_match(a, b))));
    let window = Arg3(|a, b, c| texts([a, b, c], |[a, b, c]| in_window(a, b, c)));
    enforcer.add_function("inWindow", window);
    let posture = Arg3(|a, b, c| texts([a, b, c], |[a, b, c]| posture_ok(a, b, c)));
    enforcer.add_function("postureOk", posture);
    Ok(enforcer)
}

/// Reads the engine's values as texts, without a copy. Another type, which the model can't
/// produce, is an empty text: every function is false on it, but for the posture of a deny.
fn texts<const N: usize>(values: [Dynamic; N], judge: impl Fn([&str; N]) -> bool) -> Dynamic {
    let values = values.map(|value| value.into_immutable_string().unwrap_or_default());
    judge(values.each_ref().map(|text| text.as_str())).into()
}

/// Proves the pinned text, and every conjunct of its matcher alone: short-circuits would hide a
/// misspelt name until the request that reaches it.
fn prove_model() -> Result<(), EngineError> {
    static PROVEN: OnceLock<Result<(), EngineError>> = OnceLock::new();
    PROVEN.get_or_init(|| check_model(MODEL)).clone()
}

fn check_model(model: &str) -> Result<(), EngineError> {
    if Digest::of(model.as_bytes()).to_string() != MODEL_SHA256 {
        return Err(EngineError::Model);
    }
    let (head, matcher) = model.split_once("m = ").ok_or(EngineError::Model)?;
    let row = ["id", "spiffe://d/a", "o/x", "read", "m", "-", "-", "allow"];
    let hit = vec!["spiffe://d/a", "o/x", "read", "|m=t|", "2000-01-01T00:00:00Z"];
    let miss = vec!["spiffe://d/b", "o/y", "write", "|", "2000"];
    for conjunct in matcher.trim_end().split(" && ") {
        let adapter = RuleAdapter { rows: Vec::new(), members: Vec::new() };
        let mut enforcer = enforcer(&format!("{head}m = {conjunct}\n"), adapter)?;
        if !enforcer.get_mut_model().add_policy("p", "p", row.map(str::to_owned).to_vec()) {
            return Err(EngineError::Rows);
        }
        let ask = |values: &Vec<&str>| enforcer.enforce(values.clone());
        match (ask(&hit), ask(&miss)) {
            (Ok(true), Ok(false)) => {}
            _ => return Err(EngineError::Model),
        }
    }
    Ok(())
}

/// Our effector: every row is judged, those that count are noted, and the verdict is «some row
/// allows and none denies», whatever the model's effect text says.
struct AllowAndNotDeny;

impl Effector for AllowAndNotDeny {
    fn new_stream(&self, _expr: &str, _cap: usize) -> Box<dyn EffectorStream> {
        Box::new(Judging { row: 0, allow: false, deny: false })
    }
}

struct Judging {
    row: usize,
    allow: bool,
    deny: bool,
}

impl EffectorStream for Judging {
    fn next(&self) -> bool {
        self.allow && !self.deny
    }

    fn push_effect(&mut self, effect: EffectKind) -> bool {
        let counts = effect != EffectKind::Indeterminate;
        TRACE.with_borrow_mut(|trace| {
            trace.judged += 1;
            if counts {
                trace.matched.push(self.row);
            }
        });
        self.allow |= effect == EffectKind::Allow;
        self.deny |= effect == EffectKind::Deny;
        self.row += 1;
        false // never stop early: the record names every row that counted
    }
}

/// The one adapter: rows out of memory, every one of them or an error. It can't write.
struct RuleAdapter {
    rows: Vec<Vec<String>>,
    members: Vec<Vec<String>>,
}

impl RuleAdapter {
    fn refuse<T>() -> casbin::Result<T> {
        let text = "rules come from the reviewed file only";
        Err(casbin::error::AdapterError(text.into()).into())
    }
}

#[async_trait]
impl Adapter for RuleAdapter {
    async fn load_policy(&mut self, model: &mut dyn Model) -> casbin::Result<()> {
        let mut taken = model.add_policy("p", "p", sentinel());
        for row in self.rows.drain(..) {
            taken &= model.add_policy("p", "p", row);
        }
        for member in self.members.drain(..) {
            taken &= model.add_policy("g", "g", member);
        }
        if taken { Ok(()) } else { Self::refuse() }
    }

    async fn load_filtered_policy<'a>(
        &mut self,
        _model: &mut dyn Model,
        _filter: Filter<'a>,
    ) -> casbin::Result<()> {
        Self::refuse()
    }

    async fn save_policy(&mut self, _model: &mut dyn Model) -> casbin::Result<()> {
        Self::refuse()
    }

    async fn clear_policy(&mut self) -> casbin::Result<()> {
        Self::refuse()
    }

    fn is_filtered(&self) -> bool {
        false
    }

    async fn add_policy(&mut self, _: &str, _: &str, _: Vec<String>) -> casbin::Result<bool> {
        Self::refuse()
    }

    async fn add_policies(
        &mut self,
        _: &str,
        _: &str,
        _: Vec<Vec<String>>,
    ) -> casbin::Result<bool> {
        Self::refuse()
    }

    async fn remove_policy(&mut self, _: &str, _: &str, _: Vec<String>) -> casbin::Result<bool> {
        Self::refuse()
    }

    async fn remove_policies(
        &mut self,
        _: &str,
        _: &str,
        _: Vec<Vec<String>>,
    ) -> casbin::Result<bool> {
        Self::refuse()
    }

    async fn remove_filtered_policy(
        &mut self,
        _: &str,
        _: &str,
        _: usize,
        _: Vec<String>,
    ) -> casbin::Result<bool> {
        Self::refuse()
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::Index;
    use super::super::parser::parse;
    use super::*;
    use crate::model::Action;

    const NOW: &str = "2026-11-23T00:00:00Z";
    const POLICY: &str = "\
p, db, spiffe://d/api, secret/pay/**, read, m, -, 2027-01-01T00:00:00Z, allow
p, no, group:contractors, secret/pay/**, *, any, -, -, deny
p, lost, spiffe://d/*, secret/pay/**, read, lost, -, -, deny
g, spiffe://d/ci, group:contractors
";

    fn policy(text: &str) -> RuleSet {
        parse(text, &["m".to_owned(), "lost".to_owned()]).unwrap()
    }

    fn ask(set: &RuleSet, request: Request<'_>) -> Result<Outcome, EngineError> {
        let found = Index::new(set).candidates(set, request.sub, request.obj, Action::Read);
        enforce(set, &request, None, &found.rows, &found.groups)
    }

    fn good() -> Request<'static> {
        let (sub, obj) = ("spiffe://d/api", "secret/pay/db/url");
        Request { sub, obj, act: "read", post: "|m=t|", now: NOW }
    }

    #[test]
    fn the_pinned_model_stands_and_any_other_is_refused() {
        assert_eq!(prove_model(), Ok(()));
        assert_eq!(prove(&policy(POLICY)), Ok(()));
        let opened = MODEL.replace("m = ", "m = true || ");
        assert_eq!(check_model(&opened), Err(EngineError::Model));
        assert_eq!(check_model(&format!("{MODEL}m = true\n")), Err(EngineError::Model));
    }

    #[test]
    fn the_truth_table_of_the_model() {
        let set = policy(POLICY);
        let verdict = |request| ask(&set, request).map(|o| (o.allowed, o.matched));
        assert_eq!(verdict(good()), Ok((true, vec![Matched::Row(0)])));
        let denied = |rows: &[u32]| Ok((false, rows.iter().map(|r| Matched::Row(*r)).collect()));
        assert_eq!(verdict(Request { post: "|", ..good() }), denied(&[]));
        assert_eq!(verdict(Request { post: "|lost=t|m=t|", ..good() }), denied(&[0, 2]));
        assert_eq!(verdict(Request { post: "|lost=u|m=t|", ..good() }), denied(&[0, 2]));
        assert_eq!(verdict(Request { post: "unknown", ..good() }), denied(&[2]));
        assert_eq!(verdict(Request { now: "2027-01-01T00:00:00Z", ..good() }), denied(&[]));
        assert_eq!(verdict(Request { sub: "spiffe://d/ci", ..good() }), denied(&[1]));
        assert_eq!(verdict(Request { sub: "spiffe://e/api", ..good() }), denied(&[]));
    }

    #[test]
    fn a_request_out_of_form_never_reaches_a_rule() {
        let set = policy("p, a, spiffe://d/**, secret/**, *, any, -, -, allow\n");
        assert!(ask(&set, good()).unwrap().allowed);
        for bad in [
            Request { sub: "", ..good() },
            Request { obj: "", ..good() },
            Request { act: "", ..good() },
            Request { post: "", ..good() },
            Request { now: "", ..good() },
            Request { now: "2026-11-23", ..good() },
            Request { obj: "secret/pay/../x", ..good() },
            Request { obj: "secret//x", ..good() },
            Request { obj: "secret/s\u{e9}", ..good() },
            Request { obj: "secret/*", ..good() },
            Request { sub: "spiffe://d/", ..good() },
            Request { sub: "spiffe://d/a\nb", ..good() },
        ] {
            assert_eq!(ask(&set, bad), Err(EngineError::Request), "{bad:?}");
        }
    }

    #[test]
    fn links_of_one_subject_never_serve_another() {
        let set = policy(
            "p, a, group:x, secret/**, *, any, -, -, allow\n\
             g, spiffe://d/in, group:x\n",
        );
        let request = |sub| Request { sub, ..good() };
        let full =
            |sub| enforce(&set, &request(sub), None, &[0], &Index::new(&set).groups_of(&set, sub));
        for _ in 0..3 {
            assert!(full("spiffe://d/in").unwrap().allowed);
            assert!(!full("spiffe://d/out").unwrap().allowed);
        }
        let other = policy(
            "p, a, group:x, secret/**, *, any, -, -, allow\n\
             g, spiffe://d/out, group:x\n",
        );
        let moved = enforce(&other, &request("spiffe://d/in"), None, &[0], &[]);
        assert!(!moved.unwrap().allowed, "another bundle's membership counts for nothing");
    }

    #[test]
    fn rows_of_one_bundle_never_serve_another() {
        let open = policy("p, a, spiffe://d/**, secret/**, *, any, -, -, allow\n");
        let shut = policy("p, a, spiffe://d/**, secret/**, *, any, -, -, deny\n");
        for _ in 0..3 {
            assert!(ask(&open, good()).unwrap().allowed);
            assert!(!ask(&shut, good()).unwrap().allowed);
        }
    }

    #[test]
    fn a_built_in_rule_serves_one_request_only() {
        let set = policy(POLICY);
        let request = Request { obj: "device/server/x", act: "report", ..good() };
        let rule = Some(BuiltIn { id: "self-report" });
        let outcome = enforce(&set, &request, rule, &[], &[]).unwrap();
        assert_eq!(outcome, Outcome { allowed: true, matched: vec![Matched::BuiltIn] });
        assert!(!enforce(&set, &request, None, &[], &[]).unwrap().allowed);
        let other = Request { obj: "device/server/y", ..request };
        assert!(!enforce(&set, &other, None, &[], &[]).unwrap().allowed);
    }

    #[test]
    fn a_panic_or_an_error_inside_is_an_error_and_heals() {
        let set = policy(POLICY);
        assert!(ask(&set, good()).unwrap().allowed);
        let broken: Result<(), _> = guarded(|| {
            SEAT.with_borrow_mut(|seat| {
                let _taken = seat.take();
                std::panic::panic_any("inside")
            })
        });
        assert_eq!(broken, Err(EngineError::Panic));
        assert!(ask(&set, good()).unwrap().allowed, "the next request gets a fresh enforcer");
        SEAT.with_borrow_mut(|seat| {
            let seat = seat.as_mut().unwrap();
            let model = seat.enforcer.get_mut_model();
            assert!(model.add_policy("p", "p", vec!["short".to_owned()]));
        });
        assert_eq!(ask(&set, good()), Err(EngineError::Casbin("a request")));
        assert!(ask(&set, good()).unwrap().allowed, "and so it is after an error");
        SEAT.with_borrow_mut(|seat| {
            let seat = seat.as_mut().unwrap();
            let row = ["x", "spiffe://d/**", "secret/**", "*", "any", "-", "-", "allow"];
            seat.enforcer.get_mut_model().add_policy("p", "p", row.map(str::to_owned).to_vec());
        });
        assert_eq!(ask(&set, good()), Err(EngineError::Rows), "a row too many is noticed");
    }

    #[test]
    fn the_adapter_loads_and_does_nothing_else() {
        let mut adapter = RuleAdapter { rows: vec![sentinel()], members: Vec::new() };
        let mut model = at_once(DefaultModel::from_str(MODEL)).unwrap().unwrap();
        let twice = at_once(adapter.load_policy(&mut model)).unwrap();
        assert!(twice.is_err(), "a duplicate row is no row");
        assert!(at_once(adapter.save_policy(&mut model)).unwrap().is_err());
        assert!(at_once(adapter.add_policy("p", "p", vec![])).unwrap().is_err());
        assert!(at_once(adapter.clear_policy()).unwrap().is_err());
        assert!(!adapter.is_filtered());
    }
}
