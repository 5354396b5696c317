//! Changes of entries reach the agents that they concern by themselves, and nobody else; no list is
//! read twice; and what waits for them holds nothing up.

use std::time::{Duration, Instant};

use doorward::agent::DeviceKey;
use doorward::authority::JoinToken;
use doorward::model::{
    Answer, Ask, DeviceClass, DeviceId, DutyChanges, EntryDraft, EntryId, Reason, SecretValue,
    Selector, Since, SpiffeId, StartId, limits,
};
use doorward::policy::BundleFiles;
use doorward::wire::{self, Client, ClientError, Credentials};
use futures_util::StreamExt as _;
use spiffe::WorkloadApiClient;

use super::forge::{domain, run, until};
use super::granted::{of_op, records};
use super::line::House;
use super::workload_api::{endpoint, entry, first_given, runtime, soon, stage};

/// Far less than anything that is asked for by the clock ([`limits::PUSH_WAIT`]), and enough for a
/// busy machine.
const PUSHED_WITHIN: Duration = Duration::from_secs(15);
/// I4: what was revoked is closed within a second; the rest is for a busy machine.
const CLOSED_WITHIN: Duration = Duration::from_millis(2500);

/// An agent of the test's own: a device, and a connection as it.
struct Agent {
    id: DeviceId,
    credentials: Credentials,
}

impl Agent {
    async fn enrol(house: &House, class: &str) -> Self {
        let operator = house.client().await;
        let ask = Ask::TokenCreate { class: DeviceClass::parse(class).unwrap(), ttl_s: 600 };
        let (_, made) = operator.ask(ask, SecretValue::empty()).await.unwrap();
        let token = JoinToken::parse(std::str::from_utf8(made.body.expose()).unwrap()).unwrap();
        let device = DeviceKey::generate().unwrap();
        let (chain, key) = device.self_signed().unwrap();
        let (place, roots) = (&token.enrolment, &[token.root]);
        let (secret, clock) = (token.secret, house.clock());
        let enrolled = wire::enroll(place, &token.domain, roots, chain, key, "test", secret, clock)
            .await
            .unwrap();
        let credentials = Credentials {
            domain: token.domain,
            broker: token.broker,
            chain: enrolled.chain,
            key: device.private(),
            bundle: enrolled.bundle,
        };
        Self { id: device.id(), credentials }
    }

    async fn connect(&self, house: &House) -> Line {
        let client = Client::connect(&self.credentials, house.clock()).await.unwrap();
        let ask = Ask::Duties { after: None, holds: None, since: None };
        let (_, released) = client.ask(ask, SecretValue::empty()).await.unwrap();
        let Answer::Entries { revision, bundle, start, more: false, .. } = released.answer else {
            panic!("{:?}", released.answer)
        };
        let (start, federated) = (start.unwrap(), 0);
        Line { client, holds: revision, since: Since { start, bundle, federated, wait: true } }
    }
}

/// A connection that knows its list.
#[derive(Clone)]
struct Line {
    client: Client,
    holds: u64,
    since: Since,
}

#[derive(Debug)]
struct News {
    items: Vec<EntryId>,
    gone: Vec<EntryId>,
    revision: u64,
    resync: bool,
}

impl Line {
    async fn ask(&self, holds: u64, since: Since) -> Result<News, ClientError> {
        let ask = Ask::Duties { after: None, holds: Some(holds), since: Some(since) };
        let (_, released) = self.client.ask(ask, SecretValue::empty()).await?;
        let Answer::Changes(DutyChanges { items, gone, revision, resync, .. }) = released.answer
        else {
            panic!("{:?}", released.answer)
        };
        Ok(News { items: items.iter().map(|it| it.id).collect(), gone, revision, resync })
    }

    /// The next news, waited for.
    async fn news(&self) -> Result<News, ClientError> {
        self.ask(self.holds, self.since).await
    }

    /// What there is now.
    async fn look(&self) -> News {
        self.ask(self.holds, Since { wait: false, ..self.since }).await.unwrap()
    }
}

async fn create(house: &House, path: &str, device: Option<DeviceId>) -> (EntryId, SpiffeId) {
    let spiffe_id = domain().id(path).unwrap();
    let entry = EntryDraft {
        spiffe_id: spiffe_id.clone(),
        class: DeviceClass::parse("server").unwrap(),
        device,
        selectors: vec![Selector::Uid(4242)],
        ttl_s: None,
        default: false,
        jwt_alg: Default::default(),
        federates_with: Vec::new(),
        hint: None,
    };
    let ask = Ask::EntryCreate { entry };
    let (_, made) = house.client().await.ask(ask, SecretValue::empty()).await.unwrap();
    let Answer::Entries { items, .. } = made.answer else { panic!("no entry") };
    (items[0].id, spiffe_id)
}

fn waits(house: &House) -> usize {
    house.broker.line().parts().authority.waits()
}

async fn waiting(house: &House, count: usize) {
    until("a wait", PUSHED_WITHIN, || waits(house) == count).await;
}

fn refused(outcome: Result<News, ClientError>) -> Reason {
    match outcome {
        Err(ClientError::Refused(refusal)) => refusal.reason,
        other => panic!("{other:?}"),
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PUSHED_WITHIN, what).await.expect("nothing came in time")
}

#[test]
fn a_change_is_told_to_those_that_it_concerns_and_to_nobody_else() {
    run(async {
        let house = House::new().await;
        let (one, two) =
            (Agent::enrol(&house, "server").await, Agent::enrol(&house, "server").await);
        let (a, b) = (one.connect(&house).await, two.connect(&house).await);
        let (hearing, other) = (a.news(), b.news());
        tokio::pin!(hearing, other);
        let acting = async {
            waiting(&house, 2).await;
            let made = create(&house, "/one", Some(one.id)).await;
            (made, Instant::now())
        };
        tokio::pin!(acting);
        let (mut made, mut heard) = (None, None);
        while made.is_none() || heard.is_none() {
            tokio::select! {
                it = &mut acting, if made.is_none() => made = Some(it),
                news = &mut hearing, if heard.is_none() => heard = Some(news.unwrap()),
                news = &mut other => panic!("woken by what is another one's: {news:?}"),
            }
        }
        let ((id, spiffe_id), _) = made.unwrap();
        let heard = heard.unwrap();
        assert_eq!((heard.items.as_slice(), heard.gone.len()), (&[id][..], 0));
        assert!(!heard.resync && heard.revision > a.holds);
        waiting(&house, 1).await;

        // The other one is told at once that nothing was for it, up to the same revision.
        let seen = b.look().await;
        assert!(seen.items.is_empty() && seen.gone.is_empty() && !seen.resync);
        assert_eq!(seen.revision, heard.revision);

        let a = Line { holds: heard.revision, ..a.clone() };
        let deleting = async {
            waiting(&house, 2).await;
            let ask = Ask::EntryDelete { spiffe_id, id };
            house.client().await.ask(ask, SecretValue::empty()).await.unwrap().1.answer
        };
        let gone = async {
            tokio::select! {
                both = async { tokio::join!(a.news(), deleting) } => both,
                news = &mut other => panic!("{news:?}"),
            }
        };
        let (gone, answer) = within(gone).await;
        assert_eq!(gone.unwrap().gone, [id]);
        assert!(matches!(answer, Answer::Revoked { .. }), "{answer:?}");
        assert_eq!(house.broker.line().parts().metrics.pushes.get(), 2, "nobody else was woken");
    });
}

#[test]
fn what_the_broker_can_not_know_is_read_anew_and_too_many_waits_are_refused() {
    run(async {
        let house = House::new().await;
        let agent = Agent::enrol(&house, "server").await;
        let line = agent.connect(&house).await;
        assert!(!line.look().await.resync, "the positive control");
        let gap = Line { holds: 0, ..line.clone() };
        assert!(within(gap.news()).await.unwrap().resync, "a gap is told at once");
        let since = Since { start: StartId::random(), ..line.since };
        let other = Line { since, ..line.clone() };
        assert!(within(other.news()).await.unwrap().resync, "another start of the broker");
        let since = Since { bundle: line.since.bundle + 1, ..line.since };
        let roots = within(Line { since, ..line.clone() }.news()).await.unwrap();
        assert!(!roots.resync && roots.items.is_empty(), "other roots are news");

        let (one, two) = (line.news(), line.news());
        tokio::pin!(one, two);
        tokio::select! {
            () = waiting(&house, limits::PUSH_PER_CONNECTION) => {}
            news = &mut one => panic!("{news:?}"),
            news = &mut two => panic!("{news:?}"),
        }
        assert_eq!(refused(within(line.news()).await), Reason::Limited);
        // A question that is taken back gives its place free, and so does a lost connection.
        let next = agent.connect(&house).await;
        {
            let (three, four) = (next.news(), next.news());
            tokio::pin!(three, four);
            tokio::select! {
                () = waiting(&house, limits::PUSH_PER_DEVICE) => {}
                news = &mut three => panic!("{news:?}"),
                news = &mut four => panic!("{news:?}"),
            }
            let third = agent.connect(&house).await;
            assert_eq!(refused(within(third.news()).await), Reason::Limited, "of one device");
        }
        waiting(&house, limits::PUSH_PER_CONNECTION).await;
        line.client.close();
        waiting(&house, 0).await;
        let operator = house.client().await;
        let ask = Ask::Duties { after: None, holds: Some(0), since: Some(line.since) };
        assert!(operator.ask(ask, SecretValue::empty()).await.is_err(), "people have no duties");
        assert_eq!(waits(&house), 0);
    });
}

#[test]
fn whoever_loses_the_right_or_the_identity_hears_nothing_more() {
    run(async {
        let house = House::new().await;
        let operator = house.client().await;
        let agent = Agent::enrol(&house, "server").await;
        let line = agent.connect(&house).await;
        let mut files = BundleFiles::defaults(&domain());
        let same = files.to_json();
        let row = format!(
            "\n#@ owner=test\np, no-duties, spiffe://{}/doorward/agent/{}, device/server/{}, \
             read, any, -, -, deny\n",
            domain(),
            agent.id,
            agent.id
        );
        let news = line.news();
        tokio::pin!(news);
        let activate = async {
            waiting(&house, 1).await;
            // A policy that leaves the right as it is changes nothing.
            operator.ask(Ask::PolicyActivate {}, SecretValue::new(same)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(waits(&house), 1);
            files.files.get_mut("policy.csv").unwrap().push_str(&row);
            let body = SecretValue::new(files.to_json());
            operator.ask(Ask::PolicyActivate {}, body).await.unwrap();
        };
        let (news, ()) = within(async { tokio::join!(news, activate) }).await;
        assert_eq!(refused(news), Reason::DenyRow);
        let read = Ask::LogRead { from: 0, limit: 1000, holding: Some("no-duties".to_owned()) };
        let (_, log) = operator.ask(read, SecretValue::empty()).await.unwrap();
        let log = String::from_utf8(log.body.expose().to_vec()).unwrap();
        let denied = log.lines().any(|line| line.contains("\"duties\"") && line.contains("deny"));
        assert!(denied, "the refusal is recorded: {log}");

        operator.ask(Ask::PolicyRollback {}, SecretValue::empty()).await.unwrap();
        let line = agent.connect(&house).await;
        let revoke = async {
            waiting(&house, 1).await;
            let class = DeviceClass::parse("server").unwrap();
            let ask = Ask::DeviceRevoke { class, id: agent.id, release: false };
            operator.ask(ask, SecretValue::empty()).await.unwrap();
            Instant::now()
        };
        let (ended, revoked) = within(async { tokio::join!(line.news(), revoke) }).await;
        assert!(ended.is_err(), "{ended:?}");
        assert!(revoked.elapsed() < CLOSED_WITHIN, "{:?}", revoked.elapsed());
        waiting(&house, 0).await;
    });
}

#[test]
fn a_drain_is_not_held_up_by_waits() {
    run(async {
        let house = House::new().await;
        let agent = Agent::enrol(&house, "server").await;
        let line = agent.connect(&house).await;
        let news = line.news();
        tokio::pin!(news);
        tokio::select! {
            () = waiting(&house, 1) => {}
            news = &mut news => panic!("{news:?}"),
        }
        assert_eq!(house.broker.line().running(), 0, "what waits does not run");
        let House { broker, dir, .. } = house;
        let began = Instant::now();
        let stopping = broker.run_until(async {});
        let (ended, stopped) = tokio::join!(news, stopping);
        stopped.unwrap();
        assert!(began.elapsed() < limits::DRAIN, "{:?}", began.elapsed());
        match ended {
            Err(ClientError::Refused(refusal)) => assert_eq!(refusal.reason, Reason::Draining),
            other => assert!(other.is_err(), "{other:?}"),
        }
        drop(dir);
    });
}

/// Whole lists that agents have read, by the log.
fn whole_lists(stage: &doorward::app::Stage) -> usize {
    let records = records(stage);
    of_op(&records, "duties").iter().filter(|it| it["req"]["detail"].is_null()).count()
}

#[test]
fn a_workload_is_given_and_loses_its_identity_without_a_list_being_read() {
    let mut stage = stage();
    runtime().block_on(async {
        assert_eq!(whole_lists(&stage), 1);
        let client = WorkloadApiClient::connect_to(endpoint(&stage)).await.unwrap();
        entry(&stage, "tester", &[]);
        first_given(&client).await;
        let mut stream = client.stream_x509_contexts().await.unwrap();
        soon(stream.next()).await.unwrap().unwrap();
        let began = Instant::now();
        let id = entry(&stage, "second", &[]);
        let both = soon(stream.next()).await.unwrap().unwrap();
        assert_eq!(both.svids().len(), 2);
        eprintln!("given {:?} after the command began", began.elapsed());
        assert!(began.elapsed() < PUSHED_WITHIN, "{:?}", began.elapsed());
        let began = Instant::now();
        let said = stage.operator_must(&["entry", "delete", &id], None).unwrap().json();
        let one = soon(stream.next()).await.unwrap().unwrap();
        assert_eq!(one.svids().len(), 1);
        eprintln!("taken back {:?} after the command began", began.elapsed());
        assert!(began.elapsed() < PUSHED_WITHIN, "{:?}", began.elapsed());
        // The agent says soon that it has taken it over.
        let revision = said["revision"].as_u64().unwrap();
        until("the agent's confirmation", PUSHED_WITHIN, || {
            stage.device().unwrap()["holds"].as_u64() >= Some(revision)
        })
        .await;
        assert_eq!(whole_lists(&stage), 1, "one list, and then changes only");

        // After a kill the agent's connection is dead only once it was silent for `IDLE_TIMEOUT`.
        let pid = nix::unistd::Pid::from_raw(stage.pid("broker").unwrap().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        stage.stop("broker");
        stage.start_broker().unwrap();
        entry(&stage, "third", &[]);
        let patient = 2 * limits::IDLE_TIMEOUT;
        let again = tokio::time::timeout(patient, async {
            loop {
                let context = stream.next().await.unwrap().unwrap();
                if context.svids().len() == 2 {
                    return context;
                }
            }
        });
        again.await.expect("what was made after the kill");
        assert_eq!(whole_lists(&stage), 2, "read whole once more, as another broker started");
    });
}
