//! The commands that are used, each as one method (TPM 2.0 Part 3).

use super::error::TpmError;
use super::link::{Auth, Command, Link, Loaded, Response, SIZED_MAX};
use crate::model::Digest;
use crate::model::limits::EK_CERTIFICATE_MAX;
use crate::posture::tpm::{
    Credential, NameHash, PcrValues, Public, Reader, Template, Writer, alg, ecdsa_p256,
};

pub(super) const STARTUP: u32 = 0x144;
const CREATE_PRIMARY: u32 = 0x131;
const ACTIVATE_CREDENTIAL: u32 = 0x147;
const CERTIFY: u32 = 0x148;
const NV_READ: u32 = 0x14e;
const POLICY_SECRET: u32 = 0x151;
const QUOTE: u32 = 0x158;
const SIGN: u32 = 0x15d;
const FLUSH_CONTEXT: u32 = 0x165;
const NV_READ_PUBLIC: u32 = 0x169;
const READ_PUBLIC: u32 = 0x173;
const START_AUTH_SESSION: u32 = 0x176;
const GET_CAPABILITY: u32 = 0x17a;
const PCR_READ: u32 = 0x17e;

/// TPM_RH_OWNER, TPM_RH_NULL, TPM_RH_ENDORSEMENT.
const OWNER: u32 = 0x4000_0001;
const NULL: u32 = 0x4000_0007;
const ENDORSEMENT: u32 = 0x4000_000b;
/// TPM_CAP_HANDLES, and where the handles of keys and of sessions begin.
const HANDLES: u32 = 1;
const TRANSIENT: u32 = 0x8000_0000;
const SESSIONS: u32 = 0x0200_0000;
/// Handles that are asked for at once; a TPM has fewer places.
const HANDLES_MAX: u32 = 64;
/// TPMA_NV_AUTHREAD.
const AUTH_READ: u32 = 1 << 18;
/// Read of a TPM's memory at once: every TPM gives so much.
const NV_CHUNK: u16 = 512;

/// A statement and its signature, as the TPM gave them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// TPMS_ATTEST.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
}

impl Link {
    /// Starts a TPM that nobody has started; firmware does this for a real one.
    pub(super) fn startup(&mut self) -> Result<(), TpmError> {
        let clear = Writer::default().u16(0).done();
        self.send(&plain("Startup", STARTUP, &[], clear)).map(drop)
    }

    /// Throws out keys and sessions that somebody left in a TPM without a resource manager.
    pub(super) fn throw_out(&mut self) -> Result<(), TpmError> {
        for first in [TRANSIENT, SESSIONS] {
            let handles = match self.handles(first) {
                Err(error @ (TpmError::Io(_) | TpmError::Gone)) => return Err(error),
                // What matters will be said by the command that comes next.
                other => other.unwrap_or_default(),
            };
            for handle in handles {
                let _ = self.flush_context(handle);
            }
        }
        Ok(())
    }

    fn handles(&mut self, first: u32) -> Result<Vec<u32>, TpmError> {
        let parameters = Writer::default().u32(HANDLES).u32(first).u32(HANDLES_MAX).done();
        let response = self.send(&plain("GetCapability", GET_CAPABILITY, &[], parameters))?;
        response.read(|reader| {
            reader.u8("more")?;
            reader.u32("capability")?;
            let count = reader.u32("count")?.min(HANDLES_MAX);
            (0..count).map(|_| reader.u32("handle")).collect()
        })
    }

    /// Makes a primary key below the endorsement hierarchy, which survives a change of owner: the
    /// same TPM makes the same key of the same template each time.
    ///
    /// # Errors
    /// When the TPM refuses, or makes something else.
    pub fn create_primary(&mut self, template: &[u8]) -> Result<Loaded, TpmError> {
        let parameters = Writer::default().sized(&[0; 4]).sized(template).sized(&[]).u32(0).done();
        let response = self.send(&Command {
            name: "CreatePrimary",
            code: CREATE_PRIMARY,
            handles: &[ENDORSEMENT],
            auths: &[Auth::Empty],
            parameters,
            gives: 1,
        })?;
        let handle = one_handle(&response)?;
        self.stands(handle);
        let public = response.read(|reader| {
            let public = reader.sized(SIZED_MAX, "public area")?;
            for what in ["creation data", "creation hash"] {
                reader.sized(SIZED_MAX, what)?;
            }
            reader.u16("ticket")?;
            reader.u32("ticket")?;
            reader.sized(SIZED_MAX, "ticket")?;
            let name = reader.sized(SIZED_MAX, "name")?;
            let public = Public::parse(public)?;
            match public.name() == name {
                true => Ok(public),
                false => Err(crate::posture::tpm::Malformed("name")),
            }
        })?;
        Ok(Loaded { handle, public })
    }

    /// A primary key that is used often: it stays in the TPM until the link is closed, or another
    /// one takes its place.
    ///
    /// # Errors
    /// As [`Link::create_primary`].
    pub fn primary(&mut self, template: &Template<'_>) -> Result<Loaded, TpmError> {
        let template = template.bytes();
        match self.kept.take() {
            Some((of, key)) if of == template => {
                self.kept = Some((of, key.clone()));
                return Ok(key);
            }
            Some((_, other)) => self.flush(other.handle)?,
            None => {}
        }
        let key = self.create_primary(&template)?;
        self.kept = Some((template, key.clone()));
        Ok(key)
    }

    pub(super) fn flush_context(&mut self, handle: u32) -> Result<(), TpmError> {
        let parameters = Writer::default().u32(handle).done();
        self.send(&plain("FlushContext", FLUSH_CONTEXT, &[], parameters)).map(drop)
    }

    /// What key stands behind a handle.
    ///
    /// # Errors
    /// When there is none, or one of a kind that is not used here.
    pub fn read_public(&mut self, handle: u32) -> Result<Public, TpmError> {
        let response = self.send(&plain("ReadPublic", READ_PUBLIC, &[handle], Vec::new()))?;
        response.read(|reader| {
            let public = reader.sized(SIZED_MAX, "public area")?;
            for what in ["name", "qualified name"] {
                reader.sized(SIZED_MAX, what)?;
            }
            Public::parse(public)
        })
    }

    /// The whole of an index of the TPM's memory; `None` where there is none.
    ///
    /// # Errors
    /// When it can't be read, or is larger than a certificate.
    pub fn nv(&mut self, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
        let public = match self.send(&plain("NV_ReadPublic", NV_READ_PUBLIC, &[index], Vec::new()))
        {
            Ok(response) => response,
            // TPM_RC_HANDLE of the first handle.
            Err(TpmError::Refused { code: 0x18b, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (attributes, size) = public.read(|reader| {
            let mut area = Reader::new(reader.sized(SIZED_MAX, "index")?);
            area.u32("index")?;
            area.u16("name algorithm")?;
            let attributes = area.u32("attributes")?;
            area.sized(64, "policy")?;
            let size = area.u16("size")?;
            area.end("index")?;
            reader.sized(SIZED_MAX, "name")?;
            Ok((attributes, size))
        })?;
        if usize::from(size) > EK_CERTIFICATE_MAX {
            return Err(TpmError::Other("has a certificate that is larger than there are"));
        }
        let by = if attributes & AUTH_READ != 0 { index } else { OWNER };
        let mut bytes = Vec::with_capacity(size.into());
        for offset in (0..size).step_by(NV_CHUNK.into()) {
            let length = NV_CHUNK.min(size.saturating_sub(offset));
            let response = self.send(&Command {
                name: "NV_Read",
                code: NV_READ,
                handles: &[by, index],
                auths: &[Auth::Empty],
                parameters: Writer::default().u16(length).u16(offset).done(),
                gives: 0,
            })?;
            let read = response.read(|reader| {
                let read = reader.sized(length.into(), "data")?;
                match read.len() == usize::from(length) {
                    true => Ok(read.to_vec()),
                    false => Err(crate::posture::tpm::Malformed("data")),
                }
            })?;
            bytes.extend_from_slice(&read);
        }
        Ok(Some(bytes))
    }

    /// The values of PCRs of the SHA-256 bank, bit i of `wanted` for PCR i, all of one moment.
    ///
    /// # Errors
    /// When the TPM has not all of them, or they change all the time.
    pub fn pcrs(&mut self, wanted: u32) -> Result<PcrValues, TpmError> {
        const UNSTABLE: TpmError = TpmError::Other("changes its registers while they are read");
        'again: for _ in 0..4 {
            let (mut values, mut left, mut moment) = (PcrValues::new(), wanted, None);
            while left != 0 {
                let [a, b, c, _] = left.to_le_bytes();
                let selection = Writer::default().u32(1).u16(alg::SHA256).u8(3).raw(&[a, b, c]);
                let response = self.send(&plain("PCR_Read", PCR_READ, &[], selection.done()))?;
                let (counter, got, digests) = response.read(pcr_response)?;
                if *moment.get_or_insert(counter) != counter {
                    continue 'again;
                }
                let got = (0..24_u8).filter(|pcr| got & (1 << pcr) != 0);
                let before = left;
                for (pcr, value) in got.zip(digests) {
                    values.insert(pcr, value);
                    left &= !(1 << pcr);
                }
                if before == left {
                    return Err(TpmError::Other("has not all of these registers"));
                }
            }
            return Ok(values);
        }
        Err(UNSTABLE)
    }

    /// Quotes these registers: a statement about them, with `extra` in it.
    ///
    /// # Errors
    /// When the TPM refuses.
    pub fn quote(&mut self, key: u32, extra: &Digest, pcrs: u32) -> Result<Signed, TpmError> {
        let [a, b, c, _] = pcrs.to_le_bytes();
        let parameters = Writer::default().sized(&extra.0).u16(alg::NULL);
        let parameters = parameters.u32(1).u16(alg::SHA256).u8(3).raw(&[a, b, c]).done();
        self.sign_statement("Quote", QUOTE, &[key], &[Auth::Empty], parameters)
    }

    /// That `object` is in this TPM, with `extra`, by the attestation key.
    ///
    /// # Errors
    /// When the TPM refuses.
    pub fn certify(&mut self, object: u32, key: u32, extra: &Digest) -> Result<Signed, TpmError> {
        let parameters = Writer::default().sized(&extra.0).u16(alg::NULL).done();
        let auths = [Auth::Empty, Auth::Empty];
        self.sign_statement("Certify", CERTIFY, &[object, key], &auths, parameters)
    }

    fn sign_statement(
        &mut self,
        name: &'static str,
        code: u32,
        handles: &[u32],
        auths: &[Auth],
        parameters: Vec<u8>,
    ) -> Result<Signed, TpmError> {
        let response = self.send(&Command { name, code, handles, auths, parameters, gives: 0 })?;
        response.read(|reader| {
            let attest = reader.sized(SIZED_MAX, "statement")?.to_vec();
            Ok(Signed { attest, signature: reader.rest().to_vec() })
        })
    }

    /// Signs a SHA-256 digest: r ‖ s.
    ///
    /// # Errors
    /// When the TPM refuses.
    pub fn sign(&mut self, key: u32, digest: &Digest) -> Result<[u8; 64], TpmError> {
        // TPM_ST_HASHCHECK without a hash: the key may sign what others have hashed.
        let ticket = |writer: Writer| writer.u16(0x8024).u32(NULL).sized(&[]);
        let response = self.send(&Command {
            name: "Sign",
            code: SIGN,
            handles: &[key],
            auths: &[Auth::Empty],
            parameters: ticket(Writer::default().sized(&digest.0).u16(alg::NULL)).done(),
            gives: 0,
        })?;
        response.read(|reader| ecdsa_p256(reader.rest()))
    }

    /// Opens a credential that was made for the endorsement key and the name of `key`.
    ///
    /// # Errors
    /// When the TPM refuses: the credential is for another TPM, or for another key in it.
    pub fn activate(
        &mut self,
        key: u32,
        ek: &Loaded,
        credential: &Credential,
    ) -> Result<Vec<u8>, TpmError> {
        let session = match ek.public.user_with_auth() {
            true => None,
            false => Some(self.endorsement_session(ek.public.hash())?),
        };
        let of_ek = session.map_or(Auth::Empty, Auth::Policy);
        let response = self.send(&Command {
            name: "ActivateCredential",
            code: ACTIVATE_CREDENTIAL,
            handles: &[key, ek.handle],
            auths: &[Auth::Empty, of_ek],
            parameters: Writer::default().sized(&credential.blob).sized(&credential.seed).done(),
            gives: 0,
        });
        if let Some(session) = session {
            let _ = self.flush(session);
        }
        response?.read(|reader| Ok(reader.sized(64, "secret")?.to_vec()))
    }

    /// A policy session that fulfils the policy of endorsement keys: whoever may use the
    /// hierarchy.
    fn endorsement_session(&mut self, hash: NameHash) -> Result<u32, TpmError> {
        let mut nonce = [0; 16];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| TpmError::Other("has no random caller"))?;
        let hash = match hash {
            NameHash::Sha256 => alg::SHA256,
            NameHash::Sha384 => alg::SHA384,
        };
        let parameters = Writer::default().sized(&nonce).sized(&[]).u8(1).u16(alg::NULL).u16(hash);
        let response = self.send(&Command {
            gives: 1,
            ..plain("StartAuthSession", START_AUTH_SESSION, &[NULL, NULL], parameters.done())
        })?;
        let session = one_handle(&response)?;
        self.stands(session);
        let parameters = Writer::default().sized(&[]).sized(&[]).sized(&[]).u32(0).done();
        self.send(&Command {
            name: "PolicySecret",
            code: POLICY_SECRET,
            handles: &[ENDORSEMENT, session],
            auths: &[Auth::Empty],
            parameters,
            gives: 0,
        })?;
        Ok(session)
    }
}

fn plain<'a>(
    name: &'static str,
    code: u32,
    handles: &'a [u32],
    parameters: Vec<u8>,
) -> Command<'a> {
    Command { name, code, handles, auths: &[], parameters, gives: 0 }
}

fn one_handle(response: &Response) -> Result<u32, TpmError> {
    response.handles.first().copied().ok_or(TpmError::Other("gave no handle"))
}

/// The update counter, the registers that came, and their values.
fn pcr_response(
    reader: &mut Reader<'_>,
) -> Result<(u32, u32, Vec<[u8; 32]>), crate::posture::tpm::Malformed> {
    const WHAT: &str = "registers";
    let counter = reader.u32(WHAT)?;
    let wrong = crate::posture::tpm::Malformed(WHAT);
    if (reader.u32(WHAT)?, reader.u16(WHAT)?, reader.u8(WHAT)?) != (1, alg::SHA256, 3) {
        return Err(wrong);
    }
    let [a, b, c] = reader.array(WHAT)?;
    let count = reader.u32(WHAT)?.min(8);
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(reader.sized(32, WHAT)?.try_into().map_err(|_| wrong)?);
    }
    Ok((counter, u32::from_le_bytes([a, b, c, 0]), values))
}
