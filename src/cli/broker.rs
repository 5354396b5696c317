//! broker, unseal: a broker from its start to its end, and the passphrase that a sealed one waits for.

use serde_json::json;

use super::args::{BrokerOptions, UnsealOptions};
use super::block_on;
use super::fault::Fault;
use super::output::Output;
use super::serve::{clock, diagnostics, no_passphrase, read_config};
use crate::app::{
    self, BrokerStart, Layout, RunningBroker, SealSource, SealedBroker, StartError, UnsealError,
    shutdown_signal,
};
use crate::wire::SealState;

pub fn broker(options: BrokerOptions, output: &Output) -> Result<(), Fault> {
    diagnostics();
    let layout = Layout::new(&options.dir);
    let config = read_config(&layout.config(), output)?;
    let source = SealSource { passphrase_file: options.passphrase_file };
    let key_file = BrokerStart::key_file(&layout, &config);
    if options.sealed && key_file.is_some() {
        return Err(Fault::usage("the seal of this broker is a key file: it opens by itself")
            .hint("leave `--sealed` away; only a passphrase can be waited for"));
    }
    let provider = match key_file {
        Some(provider) => Some(provider),
        None if options.sealed || !source.is_there() => None,
        None => Some(source.provider(&config.seal).map_err(no_passphrase)?),
    };
    block_on(async {
        let mut stop = std::pin::pin!(shutdown_signal().map_err(|error| Fault::of(&error))?);
        let started = match provider {
            Some(provider) => {
                let start = BrokerStart { layout, config, provider, clock: clock() };
                start.start().await.map(Some)
            }
            None => wait_sealed(layout, config, stop.as_mut()).await,
        };
        let running = match started.map_err(|error| not_started(&error))? {
            Some(running) => running,
            None => return Ok(()), // told to stop while it was sealed
        };
        tell_ready(&running, options.ready_file.as_deref())?;
        running.run_until(stop).await.map_err(|(task, why)| {
            Fault::failed(format!("the task `{task}` fell; the broker has stopped")).cause(why)
        })
    })
}

async fn wait_sealed(
    layout: Layout,
    config: app::BrokerConfig,
    stop: impl Future<Output = ()>,
) -> Result<Option<RunningBroker>, StartError> {
    let dir = layout.root().display().to_string();
    let sealed = SealedBroker::open(layout, config, clock()).await?;
    let management = sealed.management().map(tracing::field::display);
    let socket = sealed.socket();
    tracing::warn!(
        management, socket = %socket.display(), "sealed: `doorward unseal {dir}` opens it"
    );
    app::notify_sealed();
    sealed.run_until(stop).await
}

fn not_started(error: &StartError) -> Fault {
    Fault::of(error).hint("`doorward doctor DIR` looks at the directory and the machine")
}

fn tell_ready(running: &RunningBroker, file: Option<&std::path::Path>) -> Result<(), Fault> {
    tracing::info!(
        broker = %running.address, enrolment = %running.enrolment,
        management = %running.management, "ready"
    );
    if let Some(file) = file {
        let text = json!({
            "broker": running.address.to_string(), "enrolment": running.enrolment.to_string(),
            "management": running.management.to_string(),
            "federation": running.federation.map(|address| address.to_string()),
        });
        app::replace_private(file, text.to_string().as_bytes()).map_err(|e| Fault::of(&e))?;
    }
    app::notify_ready();
    Ok(())
}

pub fn unseal(options: UnsealOptions, output: &Output) -> Result<(), Fault> {
    let layout = Layout::new(&options.dir);
    let config = read_config(&layout.config(), output)?;
    let dir = options.dir.display();
    if BrokerStart::key_file(&layout, &config).is_some() {
        return Err(Fault::failed("the seal of this broker is a key file: it opens by itself")
            .hint(format!("start it with `doorward broker {dir}`")));
    }
    block_on(async {
        let told = |error: UnsealError| fault(&error, &options.dir);
        // Nobody is asked for a passphrase that nobody waits for.
        let opened = match app::seal_state(&layout).await.map_err(told)? {
            SealState::Opening | SealState::Open => None,
            SealState::Sealed => {
                let source = SealSource { passphrase_file: options.passphrase_file.clone() };
                let passphrase = source.passphrase(false).map_err(no_passphrase)?;
                app::unseal(&layout, &passphrase).await.map_err(told)?
            }
        };
        match opened {
            Some(opened) => output.result(
                &format!("the seal is open; the broker answers on {} (UDP)", opened.broker),
                &json!({
                    "opened": true, "broker": opened.broker, "enrolment": opened.enrolment,
                    "management": opened.management,
                }),
            ),
            None => output.result(
                &format!("the broker in {dir} is not sealed; nothing was sent"),
                &json!({ "opened": false }),
            ),
        }
        Ok(())
    })
}

fn fault(error: &UnsealError, dir: &std::path::Path) -> Fault {
    let fault = Fault::of(error);
    match error {
        UnsealError::Nobody(_) => Fault { exit: 4, ..fault }
            .hint(format!("start it with `doorward broker {}`", dir.display())),
        UnsealError::Late => Fault { exit: 4, ..fault },
        UnsealError::WrongPassphrase => fault.hint("the broker is still sealed; try again"),
        UnsealError::Failed { cause, ended, .. } => {
            let fault = Fault { cause: cause.clone(), ..fault };
            fault.hint(match ended {
                true => {
                    "the seal opened, the start failed and the broker has ended; `doorward \
                         doctor DIR` looks at the directory and the machine"
                }
                false => "the broker is still sealed",
            })
        }
        UnsealError::Io { .. } => fault.hint("run it as root or as the broker's own user"),
        UnsealError::Untrusted { .. } => fault.hint("nothing was sent; look who runs there"),
        _ => fault,
    }
}
