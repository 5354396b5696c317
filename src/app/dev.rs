//! `doorward dev`: broker and agent on loopback, staying up; policies are put in force when saved.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::stage::{DOMAIN, Stage};
use crate::model::Clock;
use crate::policy::BundleFiles;

/// Runs until `stop` resolves; `told` prints what to type.
///
/// # Errors
/// What did not work, in words.
pub async fn dev(
    dir: Option<PathBuf>,
    _clock: Arc<dyn Clock>,
    stop: impl Future<Output = ()>,
    told: &dyn Fn(&str, &Value),
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let begun = tokio::task::spawn_blocking(move || -> Result<Stage, String> {
        let mut stage = Stage::new(dir)?;
        stage.start_agent()?;
        Ok(stage)
    });
    let stage = begun.await??;
    let policies = stage.broker_dir().join("policies");
    welcome(&stage, &policies, told);
    let stage = Arc::new(stage);
    tokio::select! {
        () = stop => {}
        never = watch(&stage, &policies) => match never {},
    }
    let ended = tokio::task::spawn_blocking(move || drop(stage));
    ended.await?;
    Ok(())
}

/// What to type.
fn welcome(stage: &Stage, policies: &Path, told: &dyn Fn(&str, &Value)) {
    let (operator, socket) = (stage.operator_dir(), stage.socket());
    let spiffe = stage.workload_socket();
    let uid = nix::unistd::getuid();
    told(
        &format!(
            "Doorward is up, for trust domain {DOMAIN}.\n\n\
             as the operator:\n  export DOORWARD_IDENTITY={op}\n  doorward whoami\n  \
             echo -n s3cret | doorward put shop/db/password\n  \
             doorward entry create --id shop --selector uid:{uid}\n\n\
             allow it: add this row to {pol}/policy.csv (saving puts it in force)\n  \
             p, shop-reads, spiffe://{DOMAIN}/shop, secret/shop/**, read, any, -, -, allow\n\n\
             as a workload (another terminal):\n  export DOORWARD_SOCKET={sock}\n  \
             doorward get shop/db/password --show\n  \
             curl --unix-socket {sock} -H 'Doorward-Request: true' http://localhost/v1/secrets/shop/db/password\n\n\
             as a program with a SPIFFE library:\n  \
             export SPIFFE_ENDPOINT_SOCKET=unix://{spiffe}\n\n\
             Ctrl-C ends it.",
            op = operator.display(),
            pol = policies.display(),
            sock = socket.display(),
            spiffe = spiffe.display(),
        ),
        &json!({
            "trust_domain": DOMAIN, "identity": operator, "policies": policies, "socket": socket,
            "spiffe_endpoint_socket": format!("unix://{}", spiffe.display()),
        }),
    );
}

/// Puts the policies in force whenever they were saved.
async fn watch(stage: &Arc<Stage>, policies: &Path) -> Infallible {
    let mut seen = BundleFiles::read_dir(policies).map(|files| files.digest()).ok();
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let digest = match BundleFiles::read_dir(policies) {
            Ok(files) => Some(files.digest()),
            Err(_) => None,
        };
        if digest == seen {
            continue;
        }
        seen = digest;
        let (stage, dir) = (Arc::clone(stage), policies.display().to_string());
        let ran = tokio::task::spawn_blocking(move || {
            stage.operator(&["policy", "activate", &dir], None)
        });
        match ran.await {
            Ok(Ok(ran)) if ran.code == 0 => {
                tracing::info!(serial = %ran.json()["serial"], "the policy is in force");
            }
            Ok(Ok(ran)) => {
                tracing::error!(
                    "the saved policy was refused; the one before stays in force\n{}\n{}",
                    ran.stdout.trim(),
                    ran.stderr.trim()
                );
            }
            _ => tracing::error!("the saved policy could not be sent"),
        }
    }
}
