//! How a command fails.

use crate::model::{Code, Refusal};
use crate::wire::ClientError;

/// A failure with what its reader needs: what, why, what to do, and the request to quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Lower case, no full stop.
    pub error: String,
    /// What lies behind it.
    pub cause: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// The broker's id of the request.
    pub request: Option<String>,
    /// 1 failed, 2 usage, 3 denied, 4 unavailable.
    pub exit: u8,
}

impl Fault {
    /// It went wrong.
    pub fn failed(error: impl Into<String>) -> Self {
        Self { error: error.into(), cause: None, hint: None, request: None, exit: 1 }
    }

    /// The command line is wrong.
    pub fn usage(error: impl Into<String>) -> Self {
        Self { exit: 2, ..Self::failed(error) }
    }

    /// Adds the cause.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error with all that lies behind it; what an error above has said already is not repeated.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut fault = Self::failed(error.to_string());
        let (mut causes, mut above) = (Vec::new(), fault.error.clone());
        let mut next = error.source();
        while let Some(source) = next {
            let said = source.to_string();
            if !above.contains(&said) {
                causes.push(said.clone());
                above = said;
            }
            next = source.source();
        }
        if !causes.is_empty() {
            fault.cause = Some(causes.join(": "));
        }
        fault
    }
}

impl Fault {
    /// A command line that the grammar refuses: its first paragraph is the error, tips and the
    /// usage line are the hint.
    pub fn of_grammar(error: &clap::Error) -> Self {
        use clap::error::ErrorKind;
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            return Self::usage("a command is missing").hint("`--help` lists the commands");
        }
        let text = error.render().to_string();
        let plain = |part: &str| {
            part.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
        };
        let mut paragraphs = text.split("\n\n").map(plain);
        let said = paragraphs.next().unwrap_or_default();
        let mut hints: Vec<String> = paragraphs
            .filter_map(|part| {
                let tip = part.strip_prefix("tip: ").map(str::to_owned);
                tip.or_else(|| part.strip_prefix("Usage: ").map(|usage| format!("usage: {usage}")))
            })
            .collect();
        hints.push("`--help` says more".to_owned());
        Self::usage(said.strip_prefix("error: ").unwrap_or(&said)).hint(hints.join("; "))
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let exit = match refusal.code {
            Code::Denied | Code::Expired => 3,
            Code::Limited | Code::Unavailable => 4,
            _ => 1,
        };
        let hint = refusal.hint.clone().or_else(|| match refusal.code {
            Code::Denied => Some(format!(
                "whoever may read the log sees why with `doorward explain {}`",
                refusal.request
            )),
            Code::Expired => Some("log in or enrol again".to_owned()),
            _ => None,
        });
        Self {
            error: format!("{} by the broker", word(refusal.code)),
            cause: Some(format!("{} {}", refusal.reason.code(), refusal.reason.word())),
            hint,
            request: Some(refusal.request.to_string()),
            exit,
        }
    }
}

fn word(code: Code) -> &'static str {
    match code {
        Code::Denied => "denied",
        Code::Invalid => "refused as invalid",
        Code::NotFound => "not found",
        Code::Conflict => "refused as a conflict",
        Code::TooLarge => "refused as too large",
        Code::Expired => "refused as expired",
        Code::Limited => "limited",
        Code::Unavailable => "not served for the moment",
        Code::Internal => "failed",
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => refusal.into(),
            other => {
                let exit = match (other.is_denied(), other.is_unavailable()) {
                    (true, _) => 3,
                    (false, true) => 4,
                    (false, false) => 1,
                };
                let hint = other.hint().map(str::to_owned);
                Self { exit, hint, ..Self::of(&other) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Chain {
        #[error("the store does not open: {0}")]
        Told(#[source] Box<Chain>),
        #[error("the file is locked")]
        Locked(#[source] std::io::Error),
    }

    #[test]
    fn each_element_of_a_chain_says_something_new() {
        let locked = || Chain::Locked(std::io::Error::other("busy"));
        let fault = Fault::of(&locked());
        assert_eq!(
            (fault.error.as_str(), fault.cause.as_deref()),
            ("the file is locked", Some("busy"))
        );
        let fault = Fault::of(&Chain::Told(Box::new(locked())));
        assert_eq!(fault.error, "the store does not open: the file is locked");
        assert_eq!(fault.cause.as_deref(), Some("busy"));
    }
}
