//! Where the passphrase or the key file comes from at start: never from argv, never from the
//! environment's values.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use super::config::SealConfig;
use crate::model::SecretValue;
use crate::model::limits::PASSPHRASE_MAX;
use crate::vault::{KeyFile, KeyProvider, Passphrase};

/// Where a passphrase is read.
#[derive(Debug, Clone, Default)]
pub struct SealSource {
    /// A file named on the command line; `-` is standard input.
    pub passphrase_file: Option<PathBuf>,
}

/// Why there is no passphrase.
#[derive(Debug, thiserror::Error)]
pub enum SealSourceError {
    /// A file can't be read.
    #[error("can't read the passphrase from `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// Nobody to ask.
    #[error("a passphrase is needed and there is no terminal to ask for it")]
    NoTerminal,
    /// The terminal failed.
    #[error("the terminal did not answer")]
    Terminal(#[source] std::io::Error),
    /// Nothing was typed.
    #[error("the passphrase is empty")]
    Empty,
    /// Twice, differently.
    #[error("the two passphrases differ")]
    Differ,
}

impl SealSource {
    /// What opens the seal.
    ///
    /// # Errors
    /// When a passphrase is needed and can't be had.
    pub fn provider(&self, seal: &SealConfig) -> Result<Box<dyn KeyProvider>, SealSourceError> {
        match seal {
            SealConfig::KeyFile(path) => Ok(Box::new(KeyFile(path.clone()))),
            SealConfig::Passphrase => Ok(Box::new(Passphrase(self.passphrase(false)?))),
        }
    }

    /// Whether a passphrase can be had without the admin socket: a file, a credential, a terminal.
    pub fn is_there(&self) -> bool {
        self.passphrase_file.is_some() || credential().is_some() || std::io::stdin().is_terminal()
    }

    /// The passphrase; `twice` asks a person again.
    ///
    /// # Errors
    /// When it can't be had.
    pub fn passphrase(&self, twice: bool) -> Result<SecretValue, SealSourceError> {
        if let Some(path) = &self.passphrase_file {
            return from_file(path);
        }
        if let Some(path) = credential() {
            return from_file(&path);
        }
        if !std::io::stdin().is_terminal() {
            return Err(SealSourceError::NoTerminal);
        }
        let ask = |prompt| {
            rpassword::prompt_password(prompt)
                .map(|text| SecretValue::new(text.into_bytes()))
                .map_err(SealSourceError::Terminal)
        };
        let first = ask("passphrase of the seal: ")?;
        if first.is_empty() {
            return Err(SealSourceError::Empty);
        }
        if twice {
            let again = ask("once more: ")?;
            let same = aws_lc_rs::constant_time::verify_slices_are_equal;
            same(first.expose(), again.expose()).map_err(|_| SealSourceError::Differ)?;
        }
        Ok(first)
    }
}

/// The service manager's credential, if there is one.
fn credential() -> Option<PathBuf> {
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    Some(Path::new(&dir).join("doorward-passphrase")).filter(|path| path.exists())
}

fn from_file(path: &Path) -> Result<SecretValue, SealSourceError> {
    let fault = |source| SealSourceError::File { path: path.to_owned(), source };
    let most = u64::try_from(PASSPHRASE_MAX).unwrap_or(u64::MAX);
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(PASSPHRASE_MAX));
    if path == Path::new("-") {
        std::io::stdin().take(most).read_to_end(&mut bytes).map_err(fault)?;
    } else {
        let file = std::fs::File::open(path).map_err(fault)?;
        file.take(most).read_to_end(&mut bytes).map_err(fault)?;
    }
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    if bytes.is_empty() { Err(SealSourceError::Empty) } else { Ok(SecretValue::from(bytes)) }
}
