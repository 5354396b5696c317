//! Many streams of the Workload API on one agent: all are held, all are told of a change, and what they
//! cost is seen. `DOORWARD_TEST_STREAMS=10000` measures; without it there are few.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::http2::{ask, frame, preface};
use super::scene::until;
use super::workload_api::{entry, stage};

/// Streams of one process: beside those of a change, no more SVIDs than one may have.
const OF_A_PROCESS: usize = 48;
/// Streams of one connection.
const OF_A_CONNECTION: usize = 16;
/// What a child process is told.
const CHILD: &str = "DOORWARD_TEST_STREAMS_CHILD";
const SOCKET: &str = "DOORWARD_TEST_STREAMS_SOCKET";

/// One connection, and how many messages each of its streams has had.
struct Held {
    stream: UnixStream,
    unread: Vec<u8>,
    /// Stream and messages; a stream that was refused is asked for again under another number.
    had: Vec<(u32, usize)>,
    next: u32,
}

impl Held {
    fn open(path: &str, streams: usize) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let window = frame(8, 0, 0, &0x4000_0000_u32.to_be_bytes());
        stream.write_all(&[preface(), window].concat()).unwrap();
        let mut held = Self { stream, unread: Vec::new(), had: Vec::new(), next: 1 };
        for _ in 0..streams {
            let number = held.ask();
            held.had.push((number, 0));
        }
        held
    }

    fn ask(&mut self) -> u32 {
        let number = self.next;
        self.next += 2;
        let authority = (number == 1).then_some("localhost");
        self.stream.write_all(&ask(number, authority)).unwrap();
        number
    }

    /// Reads what is there.
    fn read(&mut self) {
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => panic!("the agent has closed a connection"),
            Ok(read) => self.unread.extend_from_slice(&chunk[..read]),
            Err(why) => assert!(
                matches!(why.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
                "{why}"
            ),
        }
        while let [a, b, c, kind, flags, s1, s2, s3, s4, ..] = *self.unread {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if self.unread.len() < 9 + length {
                return;
            }
            let payload: Vec<u8> = self.unread.drain(..9 + length).skip(9).collect();
            self.take(kind, flags, u32::from_be_bytes([s1, s2, s3, s4]), &payload);
        }
    }

    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let at = self.had.iter().position(|(number, _)| *number == stream);
        match (kind, at) {
            (0, Some(at)) if !payload.is_empty() => self.had[at].1 += 1, // a message fits a frame
            // Over the rate: asked again.
            (0 | 1, Some(at)) if flags & 1 == 1 => {
                assert_eq!(self.had[at].1, 0, "a stream was ended");
                self.had[at].0 = 0;
            }
            (4, _) if flags & 1 == 0 => self.stream.write_all(&frame(4, 1, 0, &[])).unwrap(),
            (6, _) if flags & 1 == 0 => self.stream.write_all(&frame(6, 1, 0, payload)).unwrap(),
            (3 | 7, _) => panic!("the agent gave up"),
            _ => {}
        }
    }

    fn ask_again(&mut self) {
        for at in 0..self.had.len() {
            if self.had[at].0 == 0 {
                self.had[at].0 = self.ask();
            }
        }
    }

    fn fewest(&self) -> usize {
        self.had.iter().map(|(_, had)| *had).min().unwrap_or(0)
    }
}

/// Holds its streams, and says by files when all of them have had one and two messages.
#[test]
fn child_that_holds_streams() {
    let Ok(place) = std::env::var(CHILD) else { return };
    let (socket, mut all) = (std::env::var(SOCKET).unwrap(), Vec::new());
    let mut left = OF_A_PROCESS;
    while left > 0 {
        let some = left.min(OF_A_CONNECTION);
        all.push(Held::open(&socket, some));
        left -= some;
    }
    let (mut said, mut asked) = (0, Instant::now());
    loop {
        all.iter_mut().for_each(Held::read);
        if asked.elapsed() > Duration::from_secs(1) {
            all.iter_mut().for_each(Held::ask_again);
            asked = Instant::now();
        }
        let fewest = all.iter().map(Held::fewest).min().unwrap();
        if fewest > said {
            said = fewest;
            std::fs::write(format!("{place}.{said}"), "").unwrap();
        }
    }
}

struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How many children have said that all of theirs have had so many messages.
fn said(dir: &Path, children: usize, messages: usize) -> usize {
    let path = |n| dir.join(format!("child{n}.{messages}"));
    (0..children).filter(|n| path(*n).exists()).count()
}

#[test]
fn many_streams_are_held_and_all_are_told_of_a_change() {
    let wanted = std::env::var("DOORWARD_TEST_STREAMS").ok().and_then(|text| text.parse().ok());
    let children = wanted.unwrap_or(144_usize).div_ceil(OF_A_PROCESS);
    let streams = children * OF_A_PROCESS;
    let stage = stage();
    entry(&stage, "tester", &[]);
    let agent = stage.pid("agent").unwrap();
    let (before, began) = (rss_kib(agent), Instant::now());
    let start = |n| {
        let me: PathBuf = std::fs::read_link("/proc/self/exe").unwrap();
        Command::new(me)
            .args(["--exact", "streams::child_that_holds_streams"])
            .env(CHILD, stage.dir().join(format!("child{n}")))
            .env(SOCKET, stage.workload_socket())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut all = Children((0..children).map(start).collect());
    let most = Duration::from_secs(60 + u64::try_from(streams).unwrap() / 20);
    until(most, || said(stage.dir(), children, 1), |said| *said == children);
    let (held, opened) = (rss_kib(agent), began.elapsed());
    let began = Instant::now();
    stage.operator_must(&["ca", "prepare"], None).unwrap();
    until(most, || said(stage.dir(), children, 2), |said| *said == children);
    eprintln!(
        "{streams} streams of {children} processes: given in {opened:?}; the agent took {} KiB \
         more, {:.1} KiB a stream; all were told other roots after {:?}",
        held.saturating_sub(before),
        held.saturating_sub(before) as f64 / streams as f64,
        began.elapsed()
    );
    let ended = all.0.iter_mut().filter_map(|child| child.try_wait().unwrap()).count();
    assert_eq!(ended, 0, "no stream has ended");
}
