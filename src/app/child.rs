//! Processes of this very binary, and what they print.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::Value;

/// What a command of ours printed and how it ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The exit code.
    pub code: i32,
}

impl Ran {
    /// The last JSON object that it printed on standard output.
    pub fn json(&self) -> Value {
        let last = self.stdout.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        last.unwrap_or(Value::Null)
    }

    /// The failure that it told with `--json`.
    pub fn fault(&self) -> Value {
        let last = self.stderr.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        last.unwrap_or(Value::Null)
    }
}

/// An error in words.
pub fn said<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String {
    let what = what.to_owned();
    move |error| format!("{what}: {error}")
}

/// A UDP port of loopback that nobody uses now.
///
/// # Errors
/// In words.
pub fn free_udp() -> Result<u16, String> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(said("no free UDP port"))?;
    Ok(socket.local_addr().map_err(said("no free UDP port"))?.port())
}

/// A TCP port of loopback that nobody uses now.
///
/// # Errors
/// In words.
pub fn free_tcp() -> Result<u16, String> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(said("no free TCP port"))?;
    Ok(socket.local_addr().map_err(said("no free TCP port"))?.port())
}

/// Runs a command to its end.
///
/// # Errors
/// When it can't be started.
pub fn finish(mut command: Command, stdin: Option<&[u8]>) -> Result<Ran, String> {
    let input = if stdin.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(said("can't start a process"))?;
    if let (Some(bytes), Some(mut pipe)) = (stdin, child.stdin.take()) {
        // A child that ends without reading says why by itself.
        let _ = pipe.write_all(bytes);
    }
    let output = child.wait_with_output().map_err(said("a process was lost"))?;
    let string = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Ran {
        stdout: string(output.stdout),
        stderr: string(output.stderr),
        code: output.status.code().unwrap_or(-1),
    })
}

/// Asks a process to end, waits, and ends it by force when it does not.
pub fn end(mut child: Child) {
    let pid = i32::try_from(child.id()).unwrap_or(0);
    if pid > 0 {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
    for _ in 0..500 {
        if child.try_wait().ok().flatten().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// A pipe that takes nothing more until somebody reads: whoever writes to it waits.
pub fn full_pipe() -> io::Result<(io::PipeReader, io::PipeWriter)> {
    let (reader, mut writer) = io::pipe()?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    loop {
        match writer.write(&[0; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, writer))
}
