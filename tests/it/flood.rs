//! I14 for a whole broker: rubbish, handshakes that nobody ends and connections that hold as much as
//! they may, all at once. Its memory stays under a sum of named limits, and honest callers are served
//! meanwhile and afterwards.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use doorward::app::{BrokerConfig, Stage};
use doorward::model::{Ask, SecretValue, SystemClock, limits};
use doorward::wire::{Client, Credentials};
use futures_util::future::join_all;

use super::forge::{End, PATIENCE, address_of, frame, request, run, until};
use super::journey::program;

/// Connections that hold all they may: half of what one identity may have.
const HOLDERS: usize = limits::CONNECTIONS_PER_CALLER / 2;
/// Of those, the ones that have proven themselves first and then hold bodies.
const PROVEN: usize = 8;
/// Handshakes that are begun and never ended; more than one network may have under way.
const HALF_OPEN: usize = 4 * limits::HALF_OPEN_PER_SOURCE;
/// State of one connection beside its named buffers: TLS, streams, timers, its task. An idle one was
/// seen to cost 102 KiB in a debug build.
const STATE: usize = 128 * 1024;
/// Threads of a port, each with an endpoint of its own: the stage's broker is told so.
const THREADS: usize = 2;

/// What the flood may cost, in KiB, by the broker's own limits.
fn allowed_kib() -> usize {
    let heads = limits::STREAMS_AT_FIRST as usize * limits::HEAD_MAX;
    let buffers = limits::CONNECTION_WINDOW as usize + limits::SEND_WINDOW as usize;
    let held = HOLDERS * (heads + buffers + STATE);
    // Each body needs a decision of its own, and a caller has a second's worth of those at once.
    let most = PROVEN * limits::STREAMS_PROVEN as usize;
    let bodies =
        most.min(2 * limits::CALLER_RATE as usize) * (limits::VALUE_MAX + limits::HEAD_MAX);
    // Both ports.
    let unaccepted = 2 * THREADS * usize::try_from(limits::INCOMING_BUFFER_TOTAL).unwrap();
    let shaking = 2 * limits::HALF_OPEN_PER_SOURCE * STATE;
    (held + bodies + unaccepted + shaking) / 1024
}

/// One figure of `/proc/PID/status`, in KiB.
fn kib(pid: u32, what: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Datagrams of no meaning, some with the first byte of a real one.
fn rubbish(to: &[SocketAddr]) {
    // Another network than that of honest callers.
    let socket = UdpSocket::bind("127.0.9.1:0").unwrap();
    let mut bytes = vec![0; 1452];
    for n in 0..20_000_usize {
        if n % 64 == 0 {
            aws_lc_rs::rand::fill(&mut bytes).unwrap();
        }
        bytes[0] = [0xc0, 0xc3, 0x40, 0xe0, 0xf0, 0x00][n % 6];
        // Version 1 and an id of eight bytes, so that some are taken for the first of a handshake.
        bytes[1..6].copy_from_slice(&[0, 0, 0, 1, 8]);
        bytes[6..14].copy_from_slice(&n.to_be_bytes());
        let length = if n % 3 == 0 { 1200 } else { 1 + n % bytes.len() };
        for to in to {
            let _ = socket.send_to(&bytes[..length], to);
        }
    }
}

/// First flights of real clients, which hear no answer. Gives the sockets, so that nobody tells the
/// broker that they are gone.
async fn half_open(operator: &Credentials, broker: SocketAddr) -> Vec<UdpSocket> {
    // The clients take this for the broker.
    let relay = UdpSocket::bind("127.0.9.1:0").unwrap();
    relay.set_nonblocking(true).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.9.1:0".parse().unwrap()).unwrap();
    let config = || End::with(operator).config();
    let to = relay.local_addr().unwrap();
    // One socket for each connection, told apart by the id that the client chose.
    let mut sockets: HashMap<Vec<u8>, UdpSocket> = HashMap::new();
    let (mut connecting, mut bytes, began) = (Vec::new(), [0; 2048], Instant::now());
    while connecting.len() < HALF_OPEN {
        // No more at once than the relay's buffer takes.
        let connect = |_| endpoint.connect_with(config(), to, "doorward").unwrap();
        connecting.extend((0..16).map(connect));
        let sent = Instant::now();
        // A hello of a post-quantum exchange is two datagrams.
        while sockets.len() < connecting.len() || sent.elapsed() < Duration::from_millis(10) {
            assert!(began.elapsed() < PATIENCE, "{} of {HALF_OPEN} flights", sockets.len());
            let Ok(length) = relay.recv(&mut bytes) else {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            let id = bytes[6..6 + usize::from(bytes[5])].to_vec();
            let socket =
                sockets.entry(id).or_insert_with(|| UdpSocket::bind("127.0.9.1:0").unwrap());
            let _ = socket.send_to(&bytes[..length], broker);
        }
    }
    drop(connecting);
    sockets.into_values().collect()
}

/// Opens as many streams as it is given credit for and sends `bytes` on each, without an end.
/// Whoever is answered or cut off meanwhile is of no interest.
async fn hold(connection: &quinn::Connection, bytes: &[u8]) -> Vec<quinn::SendStream> {
    let mut held = Vec::new();
    let credit = Duration::from_millis(200);
    while let Ok(Ok((mut send, _))) = tokio::time::timeout(credit, connection.open_bi()).await {
        let _ = tokio::time::timeout(credit, send.write_all(bytes)).await;
        held.push(send);
    }
    held
}

async fn honest(client: &Client) -> Duration {
    let began = Instant::now();
    let answer = client.ask(Ask::Whoami {}, SecretValue::empty()).await;
    assert!(answer.is_ok(), "{answer:?}");
    began.elapsed()
}

#[test]
fn memory_under_a_flood_stays_under_the_sum_of_the_limits() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.stop("broker");
    let file = stage.broker_dir().join("broker.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let config = BrokerConfig::parse("broker.toml", &text).unwrap();
    std::fs::write(&file, BrokerConfig { threads: Some(THREADS), ..config.clone() }.render())
        .unwrap();
    stage.start_broker().unwrap();
    let operator = Credentials::load(&stage.operator_dir()).unwrap();
    let (pid, broker) = (stage.pid("broker").unwrap(), address_of(&operator));
    run(async {
        let client = Client::connect(&operator, Arc::new(SystemClock)).await.unwrap();
        honest(&client).await;
        let before = kib(pid, "VmHWM");
        let floods = std::thread::spawn(move || rubbish(&[broker, config.enrolment]));
        let _silent = half_open(&operator, broker).await;
        honest(&client).await;

        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let mut holders = Vec::new();
        while holders.len() < HOLDERS {
            let knock = |_| {
                let config = End::with(&operator).config();
                endpoint.connect_with(config, broker, "doorward").unwrap()
            };
            for connected in join_all((0..32).map(knock)).await {
                holders.push(connected.unwrap());
            }
        }
        let idle = kib(pid, "VmRSS").saturating_sub(before) / HOLDERS;
        for proven in &holders[..PROVEN] {
            let (mut send, mut recv) = proven.open_bi().await.unwrap();
            send.write_all(&request(r#"{"whoami":{}}"#, b"")).await.unwrap();
            send.finish().unwrap();
            recv.read_to_end(limits::HEAD_MAX).await.unwrap();
        }
        // All but the last byte: of the largest head, and of the largest value.
        let head = frame(&vec![b'{'; limits::HEAD_MAX], b"");
        let body = request(r#"{"write":{"name":"shop/x"}}"#, &vec![7; limits::VALUE_MAX]);
        let mut slowest = Duration::ZERO;
        // Twice: what the first wave had must be free for the second.
        for _ in 0..2 {
            let wave = join_all(holders.iter().enumerate().map(|(n, connection)| {
                let bytes = if n < PROVEN { &body } else { &head };
                hold(connection, &bytes[..bytes.len() - 1])
            }));
            let served = async {
                let mut slowest = Duration::ZERO;
                for _ in 0..10 {
                    slowest = slowest.max(honest(&client).await);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                slowest
            };
            let (held, took) = tokio::join!(wave, served);
            slowest = slowest.max(took);
            let streams: usize = held.iter().map(Vec::len).sum();
            assert!(streams >= HOLDERS * limits::STREAMS_AT_FIRST as usize / 2, "{streams}");
        }
        floods.join().unwrap();
        let used = kib(pid, "VmHWM") - before;
        eprintln!(
            "{used} KiB of {} over {before}; {idle} KiB for an idle connection; slowest answer {slowest:?}",
            allowed_kib()
        );
        assert!(used < allowed_kib(), "{used} KiB over {before}: {} are allowed", allowed_kib());
        assert!(slowest < Duration::from_secs(5), "{slowest:?}: an honest caller had to wait");
        for holder in holders {
            holder.close(0u32.into(), b"");
        }
        honest(&client).await;
        let cut = || stage.metric("doorward_frames_refused_total").unwrap() > 0.0;
        until("what was held is cut off", Duration::from_secs(10), cut).await;
        let ended = || stage.metric("doorward_handshakes_refused_total").unwrap() > 0.0;
        until("handshakes without end are ended", Duration::from_secs(10), ended).await;
    });
    stage.operator_must(&["put", "shop/after"], Some(b"one")).unwrap();
}
