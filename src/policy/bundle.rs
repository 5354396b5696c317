//! A bundle that passed everything, and the one that is in force.
//!
//! A bundle is built whole or not at all: files, profiles, rows, lockout, Casbin, tests. It never
//! changes; another one takes its place in a single step, and a failed one leaves the last good
//! one where it is.

use std::cell::OnceCell;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::access::Steps;
use super::cases::{self, Claims};
use super::decision::Decision;
use super::engine;
use super::explain::{Explanation, explain};
use super::files::{self, BundleFiles, POLICY, POSTURE};
use super::index::Index;
use super::judge::{Rules, Seen};
use super::lockout;
use super::memory::Memory;
use super::parser;
use super::pattern::{ANY, UNKNOWN};
use super::scope::{Asker, Mode};
use crate::identity::{Caller, CallerKind, Standing};
use crate::model::limits::{CLAIM_STEPS, DIAGNOSTICS_MAX, PROFILES_MAX};
use crate::model::{
    Action, Ask, ClientRef, Diagnostic, Digest, Moment, Object, Reason, RequestId, Target,
    TrustDomain,
};
use crate::posture::{Demand, Profiles, Verdict};

/// A bundle that passed everything.
#[derive(Debug)]
pub struct Bundle {
    serial: u64,
    digest: Digest,
    profiles: Arc<Profiles>,
    names: Vec<String>,
    rules: Rules,
    files: BundleFiles,
    tests: usize,
}

impl Bundle {
    /// Parses and checks the files, builds the index, lets Casbin load and read back every row,
    /// and runs the bundle's tests. `serial` is given by administration.
    ///
    /// # Errors
    /// Every fault that was found, up to a bound. Both files are read whatever the other is like;
    /// only a row's profile is judged against profiles that are sound, and tests against sound rows. A policy that stops all
    /// agents or all operators, or under which no operator could activate a policy, is refused.
    pub fn build(
        files: &BundleFiles,
        serial: u64,
        domain: &TrustDomain,
    ) -> Result<Arc<Self>, Vec<Diagnostic>> {
        files.check_names()?;
        let text = files.text(POSTURE).unwrap_or("");
        let profiles = Profiles::parse(POSTURE, text).map_err(|mut faults| {
            faults.extend(parser::faults(files.text(POLICY).unwrap_or("")));
            faults.truncate(DIAGNOSTICS_MAX);
            faults
        });
        let profiles = Arc::new(profiles?);
        let names = profiles.names().map(str::to_owned).collect();
        Self::build_with(files, serial, domain, profiles, names)
    }

    /// The rest of [`Bundle::build`], once the profiles are known; `names` are theirs, in order of
    /// position.
    pub(super) fn build_with(
        files: &BundleFiles,
        serial: u64,
        domain: &TrustDomain,
        profiles: Arc<Profiles>,
        names: Vec<String>,
    ) -> Result<Arc<Self>, Vec<Diagnostic>> {
        check_profiles(&names)?;
        let text = files.text(POLICY).unwrap_or("");
        let set = parser::parse(text, &names)?;
        lockout::check(&set, text, domain)?;
        engine::prove(&set).map_err(|error| vec![files::fault(POLICY, error.to_string())])?;
        let rules = Rules {
            index: Index::new(&set),
            set,
            domain: domain.clone(),
            memory: Memory::default(),
        };
        let mut faults = Vec::new();
        let mut tests = 0;
        let steps = Steps::new(CLAIM_STEPS);
        let claims = Claims { steps: &steps, access: OnceCell::new() };
        for (file, text) in files.tests() {
            match cases::run(file, text, &rules, (&profiles, &names), &claims) {
                Ok(count) => tests += count,
                Err(found) => faults.extend(found),
            }
        }
        if !faults.is_empty() {
            faults.truncate(DIAGNOSTICS_MAX);
            return Err(faults);
        }
        let (digest, files) = (files.digest(), files.clone());
        Ok(Arc::new(Self { serial, digest, profiles, names, rules, files, tests }))
    }

    /// The number that administration gave it.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// What it is known by.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Process-wide unique number of this built bundle.
    pub fn generation(&self) -> u64 {
        self.rules.set.generation
    }

    /// Its profiles.
    pub fn profiles(&self) -> &Arc<Profiles> {
        &self.profiles
    }

    /// Its files, as they were given.
    pub fn files(&self) -> &BundleFiles {
        &self.files
    }

    /// The trust domain that it was built for.
    pub fn domain(&self) -> &TrustDomain {
        &self.rules.domain
    }

    /// What its author should know at that time (seconds since 1970) though nothing is wrong: of its
    /// profiles, and of rows that name one that only watches.
    pub fn warnings(&self, now_s: i64) -> Vec<Diagnostic> {
        let mut warnings = self.profiles.warnings(now_s);
        let watched = self.profiles.monitored();
        if watched == 0 {
            return warnings;
        }
        let lines: Vec<&str> = self.files.text(POLICY).unwrap_or("").lines().collect();
        let rows = self.rules.set.rows.iter();
        let under = rows.filter(|row| self.bits(std::iter::once(row.post())) & watched != 0);
        for row in under.take(DIAGNOSTICS_MAX.saturating_sub(warnings.len())) {
            let line = usize::try_from(row.line).unwrap_or(0);
            let source = lines.get(line.saturating_sub(1)).copied().unwrap_or("");
            // Behind it stand only times and the effect; before it, anything.
            let at = source.rfind(row.post()).unwrap_or(0);
            let message = format!("row `{}` names `{}`, which only watches", row.id(), row.post());
            let told = Diagnostic::at(POLICY, source, at, row.post().len(), message);
            warnings.push(Diagnostic { line, ..told });
        }
        warnings
    }

    /// How many tests it carries: cases, and claims over all requests. All of them hold.
    pub fn test_count(&self) -> usize {
        self.tests
    }

    /// How many rules it has.
    pub fn rule_count(&self) -> usize {
        self.rules.set.rows.len()
    }

    /// The names of its profiles, in order of position.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The profiles that candidate rules for this caller and ask name.
    pub fn demand(&self, caller: &Caller, ask: &Ask) -> Demand {
        let wanted = self.wanted(&Asker::of(caller), ask);
        let colocated = caller.is_colocated();
        Demand { profiles: Arc::clone(&self.profiles), wanted, colocated }
    }

    /// A demand for all profiles, of a device without a connection (device show).
    pub fn demand_all(&self) -> Demand {
        let (profiles, wanted) = (Arc::clone(&self.profiles), all(self.names.len()));
        Demand { profiles, wanted, colocated: false }
    }

    /// A demand for all profiles, of this caller.
    pub fn demand_all_of(&self, caller: &Caller) -> Demand {
        Demand { colocated: caller.is_colocated(), ..self.demand_all() }
    }

    fn wanted(&self, asker: &Asker<'_>, ask: &Ask) -> u32 {
        let remembered = |posts: &[Box<str>]| self.bits(posts.iter().map(|post| &**post));
        if let Some(wanted) = self.rules.remembered_posts(asker, ask, remembered) {
            return wanted;
        }
        let Some(rows) = self.rules.rows_in_demand(asker, ask) else {
            return all(self.names.len());
        };
        let rows = rows.iter().filter_map(|row| self.rules.set.row(*row));
        self.bits(rows.map(|row| row.post()))
    }

    /// The bits of the profiles among these names.
    fn bits<'n>(&self, posts: impl Iterator<Item = &'n str>) -> u32 {
        let bits = posts.filter_map(|post| self.names.iter().position(|name| name == post));
        bits.filter_map(|at| 1_u32.checked_shl(u32::try_from(at).ok()?))
            .fold(0, |all, bit| all | bit)
    }

    /// Decides. Never fails: an error is a denial. A caller that does not count is denied before
    /// Casbin is asked, and is a decision all the same.
    #[allow(clippy::too_many_arguments)]
    pub fn decide(
        self: &Arc<Self>,
        id: RequestId,
        caller: Arc<Caller>,
        verdict: Verdict,
        ask: Arc<Ask>,
        client: Option<ClientRef>,
        target: Target,
        now: Moment,
    ) -> Decision {
        let seen = Seen::Verdict(&verdict);
        let asker = Asker::of(&caller);
        let (object, judged) = self.rules.judge_ask(&asker, seen, &ask, &target, &now.rfc3339());
        Decision {
            id,
            object: object.unwrap_or_else(|_| "-".to_owned()),
            caller,
            verdict,
            ask,
            client,
            target,
            now,
            bundle: Arc::clone(self),
            allowed: judged.allowed,
            code: judged.code,
            reason: judged.reason,
            rules: judged.rules,
        }
    }

    /// `can-i`: what would be decided for this caller. Whether the object exists is not looked at;
    /// a text that names no object is denied.
    pub fn can(
        self: &Arc<Self>,
        caller: &Caller,
        verdict: &Verdict,
        action: Action,
        object: &str,
        now: Moment,
    ) -> (bool, Reason) {
        self.could(&Asker::of(caller), Seen::Verdict(verdict), action, object, &now.rfc3339())
    }

    pub(super) fn could(
        &self,
        asker: &Asker<'_>,
        seen: Seen<'_>,
        action: Action,
        object: &str,
        now: &str,
    ) -> (bool, Reason) {
        let outside = matches!(asker.kind, CallerKind::Applicant | CallerKind::Broker(_));
        let parsed = Object::parse(object, &self.rules.domain);
        let (Ok(parsed), Standing::Live, false) = (parsed, asker.standing, outside) else {
            return (false, Reason::NoAllow);
        };
        let subject = asker.id.as_str();
        let mode = own_mode(asker, action, object);
        let mut judged = self.rules.judge(subject, action, object, seen, now, mode);
        if let (Object::Entry(id, None), Action::Write, true) = (&parsed, action, judged.allowed) {
            let svid = format!("svid{}", id.path());
            judged = self.rules.judge(subject, Action::Issue, &svid, seen, now, Mode::Ordinary);
        }
        (judged.allowed, judged.reason)
    }

    /// What the policy says of a request that is put in words: for `doorward explain` and for
    /// tests of policies. `label` is a posture as the log has it (`|name=t|name=u|` or `unknown`),
    /// `now` is `YYYY-MM-DDTHH:MM:SSZ`.
    pub fn explain(
        &self,
        sub: &str,
        action: Action,
        object: &str,
        label: &str,
        now: &str,
    ) -> Explanation {
        explain(&self.rules, (self.serial, self.digest), sub, action, object, label, now)
    }

    /// A bundle of one row without profiles, for tests.
    #[cfg(test)]
    pub(super) fn sample(domain: &TrustDomain) -> Arc<Self> {
        let row = format!(
            "p, sample, spiffe://{domain}/doorward/operator/*, policy, *, any, -, -, allow\n"
        );
        let files = [(POLICY.to_owned(), row), (POSTURE.to_owned(), String::new())];
        let files = BundleFiles { files: files.into() };
        Self::build_with(&files, 1, domain, Arc::default(), Vec::new()).unwrap()
    }
}

/// The mode in which a caller's question about itself is judged.
fn own_mode(asker: &Asker<'_>, action: Action, object: &str) -> Mode {
    let own = asker.own_device().is_some_and(|own| own == object);
    match (action, asker.kind) {
        (Action::Report, CallerKind::Agent) if own => Mode::Own("self-report"),
        (Action::Renew, CallerKind::Agent | CallerKind::Operator) if own => Mode::Own("self-renew"),
        (Action::Read, _) if asker.own_svid() == object => Mode::Own("self-read"),
        (Action::Rollback, _) if object == "policy" => Mode::Rollback,
        _ => Mode::Ordinary,
    }
}

fn all(profiles: usize) -> u32 {
    match u32::try_from(profiles) {
        Ok(count) if count < u32::BITS => (1 << count) - 1,
        _ => u32::MAX,
    }
}

/// Names that the label of a posture can hold, and no more of them than it has bits.
fn check_profiles(names: &[String]) -> Result<(), Vec<Diagnostic>> {
    let taken = |name: &&String| {
        name.as_str() == ANY
            || name.as_str() == UNKNOWN
            || name.is_empty()
            || name.contains(['|', '=', ','])
    };
    let fault = |name: &String| {
        files::fault(POSTURE, format!("no profile can be called `{name}`"))
            .help("`any` and `unknown` have a meaning; `|`, `=` and `,` divide")
    };
    let mut faults: Vec<Diagnostic> = names.iter().filter(taken).map(fault).collect();
    if names.len() > PROFILES_MAX {
        faults.push(files::fault(POSTURE, format!("over {PROFILES_MAX} profiles")));
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// The bundle in force, swapped in one step.
#[derive(Debug)]
pub struct Policy {
    active: ArcSwap<Bundle>,
    installed: watch::Sender<u64>,
}

impl Policy {
    /// Starts with a bundle.
    pub fn new(bundle: Arc<Bundle>) -> Self {
        let installed = watch::channel(bundle.generation()).0;
        Self { active: ArcSwap::new(bundle), installed }
    }

    /// The bundle in force. Take it once a request and keep it to the end.
    pub fn current(&self) -> Arc<Bundle> {
        self.active.load_full()
    }

    /// Puts another bundle in force, for the next request on.
    pub fn install(&self, bundle: Arc<Bundle>) {
        let generation = bundle.generation();
        self.active.store(bundle);
        self.installed.send_replace(generation);
    }

    /// Tells each time that another bundle is in force.
    pub fn installed(&self) -> watch::Receiver<u64> {
        self.installed.subscribe()
    }
}
