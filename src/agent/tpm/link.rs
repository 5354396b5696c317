//! Commands and responses as bytes (TPM 2.0 Part 1 §18), and what is loaded in the TPM meanwhile.
//!
//! What a link has loaded it flushes: a TPM has three places for keys. A command that the TPM puts
//! off is sent again, a bounded number of times. Nothing is remembered after a failure of the way
//! to the TPM: the next command opens it anew.

use std::time::Duration;

use super::error::TpmError;
use super::place::{Place, Transport};
use crate::posture::tpm::{Malformed, Public, Reader, Writer};

/// TPM_ST_NO_SESSIONS and TPM_ST_SESSIONS.
const PLAIN: u16 = 0x8001;
const WITH_SESSIONS: u16 = 0x8002;
/// TPM_RS_PW: an empty authorisation value.
const PASSWORD: u32 = 0x4000_0009;
/// Responses that mean «once more»: yielded, testing, retry.
const AGAIN: [u32; 3] = [0x908, 0x90a, 0x922];
/// Nobody has started it.
const INITIALIZE: u32 = 0x100;
/// It was sent so often, and waited for so long between.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);
/// Parameters of one response: bytes behind a length are never more than this.
pub(super) const SIZED_MAX: usize = 4096;

/// Who authorises the use of one handle.
#[derive(Debug, Clone, Copy)]
pub(super) enum Auth {
    /// An empty authorisation value.
    Empty,
    /// A policy session.
    Policy(u32),
}

/// A command on its way.
pub(super) struct Command<'a> {
    pub(super) name: &'static str,
    pub(super) code: u32,
    pub(super) handles: &'a [u32],
    pub(super) auths: &'a [Auth],
    pub(super) parameters: Vec<u8>,
    /// Handles that stand before the parameters of the response.
    pub(super) gives: usize,
}

/// What came back: handles, and parameters.
pub(super) struct Response {
    pub(super) name: &'static str,
    pub(super) handles: Vec<u32>,
    pub(super) parameters: Vec<u8>,
}

impl Response {
    /// Reads the parameters with `read`, which must take all of them.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
    ) -> Result<T, TpmError> {
        let mut reader = Reader::new(&self.parameters);
        read(&mut reader)
            .and_then(|value| reader.end("end").map(|()| value))
            .map_err(|source| TpmError::Malformed { command: self.name, source })
    }
}

/// A key in the TPM, and what it is.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its handle.
    pub handle: u32,
    /// Its public area.
    pub public: Public,
}

/// The way to one TPM.
#[derive(Debug)]
pub struct Link {
    place: Place,
    transport: Option<Transport>,
    /// Transient keys and sessions that stand in it by our doing.
    standing: Vec<u32>,
    /// Primary keys that are used again and again, by their templates.
    pub(super) kept: Option<(Vec<u8>, Loaded)>,
}

impl Link {
    /// A way that is opened by the first command.
    pub fn new(place: Place) -> Self {
        Self { place, transport: None, standing: Vec::new(), kept: None }
    }

    /// Flushes whatever stands in the TPM by our doing, and lets go of it.
    pub fn close(&mut self) {
        self.kept = None;
        for handle in std::mem::take(&mut self.standing) {
            let _ = self.flush_context(handle);
        }
        self.transport = None;
    }

    /// Remembers that something is to be flushed.
    pub(super) fn stands(&mut self, handle: u32) {
        self.standing.push(handle);
    }

    /// Flushes one key or session.
    ///
    /// # Errors
    /// When the TPM refuses.
    pub fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        self.standing.retain(|standing| *standing != handle);
        self.flush_context(handle)
    }

    /// Sends a command until the TPM takes it.
    pub(super) fn send(&mut self, command: &Command<'_>) -> Result<Response, TpmError> {
        let bytes = command.bytes();
        for turn in 0..TRIES {
            let response = self.exchange(&bytes)?;
            let (code, body) = header(command.name, &response)?;
            match code {
                0 => return command.response(body),
                INITIALIZE if command.code != super::commands::STARTUP => self.startup()?,
                code if AGAIN.contains(&code) => std::thread::sleep(PAUSE * turn),
                code => return Err(TpmError::Refused { command: command.name, code }),
            }
        }
        Err(TpmError::Late)
    }

    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        if self.transport.is_none() {
            let transport = Transport::open(&self.place).map_err(TpmError::Io)?;
            let is_bare = transport.is_bare();
            self.transport = Some(transport);
            if is_bare {
                self.throw_out()?;
            }
        }
        let Some(transport) = &mut self.transport else { return Err(TpmError::Gone) };
        transport.exchange(command).map_err(|error| {
            // Whatever stood there: what comes next would be the answer to this.
            self.transport = None;
            self.standing.clear();
            self.kept = None;
            match error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => TpmError::Late,
                _ => TpmError::Io(error),
            }
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

impl Command<'_> {
    fn bytes(&self) -> Vec<u8> {
        let auths = self.auths.iter().fold(Writer::default(), |writer, auth| {
            let (handle, attributes) = match auth {
                Auth::Empty => (PASSWORD, 0),
                Auth::Policy(session) => (*session, 1), // it goes on after this command
            };
            writer.u32(handle).sized(&[]).u8(attributes).sized(&[])
        });
        let auths = auths.done();
        let body = self.handles.iter().fold(Writer::default(), |writer, it| writer.u32(*it));
        let (tag, body) = match self.auths.is_empty() {
            true => (PLAIN, body),
            // Two authorisations have 18 bytes.
            false => (WITH_SESSIONS, body.u32(u32::try_from(auths.len()).unwrap_or(0)).raw(&auths)),
        };
        let body = body.raw(&self.parameters).done();
        let length = u32::try_from(body.len().saturating_add(10)).unwrap_or(u32::MAX);
        Writer::default().u16(tag).u32(length).u32(self.code).raw(&body).done()
    }

    fn response(&self, body: &[u8]) -> Result<Response, TpmError> {
        let read = || {
            let mut reader = Reader::new(body);
            let mut handles = Vec::with_capacity(self.gives);
            for _ in 0..self.gives {
                handles.push(reader.u32("handle")?);
            }
            let parameters = match self.auths.is_empty() {
                true => reader.rest(),
                false => {
                    let length = usize::try_from(reader.u32("parameter size")?);
                    reader.take(length.unwrap_or(usize::MAX), "parameters")?
                }
            };
            Ok(Response { name: self.name, handles, parameters: parameters.to_vec() })
        };
        read().map_err(|source| TpmError::Malformed { command: self.name, source })
    }
}

/// The response code, and what follows the header.
fn header<'a>(command: &'static str, response: &'a [u8]) -> Result<(u32, &'a [u8]), TpmError> {
    let mut reader = Reader::new(response);
    let read = reader.take(6, "header").and_then(|_| reader.u32("response code"));
    match read {
        Ok(code) => Ok((code, reader.rest())),
        Err(source) => Err(TpmError::Malformed { command, source }),
    }
}
