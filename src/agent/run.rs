//! `doorward run`: secrets from the agent, into a program's environment or files that only it has.
//!
//! The client speaks as much HTTP/1.1 as the agent's own answer needs, with a bound on everything
//! and values only in buffers that are wiped. Files are sealed memory, never on a disk. What is
//! handed to the program's environment is out of reach from then on: files are the better way.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use crate::model::limits::VALUE_MAX;
use crate::model::{SecretName, SecretValue, SpiffeId};

/// Names of one request; the agent's own bound.
const NAMES_MAX: usize = 128;
/// Status line and headers of the answer: the agent writes under 1 KiB.
const HEAD_MAX: usize = 16 * 1024;
/// The answer's body: 128 values of the largest size in base64, with room for names and refusals.
const BODY_MAX: usize = NAMES_MAX * (VALUE_MAX / 3 * 4 + 8 * 1024);
/// The whole exchange: the agent gives each of eight rounds 15 s.
const EXCHANGE_MAX: Duration = Duration::from_secs(130);

/// Why the program was not started.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Not a SPIFFE ID.
    #[error("{0:?} is no SPIFFE ID")]
    As(String),
    /// Nobody at the socket.
    #[error("no agent answers at {}: is it running?", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The program can't be started.
    #[error("can't start {}", program.display())]
    Exec {
        /// Which.
        program: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A secret can't be made a file.
    #[error("can't make {variable} a sealed file in memory")]
    File {
        /// For which variable.
        variable: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The connection broke off.
    #[error("the agent's answer broke off")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("the agent gave no answer within {} s", EXCHANGE_MAX.as_secs())]
    Late,
    /// No program.
    #[error("no program to start: doorward run [options] -- CMD [ARG…]")]
    NoProgram,
    /// An environment variable can't hold it.
    #[error("the secret for {0} holds a NUL byte, which no environment can: give it as a file")]
    Nul(String),
    /// The agent or the broker refused.
    #[error("{code} ({reason}) {}", name.as_deref().unwrap_or("by the agent"))]
    Refused {
        /// The secret, unless the whole request was refused.
        name: Option<String>,
        /// The closed code.
        code: String,
        /// The stable reason.
        reason: String,
        /// The broker's request id.
        request_id: Option<String>,
        /// How to mend it.
        hint: Option<String>,
    },
    /// Something else answered than an agent.
    #[error("the answer at the socket is not an agent's: {0}")]
    Shape(&'static str),
    /// Not a variable's name.
    #[error("{0:?} can't name an environment variable")]
    Variable(String),
}

#[derive(Deserialize)]
struct Item<'a> {
    name: SecretName,
    #[serde(default, borrow)]
    value_base64: Option<&'a str>,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    code: String,
    reason: String,
    request_id: Option<String>,
    hint: Option<String>,
}

impl Fault {
    fn of(self, name: Option<String>) -> RunError {
        let Self { code, reason, request_id, hint } = self;
        RunError::Refused { name, code, reason, request_id, hint }
    }
}

/// The values of these secrets, from the agent at `socket`, in order; all or none. `as_` names the
/// one of the process's identities to ask with.
///
/// # Errors
/// When there is no agent, or any of them is refused.
pub async fn fetch(
    socket: &Path,
    names: &[SecretName],
    as_: Option<&str>,
) -> Result<Vec<(SecretName, SecretValue)>, RunError> {
    let wanted = as_.map(SpiffeId::parse).transpose();
    let wanted = wanted.map_err(|_| RunError::As(as_.unwrap_or_default().to_owned()))?;
    let mut values = Vec::with_capacity(names.len());
    for some in names.chunks(NAMES_MAX) {
        let exchange = exchange(socket, some, wanted.as_ref());
        let (status, body) =
            tokio::time::timeout(EXCHANGE_MAX, exchange).await.map_err(|_| RunError::Late)??;
        if status != 200 {
            let fault: Fault = serde_json::from_slice(&body)
                .map_err(|_| RunError::Shape("a refusal of another form"))?;
            return Err(fault.of(None));
        }
        values.append(&mut decode(&body, some)?);
    }
    Ok(values)
}

fn decode(body: &[u8], names: &[SecretName]) -> Result<Vec<(SecretName, SecretValue)>, RunError> {
    let items: Vec<Item<'_>> =
        serde_json::from_slice(body).map_err(|_| RunError::Shape("no list of values"))?;
    if !items.iter().map(|item| &item.name).eq(names) {
        return Err(RunError::Shape("other names than were asked for"));
    }
    let mut values = Vec::with_capacity(items.len());
    for Item { name, value_base64, error } in items {
        let text = match (value_base64, error) {
            (Some(text), None) => text,
            (None, Some(fault)) => return Err(fault.of(Some(name.to_string()))),
            _ => return Err(RunError::Shape("neither a value nor a refusal")),
        };
        let mut value = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
        let length = STANDARD
            .decode_slice(text, &mut value)
            .map_err(|_| RunError::Shape("a value that is not base64"))?;
        value.truncate(length);
        values.push((name, SecretValue::from(value)));
    }
    Ok(values)
}

async fn exchange(
    socket: &Path,
    names: &[SecretName],
    wanted: Option<&SpiffeId>,
) -> Result<(u16, Zeroizing<Vec<u8>>), RunError> {
    let body = serde_json::json!({ "names": names }).to_string();
    let query = wanted.map(|id| format!("?as={id}")).unwrap_or_default();
    let request = format!(
        "POST /v1/secrets:batch{query} HTTP/1.1\r\nHost: localhost\r\nDoorward-Request: true\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    send(socket, &request).await
}

async fn send(socket: &Path, request: &str) -> Result<(u16, Zeroizing<Vec<u8>>), RunError> {
    let mut stream = UnixStream::connect(socket)
        .await
        .map_err(|source| RunError::Connect { path: socket.into(), source })?;
    stream.write_all(request.as_bytes()).await?;
    read_answer(&mut stream).await
}

/// Who the agent says that this process is.
///
/// # Errors
/// When there is no agent, or it has no identity for this process.
pub async fn identity(socket: &Path) -> Result<serde_json::Value, RunError> {
    let request = "GET /v1/identity HTTP/1.1\r\nHost: localhost\r\nDoorward-Request: true\r\n\
                   Connection: close\r\n\r\n";
    let exchange = tokio::time::timeout(EXCHANGE_MAX, send(socket, request));
    let (status, body) = exchange.await.map_err(|_| RunError::Late)??;
    if status != 200 {
        let fault: Fault = serde_json::from_slice(&body)
            .map_err(|_| RunError::Shape("a refusal of another form"))?;
        return Err(fault.of(None));
    }
    serde_json::from_slice(&body).map_err(|_| RunError::Shape("no identity"))
}

/// Status and body of one answer. A body without a plain length is refused.
async fn read_answer(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<(u16, Zeroizing<Vec<u8>>), RunError> {
    let mut head = Zeroizing::new(Vec::with_capacity(HEAD_MAX));
    let end = loop {
        if let Some(at) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if head.len() >= HEAD_MAX {
            return Err(RunError::Shape("too long a head"));
        }
        let room = HEAD_MAX - head.len();
        if (&mut *stream).take(u64::try_from(room).unwrap_or(0)).read_buf(&mut *head).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    };
    let (text, rest) = head.split_at(end);
    let (status, length) = parse_head(text)?;
    let mut body = Zeroizing::new(Vec::with_capacity(length));
    body.extend_from_slice(rest.get(..rest.len().min(length)).unwrap_or_default());
    let mut more = stream.take(u64::try_from(length - body.len()).unwrap_or(0));
    while body.len() < length {
        if more.read_buf(&mut *body).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    Ok((status, body))
}

fn parse_head(head: &[u8]) -> Result<(u16, usize), RunError> {
    let text = std::str::from_utf8(head).map_err(|_| RunError::Shape("a head of other bytes"))?;
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| digits.parse().ok())
        .ok_or(RunError::Shape("no HTTP/1.1"))?;
    let mut length = None;
    for (key, value) in lines.filter_map(|line| line.split_once(':')) {
        if key.eq_ignore_ascii_case("transfer-encoding") {
            return Err(RunError::Shape("a body without a length"));
        }
        if key.eq_ignore_ascii_case("content-length") {
            let value = value.trim();
            let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            let parsed = value.parse().ok().filter(|length| plain && *length <= BODY_MAX);
            if length.replace(parsed.ok_or(RunError::Shape("too long a body"))?).is_some() {
                return Err(RunError::Shape("two lengths"));
            }
        }
    }
    length.map(|length| (status, length)).ok_or(RunError::Shape("a body without a length"))
}

/// Becomes the program `command`, with secrets in its environment (`env`) and as files in memory
/// (`files`: the variable holds the path). Returns only if that fails.
pub fn exec(
    command: &[OsString],
    env: Vec<(String, SecretValue)>,
    files: Vec<(String, SecretValue)>,
) -> RunError {
    match prepare(command, &env, &files) {
        Ok((mut command, _open)) => {
            let source = command.exec();
            RunError::Exec { program: command.get_program().into(), source }
        }
        Err(why) => why,
    }
}

fn prepare(
    command: &[OsString],
    env: &[(String, SecretValue)],
    files: &[(String, SecretValue)],
) -> Result<(Command, Vec<OwnedFd>), RunError> {
    let (program, arguments) = command.split_first().ok_or(RunError::NoProgram)?;
    let mut command = Command::new(program);
    command.args(arguments);
    for (variable, value) in env {
        check_variable(variable)?;
        if value.expose().contains(&0) {
            return Err(RunError::Nul(variable.clone()));
        }
        command.env(variable, OsStr::from_bytes(value.expose()));
    }
    let mut open = Vec::with_capacity(files.len());
    for (variable, value) in files {
        check_variable(variable)?;
        let file = sealed(value)
            .map_err(|source| RunError::File { variable: variable.clone(), source })?;
        command.env(variable, format!("/proc/self/fd/{}", file.as_raw_fd()));
        open.push(file);
    }
    Ok((command, open))
}

fn check_variable(name: &str) -> Result<(), RunError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let digit = name.starts_with(|c: char| c.is_ascii_digit());
    if name.is_empty() || digit || !name.bytes().all(plain) {
        return Err(RunError::Variable(name.chars().take(64).collect()));
    }
    Ok(())
}

/// A file in memory that nobody can change any more. It is inherited by the program on purpose.
fn sealed(value: &SecretValue) -> io::Result<OwnedFd> {
    let file = memfd_create(c"doorward", MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    file.write_all(value.expose())?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn secret(bytes: &[u8]) -> SecretValue {
        SecretValue::new(bytes.to_vec())
    }

    async fn answer(mut bytes: &[u8]) -> Result<(u16, Vec<u8>), RunError> {
        read_answer(&mut bytes).await.map(|(status, body)| (status, body.to_vec()))
    }

    #[tokio::test]
    async fn answers_that_are_not_an_agents_are_refused() {
        let good = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]";
        assert_eq!(answer(good).await.unwrap(), (200, b"[]".to_vec()));
        for bad in [
            &b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n[]"[..],
            b"HTTP/1.1 2x0 OK\r\ncontent-length: 2\r\n\r\n[]",
            b"HTTP/1.1 200 OK\r\n\r\n[]",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n[]",
            b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\n[]",
            b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n[]",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 \xff\r\ncontent-length: 2\r\n\r\n[]",
            &[b'x'; HEAD_MAX + 1],
        ] {
            let refused = answer(bad).await;
            let shown: String = String::from_utf8_lossy(bad).chars().take(60).collect();
            assert!(matches!(refused, Err(RunError::Shape(_))), "{shown:?}: {refused:?}");
        }
        for cut in 0..good.len() {
            assert!(matches!(answer(&good[..cut]).await, Err(RunError::Io(_))), "cut at {cut}");
        }
    }

    #[test]
    fn values_come_in_the_order_asked_for_or_not_at_all() {
        let names = ["pay/a", "pay/b"].map(|name| SecretName::parse(name).unwrap());
        let good = br#"[{"name":"pay/a","version":1,"value_base64":"aGk="},
            {"name":"pay/b","version":1,"value_base64":""}]"#;
        let values = decode(good, &names).unwrap();
        assert_eq!(values[0].1.expose(), b"hi");
        assert!(values[1].1.is_empty());

        let swapped = [names[1].clone(), names[0].clone()];
        assert!(matches!(decode(good, &swapped), Err(RunError::Shape(_))));
        assert!(matches!(decode(good, &names[..1]), Err(RunError::Shape(_))));
        let denied = br#"[{"name":"pay/a","version":1,"value_base64":"aGk="},
            {"name":"pay/b","error":{"code":"denied","reason":"D101"}}]"#;
        match decode(denied, &names) {
            Err(RunError::Refused { name, code, reason, .. }) => {
                assert_eq!(name.as_deref(), Some("pay/b"));
                assert_eq!((code.as_str(), reason.as_str()), ("denied", "D101"));
            }
            other => panic!("{other:?}"),
        }
        let odd = br#"[{"name":"pay/a"}]"#;
        assert!(matches!(decode(odd, &names[..1]), Err(RunError::Shape(_))));
    }

    #[test]
    fn a_program_sees_its_secrets_and_a_sealed_file() {
        let script = "printf '%s:' \"$PASSWORD\"; cat \"$CERT\"; (echo x > \"$CERT\") 2>/dev/null \
                      && echo WRITTEN; exit 0";
        let command = ["sh", "-c", script].map(OsString::from);
        let env = [("PASSWORD".to_owned(), secret(b"hunter\xff2"))];
        let files = [("CERT".to_owned(), secret(b"with a \0 inside"))];
        let (mut command, open) = prepare(&command, &env, &files).unwrap();
        let output = command.output().unwrap();
        drop(open);
        assert_eq!(output.stdout, b"hunter\xff2:with a \0 inside");
    }

    #[test]
    fn sealed_files_stay_as_they_are_even_for_us() {
        let mut file = std::fs::File::from(sealed(&secret(b"value")).unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "value");
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
        assert!(fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL)).is_err());
    }

    #[test]
    fn what_an_environment_cannot_hold_is_refused_by_name() {
        let command = ["true"].map(OsString::from);
        let with = |name: &str, value: &[u8]| {
            prepare(&command, &[(name.to_owned(), secret(value))], &[]).map(|_| ())
        };
        with("A_1", b"x").unwrap();
        assert!(matches!(with("A", b"x\0y"), Err(RunError::Nul(name)) if name == "A"));
        for name in ["", "1A", "A=B", "A B", "A\0"] {
            assert!(matches!(with(name, b"x"), Err(RunError::Variable(_))), "{name:?}");
        }
        assert!(matches!(exec(&[], vec![], vec![]), RunError::NoProgram));
        let missing = exec(&["/nonexistent/program".into()], vec![], vec![]);
        assert!(matches!(missing, RunError::Exec { .. }));
    }

    #[tokio::test]
    async fn without_an_agent_the_socket_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("none.sock");
        let names = [SecretName::parse("pay/a").unwrap()];
        let refused = fetch(&socket, &names, None).await;
        assert!(matches!(refused, Err(RunError::Connect { .. })));
        let refused = fetch(&socket, &names, Some("not an id")).await;
        assert!(matches!(refused, Err(RunError::As(_))));
    }
}
