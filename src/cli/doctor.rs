//! `doctor`: what is wrong on this machine and how to mend it.

use std::path::Path;

use super::access::Access;
use super::block_on;
use super::fault::Fault;
use super::output::Output;
use crate::app::{Grade, examine, examine_seal};

pub fn doctor(dir: Option<&Path>, access: &Access, output: &Output) -> Result<(), Fault> {
    let socket = access.agent();
    let mut findings = examine(dir, access.identity(), socket.as_deref());
    if let Some(dir) = dir {
        findings.extend(block_on(async { Ok(examine_seal(dir).await) })?);
    }
    let failed = findings.iter().filter(|finding| finding.grade == Grade::Fail).count();
    for finding in &findings {
        let word = match finding.grade {
            Grade::Ok => "ok  ",
            Grade::Warn => "warn",
            Grade::Fail => "FAIL",
        };
        let mut text = format!("{word}  {:<12} {}", finding.what, finding.said);
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("\n      {:<12} -> {remedy}", ""));
        }
        output.result(&text, &serde_json::to_value(finding).unwrap_or_default());
    }
    match failed {
        0 => Ok(()),
        n => Err(Fault::failed(format!("{n} of {} findings must be mended", findings.len()))),
    }
}
